"""Verdicts: figures by hand, and when there is one."""

from dataclasses import replace

import numpy as np
import pytest

from upt_training.outcomes import Outcomes
from upt_training.verdict import Rival, Verdict, judge, without_reading
from upt_zoo.errors import Conflict
from upt_zoo.references import Reference
from upt_zoo.spec import HeadKind
from upt_zoo.tasks import Metric, find_task

NEW, OLD = Reference.parse("tickets:1.0.1"), Reference.parse("tickets:1.0.0")
TASK = find_task("sst2")  # decided by accuracy


def outcomes(right: int, wrong: int, *, start: int = 0) -> Outcomes:
    """Rows of two labels in turn, the wrong ones from ``start`` on."""
    gold = np.arange(right + wrong, dtype=np.float64)[:, None] % 2
    got = gold.copy()
    got[start : start + wrong] = 1 - got[start : start + wrong]
    return Outcomes(gold=gold, got=got)


def judged(own: Outcomes, other: Outcomes, reference: Reference | None = OLD) -> Verdict:
    rival = Rival(name=str(reference), reference=reference, outcomes=other)
    return judge(TASK, NEW, own, rival, resamples=200)


def test_what_is_better_for_certain_is_promoted() -> None:
    found = judged(outcomes(95, 5), outcomes(70, 30))
    assert (found.decision, found.points) == ("promote", 25.0)
    assert (found.figure, found.rival_figure) == (95.0, 70.0)
    assert 0 < found.interval.low < 25 < found.interval.high
    assert found.command == "upt-zoo tag tickets:1.0.1 stable"
    assert found.sentence.startswith(
        "promote tickets:1.0.1: it is better than tickets:1.0.0 (accuracy 95.0 against 70.0, +25.0"
    )


def test_what_is_worse_for_certain_gives_the_name_back() -> None:
    found = judged(outcomes(70, 30), outcomes(95, 5))
    assert found.decision == "keep"
    assert found.command == "upt-zoo yank tickets:1.0.1"
    assert found.sentence.startswith("do not promote tickets:1.0.1: it is worse than tickets:1.0.0")


def test_what_cannot_be_told_is_not_promoted() -> None:
    found = judged(outcomes(95, 5), outcomes(95, 5, start=50))
    assert (found.decision, found.points) == ("undecided", 0.0)
    assert "100 rows do not tell it from tickets:1.0.0" in found.sentence
    assert found.command == "upt-zoo yank tickets:1.0.1"


def test_equal_answers_differ_by_nothing_in_each_resample() -> None:
    """The rows are drawn together: drawn apart, equal answers would seem to differ."""
    found = judged(outcomes(80, 20), outcomes(80, 20))
    assert (found.interval.low, found.interval.high) == (0.0, 0.0)


def test_different_rows_are_not_compared() -> None:
    with pytest.raises(Conflict, match="were measured on different rows"):
        judged(outcomes(10, 0), outcomes(11, 0))


def test_a_first_version_stands_beside_the_commonest_label() -> None:
    gold = np.array([[1.0]] * 70 + [[0.0]] * 30)
    own = Outcomes(gold=gold, got=gold)
    rival = without_reading(TASK, own)
    found = judge(TASK, NEW, own, rival, resamples=200)
    assert found.rival_figure == 70.0
    assert (found.decision, found.other) == ("promote", None)
    useless = judge(TASK, NEW, rival.outcomes, rival, resamples=200)
    assert (useless.decision, useless.command) == ("undecided", None)
    assert "do not tell it from always giving the commonest label" in useless.sentence


@pytest.mark.parametrize(
    ("kind", "metrics", "gold", "got"),
    [
        ("regression", ("pearson",), [[1.0], [2.0], [4.0]], [[7 / 3]] * 3),
        ("embedding", ("spearmanr",), [[1.0], [2.0], [4.0]], [[7 / 3]] * 3),
        ("multi_label", ("accuracy",), [[1.0, 0], [1, 1], [1, 0]], [[1.0, 0]] * 3),
        ("span", ("f1",), [[], [], []], [[0.0]] * 3),
        ("token_classification", ("f1",), [[1.0], [2], [0]], [[0.0, 0]] * 3),
    ],
)
def test_the_answer_that_needs_no_text(
    kind: HeadKind, metrics: tuple[Metric, ...], gold: list[list[float]], got: list[list[float]]
) -> None:
    task = replace(TASK, kind=kind, metrics=metrics)
    own = Outcomes(gold=np.array(gold).reshape(3, -1), got=np.array(got))
    assert without_reading(task, own).outcomes.got.tolist() == pytest.approx(np.array(got))
