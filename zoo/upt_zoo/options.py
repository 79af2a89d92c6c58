"""What the commands of ``upt-zoo`` share: their options, and JSON as their output."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pydantic import JsonValue

    from upt_zoo.local.store import StoredAdapter

Home = Annotated[
    Path | None,
    typer.Option(
        envvar="UPT_ZOO_HOME",
        help="Directory of the store.",
        show_default="the user's data directory",
        file_okay=False,
    ),
]
Offline = Annotated[
    bool, typer.Option("--offline", help="Use no network, as UPT_ZOO_OFFLINE=1 says too.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Adapter = Annotated[str, typer.Argument(metavar="REF", help="[remote/]name[:version][@digest]")]


def print_json(value: "JsonValue") -> None:
    """Print one JSON document."""
    from pydantic_core import to_json  # a tenth of the time of json, of a list of 10,000 adapters

    typer.echo(to_json(value, indent=2, inf_nan_mode="constants"))


def summary_of(stored: "StoredAdapter") -> "dict[str, JsonValue]":
    """Say in JSON what an adapter is, in short."""
    spec = stored.spec
    return {
        "name": stored.name,
        "version": stored.version,
        "digest": stored.digest,
        "method": spec.method,
        "metrics": dict(spec.lineage.metrics),
        "size_bytes": stored.size_bytes,
    }
