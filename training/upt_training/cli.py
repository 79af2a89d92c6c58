"""The command ``upt-train``: results on stdout, progress on stderr, one line for an error.

Exit codes are those of ``upt_zoo.terminal``. Only its options read the environment
(``UPT_DATA_DIR``, ``UPT_ZOO_HOME``), and only it sets it. Everything beyond typer is imported
inside the commands, which keeps ``--help`` fast.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from upt_training.commands.learning import add_learning_commands
from upt_training.commands.tables import table
from upt_training.options import DataFolder, Threads, set_threads
from upt_zoo.errors import InvalidInput
from upt_zoo.options import AsJson, Home
from upt_zoo.terminal import run_command

if TYPE_CHECKING:
    from upt_training.data import Split
    from upt_zoo.answers import Answer
    from upt_zoo.local.store import Store, StoredAdapter
    from upt_zoo.nn.adapter import PreparedAdapter
    from upt_zoo.nn.encoder import Encoder
    from upt_zoo.spec import AdapterSpec
    from upt_zoo.tasks import Task
    from upt_zoo.tokenization import Tokenizer

app = typer.Typer(
    help="Train adapters, evaluate them and register them in the zoo.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
add_learning_commands(app)
app.command()(table)


def main() -> None:
    """Run the command line and exit with its code."""
    # oneDNN compiles a kernel a shape; its default memory of 1,024 is too short for an epoch
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "8192")
    run_command(app, "upt-train")


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
    recipe: Annotated[
        Path | None,
        typer.Option(
            metavar="RECIPE.yaml",
            help="The recipe of a task of one's own.",
            show_default="a task of the catalogue",
        ),
    ] = None,
    data: DataFolder = None,
    home: Home = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate an adapter on a labelled file of its task, here or through a running server."""
    from upt_training.evaluation import answers_in_process
    from upt_training.metrics import score

    store, stored, known, rows = _labelled(context, ref, split, recipe, data, home)
    texts = [example.texts for example in rows.examples]
    answers = (
        _answers_of_server(server, stored, texts)
        if server
        else answers_in_process(*_load(store, stored, threads), texts)
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
def report(
    context: typer.Context,
    ref: Annotated[str, typer.Argument(metavar="REF", help="[remote/]name[:version][@digest]")],
    out: Annotated[
        Path,
        typer.Option(metavar="FOLDER", help="Write report and plots there.", file_okay=False),
    ],
    split: Annotated[
        str | None, typer.Option(help="The file to read.", show_default="the first dev file")
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            metavar="RECIPE.yaml",
            help="The recipe of a task of one's own.",
            show_default="a task of the catalogue",
        ),
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option(
            metavar="RECORD.json", help="Draw this run's learning curves too.", exists=True
        ),
    ] = None,
    worst: Annotated[int, typer.Option(min=0, help="Worst errors to list.")] = 20,
    texts: Annotated[
        bool, typer.Option("--texts", help="Write the texts of the worst errors too.")
    ] = False,
    data: DataFolder = None,
    home: Home = None,
    threads: Threads = None,
) -> None:
    """Say where an adapter errs: intervals, confusion, calibration, worst errors, gates, plots."""
    from upt_training.evaluation import answers_in_process, gates_in_process
    from upt_training.inspection import inspect
    from upt_training.records import read_record
    from upt_training.report import write_report

    run = None if record is None else read_record(record)
    store, stored, known, rows = _labelled(context, ref, split, recipe, data, home)
    inputs = [example.texts for example in rows.examples]
    model = _load(store, stored, threads)
    answers = answers_in_process(*model, inputs)
    files = write_report(
        out,
        f"{stored.reference}@{stored.digest}",
        rows.file,
        inspect(known, rows.examples, answers, worst=worst),
        gates=gates_in_process(*model, inputs),
        record=run,
        examples=rows.examples if texts else None,
    )
    for file in files:
        typer.echo(file)


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


def _task_of_adapter(
    stored: "StoredAdapter", recipe: Path | None, data: Path | None
) -> "tuple[Task, Path | None]":
    """Return the task that an adapter was trained for, and the folder of its files."""
    from upt_training.recipe import read_recipe, task_of
    from upt_zoo.tasks import TASKS, find_task

    name, head = stored.spec.task.name, stored.spec.head
    if recipe is None and name not in TASKS:
        raise InvalidInput(f"{name} is no task of the catalogue: name its recipe with --recipe")
    known = find_task(name) if recipe is None else task_of(read_recipe(recipe))
    if (known.name, known.kind) != (name, head.kind):
        raise InvalidInput(
            f"{stored.reference} is for the task {name} ({head.kind}), the recipe for "
            f"{known.name} ({known.kind}): they cannot be compared"
        )
    if head.labels != known.labels:
        raise InvalidInput(
            f"{stored.reference} has the labels {head.labels}, the files of "
            f"{known.name} have {known.labels}: they cannot be compared"
        )
    return known, recipe.parent if recipe is not None and known.files is not None else data


def _answers_of_server(
    target: str, stored: "StoredAdapter", texts: Sequence[tuple[str, ...]]
) -> "list[Answer]":
    from upt_server.client import Client
    from upt_training.evaluation import answers_of_server

    with Client(target) as client:
        reference, is_embedding = (
            f"{stored.name}@{stored.digest}",
            stored.spec.head.kind == "embedding",
        )
        return answers_of_server(client, reference, texts, is_embedding=is_embedding)


def _labelled(
    context: typer.Context,
    ref: str,
    split: str | None,
    recipe: Path | None,
    data: Path | None,
    home: Path | None,
) -> "tuple[Store, StoredAdapter, Task, Split]":
    """Find an adapter and a labelled file of its task."""
    from upt_training.data import read_split, splits_in
    from upt_zoo.commands.remotes import store_of
    from upt_zoo.references import Reference

    reference = Reference.parse(ref)
    store = store_of(context, reference, home, offline=False)
    stored = store.resolve(reference)
    known, folder = _task_of_adapter(stored, recipe, data)
    splits = splits_in(known, folder=folder)
    if not splits and split is None:
        raise InvalidInput(f"no dev file of {known.name}: set UPT_DATA_DIR or --data")
    return store, stored, known, read_split(known, split or splits[0], folder=folder)


def _load(
    store: "Store", stored: "StoredAdapter", threads: int | None
) -> "tuple[Encoder, PreparedAdapter, AdapterSpec, Tokenizer]":
    """Load an adapter and its backbone to answer in this process."""
    import torch

    from upt_zoo.backbone import resolve_backbone
    from upt_zoo.errors import WrongBackbone
    from upt_zoo.nn.adapter import prepare
    from upt_zoo.nn.encoder import load_encoder
    from upt_zoo.tokenization import Tokenizer

    set_threads(threads)
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
    return load_encoder(backbone), adapter, spec, tokenizer


if __name__ == "__main__":
    main()
