"""Where answers are wrong, and how sure the figures are; pure, and without a word of the texts."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from sklearn import metrics as sklearn_metrics

from upt_training.bootstrap import RESAMPLES, Interval, resampled
from upt_training.calibration import Calibration, calibration_of
from upt_training.data import Example
from upt_training.gold import Gold, GoldSpans, GoldTags
from upt_training.metrics import (
    found_entities,
    gold_entities,
    measure,
    measure_one,
    outcomes_of,
)
from upt_training.outcomes import Outcomes, Rows
from upt_zoo.answers import (
    Answer,
    EntitiesAnswer,
    LabelAnswer,
    LabelSetAnswer,
    SpanAnswer,
    ValueAnswer,
)
from upt_zoo.tasks import Metric, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Mistake:
    """A wrong row, numbered from 1 as in its file.

    ``weight`` is the probability of a wrong label, the number of wrong labels of a set, a value's
    distance, what a span lacks to an F1 of 1, or the number of entities missed or made up. ``gold``
    and ``given`` are labels or numbers, of spans and entities characters [start, end).
    """

    row: int
    gold: str
    given: str
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What can be said of answers to labelled rows.

    ``confusion`` counts rows by gold (first axis) and given label; it and ``calibration`` are of
    single labels only, None elsewhere. ``mistakes`` are the worst ones, the worst first.
    """

    task: Task
    rows: int
    metrics: dict[str, float]
    intervals: dict[str, Interval]
    confusion: tuple[tuple[int, ...], ...] | None
    calibration: Calibration | None
    mistakes: tuple[Mistake, ...]


def inspect(
    task: Task,
    examples: Sequence[Example],
    answers: Sequence[Answer],
    *,
    worst: int,
    resamples: int = RESAMPLES,
) -> Inspection:
    """Measure answers, with intervals by bootstrap, and find the ``worst`` mistakes."""
    outcomes = outcomes_of(task, examples, answers)
    labels = [
        (example.gold, answer)
        for example, answer in zip(examples, answers, strict=True)
        if isinstance(answer, LabelAnswer)
    ]
    mistakes = [
        mistake
        for number, (example, answer) in enumerate(zip(examples, answers, strict=True), 1)
        for mistake in [_mistake(task, number, example.gold, answer)]
        if mistake is not None
    ]
    return Inspection(
        task=task,
        rows=len(examples),
        metrics=measure(task, outcomes),
        intervals={
            metric: Interval.of(
                resampled(partial(_figure, task, metric, outcomes), len(examples), resamples)
            )
            for metric in task.metrics
        },
        confusion=_confusion(task, labels) if labels else None,
        calibration=calibration_of(
            [answer.score for _, answer in labels],
            [gold == answer.index for gold, answer in labels],
        )
        if labels
        else None,
        mistakes=tuple(sorted(mistakes, key=lambda each: (-each.weight, each.row))[:worst]),
    )


def _figure(task: Task, metric: Metric, outcomes: Outcomes, rows: Rows) -> float:
    return measure_one(task, metric, outcomes.take(rows))


def _confusion(
    task: Task, labels: Sequence[tuple[Gold, LabelAnswer]]
) -> tuple[tuple[int, ...], ...]:
    counts = sklearn_metrics.confusion_matrix(
        [gold for gold, _ in labels],
        [answer.index for _, answer in labels],
        labels=range(len(task.labels or ())),
    )
    return tuple(tuple(row) for row in counts.tolist())


def _mistake(task: Task, row: int, gold: Gold, answer: Answer) -> Mistake | None:
    """Return what is wrong with a row, None if nothing is."""
    labels = task.labels or ()
    if isinstance(answer, LabelAnswer) and isinstance(gold, int):
        if gold == answer.index:
            return None
        return Mistake(row=row, gold=labels[gold], given=answer.label, weight=answer.score)
    if isinstance(answer, LabelSetAnswer) and isinstance(gold, frozenset):
        wanted = [label for number, label in enumerate(labels) if number in gold]
        weight = float(len(set(wanted) ^ set(answer.labels)))
        given = ", ".join(answer.labels)
        return (
            Mistake(row=row, gold=", ".join(wanted), given=given, weight=weight) if weight else None
        )
    if isinstance(answer, EntitiesAnswer) and isinstance(gold, GoldTags):
        return _mistake_of_entities(task, row, gold, answer)
    if task.kind == "embedding":  # a cosine has no unit in common with its gold value
        return None
    if isinstance(answer, ValueAnswer) and isinstance(gold, int | float):
        weight = abs(answer.value - gold)
        return Mistake(row=row, gold=f"{gold:g}", given=f"{answer.value:.2f}", weight=weight)
    if isinstance(answer, SpanAnswer) and isinstance(gold, GoldSpans):
        return _mistake_of_span(task, row, gold, answer)
    raise TypeError(f"{answer!r} is no answer of {task.name}")


def _mistake_of_span(task: Task, row: int, gold: GoldSpans, answer: SpanAnswer) -> Mistake | None:
    example = Example(texts=(), gold=gold)
    weight = 1 - measure_one(task, "f1", outcomes_of(task, [example], [answer])) / 100
    start, end = gold.starts[0], gold.starts[0] + len(gold.texts[0])
    if weight == 0:
        return None
    given = f"[{answer.start}, {answer.end})"
    return Mistake(row=row, gold=f"[{start}, {end})", given=given, weight=weight)


def _mistake_of_entities(
    task: Task, row: int, gold: GoldTags, answer: EntitiesAnswer
) -> Mistake | None:
    wanted, found = gold_entities(task, gold), found_entities(answer)
    if wanted == found:
        return None
    missed, made_up = (
        ", ".join(f"{label} [{start}, {end})" for label, start, end in sorted(each))
        for each in (wanted - found, found - wanted)
    )
    return Mistake(row=row, gold=missed, given=made_up, weight=float(len(wanted ^ found)))
