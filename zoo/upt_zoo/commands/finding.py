"""The commands that find, compare and take in adapters: ``search``, ``diff`` and ``register``."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from upt_zoo.commands.remotes import store_of
from upt_zoo.options import Adapter, AsJson, Home, Offline, print_json
from upt_zoo.terminal import print_table

if TYPE_CHECKING:
    from pydantic import JsonValue

    from upt_zoo.comparison import TensorChange


def add_finding_commands(app: typer.Typer) -> None:
    """Register the commands."""
    for command in (search, diff, register):
        app.command()(command)


def search(
    words: Annotated[list[str], typer.Argument(help="All must occur; upper case is lower case.")],
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Find adapters by words in their names, descriptions, labels and names of data.

    It looks in the store and in the embedded catalogue.
    """
    from upt_zoo import catalogue
    from upt_zoo.search import search

    stores = (catalogue.home_store(home), catalogue.embedded_catalogue())
    found: list[dict[str, JsonValue]] = [
        {
            "reference": stored.reference if store is stores[0] else f"embedded/{stored.reference}",
            "digest": stored.digest,
            "description": stored.spec.task.description or "",
            "labels": list(stored.spec.head.labels or ()),
            "data": stored.spec.lineage.data,
        }
        for store, stored in search(stores, words)
    ]
    if as_json:
        print_json([*found])
    else:
        rows = [
            (str(each["reference"]), str(each["description"]), str(each["data"])) for each in found
        ]
        nothing = f"nothing has {' and '.join(words)}; `upt-zoo ls --catalogue` lists what there is"
        print_table(("adapter", "task", "data"), rows, empty=nothing)


def diff(
    context: typer.Context,
    first: Adapter,
    second: Adapter,
    home: Home = None,
    offline: Offline = False,
    as_json: AsJson = False,
) -> None:
    """Say what differs between two versions: spec, metrics, lineage, and each tensor."""
    from upt_zoo.comparison import compare_specs, compare_tensors
    from upt_zoo.references import Reference

    loaded = []
    for text in (first, second):
        reference = Reference.parse(text)
        store = store_of(context, reference, home, offline=offline)
        stored = store.resolve(reference)
        loaded.append((stored, *store.load(stored)))
    (one, one_spec, one_tensors), (other, other_spec, other_tensors) = loaded
    facts = compare_specs(one_spec, other_spec)
    tensors = compare_tensors(one_tensors, other_tensors)
    if as_json:
        print_json(
            {
                "first": {"reference": one.reference, "digest": one.digest},
                "second": {"reference": other.reference, "digest": other.digest},
                "facts": [asdict(change) for change in facts],
                "tensors": [asdict(change) for change in tensors],
            }
        )
        return
    rows = [(each.field, _value(each.first), _value(each.second)) for each in facts]
    rows += [(each.name, _verdict(each), "") for each in tensors if each.verdict != "equal"]
    equal = sum(each.verdict == "equal" for each in tensors)
    rows += [(f"{equal} of {len(tensors)} tensors", "equal", "")] if equal else []
    print_table(("", one.reference, other.reference), rows)


def register(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH...",
            help="Directories with spec.json, tensors.safetensors, card.md, or three such files.",
        ),
    ],
    version: Annotated[
        str | None, typer.Option(help="MAJOR.MINOR.PATCH.", show_default="the next patch")
    ] = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Publish adapters made elsewhere; of several directories all are published, or none."""
    from upt_zoo.catalogue import home_store
    from upt_zoo.local.drafts import read_drafts

    added = home_store(home).publish_all(read_drafts(paths, version=version))
    if as_json:
        print_json(
            [{"name": each.name, "version": each.version, "digest": each.digest} for each in added]
        )
        return
    for each in added:
        typer.echo(f"{each.reference}@{each.digest}")


def _value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _verdict(change: "TensorChange") -> str:
    if change.verdict == "differs":
        return f"differs by {change.relative:.3g}"
    return change.verdict if change.verdict != "shape" else "another shape"
