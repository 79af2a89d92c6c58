"""The command ``upt-zoo``: data on stdout, messages on stderr, one line for an error.

Exit codes are those of ``upt_zoo.terminal``. Only this module reads the environment
(``UPT_ZOO_HOME``). Everything beyond typer is imported inside the commands, which keeps ``--help``
fast.
"""

import gc
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from upt_zoo.commands.bars import progress_bars
from upt_zoo.commands.explaining import add_explaining_commands
from upt_zoo.commands.finding import add_finding_commands
from upt_zoo.commands.interop import add_interop_commands
from upt_zoo.commands.remotes import add_remote_commands, read_remotes
from upt_zoo.commands.signing import add_signing_commands
from upt_zoo.commands.site import add_site_commands
from upt_zoo.commands.tags import add_tag_commands
from upt_zoo.commands.upkeep import add_upkeep_commands
from upt_zoo.description import summary_of
from upt_zoo.errors import Corrupt
from upt_zoo.options import Adapters, AsJson, Home, Offline, nothing_in, print_json
from upt_zoo.terminal import (
    EXIT_CODES,
    format_metrics,
    format_size,
    make_app,
    print_table,
    run_command,
)

if TYPE_CHECKING:
    from pydantic import JsonValue

    from upt_zoo.local.listing import Listed, Listing
    from upt_zoo.local.store import Store

_GC_THRESHOLD = 200_000  # looking for cycles among 10,000 adapters takes a fifth of `ls`
app = make_app(
    "Find, fetch, check and explain adapters. An adapter is named [remote/]name[:version]."
)


def main() -> None:
    """Run the command line and exit with its code."""
    gc.set_threshold(_GC_THRESHOLD)
    run_command(app, "upt-zoo")


@app.command()
def pull(
    refs: Adapters, home: Home = None, offline: Offline = False, as_json: AsJson = False
) -> None:
    """Fetch adapters into the store.

    They come from the remote in front of their names (oci://host/prefix, hf://owner,
    file:///directory), else from the first of your remotes that has them; the last one is the
    embedded catalogue. Every byte is checked; pulling again mends what is damaged.
    """
    from upt_zoo.catalogue import home_store
    from upt_zoo.references import Reference

    references, store = [Reference.parse(ref) for ref in refs], home_store(home)
    for reference in references:
        with progress_bars() as report:
            stored = read_remotes(offline=offline, report=report).pull(reference, store)
        typer.echo(f"pulled {stored.reference} into {store.root}", err=True)
        if as_json:
            print_json(summary_of(stored))
        else:
            typer.echo(f"{stored.reference}@{stored.digest}")


@app.command(name="ls")
def list_adapters(
    home: Home = None,
    catalogue: Annotated[
        bool, typer.Option("--catalogue", help="List the embedded catalogue instead.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the adapters in the store; the exit code is 65 if one is damaged."""
    from upt_zoo.catalogue import embedded_catalogue, home_store

    store = embedded_catalogue() if catalogue else home_store(home)
    listing = store.listing()
    facts = [_listed_facts(store, listing, listed) for listed in listing.all()]
    if as_json:
        print_json([*facts])
    else:
        rows = [*map(_list_row, facts)]
        shown = slice(None if any(row[-1] for row in rows) else -1)
        header = ("adapter", "method", "metrics", "size", "tags")
        print_table(header[shown], [row[shown] for row in rows], empty=nothing_in(store.root))
    if any("damage" in each for each in facts):
        raise typer.Exit(EXIT_CODES[Corrupt])


def _listed_facts(store: "Store", listing: "Listing", listed: "Listed") -> "dict[str, JsonValue]":
    """Say what a list shows of a version, without opening its blobs where the index knows.

    Of a damaged version it is what is wrong.
    """
    facts: dict[str, JsonValue] = {"name": listed.name, "version": listed.version}
    try:
        summary = store.summarise(listed)
        listing.check_aliases(listed)
    except Corrupt as error:
        return facts | {"damage": str(error)}
    return facts | {
        "digest": listed.digest,
        "method": summary.method,
        "metrics": dict(summary.metrics),
        "size_bytes": summary.size_bytes,
        "created": listed.created,
        "yanked": listed.yanked,
        "aliases": list(listing.aliases_of(listed)),
    }


def _list_row(facts: "Mapping[str, Any]") -> tuple[str, ...]:
    reference = f"{facts['name']}:{facts['version']}"
    if "damage" in facts:
        return reference, "damaged", facts["damage"], "", ""
    return (
        reference,
        facts["method"],
        format_metrics(facts["metrics"]),
        format_size(facts["size_bytes"]),
        ", ".join([*facts["aliases"], *(["yanked"] if facts["yanked"] else [])]),
    )


# the help lists them in this order
add_explaining_commands(app)
add_finding_commands(app)
add_tag_commands(app)
add_remote_commands(app)
add_signing_commands(app)
add_interop_commands(app)
add_upkeep_commands(app)
add_site_commands(app)


if __name__ == "__main__":
    main()
