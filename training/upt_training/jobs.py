"""A run with all that a process needs to do it, on this machine or another one.

What is planned where, and what is printed, is the commands' affair.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from upt_training.card import write_card
from upt_training.checkpoints import checkpoint_file
from upt_training.experiment import Experiment, Trained
from upt_training.options import set_threads
from upt_training.progress import reporting
from upt_training.recipe import COMPARISONS, Recipe
from upt_training.records import Record, find_record, record_file, write_record
from upt_training.team import ALONE, Team
from upt_zoo.errors import UptError
from upt_zoo.local.store import Store
from upt_zoo.tensors import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A run to do, and the folders that what it gives goes to; None leaves that out.

    ``data`` has the rows, ``initial`` the tensors that the recipe's ``initial_adapter`` names.
    ``checkpoints`` has what the run goes on from if it was interrupted.
    """

    recipe: Recipe
    data: Path | None
    initial: Mapping[str, Array] | None
    checkpoints: Path
    store: Path | None
    records: Path | None
    curves: Path | None = None
    max_minutes: float | None = None
    version: str | None = None
    threads: int | None = None
    team: Team = ALONE

    @property
    def name(self) -> str:
        """What its record is called."""
        return record_file(Path(), self.recipe).stem

    def record(self) -> Record | None:
        """Return the record, if the run is over.

        Raises:
            Conflict: a record of another recipe stands in its place.
        """
        return find_record(self.records, self.recipe)


Result = Record | UptError | OSError


def in_sequence(jobs: Iterable[Job], *, as_json: bool) -> Iterator[tuple[Job, Result]]:
    """Do one job after the other; one that fails does not keep the next from being done."""
    for job in jobs:
        yield job, attempt(job, as_json=as_json)


def attempt(job: Job, *, as_json: bool) -> Result:
    """Do a job and return what came of it, its record or why there is none."""
    try:
        return perform(job, as_json=as_json)
    except (UptError, OSError) as error:
        return error


def perform(job: Job, *, as_json: bool) -> Record:
    """Train, evaluate, publish and record; progress goes to stderr.

    What is recorded already is not done again, what was interrupted goes on from its checkpoint.
    Of a team all train and the first one reports, publishes and records.

    Raises:
        Conflict: another process does the same run.
        UptError: the run cannot start, or fails.
    """
    standing = job.record()
    if standing is not None:
        return standing
    set_threads(job.threads)
    experiment = Experiment(job.recipe, data_folder=job.data, initial=job.initial, team=job.team)
    checkpoint = checkpoint_file(job.checkpoints, job.recipe.task_name, experiment.recipe)
    curve = job.curves / f"{job.name}.csv" if job.curves else None
    with reporting(sys.stderr, as_json=as_json, curve=curve, team=job.team) as reporter:
        trained = experiment.run(
            reporter,
            checkpoint=checkpoint,
            max_seconds=None if job.max_minutes is None else job.max_minutes * 60,
        )
    record = keep(job, experiment, trained)
    if job.team.leads:
        checkpoint.unlink(missing_ok=True)  # not before the result is safe
    job.team.agree(None)  # the next run may start from what this one published
    return record


def keep(job: Job, experiment: Experiment, trained: Trained) -> Record:
    """Publish what a run gave, if its method gives an adapter, and record it.

    Raises:
        UptError: the store does not take it.
    """
    record = Record.of(
        experiment.recipe,
        trained,
        adapter=_publish(job, trained),
        max_minutes=job.max_minutes,
    )
    if job.records is not None and job.team.leads:
        write_record(record_file(job.records, job.recipe), record)
    return record


def _publish(job: Job, trained: Trained) -> str | None:
    if job.store is None or job.recipe.method in COMPARISONS or not job.team.leads:
        return None
    card = write_card(
        trained.spec, train_rows=trained.train_rows, holdout_rows=trained.holdout_rows
    )
    stored = Store(job.store).publish(trained.spec, trained.tensors, card, version=job.version)
    return f"{stored.reference}@{stored.digest}"
