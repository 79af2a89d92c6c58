"""The command ``site``: the store as a web page."""

from pathlib import Path
from typing import Annotated

import typer

from upt_zoo.options import AsJson, Home, print_json


def add_site_commands(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(site)


def site(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The directory to write.")],
    home: Home = None,
    catalogue: Annotated[
        bool, typer.Option("--catalogue", help="Show the embedded catalogue instead.")
    ] = False,
    records: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            file_okay=False,
            help="Run records of upt-train, for curves that adapters do not carry.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the store as a web page that any server of files can show.

    Adapters with their cards, versions, metrics and where they come from. The playground and the
    live view of the same page are with `upt-server run`.
    """
    from upt_zoo import catalogue as catalogues
    from upt_zoo.site.curves import read_curves
    from upt_zoo.site.writing import write_site

    store = catalogues.embedded_catalogue() if catalogue else catalogues.home_store(home)
    count = write_site(store, out, read_curves(records) if records else None)
    if as_json:
        print_json({"directory": str(out), "versions": count})
        return
    typer.echo(f"{count} versions; look at it with: python3 -m http.server -d {out}", err=True)
    typer.echo(out)
