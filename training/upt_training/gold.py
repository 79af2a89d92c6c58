"""The gold answer of a row: how a column's value is read for each kind of head.

Values come from JSON and Parquet as they are and from CSV as texts; both are read here.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from upt_zoo.tasks import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldSpans:
    """All accepted answers of a question; ``starts`` are code points of the context."""

    texts: tuple[str, ...]
    starts: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldTags:
    """The words of a text, each [start, end) in its characters with the number of its tag."""

    words: tuple[tuple[int, int], ...]
    tags: tuple[int, ...]


Gold = int | float | frozenset[int] | GoldSpans | GoldTags


def join_words(value: object) -> tuple[str, tuple[tuple[int, int], ...]]:
    """Put words behind each other, one blank in between; return the text and where each stands.

    Raises:
        ValueError: the value is no list of words.
    """
    words = _parsed(value) if isinstance(value, str) else value
    if not isinstance(words, list) or not all(isinstance(w, str) and w.strip() for w in words):
        raise ValueError(f"expected a list of words, got {value!r:.40}")
    ends = [end - 1 for end in accumulate(len(word) + 1 for word in words)]
    places = tuple((end - len(word), end) for word, end in zip(words, ends, strict=True))
    return " ".join(words), places


def tags_of(task: Task, value: object, words: tuple[tuple[int, int], ...]) -> GoldTags:
    """Read the tags of a row with these words, each by its name or number.

    Raises:
        ValueError: the value is no list of as many tags of the task.
    """
    tags = _parsed(value) if isinstance(value, str) else value
    if not isinstance(tags, list) or len(tags) != len(words):
        size = f"{len(tags)} of them" if isinstance(tags, list) else f"{value!r:.40}"
        raise ValueError(f"expected a list of {len(words)} tags, one a word, got {size}")
    return GoldTags(words=words, tags=tuple(_label(task.labels or (), tag) for tag in tags))


def gold_of(task: Task, value: object, texts: tuple[str, ...]) -> Gold:
    """Read the gold answer of a row with these texts.

    It is the number of a label, the numbers of a set of labels, a value, which for an embedding
    says how alike both texts are, or spans of the last text. Tags are read by ``tags_of``.
    A label is given by its name, or by its number from 0 unless the labels are numbers themselves.

    Raises:
        ValueError: the value is none; the message says what was expected.
    """
    if task.kind in ("regression", "embedding"):
        return _value(value)
    if task.kind == "classification":
        return _label(task.labels or (), value)
    if isinstance(value, str):
        value = _parsed(value)
    if task.kind == "multi_label":
        return _label_set(task.labels or (), value)
    return _spans(value, texts[-1])


def _value(value: object) -> float:
    try:
        number = float(value) if isinstance(value, str | int | float) else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"expected a number, got {value!r:.40}")
    return number


def _label(labels: Sequence[str], value: object) -> int:
    name = str(value).lower() if isinstance(value, bool) else str(value)
    if name in labels:
        return labels.index(name)
    number = None if any(_is_whole(label) for label in labels) else _whole(value)
    if number is None or number not in range(len(labels)):
        raise ValueError(f"expected one of {', '.join(labels)}, or its number, got {value!r:.40}")
    return number


def _label_set(labels: Sequence[str], value: object) -> frozenset[int]:
    if not isinstance(value, list):
        raise ValueError(f"expected a list of labels, got {value!r:.40}")
    return frozenset(_label(labels, each) for each in value)


def _whole(value: object) -> int | None:
    if isinstance(value, str):
        return int(value) if _is_whole(value) else None
    is_whole = isinstance(value, int | float) and value == value // 1
    return int(value) if is_whole and isinstance(value, int | float) else None


def _is_whole(text: str) -> bool:
    return text.isascii() and text.removeprefix("-").isdigit()


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"expected JSON in the cell, got {text!r:.40} ({error})") from error


def _spans(value: object, context: str) -> GoldSpans:
    if not isinstance(value, Mapping) or not value.keys() >= {"text", "answer_start"}:
        raise ValueError("expected an object with text and answer_start")
    texts, starts = value["text"], value["answer_start"]
    if not isinstance(texts, list) or not isinstance(starts, list) or not texts:
        raise ValueError("expected lists of one or more in text and answer_start")
    if len(texts) != len(starts):
        raise ValueError(f"expected as many starts as answers, got {len(starts)} and {len(texts)}")
    for text, start in zip(texts, starts, strict=True):
        if not _is_at(text, start, context):
            raise ValueError(
                f"expected the answer {text!r:.40} at character {start} of the context"
            )
    return GoldSpans(texts=tuple(texts), starts=tuple(starts))


def _is_at(text: object, start: object, context: str) -> bool:
    if not isinstance(text, str) or not isinstance(start, int):
        return False
    return start >= 0 and context[start : start + len(text)] == text
