"""From examples to training batches: features, length buckets, losses.

A span example, like a text with tags, gives one feature a window; a window without the answer
points at [CLS]. A pair of texts to embed is one feature.
"""

import random
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from upt_training.data import Example
from upt_training.gold import Gold, GoldSpans, GoldTags
from upt_zoo.entities import inner_tag
from upt_zoo.spec import AdapterSpec
from upt_zoo.tokenization import Tokenizer, TokenRow

_POOL_BATCHES = 50  # batches sorted by length together: little padding, still well mixed
UNTAGGED = -1
Target: TypeAlias = int | float | frozenset[int] | tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """One training row and its target, or a pair of rows to embed.

    The target is a label or set of labels, a value, the answer's (first, last) token, or for each
    token the number of its word's tag, ``UNTAGGED`` for all but the first token of a word.
    """

    row: TokenRow
    target: Target
    other: TokenRow | None = None


def features_of(
    examples: Sequence[Example], spec: AdapterSpec, tokenizer: Tokenizer
) -> list[Feature]:
    """Tokenise examples into training rows.

    What is embedded has the similarities of these examples, from 0 for the least to 1 for the most,
    as targets.
    """
    if spec.head.kind == "embedding":
        return _pairs(examples, spec, tokenizer)
    inner = _inner_tags(spec.head.labels or ())
    return [
        Feature(row=row, target=_target(row, example.gold, inner))
        for example in examples
        for row in tokenizer.encode(spec.task, example.texts, kind=spec.head.kind)
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
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return the mean loss over the batch's rows.

    It is the cross-entropy, of start and end for spans, of each label for sets of labels, the mean
    over a row's words for tags; squared error for values, and for the cosine of two vectors, where
    ``logits`` are those of all ``row`` and then of all ``other``. Squared errors of values are in
    units of the targets' ``deviation``; with ``class_weights`` [label] a row counts as much as its
    label, of a set the labels that it has. ``label_smoothing`` of a row's target goes to all labels
    alike, where it has one.
    """
    if spec.head.kind == "token_classification":
        return _loss_of_tags(logits, batch)
    if spec.head.kind == "embedding":
        one, other = torch.stack(list(logits)).chunk(2)
        wanted = torch.tensor([feature.target for feature in batch], device=one.device)
        return functional.mse_loss(functional.cosine_similarity(one, other), wanted)
    if spec.head.kind == "span":
        padded = torch.nn.utils.rnn.pad_sequence(
            list(logits), batch_first=True, padding_value=float("-inf")
        )
        targets = torch.tensor([feature.target for feature in batch], device=padded.device)
        return functional.cross_entropy(padded, targets)
    stacked = torch.stack(list(logits))
    if spec.head.kind == "multi_label":
        return functional.binary_cross_entropy_with_logits(
            stacked, _indicators(batch, stacked), pos_weight=class_weights
        )
    targets = torch.tensor([feature.target for feature in batch], device=stacked.device)
    if spec.head.kind == "regression":
        return functional.mse_loss(stacked[:, 0] / deviation, targets.float() / deviation)
    losses = functional.cross_entropy(
        stacked,
        targets,
        weight=class_weights,
        reduction="none",
        label_smoothing=label_smoothing,
    )
    return losses.mean()


def _indicators(batch: Sequence[Feature], like: Tensor) -> Tensor:
    """Return [row, label] with 1 where the label is one of the row's."""
    targets = torch.zeros_like(like)
    for row, feature in enumerate(batch):
        if isinstance(feature.target, frozenset):
            targets[row, sorted(feature.target)] = 1.0
    return targets


def _loss_of_tags(logits: Sequence[Tensor], batch: Sequence[Feature]) -> Tensor:
    """Average over rows, so that rows computed in parts give the same mean."""
    losses = []
    for values, feature in zip(logits, batch, strict=True):
        targets = torch.tensor(feature.target, device=values.device)
        words = (targets != UNTAGGED).sum().clamp(min=1)  # a window may begin no word
        summed = functional.cross_entropy(values, targets, ignore_index=UNTAGGED, reduction="sum")
        losses.append(summed / words)
    return torch.stack(losses).mean()


def _pairs(examples: Sequence[Example], spec: AdapterSpec, tokenizer: Tokenizer) -> list[Feature]:
    values = [example.gold for example in examples if isinstance(example.gold, int | float)]
    least, most = min(values), max(values)
    features = []
    for example, value in zip(examples, values, strict=True):
        row, other = (
            tokenizer.encode(spec.task, (text,), kind=spec.head.kind)[0] for text in example.texts
        )
        target = (value - least) / ((most - least) or 1.0)
        features.append(Feature(row=row, target=target, other=other))
    return features


def _inner_tags(labels: Sequence[str]) -> list[int]:
    """Return by a tag's number that of the tag which goes on behind it."""
    return [labels.index(inner_tag(label, labels)) for label in labels]


def _target(row: TokenRow, gold: Gold, inner: Sequence[int]) -> Target:
    if isinstance(gold, GoldTags):
        return _word_tags(row, gold, inner)
    return _answer_tokens(row, gold) if isinstance(gold, GoldSpans) else gold


def _word_tags(row: TokenRow, gold: GoldTags, inner: Sequence[int]) -> tuple[int, ...]:
    """Return the tag of each token that begins a word of the tokenizer.

    It may split a word of the data, such as ``U.S.``: what follows the first piece goes on with it.
    """
    starts = [start for start, _ in gold.words]
    tags = []
    for word in row.offsets or ():
        if word is None:
            tags.append(UNTAGGED)
            continue
        place = bisect_right(starts, word[0]) - 1
        tag = gold.tags[place]
        tags.append(tag if word[0] == starts[place] else inner[tag])
    return tuple(tags)


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
