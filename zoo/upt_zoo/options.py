"""What the commands of ``upt-zoo`` share: their options, and JSON as their output."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from upt_zoo.terminal import print_table

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pydantic import JsonValue

    from upt_zoo.findings import Finding

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


def complete_adapter(context: typer.Context, incomplete: str) -> list[str]:
    """Return the names in the store and in the catalogue that begin so, for a shell to offer."""
    from upt_zoo.catalogue import embedded_catalogue, home_store
    from upt_zoo.errors import UptError

    names: set[str] = set()
    for store in (home_store(context.params.get("home")), embedded_catalogue()):
        with suppress(UptError, OSError):  # a shell has no place for a message
            names |= store.listing().versions.keys()
    return sorted(name for name in names if name.startswith(incomplete))


Adapter = Annotated[
    str,
    typer.Argument(
        metavar="REF",
        help="[remote/]name[:version][@digest]",
        autocompletion=complete_adapter,
    ),
]

Adapters = Annotated[
    list[str],
    typer.Argument(
        metavar="REF...",
        help="[remote/]name[:version][@digest]",
        autocompletion=complete_adapter,
    ),
]


def nothing_in(root: Path) -> str:
    """Say of a store without adapters what to do."""
    return f"no adapters in {root}; `upt-zoo ls --catalogue` lists what `upt-zoo pull NAME` fetches"


def print_findings(findings: "Iterable[Finding]", *, as_json: bool) -> None:
    """Print what ``doctor`` found."""
    from dataclasses import asdict

    if as_json:
        print_json([asdict(finding) for finding in findings])
        return
    rows = [(each.check, each.level, each.text, each.remedy) for each in findings]
    print_table(("check", "result", "found", "what to do"), rows)


def print_json(value: "JsonValue") -> None:
    """Print one JSON document."""
    from pydantic_core import to_json  # a tenth of the time of json, of a list of 10,000 adapters

    typer.echo(to_json(value, indent=2, inf_nan_mode="constants"))
