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

    ``interval`` is of a paired bootstrap: both methods are resampled on the same rows. ``task`` is
    ``average`` for the mean over tasks that learnt from as many rows.
    """

    task: str
    train_rows: int | None
    metric: str
    method: str
    against: str
    points: float
    interval: Interval

    @property
    def row(self) -> str:
        """The table's row that it stands in."""
        return row_name(self.task, self.train_rows)

    def as_json(self) -> dict[str, object]:
        """Return all of it for JSON, the interval's ends beside the rest."""
        return {k: v for k, v in asdict(self).items() if k != "interval"} | asdict(self.interval)


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """Points of ``method`` above the other one that somebody else reports.

    ``row`` is one of the table of differences, such as ``rte`` or ``average (500 rows)``;
    ``source`` says whose figure it is, and of which encoder.
    """

    row: str
    method: str
    points: float
    source: str


_Resampled = tuple[Difference, NDArray[np.float64]]  # beside it, points of each resample


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

    Rows stand in the table's order, averages last; an average is over the tasks that the method
    shares with ``against``, if they are more than one, and apart for each number of rows that was
    learnt from. WNLI counts in none, as in GLUE's papers: its dev file was made to mislead.

    Raises:
        NotFound: no records of ``against`` with outcomes beside another method's.
        Conflict: two records of a task are of different data.
    """
    runs = {
        key: [run for run in group if figure_of(run, split)[0] in run.outcomes]
        for key, group in runs_of(records).items()
    }
    found: list[_Resampled] = []
    for (task, train_rows, variant), own in runs.items():
        other = runs.get((task, train_rows, against), [])
        if own and other and variant != against:
            pair = _Pair(own, other, split)
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
    names = dict.fromkeys(each.row for each in differences)
    cells = {(each.row, each.method): f"{each.points:+.1f} {each.interval}" for each in differences}
    rows = [[f"against {differences[0].against}", *methods], ["---"] * (len(methods) + 1)]
    rows += [[name, *(cells.get((name, method), "") for method in methods)] for name in names]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


class _Pair:
    """Two methods' outcomes on the same rows, one of each a seed."""

    def __init__(self, own: Sequence[Record], other: Sequence[Record], split: str | None) -> None:
        self.recipe, self.task = own[0].recipe, task_of(own[0].recipe)
        self.metric: Metric = self.task.metrics[0]
        self.against = other[0].recipe.variant
        self._own, self._other = (
            [run.outcomes[figure_of(run, split)[0]].unpack() for run in runs]
            for runs in (own, other)
        )
        first = self._own[0]
        self.rows = len(first)
        for each in (*self._own, *self._other):
            if len(each) != self.rows or not np.array_equal(each.gold, first.gold):
                name = row_name(self.recipe.task_name, self.recipe.train_rows)
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


def _difference(pair: _Pair, resamples: int) -> _Resampled:
    values = resampled(pair.points, pair.rows, resamples)
    difference = Difference(
        task=pair.recipe.task_name,
        train_rows=pair.recipe.train_rows,
        metric=pair.metric,
        method=pair.recipe.variant,
        against=pair.against,
        points=round(pair.points(np.arange(pair.rows)), 4),
        interval=Interval.of(values),
    )
    return difference, values


def _averages(found: Sequence[_Resampled]) -> list[Difference]:
    alike: dict[tuple[int | None, str], list[_Resampled]] = {}
    for each, values in found:
        if each.task != _NOT_AVERAGED:
            alike.setdefault((each.train_rows, each.method), []).append((each, values))
    averages = []
    for (train_rows, method), mine in alike.items():
        if len(mine) > 1:
            averages.append(
                Difference(
                    task=AVERAGE,
                    train_rows=train_rows,
                    metric="",
                    method=method,
                    against=mine[0][0].against,
                    points=round(fmean(each.points for each, _ in mine), 4),
                    interval=Interval.of(np.mean([values for _, values in mine], axis=0)),
                )
            )
    return averages
