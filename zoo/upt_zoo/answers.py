"""From logits to answers: labels, numbers, spans, entities, vectors; for evaluation and serving.

Pure: numpy arrays in, frozen values out.
"""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from upt_zoo.entities import Entity, find_runs
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


@dataclass(frozen=True, slots=True, kw_only=True)
class EntitiesAnswer:
    """The entities of a text, in its order; perhaps none."""

    entities: tuple[Entity, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingAnswer:
    """The row's pooled vector, [hidden], of length 1 where the head normalises."""

    vector: tuple[float, ...]


Answer = LabelAnswer | LabelSetAnswer | ValueAnswer | SpanAnswer | EntitiesAnswer | EmbeddingAnswer


def answer(
    spec: AdapterSpec, texts: tuple[str, ...], rows: Sequence[TokenRow], logits: Sequence[Logits]
) -> Answer:
    """Turn the logits of an input's rows into its answer.

    ``logits[i]`` belongs to ``rows[i]``: [outputs], or [token, outputs] for a head that reads each
    token.

    Raises:
        Overflowed: a logit is not finite: the adapter's numbers are too large for this backbone.
    """
    if spec.head.is_per_token or spec.head.kind == "embedding":
        _check_finite(all(np.isfinite(values).all() for values in logits))
        return _of_arrays(spec.head, texts, rows, logits)
    # few numbers: beside a busy runner each operation of numpy costs more than all of these
    numbers: list[float] = logits[0].tolist()
    _check_finite(all(map(math.isfinite, numbers)))
    if spec.head.kind == "regression":
        return ValueAnswer(value=numbers[0])
    labels = spec.head.labels or ()
    if spec.head.kind == "multi_label":
        return _label_set(spec.head, labels, numbers)
    return _label(spec.head, labels, numbers)


def _check_finite(is_finite: bool) -> None:
    if not is_finite:
        raise Overflowed(
            "expected finite logits, got others: the adapter's numbers overflow; train it again, "
            "or serve another version"
        )


def _of_arrays(
    head: Head, texts: tuple[str, ...], rows: Sequence[TokenRow], logits: Sequence[Logits]
) -> Answer:
    if head.kind == "span":
        return best_span(texts[1], rows, scaled(head, logits))
    if head.kind == "embedding":
        return EmbeddingAnswer(vector=_vector(head, logits[0]))
    return EntitiesAnswer(entities=_entities(head, texts[0], rows, logits))


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


def word_logits(
    rows: Sequence[TokenRow], logits: Sequence[Logits]
) -> tuple[list[tuple[int, int]], Logits]:
    """Return each word's [start, end) and its logits [word, outputs], in the text's order.

    Of the windows that hold a word the one counts that shows more of what stands around it.
    """
    best: dict[tuple[int, int], tuple[int, Logits]] = {}
    for row, values in zip(rows, logits, strict=True):
        for place, word in enumerate(row.offsets or ()):
            seen = min(place, len(values) - 1 - place)
            if word is not None and (word not in best or seen > best[word][0]):
                best[word] = seen, values[place]
    chosen = [values for _, values in best.values()]
    return list(best), np.stack(chosen) if chosen else logits[0][:0]


def _entities(
    head: Head, text: str, rows: Sequence[TokenRow], logits: Sequence[Logits]
) -> tuple[Entity, ...]:
    labels = head.labels or ()
    words, values = word_logits(rows, scaled(head, logits))
    probabilities = _softmax(values)
    tags = [labels[index] for index in values.argmax(-1)]
    return tuple(
        Entity(
            label=label,
            text=text[words[first][0] : words[behind - 1][1]],
            start=words[first][0],
            end=words[behind - 1][1],
            score=float(probabilities[first:behind].max(-1).mean()),
        )
        for label, first, behind in find_runs(tags, labels)
    )


def _vector(head: Head, values: Logits) -> tuple[float, ...]:
    length = np.linalg.norm(values) if head.normalised else 1
    return tuple((values / np.maximum(length, np.float32(1e-12))).tolist())


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


def _label(head: Head, labels: tuple[str, ...], numbers: list[float]) -> LabelAnswer:
    largest = max(numbers)
    exponentials = [math.exp((number - largest) / head.temperature) for number in numbers]
    total = sum(exponentials)
    scores = _in_fp32([each / total for each in exponentials])
    index = numbers.index(largest)
    return LabelAnswer(label=labels[index], index=index, score=scores[index], scores=scores)


def _label_set(head: Head, labels: tuple[str, ...], numbers: list[float]) -> LabelSetAnswer:
    # the logistic function by tanh, because exp overflows
    half = 2 * head.temperature
    probabilities = _in_fp32([0.5 + 0.5 * math.tanh(number / half) for number in numbers])
    threshold = 0.5 if head.threshold is None else head.threshold
    return LabelSetAnswer(
        labels=tuple(
            label
            for label, probability in zip(labels, probabilities, strict=True)
            if probability >= threshold
        ),
        scores=probabilities,
    )


def _in_fp32(values: list[float]) -> tuple[float, ...]:
    """Round to what the wire carries."""
    form = f"{len(values)}f"
    return struct.unpack(form, struct.pack(form, *values))


def _softmax(values: Logits) -> Logits:
    """Return probabilities over the last axis."""
    exponentials = np.exp(values - values.max(-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(-1, keepdims=True), dtype=np.float32)
