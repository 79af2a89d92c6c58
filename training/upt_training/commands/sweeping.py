"""The command that does all runs of a file: ``sweep``."""

import importlib.util
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from upt_training.commands.pinning import pin_start
from upt_training.options import DataFolder, Device, NoPublish, Threads
from upt_zoo.errors import Corrupt, InvalidInput
from upt_zoo.options import AsJson, Home

_STARTS = "starts.json"
_LOCK_S = 1.0  # a sweep takes hours: who finds another one at work does not wait for it

if TYPE_CHECKING:
    from collections.abc import Iterator

    from upt_training.jobs import Job, Result
    from upt_training.plan import Planned
    from upt_training.recipe import Recipe
    from upt_training.records import Record
    from upt_training.team import Team
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
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Say which runs are recorded and which would start, and do none."
        ),
    ] = False,
    data: DataFolder = None,
    home: Home = None,
    device: Device = "cpu",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Do all runs of a file, print their table and register each task's best adapter.

    Started again, it goes on where it was. With Ray the runs share its CPUs, one each or as many as
    --threads says, and for --device cuda its GPUs, one each. A run that fails does not end the
    others, but nothing is registered then.
    """
    from upt_training.registration import best_of, register
    from upt_training.sweep import check_choice, read_sweep
    from upt_training.team import alone_on
    from upt_zoo.catalogue import home_store
    from upt_zoo.local.files import locked
    from upt_zoo.local.store import Store

    is_installed = importlib.util.find_spec("ray") is not None
    if ray and not is_installed:
        raise InvalidInput("--ray: expected Ray, it is not installed; install the extra [ray]")
    team = alone_on(device)
    is_ray = is_installed if ray is None else ray
    if not is_ray:
        team.check_device()
    wanted = read_sweep(file)
    planned = wanted.plan(file.parent.absolute(), data=data)
    if not no_publish:
        check_choice([run.recipe for run in planned])
    out = out.absolute()
    make_job = partial(_job, out=out, max_minutes=wanted.max_minutes, threads=threads, team=team)
    if dry_run:
        pins = _read_pins(out / _STARTS)
        jobs = [make_job(run, (_pinned(run.recipe, pins), None)) for run in planned]
        _outline(jobs, as_json=as_json)
        return
    out.mkdir(parents=True, exist_ok=True)
    with locked(out / ".lock", timeout_s=_LOCK_S):
        starts = _starts(context, planned, out / _STARTS, home)
        jobs = [make_job(run, start) for run, start in starts]
        records, failures = _do(jobs, as_json=as_json, ray=is_ray)
        published: list[str] = []
        if not (failures or no_publish):
            best = register(best_of(records), Store(out / "adapters"), home_store(home))
            published = [f"{stored.reference}@{stored.digest}" for stored in best]
    _print(records, published, as_json=as_json)
    if failures:
        raise failures[0]


_Start = tuple["Recipe", "Mapping[str, Array] | None"]


def _starts(
    context: typer.Context, planned: "Sequence[Planned]", file: Path, home: Path | None
) -> "list[tuple[Planned, _Start]]":
    """Pin what each run starts from; no run starts from what another one of the sweep gives.

    ``file`` keeps the pins: what a sweep has registered is not what it starts from the next time.
    """
    from upt_zoo.local.files import replace_file

    pins = _read_pins(file)
    known: dict[tuple[str | None, str], _Start] = {}
    found = []
    for run in planned:
        recipe, wanted = run.recipe, run.recipe.initial_adapter
        key = (wanted, recipe.backbone)
        if key not in known:
            known[key] = pin_start(context, _pinned(recipe, pins), home)
        pinned, tensors = known[key]
        if wanted is not None:
            pins[wanted] = pinned.initial_adapter
        found.append((run, (_from(recipe, pinned.initial_adapter), tensors)))
    if pins:
        replace_file(file, json.dumps(pins, indent=2).encode())
    return found


def _pinned(recipe: "Recipe", pins: "Mapping[str | None, str | None]") -> "Recipe":
    return _from(recipe, pins.get(recipe.initial_adapter, recipe.initial_adapter))


def _from(recipe: "Recipe", start: str | None) -> "Recipe":
    return recipe.model_copy(update={"initial_adapter": start})


def _read_pins(file: Path) -> dict[str | None, str | None]:
    """Return which adapter each reference of the recipes has meant since the sweep began."""
    from pydantic import TypeAdapter, ValidationError

    if not file.exists():
        return {}
    try:
        return TypeAdapter(dict[str | None, str | None]).validate_json(file.read_bytes())
    except ValidationError as error:
        raise Corrupt(f"{file}: expected references and what they mean; remove it") from error


def _job(
    run: "Planned",
    start: "_Start",
    *,
    out: Path,
    max_minutes: float | None,
    threads: int | None,
    team: "Team",
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
        team=team,
    )


def _do(
    jobs: "Sequence[Job]", *, as_json: bool, ray: bool
) -> "tuple[list[Record], list[Exception]]":
    """Do what has no record; return all records in the order of the jobs, and what failed."""
    from upt_training.jobs import check_data
    from upt_training.records import Record

    found: dict[str, Result] = {**_recorded(jobs)}
    left = [job for job in jobs if job.name not in found]
    check_data(left)
    _say(f"{len(found)} of {len(jobs)} runs have a record", as_json=as_json, done=len(found))
    for job, result in _results(left, as_json=as_json, ray=ray):
        found[job.name] = result
        state = "done" if isinstance(result, Record) else f"failed: {' '.join(str(result).split())}"
        words = f"{len(found)} of {len(jobs)}: {job.name} {state}"
        _say(words, as_json=as_json, run=job.name, done=len(found))
    results = [found[job.name] for job in jobs]
    records = [result for result in results if isinstance(result, Record)]
    return records, [result for result in results if not isinstance(result, Record)]


def _recorded(jobs: "Sequence[Job]") -> "dict[str, Record]":
    """Return the records of the jobs that are over, by their names."""
    records = {job.name: job.record() for job in jobs}
    return {name: record for name, record in records.items() if record is not None}


def _outline(jobs: "Sequence[Job]", *, as_json: bool) -> None:
    """Say which runs are recorded and which would start."""
    from upt_training.jobs import check_data

    recorded = _recorded(jobs)
    left = [job for job in jobs if job.name not in recorded]
    if as_json:
        runs = [{"run": job.name, "is_recorded": job.name in recorded} for job in jobs]
        counts = {"recorded": len(recorded), "left": len(left)}
        typer.echo(json.dumps({"runs": runs} | counts))
    else:
        for job in jobs:
            typer.echo(f"{job.name} {'is recorded' if job.name in recorded else 'will start'}")
        typer.echo(f"{len(jobs)} runs: {len(recorded)} are recorded, {len(left)} will start")
    check_data(left)


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
