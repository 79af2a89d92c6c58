"""Whether an adapter is to be promoted: beside what stands before it, on the same rows. Pure.

The first version of an adapter stands beside the best answer that needs no text.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from upt_training.bootstrap import RESAMPLES, Interval, resampled
from upt_training.metrics import measure_one
from upt_training.outcomes import Numbers, Outcomes, Rows
from upt_zoo.errors import Conflict
from upt_zoo.references import Reference
from upt_zoo.tasks import Metric, Task

PROMOTED = "stable"  # the alias that a verdict speaks of

Decision = Literal["promote", "keep", "undecided"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rival:
    """What an adapter stands beside; ``reference`` is None where it is no adapter."""

    name: str
    reference: Reference | None
    outcomes: Outcomes


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """``points`` of the deciding metric by which ``adapter`` is above ``rival`` on ``rows`` rows.

    ``interval`` is of a paired bootstrap: both are resampled on the same rows. Without ``other``
    the rival is no adapter. All figures are in percent.
    """

    adapter: Reference
    rival: str
    other: Reference | None
    metric: Metric
    rows: int
    figure: float
    rival_figure: float
    points: float
    interval: Interval

    @property
    def decision(self) -> Decision:
        """Promote what is better with 95 % certainty, keep the rival where that is."""
        if self.interval.low > 0:
            return "promote"
        return "keep" if self.interval.high < 0 else "undecided"

    @property
    def sentence(self) -> str:
        """Say it in a line."""
        said = {
            "promote": f"promote {self.adapter}: it is better than {self.rival}",
            "keep": f"do not promote {self.adapter}: it is worse than {self.rival}",
            "undecided": (
                f"do not promote {self.adapter} yet: {self.rows:,} rows do not tell it from "
                f"{self.rival}"
            ),
        }[self.decision]
        return (
            f"{said} ({self.metric} {self.figure:.1f} against {self.rival_figure:.1f}, "
            f"{self.points:+.1f} points, 95 % {self.interval})"
        )

    @property
    def command(self) -> str | None:
        """Return the command that follows from it, None where there is none.

        A bare name means the newest version, promoted or not: yanking it gives the name back.
        """
        if self.decision == "promote":
            return f"upt-zoo tag {self.adapter} {PROMOTED}"
        return None if self.other is None else f"upt-zoo yank {self.adapter}"


def judge(
    task: Task,
    adapter: Reference,
    outcomes: Outcomes,
    rival: Rival,
    *,
    resamples: int = RESAMPLES,
) -> Verdict:
    """Compare an adapter's outcomes with a rival's by the task's deciding metric.

    Raises:
        Conflict: they are of different rows.
    """
    if not np.array_equal(outcomes.gold, rival.outcomes.gold):
        raise Conflict(f"{adapter} and {rival.name} were measured on different rows")
    metric, everything = task.metrics[0], np.arange(len(outcomes))
    points = partial(_points, task, metric, outcomes, rival.outcomes)
    return Verdict(
        adapter=adapter,
        rival=rival.name,
        other=rival.reference,
        metric=metric,
        rows=len(outcomes),
        figure=round(measure_one(task, metric, outcomes), 4),
        rival_figure=round(measure_one(task, metric, rival.outcomes), 4),
        points=round(points(everything), 4),
        interval=Interval.of(resampled(points, len(outcomes), resamples)),
    )


def without_reading(task: Task, outcomes: Outcomes) -> Rival:
    """Return the rival that always gives one answer: the commonest, or the mean."""
    gold, got = outcomes.gold, np.zeros_like(outcomes.got)
    names = {
        "classification": "always giving the commonest label",
        "multi_label": "always giving the labels that most rows have",
        "regression": "always giving the mean",
        "embedding": "always giving the mean",
    }
    if task.kind in names:
        got = np.broadcast_to(_constant(task, gold), gold.shape)
    return Rival(
        name=names.get(task.kind, "finding nothing"),
        reference=None,
        outcomes=Outcomes(gold=gold, got=got),
    )


def _constant(task: Task, gold: Numbers) -> Numbers:
    if task.kind == "classification":
        return np.array([np.bincount(gold.ravel().astype(int)).argmax()], dtype=np.float64)
    mean = np.asarray(gold.mean(0), dtype=np.float64)
    return np.round(mean) if task.kind == "multi_label" else mean


def _points(task: Task, metric: Metric, own: Outcomes, other: Outcomes, rows: Rows) -> float:
    return measure_one(task, metric, own.take(rows)) - measure_one(task, metric, other.take(rows))
