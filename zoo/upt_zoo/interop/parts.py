"""What a foreign checkpoint holds, in our terms, before its task and its lineage are known."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from upt_zoo import layout
from upt_zoo.interop.weights import Wide, narrow
from upt_zoo.spec import (
    BackboneIdentity,
    Bottleneck,
    HeadKind,
    Lora,
    LoraTarget,
    Prefix,
    Prompt,
)
from upt_zoo.tensors import Array

TARGETS: tuple[LoraTarget, ...] = ("q", "k", "v", "o", "ffn_up", "ffn_down")
LINEARS: dict[LoraTarget, str] = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "o": "attention.output.dense",
    "ffn_up": "intermediate.dense",
    "ffn_down": "output.dense",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundHead:
    """A head; ``kind`` None is a pooled one whose file does not say what its outputs mean."""

    kind: HeadKind | None
    outputs: int
    layers: Literal[1, 2]
    labels: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Components, head and tensors under the names of ``upt_zoo.layout``."""

    head: FoundHead
    tensors: Mapping[str, Array]
    lora: Lora | None = None
    prefix: Prefix | None = None
    bottleneck: Bottleneck | None = None
    prompt: Prompt | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """LoRA on one linear layer: scale · B A, or with a gate (weight [in], bias []) instead."""

    a: Wide
    b: Wide
    scale: float
    gate: tuple[Wide, Wide] | None = None

    @property
    def rank(self) -> int:
        """r."""
        return len(self.a)


def stack_lora(
    backbone: BackboneIdentity, deltas: Mapping[tuple[int, LoraTarget], Delta]
) -> tuple[Lora, dict[str, Array]]:
    """Stack the deltas of (layer, target), of which there is at least one.

    Ranks that differ are filled up with zeros, scales that differ are folded into B, and a layer
    without a delta gets zeros, which add nothing.
    """
    first = next(iter(deltas.values()))
    rank = max(delta.rank for delta in deltas.values())
    is_gated = first.gate is not None
    is_uniform = first.scale > 0 and len({(d.rank, d.scale) for d in deltas.values()}) == 1
    targets = tuple(t for t in TARGETS if any(target == t for _, target in deltas))
    tensors: dict[str, Array] = {}
    for target in targets:
        size_in, size_out = layout.lora_sizes(backbone, target)
        a = np.zeros((backbone.layers, rank, size_in))
        b = np.zeros((backbone.layers, size_out, rank))
        gate_weight, gate_bias = np.zeros((backbone.layers, size_in)), np.zeros(backbone.layers)
        for layer in range(backbone.layers):
            delta = deltas.get((layer, target))
            if delta is None:
                continue
            a[layer, : delta.rank] = delta.a
            b[layer, :, : delta.rank] = delta.b * (1 if is_uniform or is_gated else delta.scale)
            if delta.gate is not None:
                gate_weight[layer], gate_bias[layer] = delta.gate
        tensors[layout.lora_a(target)] = narrow(a)
        tensors[layout.lora_b(target)] = narrow(b)
        if is_gated:
            tensors[layout.weight(layout.lora_gate(target))] = narrow(gate_weight)
            tensors[layout.bias(layout.lora_gate(target))] = narrow(gate_bias)
    alpha = first.scale * rank if is_uniform else float(rank)
    return Lora(rank=rank, alpha=alpha, targets=targets, gated=is_gated), tensors
