"""The commands ``import`` and ``export``: checkpoints of other libraries."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from upt_zoo.commands.remotes import read_remotes, store_of
from upt_zoo.options import Adapter, AsJson, Home, Offline, print_json

LibraryName = Annotated[
    Literal["peft", "adapterhub"], typer.Argument(metavar="LIBRARY", help="peft or adapterhub")
]
Kind = Literal["classification", "multi_label", "regression", "span"]


def add_interop_commands(app: typer.Typer) -> None:
    """Register the commands."""
    app.command(name="import")(import_adapter)
    app.command(name="export")(export_adapter)


def import_adapter(
    library: LibraryName,
    path: Annotated[
        str,
        typer.Argument(
            help="Directory of the checkpoint, or hf://owner/repository[@revision] on the Hub."
        ),
    ],
    task: Annotated[
        str, typer.Option(help="What it does; one of the catalogue's tasks gives the rest.")
    ],
    name: Annotated[
        str | None, typer.Option(help="Name of the adapter; by default the task's.")
    ] = None,
    version: Annotated[
        str | None, typer.Option(help="By default the patch after the newest.")
    ] = None,
    labels: Annotated[
        str | None, typer.Option(help="Names of the outputs in their order: no,yes")
    ] = None,
    kind: Annotated[
        Kind | None, typer.Option(help="What the outputs mean, if the checkpoint is silent.")
    ] = None,
    fields: Annotated[
        str | None, typer.Option(help="Names of the one or two text fields: premise,hypothesis")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest row.", min=8)] = None,
    backbone: Annotated[
        str | None,
        typer.Option(help="Directory or hub id; by default what the checkpoint names."),
    ] = None,
    data: Annotated[str, typer.Option(help="The data set it was trained on.")] = "unknown",
    data_licence: Annotated[str, typer.Option(help="The licence of that data.")] = "unknown",
    licence: Annotated[str, typer.Option(help="The licence of the adapter.")] = "unknown",
    home: Home = None,
    offline: Offline = False,
    as_json: AsJson = False,
) -> None:
    """Publish a checkpoint of PEFT or AdapterHub's adapters into the store.

    It answers as it does there, or is refused with the reason.
    """
    from upt_zoo.catalogue import home_store
    from upt_zoo.interop.choices import Choices
    from upt_zoo.interop.library import Library, import_checkpoint

    choices = Choices(
        task=task,
        name=name,
        labels=_split(labels),
        kind=kind,
        fields=_split(fields),
        max_tokens=max_tokens,
        data=data,
        data_licence=data_licence,
        licence=licence,
    )
    remotes, directory, source = read_remotes(offline=offline), Path(path), None
    if path.startswith("hf://"):
        directory, source = remotes.fetch_checkpoint(path)
    found = import_checkpoint(
        Library(library),
        directory,
        choices,
        backbone=backbone,
        is_offline=remotes.is_offline,
        source=source,
    )
    store = home_store(home)
    stored = store.publish(found.spec, found.tensors, found.card, version=version)
    typer.echo(f"imported {stored.reference} into {store.root}", err=True)
    if as_json:
        print_json({"name": stored.name, "version": stored.version, "digest": stored.digest})
    else:
        typer.echo(f"{stored.reference}@{stored.digest}")


def export_adapter(
    context: typer.Context,
    library: LibraryName,
    ref: Adapter,
    directory: Annotated[Path, typer.Argument(help="Where to; must not exist, or be empty.")],
    home: Home = None,
    offline: Offline = False,
    as_json: AsJson = False,
) -> None:
    """Write an adapter as a checkpoint of PEFT or AdapterHub's adapters.

    It answers there as it does here, or is refused with the reason.
    """
    from upt_zoo.interop.library import Checkpoint, Library, export_checkpoint
    from upt_zoo.references import Reference

    reference = Reference.parse(ref)
    store = store_of(context, reference, home, offline=offline)
    stored = store.resolve(reference)
    spec, tensors = store.load(stored)
    checkpoint = Checkpoint(spec=spec, tensors=tensors, card=store.card(stored))
    export_checkpoint(Library(library), checkpoint, directory)
    typer.echo(f"exported {stored.reference}@{stored.digest}", err=True)
    if as_json:
        print_json({"reference": stored.reference, "directory": str(directory)})
    else:
        typer.echo(str(directory))


def _split(names: str | None) -> tuple[str, ...] | None:
    return tuple(part.strip() for part in names.split(",")) if names else None
