"""The command ``upt-train``: results on stdout, progress on stderr, one line for an error.

Exit codes are those of ``upt_zoo.terminal``. Only this module reads the environment
(``UPT_DATA_DIR``, ``UPT_ZOO_HOME``) and sets it. Everything beyond typer is imported inside the
commands, which keeps ``--help`` fast.
"""

import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from upt_zoo.errors import Conflict, InvalidInput, InvalidReference
from upt_zoo.options import AsJson, Home
from upt_zoo.terminal import run_command

if TYPE_CHECKING:
    from upt_training.experiment import Trained
    from upt_training.recipe import Recipe
    from upt_zoo.answers import Answer
    from upt_zoo.local.store import Store, StoredAdapter
    from upt_zoo.tensors import Array

app = typer.Typer(
    help="Train adapters, evaluate them and register them in the zoo.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
DataFolder = Annotated[
    Path | None,
    typer.Option(
        "--data",
        envvar="UPT_DATA_DIR",
        help="Folder of <task>/<split>.jsonl.gz.",
        show_default="the Hugging Face hub",
        file_okay=False,
        exists=True,
    ),
]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads that compute.")]


def main() -> None:
    """Run the command line and exit with its code."""
    # oneDNN compiles a kernel a shape; its default memory of 1,024 is too short for an epoch
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "8192")
    run_command(app, "upt-train")


@app.command()
def run(
    context: typer.Context,
    recipes: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[RECIPE.yaml...]", help="Run one after the other."),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="A task of the catalogue, with its own recipe.")
    ] = None,
    method: Annotated[str | None, typer.Option(help="Instead of the recipe's own.")] = None,
    seed: Annotated[int | None, typer.Option(help="Instead of the recipe's own.")] = None,
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
    data: DataFolder = None,
    home: Home = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Train, evaluate on dev and test files, and register in the zoo.

    A run that was interrupted goes on where it was when it is started again.
    """
    from upt_zoo.catalogue import home_store
    from upt_zoo.references import is_version

    if version is not None and not is_version(version):
        raise InvalidReference(f"--version: expected MAJOR.MINOR.PATCH, got {version!r}")
    wanted = {"method": method, "seed": seed, "precision": backbone_precision}
    changes = {name: value for name, value in wanted.items() if value is not None}
    for wanted_recipe in _recipes(recipes or [], task, changes):
        recipe, initial = _started(context, wanted_recipe, home)
        _run(
            recipe,
            initial,
            store=None if no_publish else home_store(home),
            data=data,
            records=records,
            max_minutes=max_minutes,
            version=version,
            threads=threads,
            as_json=as_json,
        )


@app.command()
def evaluate(
    context: typer.Context,
    ref: Annotated[str, typer.Argument(metavar="REF", help="[remote/]name[:version][@digest]")],
    server: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT", help="Ask this server.", show_default="compute in this process"
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="The file to read.", show_default="the first dev file")
    ] = None,
    data: DataFolder = None,
    home: Home = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate an adapter on a labelled file of its task, here or through a running server."""
    from upt_training.data import read_split, splits_in
    from upt_training.metrics import score
    from upt_zoo.commands.remotes import store_of
    from upt_zoo.references import Reference
    from upt_zoo.tasks import find_task

    reference = Reference.parse(ref)
    store = store_of(context, reference, home, offline=False)
    stored = store.resolve(reference)
    known = find_task(stored.spec.task.name)
    splits = splits_in(known, folder=data)
    if not splits and split is None:
        raise InvalidInput(f"no dev file of {known.name}: set UPT_DATA_DIR or --data")
    if stored.spec.head.labels != known.labels:
        raise InvalidInput(
            f"{stored.reference} has the labels {stored.spec.head.labels}, the files of "
            f"{known.name} those of the catalogue, {known.labels}: they cannot be compared"
        )
    rows = read_split(known, split or splits[0], folder=data)
    texts = [example.texts for example in rows.examples]
    answers = (
        _answers_of_server(server, stored, texts)
        if server
        else _answers_in_process(store, stored, texts, threads)
    )
    metrics = score(known, rows.examples, answers)
    if as_json:
        facts = {"adapter": f"{stored.reference}@{stored.digest}", "file": rows.file.name}
        typer.echo(json.dumps({**facts, "rows": len(texts), "metrics": metrics}))
        return
    where = f"server {server}" if server else "this process"
    typer.echo(f"{stored.reference} on {rows.file.name} ({len(texts)} rows), by {where}")
    for name, value in metrics.items():
        typer.echo(f"{name} {value:.2f}")


