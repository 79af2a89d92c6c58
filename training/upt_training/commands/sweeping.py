"""The command that does all runs of a file: ``sweep``."""

import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from upt_training.commands.pinning import pin_start
from upt_training.options import DataFolder, NoPublish, Threads
from upt_zoo.errors import InvalidInput
from upt_zoo.options import AsJson, Home

if TYPE_CHECKING:
    from collections.abc import Iterator

    from upt_training.jobs import Job, Result
    from upt_training.plan import Planned
    from upt_training.recipe import Recipe
    from upt_training.records import Record
    from upt_zoo.tensors import Array


def sweep(
    context: typer.Context,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="SWEEP.yaml", help="Which runs there are.", exists=True, dir_okay=False
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER",
            help="Records, adapters, curves and checkpoints; a sweep goes on from what is there.",
            file_okay=False,
        ),
    ],
    ray: Annotated[
        bool | None,
        typer.Option(
            help="Do the runs as tasks of Ray, or one after the other.",
            show_default="Ray where it is installed",
        ),
    ] = None,
    no_publish: NoPublish = False,
    data: DataFolder = None,
    home: Home = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Do all runs of a file, print their table and register each task's best adapter.

    Started again, it goes on where it was. With Ray the runs share its CPUs, one each or as many as
    --threads says. A run that fails does not end the others, but nothing is registered then.
    """
    from upt_training.registration import best_of, register
    from upt_training.sweep import check_choice, read_sweep
    from upt_zoo.catalogue import home_store
    from upt_zoo.local.store import Store

    is_installed = importlib.util.find_spec("ray") is not None
    if ray and not is_installed:
        raise InvalidInput("--ray: expected Ray, it is not installed; install the extra [ray]")
    wanted = read_sweep(file)
    planned = wanted.plan(file.parent.absolute(), data=data)
    if not no_publish:
        check_choice([run.recipe for run in planned])
    out = out.absolute()
    jobs = [
        _job(run, start, out, max_minutes=wanted.max_minutes, threads=threads)
        for run, start in _starts(context, planned, home)
    ]
    records, failures = _do(jobs, as_json=as_json, ray=is_installed if ray is None else ray)
    published: list[str] = []
    if not (failures or no_publish):
        best = register(best_of(records), Store(out / "adapters"), home_store(home))
        published = [f"{stored.reference}@{stored.digest}" for stored in best]
    _print(records, published, as_json=as_json)
    if failures:
        raise failures[0]


_Start = tuple["Recipe", "Mapping[str, Array] | None"]


def _starts(
    context: typer.Context, planned: "Sequence[Planned]", home: Path | None
) -> "list[tuple[Planned, _Start]]":
    """Pin what each run starts from; no run starts from what another one of the sweep gives."""
    known: dict[tuple[str | None, str], _Start] = {}
    found = []
    for run in planned:
        key = (run.recipe.initial_adapter, run.recipe.backbone)
        if key not in known:
            known[key] = pin_start(context, run.recipe, home)
        pinned, tensors = known[key]
        changes = {"initial_adapter": pinned.initial_adapter}
        found.append((run, (run.recipe.model_copy(update=changes), tensors)))
    return found


def _job(
    run: "Planned",
    start: "_Start",
    out: Path,
    *,
    max_minutes: float | None,
    threads: int | None,
) -> "Job":
    from upt_training.jobs import Job

    recipe, initial = start
    return Job(
        recipe=recipe,
        data=None if run.data is None else run.data.absolute(),
        initial=initial,
        checkpoints=out / "checkpoints",
        store=out / "adapters",
        records=out / "records",
        curves=out / "curves",
        max_minutes=max_minutes,
        threads=threads,
    )


def _do(
    jobs: "Sequence[Job]", *, as_json: bool, ray: bool
) -> "tuple[list[Record], list[Exception]]":
    """Do what has no record; return all records in the order of the jobs, and what failed."""
    from upt_training.records import Record

    found: dict[str, Result] = {}
    for job in jobs:
        record = job.record()
        if record is not None:
            found[job.name] = record
    left = [job for job in jobs if job.name not in found]
    _say(f"{len(found)} of {len(jobs)} runs have a record", as_json=as_json, done=len(found))
    for job, result in _results(left, as_json=as_json, ray=ray):
        found[job.name] = result
        state = "done" if isinstance(result, Record) else f"failed: {' '.join(str(result).split())}"
        words = f"{len(found)} of {len(jobs)}: {job.name} {state}"
        _say(words, as_json=as_json, run=job.name, done=len(found))
    results = [found[job.name] for job in jobs]
    records = [result for result in results if isinstance(result, Record)]
    return records, [result for result in results if not isinstance(result, Record)]


def _results(jobs: "Sequence[Job]", *, as_json: bool, ray: bool) -> "Iterator[tuple[Job, Result]]":
    if ray and jobs:
        from upt_training.ray_jobs import in_parallel

        return in_parallel(jobs)
    from upt_training.jobs import in_sequence

    return in_sequence(jobs, as_json=as_json)


def _say(words: str, *, as_json: bool, **facts: str | int) -> None:
    typer.echo(
        json.dumps({"event": "sweep", **facts, "says": words}) if as_json else words, err=True
    )


def _print(records: "Sequence[Record]", published: Sequence[str], *, as_json: bool) -> None:
    from upt_training.commands.tables import lay_out
    from upt_training.table import ALL

    cells, markdown = lay_out(records, ALL)
    if as_json:
        typer.echo(json.dumps({"cells": cells, "published": published}))
        return
    typer.echo(markdown)
    for reference in published:
        typer.echo(f"published {reference}")
