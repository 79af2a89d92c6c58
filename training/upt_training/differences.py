"""How much better one method is than another on the same rows, out of run records alone."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from upt_training.bootstrap import RESAMPLES, Interval, resampled
from upt_training.metrics import measure_one
from upt_training.outcomes import Rows
from upt_training.recipe import task_of
from upt_training.records import Record
from upt_training.row_files import read_rows
from upt_training.table import figure_of, place_of, row_name, runs_of
from upt_zoo.errors import Conflict, InvalidInput, NotFound
from upt_zoo.tasks import Metric

AVERAGE = "average"
_NOT_AVERAGED = "wnli"


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Points by which ``method`` is above ``against`` on a row of the table, mean over seeds.

    ``interval`` is of a paired bootstrap: both methods are resampled on the same rows.
    """

    row: str
    metric: str
    method: str
    against: str
    points: float
    interval: Interval

    def as_json(self) -> dict[str, object]:
        """Return all of it for JSON, the interval's ends beside the rest."""
        return {k: v for k, v in asdict(self).items() if k != "interval"} | asdict(self.interval)


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """Points of ``method`` above the other one that somebody else reports.

    ``row`` is a task or the average; ``source`` says whose figure it is, and of which encoder.
    """

    row: str
    method: str
    points: float
    source: str


def read_published(file: Path) -> list[Published]:
    """Read a table with the columns row, method, points and source.

    Raises:
        DataNotFound: there is no such file.
        InvalidInput: no table, another column is missing, or points that are no number.
    """
    found = []
    for number, row in enumerate(read_rows(file), start=1):
        names = [each.name for each in fields(Published)]
        if missing := [name for name in names if not row.get(name)]:
            raise InvalidInput(
                f"row {number} of {file.name}: expected {', '.join(names)}, got no "
                f"{' and no '.join(missing)}"
            )
        try:
            points = float(str(row["points"]))
        except ValueError:
            raise InvalidInput(
                f"row {number} of {file.name}: expected points as a number, got {row['points']!r}"
            ) from None
        texts = {name: str(row[name]) for name in ("row", "method", "source")}
        found.append(Published(points=points, **texts))
    return found


def differences_of(
    records: Iterable[Record],
    against: str,
    *,
    split: str | None = None,
    resamples: int = RESAMPLES,
) -> list[Difference]:
    """Compare every method with ``against`` where both have outcomes, and on average over rows.

    Rows stand in the table's order; an average is over the rows that the method shares with
    ``against``, if they are more than one. WNLI counts in none, as in GLUE's papers: its dev file
    was made to mislead.

    Raises:
        NotFound: no records of ``against`` with outcomes beside another method's.
        Conflict: two records of a task are of different data.
    """
    runs = {
        key: [run for run in group if _split_of(run, split) in run.outcomes]
        for key, group in runs_of(records).items()
    }
    found: list[tuple[Difference, NDArray[np.float64]]] = []
    for (task, train_rows, variant), own in runs.items():
        other = runs.get((task, train_rows, against), [])
        if own and other and variant != against:
            pair = _Pair(row_name(task, train_rows), own, other, split)
            found.append(_difference(pair, resamples))
    if not found:
        raise NotFound(
            f"no records of {against} with outcomes beside those of another method; records "
            f"written by an older version have none"
        )
    return [difference for difference, _ in found] + _averages(found)


def as_markdown(differences: Sequence[Difference]) -> str:
    """Lay differences out as a table: a row a task, a column a method."""
    methods = sorted({each.method for each in differences}, key=place_of)
    names = list(dict.fromkeys(each.row for each in differences if each.row != AVERAGE))
    cells = {(each.row, each.method): f"{each.points:+.1f} {each.interval}" for each in differences}
    rows = [[f"against {differences[0].against}", *methods], ["---"] * (len(methods) + 1)]
    for name in (*names, AVERAGE):
        shown = [cells.get((name, method), "") for method in methods]
        if any(shown):
            rows.append([name, *shown])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


class _Pair:
    """Two methods' outcomes on the same rows, one of each a seed."""

    def __init__(
        self, name: str, own: Sequence[Record], other: Sequence[Record], split: str | None
    ) -> None:
        self.name, self.task = name, task_of(own[0].recipe)
        self.metric: Metric = self.task.metrics[0]
        self.method, self.against = own[0].recipe.variant, other[0].recipe.variant
        self._own, self._other = (
            [run.outcomes[_split_of(run, split)].unpack() for run in runs] for runs in (own, other)
        )
        first = self._own[0]
        self.rows = len(first)
        for each in (*self._own, *self._other):
            if len(each) != self.rows or not np.array_equal(each.gold, first.gold):
                raise Conflict(
                    f"the records of {name} are of different data: compare runs that were "
                    f"evaluated on the same file"
                )

    def points(self, rows: Rows) -> float:
        own, other = (
            fmean(measure_one(self.task, self.metric, each.take(rows)) for each in outcomes)
            for outcomes in (self._own, self._other)
        )
        return own - other


def _difference(pair: _Pair, resamples: int) -> tuple[Difference, NDArray[np.float64]]:
    values = resampled(pair.points, pair.rows, resamples)
    difference = Difference(
        row=pair.name,
        metric=pair.metric,
        method=pair.method,
        against=pair.against,
        points=round(pair.points(np.arange(pair.rows)), 4),
        interval=Interval.of(values),
    )
    return difference, values


def _averages(found: Sequence[tuple[Difference, NDArray[np.float64]]]) -> list[Difference]:
    averages = []
    averaged = [each for each in found if each[0].row.partition(" ")[0] != _NOT_AVERAGED]
    for method in dict.fromkeys(difference.method for difference, _ in averaged):
        mine = [(each, values) for each, values in averaged if each.method == method]
        if len(mine) > 1:
            averages.append(
                Difference(
                    row=AVERAGE,
                    metric="",
                    method=method,
                    against=mine[0][0].against,
                    points=round(fmean(each.points for each, _ in mine), 4),
                    interval=Interval.of(np.mean([values for _, values in mine], axis=0)),
                )
            )
    return averages


def _split_of(record: Record, split: str | None) -> str:
    return figure_of(record, split).partition("/")[0]
