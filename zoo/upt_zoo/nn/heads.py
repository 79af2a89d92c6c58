"""From last hidden states to logits; heads see the real tokens only."""

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from upt_zoo.nn.adapter import PreparedHead
from upt_zoo.nn.packing import Batch, Segment


def row_logits(batch: Batch, hidden: Float[Tensor, "token hidden"]) -> list[Tensor]:
    """Return each row's logits in the caller's order: [output], or [real token, 2] for spans.

    ``hidden`` is the last layer's output in packed order.
    """
    real = hidden.index_select(0, batch.real_tokens)
    logits: list[Tensor] = [real] * len(batch.order)
    for group in batch.groups:
        for segment in group.segments:
            for row, values in enumerate(_segment_logits(batch, segment, real)):
                logits[batch.order[segment.rows.start + row]] = values
    return logits


def _segment_logits(
    batch: Batch, segment: Segment, real: Float[Tensor, "real hidden"]
) -> tuple[Tensor, ...]:
    head = segment.adapter.head
    bounds = batch.starts[segment.rows.start : segment.rows.stop + 1]
    tokens = real[segment.real_tokens].to(head.out[0].dtype)
    lengths = [stop - start for start, stop in pairwise(bounds)]
    if head.spec.kind == "span":
        return torch.split(_apply(head, tokens), lengths)
    if head.spec.pooling == "mean":
        pooled = torch.stack([part.mean(0) for part in torch.split(tokens, lengths)])
    else:
        pooled = tokens[[start - bounds[0] for start in bounds[:-1]]]
    return _apply(head, pooled).unbind(0)


def _apply(head: PreparedHead, x: Float[Tensor, "row hidden"]) -> Float[Tensor, "row output"]:
    if head.dense is not None:
        x = torch.tanh(functional.linear(x, *head.dense))
    return functional.linear(x, *head.out)
