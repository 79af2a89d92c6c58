"""The paper's table out of run records alone: tasks by methods, mean and spread over seeds."""

import csv
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev

from upt_training.methods import METHODS
from upt_training.recipe import task_of
from upt_training.records import Record, read_record
from upt_zoo.errors import InvalidInput, NotFound
from upt_zoo.tasks import TASKS, Metric, find_task

Key = tuple[str, int | None, str]  # task, train rows, variant of the method
NOT_RUN = "not run"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One method on one task: the deciding metric on ``split``, in percent, one value a seed.

    ``train_rows`` is what the recipes asked for, None where they took all. Parameters are counted
    as in records, ``served_parameters`` without the head and ``trained_parameters`` with it; but
    what full fine-tuning and ``bitfit`` train counts as served.
    """

    task: str
    method: str
    metric: str
    split: str
    values: tuple[float, ...]
    served_parameters: int
    trained_parameters: int
    head_parameters: int
    train_rows: int | None = None

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """Standard deviation over the seeds (n - 1); None for a single one."""
        return stdev(self.values) if len(self.values) > 1 else None

    @property
    def row(self) -> str:
        """The table's row that it stands in."""
        return row_name(self.task, self.train_rows)

    def __str__(self) -> str:
        spread = "" if self.deviation is None else f" ± {self.deviation:.1f}"
        return f"{self.mean:.1f}{spread}"

    def as_json(self) -> dict[str, object]:
        """Return all of it for JSON."""
        return {**asdict(self), "mean": self.mean, "deviation": self.deviation}


_COUNTS: Mapping[str, Callable[[Cell], int]] = {
    "parameters served": lambda cell: cell.served_parameters,
    "parameters trained": lambda cell: cell.trained_parameters - cell.head_parameters,
    "trained, with head": lambda cell: cell.trained_parameters,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which rows and columns a table shows, whether run or not, in this order; empty is all run."""

    rows: tuple[tuple[str, int | None], ...] = ()
    methods: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, *, tasks: Sequence[str], train_rows: Sequence[int], methods: Sequence[str]
    ) -> "Choice":
        """Choose tasks, each learnt from these numbers of rows, else from all, and methods.

        Raises:
            InvalidInput: no such method, or rows of no task.
        """
        if train_rows and not tasks:
            raise InvalidInput("--train-rows: expected --task NAME beside it")
        for method in methods:
            if method.partition("-")[0] not in METHODS:
                known = ", ".join(METHODS)
                raise InvalidInput(f"--method: expected one of {known}, got {method!r}")
        rows = tuple((task, count) for task in tasks for count in train_rows or (None,))
        return cls(rows=rows, methods=tuple(methods))

    def of_records(self, records: Iterable[Record], against: str | None = None) -> list[Record]:
        """Return the records that are chosen, and those of the method ``against``."""
        wanted = {*self.methods, against} if self.methods else None
        return [
            record
            for record in records
            if not self.rows or (record.recipe.task_name, record.recipe.train_rows) in self.rows
            if wanted is None or record.recipe.variant in wanted
        ]


ALL = Choice()


def read_records(folder: Path) -> list[Record]:
    """Read every record of a folder.

    Raises:
        Corrupt: a file is not a record.
        NotFound: there is none.
    """
    records = [read_record(file) for file in sorted(folder.glob("*.json"))]
    if not records:
        raise NotFound(
            f"no run records in {folder}; `upt-train run --records {folder}` writes them"
        )
    return records


def cells_of(records: Iterable[Record], *, split: str | None = None) -> list[Cell]:
    """Put the runs of a task, its train rows and a method together, in the catalogue's order.

    ``split`` None is each task's first dev file. Runs without a figure for it are left out.
    """
    cells = (_cell(runs, split) for runs in runs_of(records).values())
    return [cell for cell in cells if cell is not None]


def runs_of(records: Iterable[Record]) -> dict[Key, list[Record]]:
    """Put records together that differ in seed alone, in the catalogue's order."""
    grouped: dict[Key, list[Record]] = {}
    for record in records:
        recipe = record.recipe
        key = (recipe.task_name, recipe.train_rows, recipe.variant)
        grouped.setdefault(key, []).append(record)
    return {key: grouped[key] for key in sorted(grouped, key=_order)}


def row_name(task: str, train_rows: int | None) -> str:
    """Name the table's row of a task, learnt from all rows or from so many."""
    return task if train_rows is None else f"{task} ({train_rows:,} rows)"


def figure_of(record: Record, split: str | None) -> tuple[str, Metric]:
    """Name the split and the deciding metric of a run's figure; split None is the first file's."""
    metric = task_of(record.recipe).metrics[0]
    figures = (name.partition("/") for name in record.metrics)
    return split or next((file for file, _, name in figures if name == metric), ""), metric


def as_csv(rows: Sequence[Mapping[str, object]]) -> str:
    """Lay rows of the same keys out as CSV with a header; several values stand in one cell."""
    lines = io.StringIO()
    writer = csv.DictWriter(lines, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        cells = {key: "" if value is None else value for key, value in row.items()}
        writer.writerow(
            {k: " ".join(map(str, v)) if isinstance(v, tuple) else v for k, v in cells.items()}
        )
    return lines.getvalue()


def as_markdown(cells: Sequence[Cell], choice: Choice = ALL) -> str:
    """Lay the cells out as a table; the last rows count a column's parameters, least to most.

    Raises:
        NotFound: the catalogue has no task of the choice that was not run.
    """
    methods = choice.methods or sorted({cell.method for cell in cells}, key=place_of)
    metrics = {cell.row: cell.metric for cell in cells}
    for task, train_rows in choice.rows:
        if row_name(task, train_rows) not in metrics:
            metrics[row_name(task, train_rows)] = find_task(task).metrics[0]
    names = [row_name(*row) for row in choice.rows] or list(metrics)
    found = {(cell.row, cell.method): str(cell) for cell in cells}
    rows = [["task", "metric", *methods], ["---"] * (len(methods) + 2)]
    for name in names:
        shown = [found.get((name, method), NOT_RUN) for method in methods]
        rows.append([name, metrics[name], *shown])
    for name, count in _COUNTS.items():
        counts = ([count(cell) for cell in cells if cell.method == method] for method in methods)
        rows.append([name, "", *map(_span, counts)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(runs: Sequence[Record], split: str | None) -> Cell | None:
    recipe = runs[0].recipe
    split, metric = figure_of(runs[0], split)
    wanted = f"{split}/{metric}"
    values = tuple(run.metrics[wanted] for run in runs if wanted in run.metrics)
    if not values:
        return None
    return Cell(
        task=recipe.task_name,
        method=recipe.variant,
        metric=metric,
        split=split,
        values=values,
        served_parameters=_served(runs[0]),
        trained_parameters=runs[0].trained_parameters,
        head_parameters=runs[0].head_parameters,
        train_rows=recipe.train_rows,
    )


def _order(key: Key) -> tuple[int, str, float, int, str]:
    task, rows, method = key
    place = list(TASKS).index(task) if task in TASKS else len(TASKS)
    return place, task, rows or math.inf, *place_of(method)


def place_of(variant: str) -> tuple[int, str]:
    """Order variants as the methods are, and those of one method by name."""
    return list[str](METHODS).index(variant.partition("-")[0]), variant


def _span(counts: Sequence[int]) -> str:
    if not counts:
        return NOT_RUN
    return " to ".join(f"{count:,}" for count in sorted({min(counts), max(counts)}))


def _served(run: Record) -> int:
    if run.recipe.traits.learns_backbone:
        return run.trained_parameters - run.head_parameters
    return run.served_parameters
