"""The commands that train: ``run``, ``search`` and ``pretrain``."""

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from upt_training.options import DataFolder, Threads, set_threads
from upt_zoo.errors import Conflict, InvalidInput, InvalidReference
from upt_zoo.options import AsJson, Home

if TYPE_CHECKING:
    from upt_training.experiment import Experiment, Trained
    from upt_training.recipe import Learning, Recipe
    from upt_zoo.local.store import Store
    from upt_zoo.tensors import Array

_AnyRecipe = TypeVar("_AnyRecipe", bound="Learning")
_Changes = dict[str, str | int | None]


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
        typer.Option(help="A task of the catalogue, with the recipe that ships; repeatable."),
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
    no_publish: Annotated[
        bool, typer.Option("--no-publish", help="Leave the zoo as it is; for comparisons.")
    ] = False,
    curves: Annotated[
        Path | None,
        typer.Option(help="Folder of CSV files, one a run: losses and metrics.", file_okay=False),
    ] = None,
    data: DataFolder = None,
    home: Home = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Train, evaluate on dev and test files, and register in the zoo.

    A run that was interrupted goes on where it was when it is started again. Several recipes,
    methods and seeds are a queue, seed by seed, and for each seed method by method.
    """
    from upt_zoo.catalogue import home_store
    from upt_zoo.references import is_version

    if version is not None and not is_version(version):
        raise InvalidReference(f"--version: expected MAJOR.MINOR.PATCH, got {version!r}")
    changes: _Changes = {"initial_adapter": None} if no_initial_adapter else {}
    if backbone_precision is not None:
        changes["precision"] = backbone_precision
    queue = [
        (recipe.changed({**changes, **each}), folder)
        for each in _choices(method or [], seed or [])
        for recipe, folder in _recipes(recipes or [], task or [], data)
    ]
    for planned, _ in queue:
        if planned.initial_adapter is None:  # others may start from what the queue will publish
            _recorded(records, planned)
    for planned, folder in queue:
        recipe, initial = _started(context, planned, home)
        _run(
            recipe,
            initial,
            store=None if no_publish else home_store(home),
            data=folder,
            records=records,
            curves=curves,
            max_minutes=max_minutes,
            version=version,
            threads=threads,
            as_json=as_json,
        )


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
    no_publish: Annotated[
        bool, typer.Option("--no-publish", help="Leave the zoo as it is; for comparisons.")
    ] = False,
    data: DataFolder = None,
    home: Home = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Try learning rates and epochs on held-out rows; evaluate and register the best alone."""
    from upt_training.experiment import Experiment
    from upt_training.progress import reporting
    from upt_training.records import record_file
    from upt_training.search import trial_of, trials_of, with_trials
    from upt_zoo.catalogue import home_store

    ((wanted, folder),) = _recipes([recipe], [], data)
    file = record_file(records, wanted) if records else None
    if file is not None and file.exists():
        raise Conflict(f"{file} exists; name another folder of records")
    started, initial = _started(context, wanted, home)
    set_threads(threads)
    share_s = None if max_minutes is None else max_minutes * 60 / runs
    tried, checkpoints = [], []
    for each in trials_of(started, runs):
        experiment = Experiment(each, data_folder=folder, initial=initial)
        checkpoints.append(_checkpoint(each.task_name, experiment.recipe))
        with reporting(sys.stderr, as_json=as_json) as reporter:
            fitted = experiment.fit(reporter, checkpoint=checkpoints[-1], max_seconds=share_s)
        tried.append((trial_of(each, max(fitted.progress.holdout)), each, fitted))
        typer.echo(f"trial {len(tried)} of {runs}: {tried[-1][0]}", err=True)
    _, best, fitted = max(tried, key=lambda each: each[0].holdout)  # the first of equals
    best = with_trials(best, [trial for trial, *_ in tried])
    experiment = Experiment(best, data_folder=folder, initial=initial)
    _keep(
        best,
        experiment,
        experiment.finish(fitted),
        store=None if no_publish else home_store(home),
        file=file,
        max_minutes=None if share_s is None else share_s / 60,
        version=version,
        as_json=as_json,
    )
    for checkpoint in checkpoints:
        checkpoint.unlink(missing_ok=True)


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
    version: Annotated[
        str | None, typer.Option(help="Publish as this version.", show_default="the next patch")
    ] = None,
    data: DataFolder = None,
    home: Home = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Go on with masked-language modelling, of an adapter or of the backbone, on any texts."""
    from upt_training.card import write_card
    from upt_training.pretrainer import Pretrainer, write_backbone
    from upt_training.pretraining import read_pretraining
    from upt_training.progress import reporting
    from upt_zoo.catalogue import home_store

    wanted = read_pretraining(recipe)
    if wanted.is_of_backbone != (out is not None):
        raise InvalidInput(
            f"--out: method {wanted.method} "
            + ("gives a backbone, name its folder" if out is None else "gives an adapter")
        )
    if out is not None and out.exists():
        raise Conflict(f"--out: {out} exists; name a folder that does not")
    pinned, initial = _started(context, wanted, home)
    set_threads(threads)
    folder = data if isinstance(wanted.task, str) else recipe.parent
    pretrainer = Pretrainer(pinned, folder=folder, initial=initial)
    checkpoint = _checkpoint(wanted.name, pretrainer.recipe)
    with reporting(sys.stderr, as_json=as_json) as reporter:
        found = pretrainer.run(reporter, checkpoint=checkpoint)
    if out is not None:
        write_backbone(out, pretrainer.backbone, found)
        result = str(out)
    else:
        card = write_card(found.spec, train_rows=found.train_rows, holdout_rows=found.holdout_rows)
        stored = home_store(home).publish(found.spec, found.tensors, card, version=version)
        result = f"{stored.reference}@{stored.digest}"
    for file in checkpoint.parent.glob(f"{checkpoint.stem}*"):  # not before the result is safe
        file.unlink()
    head = "of the backbone" if found.had_head else "trained first"
    if as_json:
        facts = {"result": result, "before": found.before, "after": found.after, "head": head}
        typer.echo(json.dumps(facts | {"steps": found.steps, "seconds": round(found.seconds, 1)}))
        return
    typer.echo(f"{'wrote' if out else 'published'} {result}")
    typer.echo(f"masked-language head: {head}, tied to the word embeddings")
    for name, value in found.after.items():
        typer.echo(f"holdout/{name} {found.before[name]:.2f} before, {value:.2f} after")


def _choices(methods: Sequence[str], seeds: Sequence[int]) -> Iterator[_Changes]:
    """Give the changes to each method with each seed, seed by seed; none where none is named."""
    by_seed: list[_Changes] = [{"seed": seed} for seed in seeds]
    by_method: list[_Changes] = [{"method": method} for method in methods]
    for one, other in product(by_seed or [{}], by_method or [{}]):
        yield {**one, **other}


def _recipes(
    files: Sequence[Path], tasks: Sequence[str], data: Path | None
) -> list[tuple["Recipe", Path | None]]:
    """Return each recipe and the folder of its rows: a task of one's own has them beside it."""
    from upt_training.recipe import read_recipe, recipe_of_task

    if bool(files) == bool(tasks):
        raise InvalidInput("expected recipe files or --task NAME, and not both")
    if tasks:
        return [(recipe_of_task(task), data) for task in tasks]
    found = [
        (_recipe_of_record(file) if file.suffix == ".json" else read_recipe(file), file.parent)
        for file in files
    ]
    return [(recipe, data if isinstance(recipe.task, str) else near) for recipe, near in found]


