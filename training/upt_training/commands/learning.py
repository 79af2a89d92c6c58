"""The commands that train: ``run``, ``search`` and ``pretrain``."""

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from upt_training.commands.pinning import pin_start
from upt_training.options import (
    DataFolder,
    Device,
    NoPublish,
    NoTexts,
    Threads,
    complete_task,
    set_threads,
)
from upt_zoo.errors import Conflict, InvalidInput, InvalidReference
from upt_zoo.options import AsJson, Home

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import JsonValue

    from upt_training.experiment import Outline
    from upt_training.jobs import Job
    from upt_training.plan import Planned
    from upt_training.pretrainer import Pretrained
    from upt_training.recipe import Learning
    from upt_training.records import Record
    from upt_zoo.local.store import Store


DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Read all that it takes, say what would be learnt, and learn nothing."
    ),
]


def add_learning_commands(app: typer.Typer) -> None:
    """Register the commands."""
    for command in (run, search, pretrain):
        app.command()(command)


def run(
    context: typer.Context,
    recipes: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[RECIPE.yaml...]",
            help="Run one after the other; a run record, RECORD.json, is repeated.",
        ),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            help="A task of the catalogue, with the recipe that ships; repeatable.",
            autocompletion=complete_task,
        ),
    ] = None,
    method: Annotated[
        list[str] | None, typer.Option(help="Instead of the recipe's own; repeatable.")
    ] = None,
    seed: Annotated[
        list[int] | None, typer.Option(help="Instead of the recipe's own; repeatable.")
    ] = None,
    no_initial_adapter: Annotated[
        bool,
        typer.Option("--no-initial-adapter", help="Start from nothing, whatever the recipe says."),
    ] = False,
    backbone_precision: Annotated[
        str | None, typer.Option(help="bf16, fp32 or int8, instead of the recipe's own.")
    ] = None,
    max_minutes: Annotated[
        float | None, typer.Option(min=0.01, help="End the schedule after this time.")
    ] = None,
    version: Annotated[
        str | None, typer.Option(help="Publish as this version.", show_default="the next patch")
    ] = None,
    records: Annotated[
        Path | None,
        typer.Option(help="Folder of run records; what has one is skipped.", file_okay=False),
    ] = None,
    no_publish: NoPublish = False,
    dry_run: DryRun = False,
    curves: Annotated[
        Path | None,
        typer.Option(help="Folder of CSV files, one a run: losses and metrics.", file_okay=False),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder of reports, one a version.",
            show_default="reports beside the recipe, for a task of one's own",
            file_okay=False,
        ),
    ] = None,
    no_texts: NoTexts = False,
    data: DataFolder = None,
    home: Home = None,
    device: Device = "cpu",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Train, evaluate on dev and test files, register in the zoo, and report.

    A run that was interrupted goes on where it was when it is started again. Several recipes,
    methods and seeds are a queue, seed by seed, and for each seed method by method. torchrun starts
    it in several processes that do each run together, with --device cuda on a GPU each.
    """
    from upt_training.checkpoints import user_checkpoints
    from upt_training.jobs import Job
    from upt_training.plan import multiply
    from upt_training.records import find_record
    from upt_training.team import joined
    from upt_zoo.catalogue import home_store
    from upt_zoo.references import is_version

    if version is not None and not is_version(version):
        raise InvalidReference(f"--version: expected MAJOR.MINOR.PATCH, got {version!r}")
    changes: dict[str, JsonValue] = {"initial_adapter": None} if no_initial_adapter else {}
    if backbone_precision is not None:
        changes["precision"] = backbone_precision
    axes: dict[str, Sequence[JsonValue]] = {"seed": seed or [], "method": method or []}
    queue = multiply(_plan(recipes or [], task or [], data), axes, changes)
    for planned in queue:
        if planned.recipe.initial_adapter is None:  # others may start from what will be published
            find_record(records, planned.recipe)
    with joined(device) as team:
        for planned in queue:
            recipe, initial = pin_start(context, planned.recipe, home)
            job = Job(
                recipe=recipe,
                data=planned.data,
                initial=initial,
                checkpoints=user_checkpoints(),
                store=None if no_publish else home_store(home).root,
                records=records,
                curves=curves,
                max_minutes=max_minutes,
                version=version,
                threads=threads,
                team=team,
            )
            if not dry_run:
                _do(job, report, has_texts=not no_texts, as_json=as_json)
            elif team.leads:
                _outline(job, as_json=as_json)


def search(
    context: typer.Context,
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="Where the search starts.")],
    runs: Annotated[int, typer.Option(min=2, max=15, help="How many recipes to try.")] = 6,
    max_minutes: Annotated[
        float | None, typer.Option(min=0.01, help="Shared out to the runs alike.")
    ] = None,
    version: Annotated[
        str | None, typer.Option(help="Publish as this version.", show_default="the next patch")
    ] = None,
    records: Annotated[
        Path | None, typer.Option(help="Folder of run records.", file_okay=False)
    ] = None,
    no_publish: NoPublish = False,
    dry_run: DryRun = False,
    data: DataFolder = None,
    home: Home = None,
    device: Device = "cpu",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Try learning rates and epochs on held-out rows; evaluate and register the best alone."""
    from upt_training.checkpoints import user_checkpoints
    from upt_training.jobs import Job
    from upt_training.records import record_file
    from upt_training.search import search as search_with
    from upt_training.search import trials_of
    from upt_training.team import alone_on
    from upt_zoo.catalogue import home_store

    team = alone_on(device)
    (planned,) = _plan([recipe], [], data)
    file = record_file(records, planned.recipe) if records else None
    if file is not None and file.exists():
        raise Conflict(f"{file} exists; name another folder of records")
    started, initial = pin_start(context, planned.recipe, home)
    recipes = trials_of(started, runs)
    job = Job(
        recipe=started,
        data=planned.data,
        initial=initial,
        checkpoints=user_checkpoints(),
        store=None if no_publish else home_store(home).root,
        records=records,
        max_minutes=max_minutes,
        version=version,
        team=team,
    )
    if dry_run:
        for each in recipes:
            _outline(replace(job, recipe=each), as_json=as_json)
        return
    set_threads(threads)
    record = search_with(job, recipes, say=partial(typer.echo, err=True), as_json=as_json)
    _print(record, as_json=as_json)


