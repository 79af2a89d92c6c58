"""The commands that measure an adapter on labelled rows: ``evaluate`` and ``report``."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from upt_training.options import DataFolder, NoTexts, OwnRecipe, SplitName, Threads, set_threads
from upt_zoo.errors import InvalidInput
from upt_zoo.options import Adapter, AsJson, Home

if TYPE_CHECKING:
    from upt_training.data import Split
    from upt_zoo.answers import Answer
    from upt_zoo.local.store import Store, StoredAdapter
    from upt_zoo.tasks import Task


def evaluate(
    context: typer.Context,
    ref: Adapter,
    server: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT", help="Ask this server.", show_default="compute in this process"
        ),
    ] = None,
    split: SplitName = None,
    recipe: OwnRecipe = None,
    data: DataFolder = None,
    home: Home = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate an adapter on a labelled file of its task, here or through a running server."""
    from upt_training.metrics import score
    from upt_training.models import load_model

    store, stored, known, rows = _labelled(context, ref, split, recipe, data, home)
    texts = [example.texts for example in rows.examples]
    set_threads(threads)
    answers = (
        _answers_of_server(server, stored, texts)
        if server
        else load_model(store, stored).answers(texts)
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


def report(
    context: typer.Context,
    ref: Adapter,
    out: Annotated[
        Path,
        typer.Option(metavar="FOLDER", help="Write report and plots there.", file_okay=False),
    ],
    against: Annotated[
        str | None,
        typer.Option(
            metavar="REF",
            help="Stand it beside this version.",
            show_default="what stable means, else the version before it",
        ),
    ] = None,
    split: SplitName = None,
    recipe: OwnRecipe = None,
    record: Annotated[
        Path | None,
        typer.Option(
            metavar="RECORD.json", help="Draw this run's learning curves too.", exists=True
        ),
    ] = None,
    worst: Annotated[int, typer.Option(min=0, help="Worst errors to list.")] = 20,
    no_texts: NoTexts = False,
    data: DataFolder = None,
    home: Home = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Say where an adapter errs, how sure that is, and whether to promote it.

    Intervals, confusion, calibration, worst errors, gates, plots, and the version before it.
    """
    from upt_training.records import read_record
    from upt_training.report import write_report
    from upt_training.report_table import print_review
    from upt_training.review import review
    from upt_zoo.references import Reference

    run = None if record is None else read_record(record)
    store, stored, known, rows = _labelled(context, ref, split, recipe, data, home)
    set_threads(threads)
    found = review(
        store,
        stored,
        known,
        rows,
        against=None if against is None else Reference.parse(against),
        worst=worst,
    )
    examples = None if no_texts else rows.examples
    files = write_report(out, found, record=run, examples=examples)
    if as_json:
        typer.echo(json.dumps([str(file) for file in files]))
        return
    print_review(found, files[0], has_texts=not no_texts)


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