def _recipe_of_record(file: Path) -> "Recipe":
    """Return the recipe that a record is of.

    Raises:
        InvalidInput: there is no such record, or its task is not of the catalogue.
        Corrupt: the file is no record.
    """
    from upt_training.records import read_record

    if not file.is_file():
        raise InvalidInput(f"expected a recipe or a run record, there is no file {file}")
    recipe = read_record(file).recipe
    if not isinstance(recipe.task, str):
        raise InvalidInput(f"{file} is of a task of one's own: name its recipe instead")
    return recipe


def _recorded(records: Path | None, recipe: "Recipe") -> tuple[Path | None, bool]:
    """Return where the run's record goes, and whether it stands there.

    Raises:
        Conflict: a record of another recipe stands there.
    """
    from upt_training.records import read_record, record_file

    if records is None:
        return None, False
    file = record_file(records, recipe)
    if not file.exists():
        return file, False
    if not read_record(file).is_of(recipe):
        raise Conflict(f"{file} is of another recipe; name another folder of records")
    return file, True


def _run(
    recipe: "Recipe",
    initial: "Mapping[str, Array] | None",
    *,
    store: "Store | None",
    data: Path | None,
    records: Path | None,
    curves: Path | None,
    max_minutes: float | None,
    version: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    from upt_training.experiment import Experiment
    from upt_training.progress import reporting
    from upt_training.records import record_file

    file, is_done = _recorded(records, recipe)
    if is_done:
        typer.echo(f"{file} exists: skipped", err=True)
        return
    set_threads(threads)
    experiment = Experiment(recipe, data_folder=data, initial=initial)
    checkpoint = _checkpoint(experiment.recipe.task_name, experiment.recipe)
    curve = record_file(curves, recipe).with_suffix(".csv") if curves else None
    with reporting(sys.stderr, as_json=as_json, curve=curve) as reporter:
        trained = experiment.run(
            reporter,
            checkpoint=checkpoint,
            max_seconds=None if max_minutes is None else max_minutes * 60,
        )
    _keep(
        recipe,
        experiment,
        trained,
        store=store,
        file=file,
        max_minutes=max_minutes,
        version=version,
        as_json=as_json,
    )
    checkpoint.unlink(missing_ok=True)  # not before the result is safe


def _keep(
    recipe: "Recipe",
    experiment: "Experiment",
    trained: "Trained",
    *,
    store: "Store | None",
    file: Path | None,
    max_minutes: float | None,
    version: str | None,
    as_json: bool,
) -> None:
    """Publish, record and print what a run gave."""
    from upt_training.records import Record, write_record

    adapter = _publish(store, recipe, trained, version)
    record = Record.of(experiment.recipe, trained, adapter=adapter, max_minutes=max_minutes)
    if file is not None:
        write_record(file, record)
    if as_json:
        typer.echo(record.model_dump_json())
    else:
        _print_result(record.adapter, record.metrics)


def _started(
    context: typer.Context, recipe: _AnyRecipe, home: Path | None
) -> "tuple[_AnyRecipe, Mapping[str, Array] | None]":
    """Pin the recipe's initial adapter by its digest and read it."""
    from upt_zoo.backbone import resolve_backbone
    from upt_zoo.commands.remotes import store_of
    from upt_zoo.errors import WrongBackbone
    from upt_zoo.references import Reference

    if recipe.initial_adapter is None:
        return recipe, None
    reference = Reference.parse(recipe.initial_adapter)
    origin = store_of(context, reference, home, offline=False)
    stored = origin.resolve(reference)
    backbone = resolve_backbone(recipe.backbone).identity
    if stored.spec.backbone.digest != backbone.digest:
        raise WrongBackbone(
            f"initial_adapter: {stored.reference} belongs to {stored.spec.backbone.digest}, "
            f"{recipe.backbone} is {backbone.digest}"
        )
    _, tensors = origin.load(stored)
    pinned = replace(reference, tag=stored.version, digest=stored.digest)
    return recipe.model_copy(update={"initial_adapter": str(pinned)}), tensors


def _publish(
    store: "Store | None", recipe: "Recipe", trained: "Trained", version: str | None
) -> str | None:
    """Publish, if there is a store and the method gives an adapter."""
    from upt_training.card import write_card
    from upt_training.recipe import COMPARISONS

    if store is None or recipe.method in COMPARISONS:
        return None
    card = write_card(
        trained.spec, train_rows=trained.train_rows, holdout_rows=trained.holdout_rows
    )
    stored = store.publish(trained.spec, trained.tensors, card, version=version)
    return f"{stored.reference}@{stored.digest}"


def _print_result(adapter: str | None, metrics: dict[str, float]) -> None:
    typer.echo(f"published {adapter}" if adapter else "not published")
    for name, value in metrics.items():
        typer.echo(f"{name} {value:.2f}")


def _checkpoint(name: str, recipe: "Learning") -> Path:
    """Say where a run's checkpoint stands: in the user's cache, by the recipe."""
    import platformdirs

    directory = platformdirs.user_cache_path("upt", appauthor=False) / "checkpoints"
    directory.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(recipe.model_dump_json().encode()).hexdigest()[:12]
    return directory / f"{name}-{recipe.method}-{digest}.safetensors"
