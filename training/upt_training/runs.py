"""The runs behind a table: what each cost and reached, and the command that runs it again."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from upt_training.records import Record, record_file
from upt_training.table import figure_of, row_name, runs_of

# what is a method's own, and what no result depends on
_MAY_DIFFER = {
    *("method", "has_gates", "blocks", "initial_adapter", "is_prefix_reparametrised"),
    *("lora_factor", "gate_bias", "gate_rate_share", "adapter_rate", "backbone_rate"),
    *("seed", "rows_at_once", "search"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run: ``figure`` is the deciding metric in percent, None where the record has none.

    ``command`` trains it again and leaves the zoo as it is.
    """

    row: str
    method: str
    seed: int
    figure: float | None
    epochs: int
    best_epoch: int
    batch_size: int
    steps: int
    minutes: float
    precision: str
    command: str

    def as_json(self) -> dict[str, object]:
        """Return all of it for JSON."""
        return asdict(self)


def listed(records: Iterable[Record], folder: Path, *, split: str | None = None) -> list[Run]:
    """List the runs of a folder in the table's order, seeds in theirs."""
    return [
        Run(
            row=row_name(task, train_rows),
            method=method,
            seed=record.recipe.seed,
            figure=record.metrics.get("/".join(figure_of(record, split))),
            epochs=record.recipe.epochs,
            best_epoch=record.best_epoch,
            batch_size=record.recipe.batch_size,
            steps=record.steps,
            minutes=round(record.seconds / 60, 1),
            precision=record.recipe.precision,
            command=command_of(record, folder),
        )
        for (task, train_rows, method), group in runs_of(records).items()
        for record in sorted(group, key=lambda each: each.recipe.seed)
    ]


def command_of(record: Record, folder: Path) -> str:
    """Return the command that trains this again: the record is its own recipe."""
    limit = "" if record.max_minutes is None else f" --max-minutes {record.max_minutes:g}"
    return f"upt-train run {record_file(folder, record.recipe)} --no-publish{limit}"


def unlike(records: Iterable[Record]) -> dict[str, tuple[str, ...]]:
    """Name the keys in which the recipes of a row differ beside seed and what is a method's own.

    A row whose recipes are alike is left out. Runs that the clock may have ended count as differing
    in ``max_minutes``, those of a seed that learnt other numbers of rows in ``train_rows``.
    """
    rows: dict[str, list[Record]] = {}
    for (task, train_rows, _), group in runs_of(records).items():
        rows.setdefault(row_name(task, train_rows), []).extend(group)
    found = {row: _differing(group) for row, group in rows.items()}
    return {row: keys for row, keys in found.items() if keys}


def as_markdown(runs: Sequence[Run]) -> str:
    """Lay the runs out as a table."""
    header = ("task", "method", "seed", "figure", "best epoch", "batch", "steps", "minutes")
    rows = [[*header, "precision", "again"], ["---"] * (len(header) + 2)]
    for run in runs:
        figure = "" if run.figure is None else f"{run.figure:.1f}"
        epochs = f"{run.best_epoch} of {run.epochs}"
        facts = (run.batch_size, f"{run.steps:,}", f"{run.minutes:.1f}", run.precision)
        known = [run.row, run.method, str(run.seed), figure, epochs, *map(str, facts)]
        rows.append([*known, f"`{run.command}`"])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _differing(records: Sequence[Record]) -> tuple[str, ...]:
    facts = [
        record.recipe.model_dump(exclude=_MAY_DIFFER) | {"max_minutes": record.max_minutes}
        for record in records
    ]
    keys = [key for key in facts[0] if any(each[key] != facts[0][key] for each in facts)]
    # how many rows are left beside those held out depends on the seed too
    counts = {(record.recipe.seed, record.train_rows) for record in records}
    if len(counts) > len({seed for seed, _ in counts}):
        keys.append("train_rows")
    return tuple(keys)
