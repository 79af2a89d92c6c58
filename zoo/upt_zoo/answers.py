"""From logits to answers: labels, numbers and spans; one path for evaluation and serving.

Pure: numpy arrays in, frozen values out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from upt_zoo.spec import AdapterSpec, Head
from upt_zoo.tokenization import TokenRow

Logits = NDArray[np.float32]
MAX_ANSWER_TOKENS = 30  # as in the original BERT and DistilBERT question answering
_CANDIDATES = 20  # starts and ends considered per window


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelAnswer:
    """The most probable label; ``scores`` are the probabilities in the order of the labels."""

    label: str
    index: int
    score: float
    scores: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelSetAnswer:
    """Every label whose own probability reaches the head's threshold."""

    labels: tuple[str, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueAnswer:
    """A regression's value, in the unit of the training labels."""

    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanAnswer:
    """A span [start, end) in characters (code points) of the context.

    ``score`` is the span's probability among the candidates of all windows.
    """

    text: str
    start: int
    end: int
    score: float


Answer = LabelAnswer | LabelSetAnswer | ValueAnswer | SpanAnswer


def answer(
    spec: AdapterSpec, texts: tuple[str, ...], rows: Sequence[TokenRow], logits: Sequence[Logits]
) -> Answer:
    """Turn the logits of an input's rows into its answer.

    ``logits[i]`` belongs to ``rows[i]``: [outputs], or [token, 2] for spans.
    """
    if spec.head.kind == "span":
        return best_span(texts[1], rows, logits)
    (values,) = logits
    if spec.head.kind == "regression":
        return ValueAnswer(value=float(values[0]))
    labels = spec.head.labels or ()
    if spec.head.kind == "multi_label":
        return _label_set(spec.head, labels, values)
    scores = _softmax(values / np.float32(spec.head.temperature))
    index = int(np.argmax(scores))
    return LabelAnswer(
        label=labels[index],
        index=index,
        score=float(scores[index]),
        scores=tuple(float(score) for score in scores),
    )


def best_span(context: str, rows: Sequence[TokenRow], logits: Sequence[Logits]) -> SpanAnswer:
    """Return the best span over all windows by start logit + end logit.

    An empty context, or one without a single token, gives the empty span at 0.
    """
    candidates = [
        candidate
        for row, values in zip(rows, logits, strict=True)
        for candidate in _window_spans(row, values)
    ]
    if not candidates:
        return SpanAnswer(text="", start=0, end=0, score=0.0)
    scores = _softmax(np.array([score for score, _, _ in candidates], dtype=np.float32))
    best = int(np.argmax(scores))
    _, start, end = candidates[best]
    return SpanAnswer(text=context[start:end], start=start, end=end, score=float(scores[best]))


def _window_spans(row: TokenRow, logits: Logits) -> list[tuple[float, int, int]]:
    """Return (score, start, end) of the window's best spans, in characters of the context."""
    offsets = row.offsets or ()
    positions = np.array([i for i, offset in enumerate(offsets) if offset is not None], dtype=int)
    starts = positions[np.argsort(-logits[positions, 0], kind="stable")[:_CANDIDATES]]
    ends = positions[np.argsort(-logits[positions, 1], kind="stable")[:_CANDIDATES]]
    spans = []
    for first in starts:
        for last in ends:
            start, end = offsets[first], offsets[last]
            if start is None or end is None or not 0 <= last - first < MAX_ANSWER_TOKENS:
                continue
            spans.append((float(logits[first, 0] + logits[last, 1]), start[0], end[1]))
    return sorted(spans, reverse=True)[:_CANDIDATES]


def _label_set(head: Head, labels: tuple[str, ...], values: Logits) -> LabelSetAnswer:
    probabilities = 1 / (1 + np.exp(-values / np.float32(head.temperature)))
    threshold = 0.5 if head.threshold is None else head.threshold
    return LabelSetAnswer(
        labels=tuple(
            label
            for label, probability in zip(labels, probabilities, strict=True)
            if probability >= threshold
        ),
        scores=tuple(float(probability) for probability in probabilities),
    )


def _softmax(values: Logits) -> Logits:
    exponentials = np.exp(values - values.max())
    return np.asarray(exponentials / exponentials.sum(), dtype=np.float32)
