"""The tensors of an adapter (docs/format.md, "The tensors")."""

import math
import struct
from dataclasses import dataclass
from typing import Any

from second_reader.forms import fail, is_count, is_int, is_text, list_of, map_to, need, parse_json

_MAX_HEADER_BYTES = 2**20


@dataclass(frozen=True)
class Tensor:
    """Numbers, row-major."""

    shape: tuple[int, ...]
    numbers: tuple[float, ...]


def shapes_of(spec: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the tensors that a spec asks for."""
    layers, d = spec["backbone"]["layers"], spec["backbone"]["hidden"]
    shapes: dict[str, tuple[int, ...]] = {}
    if prompt := spec["prompt"]:
        shapes["prompt"] = (prompt["length"], d)
    if prefix := spec["prefix"]:
        shapes["prefix.keys"] = shapes["prefix.values"] = (layers, prefix["length"], d)
        gates = 1 if prefix["gates"] == "shared" else 2
        shapes |= _gate("prefix.gate", prefix, (layers, gates), d)
    if bottleneck := spec["bottleneck"]:
        m = bottleneck["size"]
        shapes["bottleneck.down.weight"] = (layers, m, d)
        shapes["bottleneck.down.bias"] = (layers, m)
        shapes["bottleneck.up.weight"] = (layers, d, m)
        shapes["bottleneck.up.bias"] = (layers, d)
        shapes |= _gate("bottleneck.gate", bottleneck, (layers,), d)
    return shapes | _lora(spec) | _head(spec["head"], d)


def _gate(
    name: str, component: dict[str, Any], gates: tuple[int, ...], size: int
) -> dict[str, tuple[int, ...]]:
    if not component["gated"]:
        return {}
    return {f"{name}.weight": (*gates, size), f"{name}.bias": gates}


def _lora(spec: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    lora, backbone = spec["lora"], spec["backbone"]
    layers, d, wide = backbone["layers"], backbone["hidden"], backbone["intermediate"]
    shapes: dict[str, tuple[int, ...]] = {}
    for target in lora["targets"] if lora else ():
        size_in, size_out = {"ffn_up": (d, wide), "ffn_down": (wide, d)}.get(target, (d, d))
        shapes[f"lora.{target}.a"] = (layers, lora["rank"], size_in)
        shapes[f"lora.{target}.b"] = (layers, size_out, lora["rank"])
        shapes |= _gate(f"lora.{target}.gate", lora, (layers,), size_in)
    return shapes


def _head(head: dict[str, Any], d: int) -> dict[str, tuple[int, ...]]:
    if head["kind"] == "embedding":
        return {}
    shapes: dict[str, tuple[int, ...]] = {}
    if head["layers"] == 2:
        shapes = {"head.dense.weight": (d, d), "head.dense.bias": (d,)}
    return shapes | {
        "head.out.weight": (head["outputs"], d),
        "head.out.bias": (head["outputs"],),
    }


def read_tensors(data: bytes, spec: dict[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of a file, which are those that the spec asks for."""
    need(len(data) >= 8, "tensors: cut")
    (length,) = struct.unpack("<Q", data[:8])
    need(length <= min(_MAX_HEADER_BYTES, len(data) - 8), "tensors: the header's length")
    header = parse_json(data[8 : 8 + length], "tensors")
    need(isinstance(header, dict), "tensors: no object")
    notes = header.pop("__metadata__", None)
    need(notes is None or map_to(is_text)(notes), "tensors: __metadata__")
    body, end = data[8 + length :], 0
    for entry in header.values():
        need(isinstance(entry, dict), "tensors: an entry")
        need(entry.keys() == {"dtype", "shape", "data_offsets"}, "tensors: an entry's keys")
        need(list_of(is_int, 2, 2)(entry["data_offsets"]), "tensors: offsets")
        need(list_of(is_count, 0, 8)(entry["shape"]), "tensors: a shape")
    tensors = {}
    for name, entry in sorted(header.items(), key=lambda item: tuple(item[1]["data_offsets"])):
        kind = {"F16": "e", "F32": "f"}.get(entry["dtype"]) or fail(f"tensor {name}: dtype")
        count = math.prod(entry["shape"])
        first, last = entry["data_offsets"]
        need((first, last) == (end, end + count * struct.calcsize(kind)), f"tensor {name}: offsets")
        need(last <= len(body), f"tensor {name}: cut")
        numbers = struct.unpack(f"<{count}{kind}", body[first:last])
        need(all(map(math.isfinite, numbers)), f"tensor {name}: not finite")
        tensors[name], end = Tensor(tuple(entry["shape"]), numbers), last
    need(end == len(body), "tensors: bytes behind the last one")
    need({name: tensor.shape for name, tensor in tensors.items()} == shapes_of(spec), "shapes")
    return tensors
