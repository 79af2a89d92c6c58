"""An adapter laid out for the kernel: a table of pointers, and what they point at."""

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from upt_server.native import library
from upt_server.native.library import ACTIVATIONS, LANES, READINGS, SITES, floats
from upt_server.native.pages import LINE, LargePages, Place
from upt_zoo.nn.adapter import LowRank, PreparedAdapter, PreparedHead, PreparedLayer, Structure
from upt_zoo.spec import AdapterSpec

_PARTS = ("q", "k", "v")  # of the fused product's outputs


def held_in(spec: AdapterSpec, tensors: Mapping[str, Tensor]) -> torch.dtype:
    """Return fp16 where an adapter is published in it and its numbers are used as they are.

    They are not where LoRA is scaled (docs/format.md); such an adapter takes fp32 and twice the
    memory. The head is fp32 in any case.
    """
    lora = spec.lora
    is_scaled = lora is not None and not lora.gated and lora.alpha != lora.rank
    body = (tensor for name, tensor in tensors.items() if "head." not in name)
    is_half = all(tensor.dtype == torch.float16 for tensor in body)
    return torch.float16 if is_half and not is_scaled else torch.float32


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NativeAdapter(PreparedAdapter):
    """An adapter that is in the kernel's table alone: its tensors are shapes."""

    table: "AdapterTable"

    def size_bytes(self) -> int:
        """Memory that the table takes."""
        return self.table.size_bytes

    @classmethod
    def of(cls, adapter: PreparedAdapter, pages: LargePages) -> Self:
        """Move a prepared adapter into a table."""
        prompt, (weight, bias) = adapter.prompt, adapter.head.out
        return cls(
            structure=adapter.structure,
            prompt=None if prompt is None else prompt.to("meta"),
            layers=(),
            head=replace(adapter.head, dense=None, out=(weight.to("meta"), bias.to("meta"))),
            table=AdapterTable(adapter, pages),
        )


class AdapterTable:
    """The kernel's form of a prepared adapter, all of it at one place in ``pages``.

    Its weights are all fp32 or all fp16, its biases and its head fp32. ``columns`` is the widest
    low-rank component, ``sites`` has a bit for each site in use.
    """

    def __init__(self, adapter: PreparedAdapter, pages: LargePages) -> None:
        self.prompt_length = adapter.prompt_length
        self.prefix_length = adapter.structure.prefix_length
        assert adapter.layers, "its layers are in another table"
        self._place: Place | None = None  # slices of it do not keep it: it has to be held here
        self._build(adapter)  # only to see how much it takes
        self._place = pages.take(self.size_bytes)
        self._build(adapter)

    def _build(self, adapter: PreparedAdapter) -> None:
        structure = adapter.structure
        self.size_bytes = 0
        self.columns, self.sites = LANES, 0
        layers = (library.AdapterLayer * len(adapter.layers))()
        self.struct = library.Adapter(
            layers=layers,
            head=self._head(adapter.head),
            prefix_length=structure.prefix_length,
            prefix_gates=structure.prefix_gates,
            activation=ACTIVATIONS.index(structure.bottleneck_activation),
            is_bottleneck_gated=structure.is_bottleneck_gated,
        )
        if adapter.prompt is not None:
            self.struct.prompt = self._weights(adapter.prompt)
        for table, layer in zip(layers, adapter.layers, strict=True):
            self._fill(table, layer, structure)

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
            bias=self._floats(part.bias),
            rank=rank,
            gates=part.gates,
        )
        if part.up.shape[0]:
            is_whole = site == "bottleneck"
            table.up = self._weights(part.up if is_whole else _panels(site, part.up, structure))
        if site != "bottleneck" and structure.is_lora_gated and rank:
            table.lora_gates = rank // structure.lora_rank
        if site == "attention_in" and rank:
            table.parts, table.part_rank = len(_PARTS), structure.lora_rank
            table.part_start = _part_starts(structure)
        return table

    def _head(self, head: PreparedHead) -> library.AdapterHead:
        reading = READINGS[-1] if head.spec.is_per_token else head.spec.pooling
        table = library.AdapterHead(
            out=self._floats(head.out[0]),
            out_bias=self._floats(head.out[1]),
            outputs=head.out[0].shape[0],
            reading=READINGS.index(reading),
        )
        if head.dense is not None:
            table.dense, table.dense_bias = map(self._floats, head.dense)
        return table

    def _floats(self, tensor: Tensor) -> "library.FloatPointer":
        return floats(self._placed(tensor.float()))

    def _weights(self, tensor: Tensor) -> int:
        self.struct.is_half = tensor.dtype == torch.float16
        return int(self._placed(tensor).ctypes.data)

    def _placed(self, tensor: Tensor) -> NDArray[np.generic]:
        """Return the tensor's numbers, at the next free line of the place if there is one."""
        array: NDArray[np.generic] = np.ascontiguousarray(tensor.numpy())
        start, stop = self.size_bytes, self.size_bytes + array.nbytes
        self.size_bytes = -(-stop // LINE) * LINE
        if self._place is None:
            return array
        self._place[start:stop] = array.reshape(-1).view(np.uint8)
        return self._place[start:stop]


def _panels(site: str, up: Tensor, structure: Structure) -> Tensor:
    """Lay a LoRA's up [rank, output] out by panels of outputs, without blocks that are zero."""
    if site != "attention_in":
        return _by_panels(up)
    rank, outputs = structure.lora_rank, up.shape[1] // len(_PARTS)
    ups = [
        up[start : start + rank, part * outputs : (part + 1) * outputs]
        for part, start in enumerate(_part_starts(structure))
        if start >= 0
    ]
    return torch.cat([_by_panels(each) for each in ups])


def _by_panels(up: Tensor) -> Tensor:
    (rank, outputs), width = up.shape, library.panel()
    padded = torch.nn.functional.pad(up, (0, -outputs % width))
    return padded.view(rank, -1, width).transpose(0, 1).flatten()


def _part_starts(structure: Structure) -> "ctypes.Array[ctypes.c_int32]":
    present: Sequence[str] = [part for part in _PARTS if part in structure.lora_targets]
    starts = [
        present.index(part) * structure.lora_rank if part in present else -1 for part in _PARTS
    ]
    return (ctypes.c_int32 * len(_PARTS))(*starts)
