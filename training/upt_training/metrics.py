"""Metrics of answers against gold answers, in percent.

Sources: GLUE (Wang et al. 2018) for the GLUE tasks; "Don't Stop Pretraining" (Gururangan et al.
2020) for macro and micro F1; the SQuAD 1.1 evaluation (Rajpurkar et al. 2016) for exact match and
F1 of spans; CoNLL-2003 (Tjong Kim Sang and De Meulder 2003) for entities.
"""

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from upt_training.data import Example
from upt_training.gold import Gold, GoldSpans, GoldTags
from upt_training.outcomes import Numbers, Outcomes
from upt_zoo.answers import (
    Answer,
    EntitiesAnswer,
    LabelAnswer,
    LabelSetAnswer,
    SpanAnswer,
    ValueAnswer,
)
from upt_zoo.entities import find_runs
from upt_zoo.tasks import Metric, Task

EntityPlace = tuple[str, int, int]
_Score = Callable[[Numbers, Numbers], float]


def score(task: Task, examples: Sequence[Example], answers: Sequence[Answer]) -> dict[str, float]:
    """Return the task's metrics in percent, rounded to 4 places; the deciding one comes first."""
    return measure(task, outcomes_of(task, examples, answers))


def measure(task: Task, outcomes: Outcomes) -> dict[str, float]:
    """Return what ``score`` does, of outcomes.

    F1 of sets of labels is over all labels or their mean, accuracy that of whole sets; the mean of
    single labels is over those that occur. A
    correlation with constants is 0, as is an F1 where nothing is positive.
    """
    return {name: round(measure_one(task, name, outcomes), 4) for name in task.metrics}


def measure_one(task: Task, metric: Metric, outcomes: Outcomes) -> float:
    """Return one of the task's metrics in percent."""
    gold, got = outcomes.gold, outcomes.got
    if task.kind == "span":
        return 100 * float(np.mean(got.T[task.metrics.index(metric)]))
    if task.kind == "token_classification":
        return 100 * _of_entities(metric, *(part.sum() for part in (*gold.T, *got.T)))
    if task.kind in ("regression", "embedding") and 0 in (np.ptp(gold), np.ptp(got)):
        return 0.0
    if task.kind != "multi_label":
        gold, got = gold.ravel(), got.ravel()
    return 100 * float(_SCORES[metric](gold, got))


def outcomes_of(task: Task, examples: Sequence[Example], answers: Sequence[Answer]) -> Outcomes:
    """Put gold and given answers into columns; spans are scored, entities counted, row by row."""
    pairs = [
        _pair(task, example.gold, answer) for example, answer in zip(examples, answers, strict=True)
    ]
    gold, got = (np.array(column, dtype=np.float64) for column in zip(*pairs, strict=True))
    return Outcomes(gold=gold, got=got)


def _pair(task: Task, gold: Gold, answer: Answer) -> tuple[list[float], list[float]]:
    """Return a row's columns, gold and given."""
    if isinstance(answer, SpanAnswer) and isinstance(gold, GoldSpans):
        return [], [
            max(_SPAN_SCORES[name](answer.text, text) for text in gold.texts)
            for name in task.metrics
        ]
    if isinstance(answer, EntitiesAnswer) and isinstance(gold, GoldTags):
        wanted, found = gold_entities(task, gold), found_entities(answer)
        return [len(wanted)], [len(found), len(wanted & found)]
    if isinstance(answer, LabelSetAnswer) and isinstance(gold, frozenset):
        labels = task.labels or ()
        given = [float(label in answer.labels) for label in labels]
        return [float(number in gold) for number in range(len(labels))], given
    if isinstance(answer, LabelAnswer) and isinstance(gold, int):
        return [float(gold)], [float(answer.index)]
    if isinstance(answer, ValueAnswer) and isinstance(gold, int | float):
        return [float(gold)], [answer.value]
    raise TypeError(f"{answer!r} is no answer of {task.name}")


