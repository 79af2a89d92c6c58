"""A run with all that a process needs to do it, on this machine or another one.

What is planned where, and what is printed, is the commands' affair.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from upt_training.card import write_card
from upt_training.checkpoints import checkpoint_file, claimed
from upt_training.data import find_split
from upt_training.experiment import Experiment, Fitted, Trained, ran_in
from upt_training.options import set_threads
from upt_training.progress import SilentReporter, reporting, say_time_is_up
from upt_training.recipe import Recipe, task_of
from upt_training.records import Record, find_record, record_file, write_record
from upt_training.team import ALONE, Team
from upt_zoo.errors import DataNotFound, UptError
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

    @property
    def max_seconds(self) -> float | None:
        """When the schedule ends, counted from its start."""
        return None if self.max_minutes is None else self.max_minutes * 60

    def record(self) -> Record | None:
        """Return the record, if the run is over.

        Raises:
            Conflict: a record of another recipe stands in its place.
        """
        return find_record(self.records, self.recipe)


Result = Record | UptError | OSError
IS_DONE = True  # what the first process of a team tells those who would assist it


def check_data(jobs: Iterable[Job]) -> None:
    """Refuse jobs whose train files are not there, before the first one; the hub is not asked.

    Raises:
        DataNotFound: names the missing files of all tasks.
    """
    missing = dict.fromkeys(reason for job in jobs for reason in _missing(job))
    if missing:
        raise DataNotFound(f"no run was started: {'; '.join(missing)}")


def _missing(job: Job) -> Iterator[str]:
    for split in job.recipe.files:
        try:
            find_split(task_of(job.recipe), split, folder=job.data)
        except DataNotFound as error:
            yield str(error)


def in_sequence(jobs: Iterable[Job], *, as_json: bool) -> Iterator[tuple[Job, Result]]:
    """Do one job after the other; one that fails does not keep the next from being done."""
    for job in jobs:
        yield job, attempt(job, as_json=as_json)


def attempt(job: Job, *, as_json: bool) -> Result:
    """Do a job and return what came of it, its record or why there is none."""
    try:
        return perform(job, as_json=as_json)
    except (UptError, OSError) as error:
        # where it came from holds all that was in memory there
        error.__traceback__ = error.__cause__ = error.__context__ = None
        return error


def perform(job: Job, *, as_json: bool) -> Record:
    """Train, evaluate, publish and record; progress goes to stderr.

    What is recorded already is not done again, what was interrupted goes on from its checkpoint.
    The other processes of the job's team ``assist`` meanwhile.

    Raises:
        UptError: the run cannot start, or fails.
        Unavailable: another process does the same run.
    """
    set_threads(job.threads)
    checkpoint = checkpoint_of(job)
    with claimed(checkpoint):
        standing = job.record()
        job.team.agree(standing is not None)
        if standing is not None:
            return standing
        experiment = experiment_of(job)
        record = keep(job, experiment, fit(job, experiment, checkpoint, as_json=as_json))
        checkpoint.unlink(missing_ok=True)  # not before the result is safe
    job.team.agree(None)
    return record


def assist(job: Job) -> None:
    """Train with the first process of the job's team, which ``perform``s it, until it is done.

    Raises:
        UptError: the run cannot start, or fails.
    """
    set_threads(job.threads)
    if job.team.agree(not IS_DONE):
        return
    experiment, checkpoint = experiment_of(job), checkpoint_of(job)
    experiment.fit(SilentReporter(), checkpoint=checkpoint, max_seconds=job.max_seconds)
    job.team.agree(None)  # the next run may start from what this one publishes


def fit(job: Job, experiment: Experiment, checkpoint: Path, *, as_json: bool) -> Fitted:
    """Train, going on from the checkpoint; progress goes to stderr.

    Raises:
        UptError: the run fails.
    """
    curve = job.curves / f"{job.name}.csv" if job.curves else None
    with reporting(sys.stderr, as_json=as_json, curve=curve) as reporter:
        fitted = experiment.fit(reporter, checkpoint=checkpoint, max_seconds=job.max_seconds)
    if fitted.steps is not None:
        say_time_is_up(sys.stderr, fitted.progress, steps=fitted.steps, as_json=as_json)
    return fitted


def keep(job: Job, experiment: Experiment, fitted: Fitted) -> Record:
    """Evaluate what has learnt, publish it if its method gives an adapter, and record it.

    Raises:
        UptError: a dev or test file cannot be read, or the store does not take it.
    """
    trained = experiment.finish(fitted)
    record = Record.of(
        experiment.recipe,
        trained,
        adapter=_publish(job, trained),
        max_minutes=job.max_minutes,
        team=job.team,
    )
    if job.records is not None:
        write_record(record_file(job.records, job.recipe), record)
    return record


def checkpoint_of(job: Job) -> Path:
    """Say where the run's checkpoint stands."""
    precision = ran_in(job.recipe, job.team.device)
    recipe = job.recipe.model_copy(update={"precision": precision})
    return checkpoint_file(job.checkpoints, recipe.task_name, recipe)


def experiment_of(job: Job) -> Experiment:
    """Read the run's data and load its backbone.

    Raises:
        UptError: something is missing, or does not fit.
    """
    return Experiment(job.recipe, data_folder=job.data, initial=job.initial, team=job.team)


def _publish(job: Job, trained: Trained) -> str | None:
    if job.store is None or not job.recipe.traits.gives_adapter:
        return None
    card = write_card(
        trained.spec, train_rows=trained.train_rows, holdout_rows=trained.holdout_rows
    )
    stored = Store(job.store).publish(trained.spec, trained.tensors, card, version=job.version)
    return f"{stored.reference}@{stored.digest}"
