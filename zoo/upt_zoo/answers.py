"""From logits to answers: labels, numbers and spans; one path for evaluation and serving.

Pure: numpy arrays in, frozen values out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from upt_zoo.errors import Overflowed
from upt_zoo.spec import AdapterSpec, Head
from upt_zoo.tokenization import TokenRow

Logits = NDArray[np.float32]
MAX_ANSWER_TOKENS = 30  # as in the original BERT and DistilBERT question answering
_CANDIDATES = 20  # best spans of each window that share the probability


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

    Raises:
        Overflowed: a logit is not finite: the adapter's numbers are too large for this backbone.
    """
    if not all(np.isfinite(values).all() for values in logits):
        raise Overflowed(
            "expected finite logits, got others: the adapter's numbers overflow; train it again, "
            "or serve another version"
        )
    if spec.head.kind == "span":
        return best_span(texts[1], rows, scaled(spec.head, logits))
    (values,) = logits
    if spec.head.kind == "regression":
        return ValueAnswer(value=float(values[0]))
    labels = spec.head.labels or ()
    if spec.head.kind == "multi_label":
        return _label_set(spec.head, labels, values)
    scores = _softmax(scaled(spec.head, logits)[0])
    index = int(np.argmax(scores))
    return LabelAnswer(
        label=labels[index],
        index=index,
        score=float(scores[index]),
        scores=tuple(float(score) for score in scores),
    )


def scaled(head: Head, logits: Sequence[Logits]) -> list[Logits]:
    """Divide logits by the head's temperature."""
    return [values / np.float32(head.temperature) for values in logits]


def best_span(context: str, rows: Sequence[TokenRow], logits: Sequence[Logits]) -> SpanAnswer:
    """Return the best span over all windows by start logit + end logit.

    An empty context, or one without a single token, gives the empty span at 0.
    """
    return best_spans(context, rows, logits, 1)[0]


def best_spans(
    context: str, rows: Sequence[TokenRow], logits: Sequence[Logits], count: int
) -> tuple[SpanAnswer, ...]:
    """Return the ``count`` best spans over all windows, best first; never none.

    Each window brings its 20 best; a span that several windows have counts once, by its best score.
    """
    candidates: dict[tuple[int, int], float] = {}
    for row, values in zip(rows, logits, strict=True):
        for span, score in _window_spans(row, values):  # windows overlap: a span may come twice
            candidates[span] = max(score, candidates.get(span, score))
    if not candidates:
        return (SpanAnswer(text="", start=0, end=0, score=0.0),)
    spans = list(candidates)
    scores = _softmax(np.array(list(candidates.values()), dtype=np.float32))
    return tuple(
        SpanAnswer(
            text=context[slice(*spans[place])],
            start=spans[place][0],
            end=spans[place][1],
            score=float(scores[place]),
        )
        for place in np.argsort(-scores, kind="stable")[:count]
    )


def span_logits(
    span: SpanAnswer, rows: Sequence[TokenRow], logits: Sequence[Logits]
) -> tuple[float, float] | None:
    """Return the span's start and end logit in the window that scores it best; None for no span."""
    best: tuple[float, float] | None = None
    for row, values in zip(rows, logits, strict=True):
        offsets = [(-1, -1) if offset is None else offset for offset in row.offsets or ()]
        starts = [place for place, (start, _) in enumerate(offsets) if start == span.start]
        ends = [place for place, (_, end) in enumerate(offsets) if end == span.end]
        for first, last in product(starts, ends):
            pair = float(values[first, 0]), float(values[last, 1])
            if first <= last and (best is None or sum(pair) > sum(best)):
                best = pair
    return best


def _window_spans(row: TokenRow, logits: Logits) -> list[tuple[tuple[int, int], float]]:
    """Return the window's best spans, [start, end) in characters of the context, and scores."""
    places = [place for place, offset in enumerate(row.offsets or ()) if offset is not None]
    offsets = [offset for offset in row.offsets or () if offset is not None]
    if not places:
        return []
    # scores[i, k]: the span of k + 1 tokens from token i on; behind the last token there is none
    beyond = np.full(MAX_ANSWER_TOKENS - 1, -np.inf, dtype=np.float32)
    ends = np.concatenate([logits[places, 1], beyond])
    scores = logits[places, 0][:, None] + sliding_window_view(ends, MAX_ANSWER_TOKENS)
    best = np.argsort(-scores, axis=None, kind="stable")[:_CANDIDATES]
    firsts, extras = np.unravel_index(best, scores.shape)
    return [
        ((offsets[first][0], offsets[first + extra][1]), float(scores[first, extra]))
        for first, extra in zip(firsts, extras, strict=True)
        if first + extra < len(offsets)
    ]


def _label_set(head: Head, labels: tuple[str, ...], values: Logits) -> LabelSetAnswer:
    # the logistic function by tanh, because exp overflows
    probabilities = 0.5 + 0.5 * np.tanh(values / np.float32(2 * head.temperature))
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
