"""Several adapters of one structure as the blocks of a single one; no spec can say this yet.

Every block's LoRA and prefix read the layer's input: their products are added, their prefixes stand
one behind the other. The bottlenecks work in turn: the next one reads what the ones before it gave.

    y  = W x + b + Σⱼ sⱼ · Bⱼ Aⱼ x
    K  = [g₁ · P₁; … gₖ · Pₖ; K], V alike
    fⱼ = fⱼ₋₁ + gⱼ · uⱼ(LN₂(fⱼ₋₁ + x₁)), f₀ = FFN(x₁)
    h' = LN₂(fₖ + x₁)
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from upt_zoo.nn.adapter import LowRank, PreparedAdapter, PreparedLayer, Structure


def stack(blocks: Sequence[PreparedAdapter]) -> PreparedAdapter:
    """Return one adapter of equally structured blocks, with the first one's prompt and head."""
    first = blocks[0]
    structure = replace(
        first.structure,
        prefix_length=len(blocks) * first.structure.prefix_length,
        blocks=len(blocks),
    )
    layers = zip(*(block.layers for block in blocks), strict=True)
    stacked = tuple(_stack_layer(first.structure, layer) for layer in layers)
    return replace(first, structure=structure, layers=stacked)


def _stack_layer(structure: Structure, parts: Sequence[PreparedLayer]) -> PreparedLayer:
    keys = [part.prefix_keys for part in parts if part.prefix_keys is not None]
    values = [part.prefix_values for part in parts if part.prefix_values is not None]
    return PreparedLayer(
        attention_in=_side_by_side(structure, [part.attention_in for part in parts]),
        attention_out=_side_by_side(structure, [part.attention_out for part in parts]),
        ffn_up=_side_by_side(structure, [part.ffn_up for part in parts]),
        ffn_down=_side_by_side(structure, [part.ffn_down for part in parts]),
        bottleneck=parts[0].bottleneck,
        prefix_keys=torch.cat(keys) if keys else None,
        prefix_values=torch.cat(values) if values else None,
        more_bottlenecks=tuple(p.bottleneck for p in parts[1:] if p.bottleneck is not None),
    )


def _side_by_side(structure: Structure, parts: Sequence[LowRank | None]) -> LowRank | None:
    """Lay all parts' columns side by side: the ranks', then the gates of LoRA, then of prefixes."""
    present = [part for part in parts if part is not None]
    if not present:
        return None
    rank = present[0].up.shape[0]
    lora_gates = rank // structure.lora_rank if structure.is_lora_gated else 0
    bounds = (slice(rank), slice(rank, rank + lora_gates), slice(rank + lora_gates, None))
    return LowRank(
        down=torch.cat([part.down[:, where] for where in bounds for part in present], 1),
        bias=torch.cat([part.bias[where] for where in bounds for part in present]),
        up=torch.cat([part.up for part in present]),
        gates=sum(part.gates for part in present),
    )
