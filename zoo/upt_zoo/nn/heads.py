"""From last hidden states to logits; heads see the real tokens only."""

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from upt_zoo.nn.adapter import PreparedHead
from upt_zoo.nn.packing import Batch, Segment


def row_logits(batch: Batch, hidden: Float[Tensor, "token hidden"]) -> list[Tensor]:
    """Return each row's logits in the caller's order, as ``head_logits`` forms them.

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
) -> Sequence[Tensor]:
    bounds = batch.starts[segment.rows.start : segment.rows.stop + 1]
    lengths = [stop - start for start, stop in pairwise(bounds)]
    return head_logits(segment.adapter.head, real[segment.real_tokens], lengths)


def head_logits(
    head: PreparedHead, tokens: Float[Tensor, "real hidden"], lengths: Sequence[int]
) -> Sequence[Tensor]:
    """Return the logits of rows of these lengths, whose real tokens stand one behind the other.

    They are [output], or [real token, output] for a head that reads each token; an embedding's are
    the pooled vector itself, [hidden].
    """
    tokens = tokens.to(head.out[0].dtype)
    if head.spec.is_per_token:
        return torch.split(_apply(head, tokens), list(lengths))
    if head.spec.pooling == "mean":
        pooled = torch.stack([part.mean(0) for part in torch.split(tokens, list(lengths))])
    else:
        pooled = tokens[[0, *accumulate(lengths[:-1])]]
    if head.spec.kind == "embedding":
        return pooled.unbind(0)
    return _apply(head, pooled).unbind(0)


def _apply(head: PreparedHead, x: Float[Tensor, "row hidden"]) -> Float[Tensor, "row output"]:
    if head.dense is not None:
        x = torch.tanh(functional.linear(x, *head.dense))
    return functional.linear(x, *head.out)
