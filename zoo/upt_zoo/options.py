"""What the commands of ``upt-zoo`` share: their options, and JSON as their output."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pydantic import JsonValue

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
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))
