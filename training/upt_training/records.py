"""Run records: one small JSON file a run, enough to tell and to repeat what was done.

A record stands for a finished run: a run whose record exists is not run again.
"""

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Self

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from upt_training.experiment import Trained
from upt_training.outcomes import PackedOutcomes
from upt_training.recipe import Recipe
from upt_training.team import ALONE, Team
from upt_zoo.errors import Conflict, Corrupt
from upt_zoo.reasons import first_reason
from upt_zoo.spec import DataFile


class Machine(BaseModel):
    """Where a run ran, in how many processes; ``device`` is torch's name, and a GPU's own.

    ``upt`` is the version that ran; older records have none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    processor: str
    threads: int
    torch: str
    python: str
    device: str = "cpu"
    processes: int = 1
    upt: str | None = None

    @classmethod
    def of(cls, team: Team) -> Self:
        """Describe this machine and what of it a team takes."""
        device = torch.device(team.device)
        is_gpu = device.type == "cuda"
        return cls(
            device=f"cuda, {torch.cuda.get_device_name(device)}" if is_gpu else "cpu",
            processes=team.size,
            processor=_processor(),
            threads=torch.get_num_threads(),
            torch=version("torch"),
            python=platform.python_version(),
            upt=version("upt-zoo"),
        )


class Record(BaseModel):
    """A finished run.

    ``holdout`` is the deciding metric on the held-out rows after each epoch, ``losses`` has each
    epoch's mean loss; ``metrics`` are those of dev and test files, in percent, ``outcomes`` the
    rows that they were computed from (older records have none). ``adapter`` names what was
    published, with its digest, and is None for a method that is not published. With ``max_minutes``
    the clock may have ended the run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: Recipe
    train_rows: int
    files: tuple[DataFile, ...]
    metrics: dict[str, float]
    holdout: tuple[float, ...]
    best_epoch: int
    steps: int
    seconds: float
    max_minutes: float | None
    trained_parameters: int
    served_parameters: int
    head_parameters: int
    adapter: str | None
    machine: Machine
    losses: tuple[float, ...] = ()
    outcomes: dict[str, PackedOutcomes] = {}

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        trained: Trained,
        *,
        adapter: str | None,
        max_minutes: float | None,
        team: Team = ALONE,
    ) -> Self:
        """Put a record together."""
        lineage = trained.spec.lineage
        return cls(
            recipe=recipe,
            train_rows=trained.train_rows,
            files=lineage.files,
            metrics=lineage.metrics,
            holdout=trained.holdout,
            best_epoch=trained.best_epoch,
            steps=trained.steps,
            seconds=round(trained.seconds, 1),
            max_minutes=max_minutes,
            trained_parameters=lineage.trained_parameters,
            served_parameters=lineage.served_parameters,
            head_parameters=lineage.head_parameters,
            adapter=adapter,
            machine=Machine.of(team),
            losses=tuple(round(loss, 4) for loss in trained.losses),
            outcomes={name: PackedOutcomes.of(each) for name, each in trained.outcomes.items()},
        )

    def is_of(self, recipe: Recipe) -> bool:
        """Tell whether this is what the recipe gives; ``auto`` is whatever precision it came to."""
        auto = recipe.precision == "auto"
        precision = self.recipe.precision if auto else recipe.precision
        return self.recipe == recipe.model_copy(update={"precision": precision})


def read_record(file: Path) -> Record:
    """Read a record.

    Raises:
        Corrupt: it is not one.
    """
    try:
        return Record.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise Corrupt(f"{file} is not a run record: {first_reason(error)}") from error


def find_record(directory: Path | None, recipe: Recipe) -> Record | None:
    """Return the record of a run that is over; None if it is not, or there is no folder.

    Raises:
        Conflict: a record of another recipe stands in its place.
        Corrupt: what stands there is no record.
    """
    file = None if directory is None else record_file(directory, recipe)
    if file is None or not file.exists():
        return None
    record = read_record(file)
    if not record.is_of(recipe):
        raise Conflict(f"{file} is of another recipe; name another folder of records")
    return record


def record_file(directory: Path, recipe: Recipe) -> Path:
    """Say where a run's record stands: ``<task>[-<rows>rows]-<variant>-seed<seed>.json``."""
    rows = "" if recipe.train_rows is None else f"-{recipe.train_rows}rows"
    return directory / f"{recipe.task_name}{rows}-{recipe.variant}-seed{recipe.seed}.json"


def write_record(file: Path, record: Record) -> None:
    """Write whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
    partial.replace(file)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.processor()
