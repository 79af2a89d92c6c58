"""From examples to training batches: features, length buckets, losses.

A span example gives one feature a window; a window without the answer points at [CLS].
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from upt_training.data import Example
from upt_training.gold import Gold, GoldSpans
from upt_zoo.spec import AdapterSpec
from upt_zoo.tokenization import Tokenizer, TokenRow

_POOL_BATCHES = 50  # batches sorted by length together: little padding, still well mixed


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """One training row: a label or set of labels, a value, or the answer's (first, last) token."""

    row: TokenRow
    target: int | float | frozenset[int] | tuple[int, int]


def features_of(
    examples: Sequence[Example], spec: AdapterSpec, tokenizer: Tokenizer
) -> list[Feature]:
    """Tokenise examples into training rows."""
    is_span = spec.head.kind == "span"
    return [
        Feature(row=row, target=_target(row, example.gold))
        for example in examples
        for row in tokenizer.encode(spec.task, example.texts, is_span=is_span)
    ]


def batches_of(
    features: Sequence[Feature], batch_size: int, *, seed: int, epoch: int
) -> list[list[Feature]]:
    """Shuffle by (seed, epoch) into batches of similar lengths; the last may be smaller."""
    shuffler = random.Random(f"{seed}/{epoch}")
    order = list(range(len(features)))
    shuffler.shuffle(order)
    pool = batch_size * _POOL_BATCHES
    batches = []
    for start in range(0, len(order), pool):
        chunk = sorted(order[start : start + pool], key=lambda index: len(features[index].row.ids))
        batches += [chunk[at : at + batch_size] for at in range(0, len(chunk), batch_size)]
    shuffler.shuffle(batches)
    return [[features[index] for index in batch] for batch in batches]


def loss_of(
    spec: AdapterSpec,
    logits: Sequence[Tensor],
    batch: Sequence[Feature],
    *,
    deviation: float,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Return the mean loss over the batch's rows.

    It is the cross-entropy, of start and end for spans and of each label for sets of labels;
    squared error for values. Squared errors are in units of the targets' ``deviation``; with
    ``class_weights`` [label] a row counts as much as its label.
    """
    if spec.head.kind == "span":
        padded = torch.nn.utils.rnn.pad_sequence(
            list(logits), batch_first=True, padding_value=float("-inf")
        )
        targets = torch.tensor([feature.target for feature in batch])
        return functional.cross_entropy(padded, targets)
    stacked = torch.stack(list(logits))
    if spec.head.kind == "multi_label":
        return functional.binary_cross_entropy_with_logits(stacked, _indicators(batch, stacked))
    targets = torch.tensor([feature.target for feature in batch])
    if spec.head.kind == "regression":
        return functional.mse_loss(stacked[:, 0] / deviation, targets.float() / deviation)
    losses = functional.cross_entropy(stacked, targets, weight=class_weights, reduction="none")
    return losses.mean()


def _indicators(batch: Sequence[Feature], like: Tensor) -> Tensor:
    """Return [row, label] with 1 where the label is one of the row's."""
    targets = torch.zeros_like(like)
    for row, feature in enumerate(batch):
        if isinstance(feature.target, frozenset):
            targets[row, sorted(feature.target)] = 1.0
    return targets


def _target(row: TokenRow, gold: Gold) -> int | float | frozenset[int] | tuple[int, int]:
    return _answer_tokens(row, gold) if isinstance(gold, GoldSpans) else gold


def _answer_tokens(row: TokenRow, gold: GoldSpans) -> tuple[int, int]:
    """Return the first gold answer's first and last token; (0, 0), [CLS], if it is not here."""
    start, end = gold.starts[0], gold.starts[0] + len(gold.texts[0])
    inside = [
        index
        for index, offset in enumerate(row.offsets or ())
        if offset is not None and offset[0] < end and offset[1] > start
    ]
    if not inside:
        return 0, 0
    first, last = (row.offsets or ())[inside[0]], (row.offsets or ())[inside[-1]]
    is_whole = first is not None and last is not None and first[0] <= start and end <= last[1]
    return (inside[0], inside[-1]) if is_whole else (0, 0)
