"""An adapter laid out for the kernel: in half the memory if it can, and a table of pointers."""

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from upt_server.native import library
from upt_server.native.library import ACTIVATIONS, LANES, SITES, floats
from upt_zoo.nn.adapter import LowRank, PreparedAdapter, PreparedLayer, Structure

_PARTS = ("q", "k", "v")  # of the fused product's outputs
_LINE = 64  # bytes of a cache line: every array of an adapter begins at one


def compact(adapter: PreparedAdapter) -> PreparedAdapter:
    """Return the adapter (fp32) with its layers in one piece of memory, in fp16 if that is exact.

    It is where no weight changes; published adapters are mostly fp16 (docs/format.md). Biases stay
    in fp32, as does the head.
    """
    weights = list(_weights(adapter))
    can_halve = all(torch.equal(each.half().float(), each) for each in weights)
    number = torch.float16 if can_halve else torch.float32
    biases = list(_biases(adapter))
    size = sum(_padded(each.numel() * number.itemsize) for each in weights)
    size += sum(_padded(each.nbytes) for each in biases)
    memory, used = torch.empty(size, dtype=torch.uint8), 0

    def placed(tensor: Tensor, dtype: torch.dtype) -> Tensor:
        nonlocal used
        start, used = used, used + _padded(tensor.numel() * dtype.itemsize)
        place = memory[start : start + tensor.numel() * dtype.itemsize].view(dtype)
        return place.view(tensor.shape).copy_(tensor)

    def weight(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else placed(tensor, number)

    def part(each: LowRank | None) -> LowRank | None:
        if each is None:
            return None
        down, bias = placed(each.down, number), placed(each.bias, torch.float32)
        return replace(each, down=down, bias=bias, up=placed(each.up, number))

    prompt = weight(adapter.prompt)
    layers = tuple(
        replace(
            layer,
            attention_in=part(layer.attention_in),
            attention_out=part(layer.attention_out),
            ffn_up=part(layer.ffn_up),
            ffn_down=part(layer.ffn_down),
            bottleneck=part(layer.bottleneck),
            prefix_keys=weight(layer.prefix_keys),
            prefix_values=weight(layer.prefix_values),
        )
        for layer in adapter.layers
    )
    return replace(adapter, prompt=prompt, layers=layers)


class AdapterTable:
    """The kernel's form of a prepared adapter; owns every array that ``struct`` points at.

    Its weights are all fp32 or all fp16, its biases fp32. ``columns`` is the widest low-rank
    component, ``sites`` has a bit for each site in use.
    """

    def __init__(self, adapter: PreparedAdapter) -> None:
        self._kept: list[NDArray[np.generic]] = []
        structure = adapter.structure
        self.columns, self.sites = LANES, 0
        self.prompt_length, self.prefix_length = adapter.prompt_length, structure.prefix_length
        layers = (library.AdapterLayer * len(adapter.layers))()
        for table, layer in zip(layers, adapter.layers, strict=True):
            self._fill(table, layer, structure)
        self.struct = library.Adapter(
            layers=layers,
            prefix_length=structure.prefix_length,
            prefix_gates=structure.prefix_gates,
            activation=ACTIVATIONS.index(structure.bottleneck_activation),
            is_bottleneck_gated=structure.is_bottleneck_gated,
            is_half=any(each.dtype == torch.float16 for each in _weights(adapter)),
        )
        if adapter.prompt is not None:
            self.struct.prompt = self._weights(adapter.prompt)

    def _fill(
        self, table: library.AdapterLayer, layer: PreparedLayer, structure: Structure
    ) -> None:
        for index, site in enumerate(SITES):
            part: LowRank | None = getattr(layer, site)
            if part is not None:
                table.sites[index] = self._low_rank(site, part, structure)
                self.sites |= 1 << index
        if layer.prefix_keys is not None and layer.prefix_values is not None:
            table.prefix_keys = self._weights(layer.prefix_keys)
            table.prefix_values = self._weights(layer.prefix_values)

    def _low_rank(self, site: str, part: LowRank, structure: Structure) -> library.LowRank:
        rank = part.down.shape[1] - part.gates
        self.columns = max(self.columns, -(-part.down.shape[1] // LANES) * LANES)
        table = library.LowRank(
            down=self._weights(part.down),
            bias=floats(self._kept_array(part.bias)),
            rank=rank,
            gates=part.gates,
        )
        if part.up.shape[0]:
            table.up = self._weights(part.up)
        if site != "bottleneck" and structure.is_lora_gated and rank:
            table.lora_gates = rank // structure.lora_rank
        if site == "attention_in" and rank:
            table.parts, table.part_rank = len(_PARTS), structure.lora_rank
            table.part_start = _part_starts(structure)
        return table

    def _weights(self, tensor: Tensor) -> int:
        return int(self._kept_array(tensor).ctypes.data)

    def _kept_array(self, tensor: Tensor) -> NDArray[np.generic]:
        array: NDArray[np.generic] = np.ascontiguousarray(tensor.numpy())
        self._kept.append(array)
        return array


def _parts(adapter: PreparedAdapter) -> Iterator[LowRank]:
    for layer in adapter.layers:
        for site in SITES:
            part: LowRank | None = getattr(layer, site)
            if part is not None:
                yield part


def _weights(adapter: PreparedAdapter) -> Iterator[Tensor]:
    """Yield what the kernel may hold in fp16."""
    prefixes = [(layer.prefix_keys, layer.prefix_values) for layer in adapter.layers]
    found = [adapter.prompt, *chain.from_iterable(prefixes)]
    yield from (each for each in found if each is not None)
    for part in _parts(adapter):
        yield from (part.down, part.up)


def _biases(adapter: PreparedAdapter) -> Iterator[Tensor]:
    yield from (part.bias for part in _parts(adapter))


def _padded(size_bytes: int) -> int:
    return -(-size_bytes // _LINE) * _LINE


def _part_starts(structure: Structure) -> "ctypes.Array[ctypes.c_int32]":
    present: Sequence[str] = [part for part in _PARTS if part in structure.lora_targets]
    starts = [
        present.index(part) * structure.lora_rank if part in present else -1 for part in _PARTS
    ]
    return (ctypes.c_int32 * len(_PARTS))(*starts)