@app.command()
def table(
    records: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Folder of run records.", file_okay=False)
    ],
    split: Annotated[
        str | None, typer.Option(help="The file to read off.", show_default="the first dev file")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print tasks by methods, mean and deviation over seeds, out of run records alone."""
    from upt_training.table import as_markdown, cells_of, read_records

    cells = cells_of(read_records(records), split=split)
    if as_json:
        typer.echo(json.dumps([cell.as_json() for cell in cells], indent=2))
    else:
        typer.echo(as_markdown(cells))


@app.command()
def tasks(as_json: AsJson = False) -> None:
    """List the tasks of the catalogue."""
    from upt_zoo.tasks import TASKS

    if as_json:
        listed = [
            {"name": each.name, "fields": each.fields, "head": each.kind, "metrics": each.metrics}
            for each in TASKS.values()
        ]
        typer.echo(json.dumps(listed, indent=2))
        return
    for each in TASKS.values():
        typer.echo(f"{each.name:<20} {', '.join(each.metrics):<24} {each.description}")


def _recipes(
    files: Sequence[Path], task: str | None, changes: dict[str, str | int]
) -> list["Recipe"]:
    from upt_training.recipe import read_recipe, recipe_of_task

    if bool(files) == bool(task):
        raise InvalidInput("expected recipe files or --task NAME, and not both")
    found = [recipe_of_task(task)] if task else [read_recipe(file) for file in files]
    return [recipe.changed(changes) for recipe in found]


def _run(
    recipe: "Recipe",
    initial: "Mapping[str, Array] | None",
    *,
    store: "Store | None",
    data: Path | None,
    records: Path | None,
    max_minutes: float | None,
    version: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    from upt_training.experiment import Experiment
    from upt_training.progress import reporting
    from upt_training.records import Record, read_record, record_file, write_record

    file = record_file(records, recipe) if records else None
    if file is not None and file.exists():
        if not read_record(file).is_of(recipe):
            raise Conflict(f"{file} is of another recipe; name another folder of records")
        typer.echo(f"{file} exists: skipped", err=True)
        return
    _set_threads(threads)
    experiment = Experiment(recipe, data_folder=data, initial=initial)
    checkpoint = _checkpoint(experiment.recipe)
    with reporting(sys.stderr, as_json=as_json) as reporter:
        trained = experiment.run(
            reporter,
            checkpoint=checkpoint,
            max_seconds=None if max_minutes is None else max_minutes * 60,
        )
    adapter = _publish(store, recipe, trained, version)
    record = Record.of(experiment.recipe, trained, adapter=adapter, max_minutes=max_minutes)
    if file is not None:
        write_record(file, record)
    checkpoint.unlink(missing_ok=True)  # not before the result is safe
    if as_json:
        typer.echo(record.model_dump_json())
    else:
        _print_result(record.adapter, record.metrics)


def _started(
    context: typer.Context, recipe: "Recipe", home: Path | None
) -> "tuple[Recipe, Mapping[str, Array] | None]":
    """Pin the recipe's initial adapter by its digest and read it."""
    from upt_zoo.commands.remotes import store_of
    from upt_zoo.references import Reference

    if recipe.initial_adapter is None:
        return recipe, None
    reference = Reference.parse(recipe.initial_adapter)
    origin = store_of(context, reference, home, offline=False)
    stored = origin.resolve(reference)
    _, tensors = origin.load(stored)
    pinned = replace(reference, tag=stored.version, digest=stored.digest)
    return recipe.changed({"initial_adapter": str(pinned)}), tensors


def _publish(
    store: "Store | None", recipe: "Recipe", trained: "Trained", version: str | None
) -> str | None:
    """Publish, if there is a store; full fine-tuning has no adapter."""
    from upt_training.card import write_card

    if store is None or recipe.method == "full":
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


def _checkpoint(recipe: "Recipe") -> Path:
    """Say where a run's checkpoint stands: in the user's cache, by the recipe."""
    import platformdirs

    directory = platformdirs.user_cache_path("upt", appauthor=False) / "checkpoints"
    directory.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(recipe.model_dump_json().encode()).hexdigest()[:12]
    return directory / f"{recipe.task}-{recipe.method}-{digest}.safetensors"


def _answers_of_server(
    target: str, stored: "StoredAdapter", texts: Sequence[tuple[str, ...]]
) -> "list[Answer]":
    from upt_server.client import Client
    from upt_training.evaluation import answers_of_server

    with Client(target) as client:
        return answers_of_server(client, f"{stored.name}@{stored.digest}", texts)


def _answers_in_process(
    store: "Store",
    stored: "StoredAdapter",
    texts: Sequence[tuple[str, ...]],
    threads: int | None,
) -> "list[Answer]":
    import torch

    from upt_training.evaluation import answers_in_process
    from upt_zoo.backbone import resolve_backbone
    from upt_zoo.errors import WrongBackbone
    from upt_zoo.nn.adapter import prepare
    from upt_zoo.nn.encoder import load_encoder
    from upt_zoo.tokenization import Tokenizer

    _set_threads(threads)
    backbone = resolve_backbone(stored.spec.backbone.hub_id)
    if backbone.identity.digest != stored.spec.backbone.digest:
        raise WrongBackbone(
            f"{stored.reference} belongs to {stored.spec.backbone.digest}, the backbone "
            f"{backbone.identity.hub_id} on this machine is {backbone.identity.digest}"
        )
    spec, arrays = store.load(stored)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    adapter = prepare(spec, tensors, dtype=torch.float32)
    tokenizer = Tokenizer(backbone.tokenizer_file)
    return answers_in_process(load_encoder(backbone), adapter, spec, tokenizer, texts)


def _set_threads(threads: int | None) -> None:
    import torch

    if threads is not None:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    main()