@dataclass(frozen=True, slots=True)
class _Counts:
    """Rows of each label: gold, given, both; one of single labels that never occurs has none.

    A thousand resamples take 0.1 s with these, seconds with functions that look at rows anew.
    """

    wanted: Numbers
    found: Numbers
    both: Numbers

    @classmethod
    def of(cls, gold: Numbers, got: Numbers) -> "_Counts":
        if gold.ndim == 2:
            return cls(gold.sum(0), got.sum(0), (gold * got).sum(0))
        wanted, found = gold.astype(int), got.astype(int)
        size = 1 + max(1, int(wanted.max()), int(found.max()))
        columns = (wanted, found, wanted[wanted == found])
        return cls(*(np.bincount(each, minlength=size).astype(np.float64) for each in columns))

    def f1(self) -> Numbers:
        """Return the F1 of each label, 0 where there is none."""
        return 2 * self.both / np.maximum(self.wanted + self.found, 1)


def _accuracy(gold: Numbers, got: Numbers) -> float:
    same = gold == got
    return float(np.mean(same if same.ndim == 1 else same.all(1)))


def _f1(gold: Numbers, got: Numbers) -> float:
    return float(_Counts.of(gold, got).f1()[1])


def _macro_f1(gold: Numbers, got: Numbers) -> float:
    counts = _Counts.of(gold, got)
    occurs = (counts.wanted + counts.found > 0) | (gold.ndim == 2)
    return float(counts.f1()[occurs].mean())


def _micro_f1(gold: Numbers, got: Numbers) -> float:
    counts = _Counts.of(gold, got)
    return float(2 * counts.both.sum() / max(1, counts.wanted.sum() + counts.found.sum()))


def _matthews_correlation(gold: Numbers, got: Numbers) -> float:
    """Return (c s - t·p) / √((s² - p·p)(s² - t·t)): c right ones of s rows, t gold, p given.

    Source: Gorodkin 2004 (Comparing two K-category assignments).
    """
    counts, rows = _Counts.of(gold, got), float(len(gold))
    chance = counts.wanted @ counts.found
    spread = (rows**2 - counts.found @ counts.found) * (rows**2 - counts.wanted @ counts.wanted)
    return float((counts.both.sum() * rows - chance) / math.sqrt(spread)) if spread else 0.0


_SCORES: dict[str, _Score] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "macro_f1": _macro_f1,
    "micro_f1": _micro_f1,
    "matthews_correlation": _matthews_correlation,
    "pearson": lambda gold, got: stats.pearsonr(gold, got).statistic,
    "spearmanr": lambda gold, got: stats.spearmanr(gold, got).statistic,
}


def gold_entities(task: Task, gold: GoldTags) -> set[EntityPlace]:
    """Return the entities that a row's tags say: label, and [start, end) in characters."""
    labels = task.labels or ()
    return {
        (label, gold.words[first][0], gold.words[behind - 1][1])
        for label, first, behind in find_runs([labels[tag] for tag in gold.tags], labels)
    }


def found_entities(answer: EntitiesAnswer) -> set[EntityPlace]:
    """Return the entities of an answer as ``gold_entities`` does."""
    return {(each.label, each.start, each.end) for each in answer.entities}


def _of_entities(metric: Metric, wanted: float, found: float, shared: float) -> float:
    """Return precision, recall or F1 of counts; an entity is right if all of it is."""
    both = {"precision": (shared, found), "recall": (shared, wanted)}
    part, whole = both.get(metric, (2 * shared, wanted + found))
    return float(part / whole) if whole else 0.0


def _normalised(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces, as the SQuAD evaluation does."""
    kept = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def _exact_match(got: str, gold: str) -> float:
    return float(_normalised(got) == _normalised(gold))


def _token_f1(got: str, gold: str) -> float:
    got_tokens, gold_tokens = _normalised(got).split(), _normalised(gold).split()
    shared = sum((Counter(got_tokens) & Counter(gold_tokens)).values())
    if not shared:
        return 0.0
    precision, recall = shared / len(got_tokens), shared / len(gold_tokens)
    return 2 * precision * recall / (precision + recall)


_SPAN_SCORES: dict[Metric, Callable[[str, str], float]] = {
    "exact_match": _exact_match,
    "f1": _token_f1,
}
