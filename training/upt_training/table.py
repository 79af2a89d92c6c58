"""The paper's table out of run records alone: tasks by methods, mean and spread over seeds."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import get_args

from upt_training.recipe import Method
from upt_training.records import Record, read_record
from upt_zoo.errors import NotFound
from upt_zoo.tasks import TASKS, find_task


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One method on one task: the deciding metric on ``split``, in percent, one value a seed.

    ``served_parameters`` are without the head; of full fine-tuning, all that were trained.
    """

    task: str
    method: str
    metric: str
    split: str
    values: tuple[float, ...]
    served_parameters: int

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """Standard deviation over the seeds (n - 1); None for a single one."""
        return stdev(self.values) if len(self.values) > 1 else None

    def __str__(self) -> str:
        spread = "" if self.deviation is None else f" ± {self.deviation:.1f}"
        return f"{self.mean:.1f}{spread}"

    def as_json(self) -> dict[str, object]:
        """Return all of it for JSON."""
        return {**asdict(self), "mean": self.mean, "deviation": self.deviation}


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
    """Put the runs of a task and method together, in the order of the catalogue.

    ``split`` None is each task's first dev file. Runs without a figure for it are left out.
    """
    grouped: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        grouped.setdefault((record.recipe.task, record.recipe.method), []).append(record)
    cells = (_cell(*key, runs, split) for key, runs in sorted(grouped.items(), key=_order))
    return [cell for cell in cells if cell is not None]


def as_markdown(cells: Sequence[Cell]) -> str:
    """Lay the cells out as a table; the last row has the served parameters."""
    methods = [method for method in get_args(Method) if any(c.method == method for c in cells)]
    tasks = list(dict.fromkeys(cell.task for cell in cells))
    found = {(cell.task, cell.method): cell for cell in cells}
    rows = [["task", "metric", *methods], ["---"] * (len(methods) + 2)]
    for task in tasks:
        shown = [str(found.get((task, method), "")) for method in methods]
        rows.append([task, next(c.metric for c in cells if c.task == task), *shown])
    parameters = {cell.method: cell.served_parameters for cell in cells}
    rows.append(["parameters", "", *(f"{parameters[method]:,}" for method in methods)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(task: str, method: str, runs: Sequence[Record], split: str | None) -> Cell | None:
    metric = find_task(task).metrics[0]
    names = [name for name in runs[0].metrics if name.endswith(f"/{metric}")]
    wanted = f"{split}/{metric}" if split else next(iter(names), "")
    values = tuple(run.metrics[wanted] for run in runs if wanted in run.metrics)
    if not values:
        return None
    is_full = method == "full"
    return Cell(
        task=task,
        method=method,
        metric=metric,
        split=wanted.partition("/")[0],
        values=values,
        served_parameters=runs[0].trained_parameters if is_full else runs[0].served_parameters,
    )


def _order(item: tuple[tuple[str, str], object]) -> tuple[int, int]:
    (task, method), _ = item
    return list(TASKS).index(task), get_args(Method).index(method)