def pretrain(
    context: typer.Context,
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE.yaml", help="Texts, masking and what learns.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Where the backbone goes, for method full or head.",
            file_okay=False,
        ),
    ] = None,
    max_minutes: Annotated[
        float | None, typer.Option(min=0.01, help="End the schedule after this time.")
    ] = None,
    version: Annotated[
        str | None, typer.Option(help="Publish as this version.", show_default="the next patch")
    ] = None,
    dry_run: DryRun = False,
    data: DataFolder = None,
    home: Home = None,
    device: Device = "cpu",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Go on with masked-language modelling, of an adapter or of the backbone, on any texts."""
    from upt_training.checkpoints import checkpoint_file, claimed, user_checkpoints
    from upt_training.pretrainer import Pretrainer, write_backbone
    from upt_training.pretraining import read_pretraining
    from upt_training.progress import reporting
    from upt_training.team import alone_on
    from upt_zoo.catalogue import home_store

    team = alone_on(device)
    wanted = read_pretraining(recipe)
    if wanted.is_of_backbone != (out is not None):
        raise InvalidInput(
            f"--out: method {wanted.method} "
            + ("gives a backbone, name its folder" if out is None else "gives an adapter")
        )
    if out is not None and out.exists():
        raise Conflict(f"--out: {out} exists; name a folder that does not")
    pinned, initial = pin_start(context, wanted, home)
    set_threads(threads)
    folder = data if wanted.is_of_catalogue else recipe.parent
    pretrainer = Pretrainer(pinned, folder=folder, initial=initial, team=team)
    if dry_run:
        _print_outline(wanted.name, pinned, pretrainer.outline(), as_json=as_json)
        return
    checkpoint = checkpoint_file(user_checkpoints(), wanted.name, pretrainer.recipe)
    with claimed(checkpoint):
        with reporting(sys.stderr, as_json=as_json) as reporter:
            found = pretrainer.run(
                reporter,
                checkpoint=checkpoint,
                max_seconds=None if max_minutes is None else max_minutes * 60,
            )
        if out is not None:
            write_backbone(out, pretrainer.backbone, found)
        result = str(out or _publish(found, home_store(home), version))
        for file in checkpoint.parent.glob(f"{checkpoint.stem}*.safetensors"):
            file.unlink()  # not before the result is safe
    _print_pretrained(found, result, is_of_backbone=wanted.is_of_backbone, as_json=as_json)


def _publish(found: "Pretrained", store: "Store", version: str | None) -> str:
    from upt_training.card import write_card

    card = write_card(found.spec, train_rows=found.train_rows, holdout_rows=found.holdout_rows)
    stored = store.publish(found.spec, found.tensors, card, version=version)
    return f"{stored.reference}@{stored.digest}"


def _print_pretrained(
    found: "Pretrained", result: str, *, is_of_backbone: bool, as_json: bool
) -> None:
    head = "of the backbone" if found.had_head else "trained first"
    if as_json:
        facts: dict[str, object] = {"result": result, "head": head}
        facts |= {"before": found.before, "after": found.after, "steps": found.steps}
        facts |= {"was_cut_short": found.was_cut_short, "seconds": round(found.seconds, 1)}
        typer.echo(json.dumps(facts))
        return
    if found.was_cut_short:
        typer.echo("the clock ended it before its steps were done", err=True)
    typer.echo(f"{'wrote' if is_of_backbone else 'published'} {result}")
    typer.echo(f"masked-language head: {head}, tied to the word embeddings")
    for name, value in found.after.items():
        typer.echo(f"holdout/{name} {found.before[name]:.2f} before, {value:.2f} after")


def _plan(files: "Sequence[Path]", tasks: "Sequence[str]", data: Path | None) -> "list[Planned]":
    from upt_training.plan import plan_of_files, plan_of_tasks

    if bool(files) == bool(tasks):
        raise InvalidInput("expected recipe files or --task NAME, and not both")
    return plan_of_tasks(tasks, data) if tasks else plan_of_files(files, data)


def _outline(job: "Job", *, as_json: bool) -> None:
    from upt_training.jobs import experiment_of

    _print_outline(job.name, job.recipe, experiment_of(job).outline(), as_json=as_json)


def _print_outline(name: str, recipe: "Learning", found: "Outline", *, as_json: bool) -> None:
    """Say what a run would do."""
    from dataclasses import asdict

    if as_json:
        typer.echo(json.dumps({"run": name} | asdict(found)))
        return
    typer.echo(f"{name}: {found.precision} on {found.device}")
    typer.echo(
        f"  learns from {found.train_rows:,} rows, {found.holdout_rows:,} held out; "
        f"{found.token_rows:,} rows of tokens, the longest of {found.most_tokens}"
    )
    typer.echo(
        f"  at most {found.steps:,} steps of {recipe.batch_size} rows in {recipe.epochs} epochs"
        + (f", until {recipe.patience} bring nothing better" if recipe.patience else "")
    )
    typer.echo(f"  trains {found.trained_parameters:,} numbers")


def _do(job: "Job", report: Path | None, *, has_texts: bool, as_json: bool) -> None:
    """Do a run that has no record yet, and say what came of it."""
    from upt_training.jobs import IS_DONE, assist, perform
    from upt_training.records import record_file

    if not job.team.leads:
        assist(job)
        return
    if job.records is not None and job.record() is not None:
        typer.echo(f"{record_file(job.records, job.recipe)} exists: skipped", err=True)
        job.team.agree(IS_DONE)
        return
    record = perform(job, as_json=as_json)
    _print(record, as_json=as_json)
    _report(job, record, report, has_texts=has_texts, as_json=as_json)


def _report(
    job: "Job", record: "Record", folder: Path | None, *, has_texts: bool, as_json: bool
) -> None:
    """Review what was published, if there is a folder for reports and a dev file."""
    from upt_training.data import read_split, splits_in
    from upt_training.recipe import task_of
    from upt_training.report import write_report
    from upt_training.report_table import print_review
    from upt_training.review import review
    from upt_zoo.local.store import Store
    from upt_zoo.references import Reference

    known = task_of(job.recipe)
    if folder is None and known.files is not None and job.data is not None:
        folder = job.data / "reports"
    splits = splits_in(known, folder=job.data)
    if folder is None or job.store is None or record.adapter is None or not splits:
        return
    store = Store(job.store)
    stored = store.resolve(Reference.parse(record.adapter))
    rows = read_split(known, splits[0], folder=job.data)
    found = review(store, stored, known, rows)
    page, *_ = write_report(
        folder / f"{stored.name}-{stored.version}",
        found,
        record=record,
        examples=rows.examples if has_texts else None,
    )
    if not as_json:
        print_review(found, page, has_texts=has_texts)


def _print(record: "Record", *, as_json: bool) -> None:
    if as_json:
        typer.echo(record.model_dump_json())
        return
    typer.echo(f"published {record.adapter}" if record.adapter else "not published")
    for name, value in record.metrics.items():
        typer.echo(f"{name} {value:.2f}")
