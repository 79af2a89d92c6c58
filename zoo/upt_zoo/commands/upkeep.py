"""The commands that look after a store: ``gc``, ``reindex`` and ``doctor``."""

from typing import Annotated

import typer

from upt_zoo.errors import Corrupt
from upt_zoo.options import AsJson, Home, print_findings, print_json
from upt_zoo.terminal import EXIT_CODES, format_size


def add_upkeep_commands(app: typer.Typer) -> None:
    """Register the commands."""
    app.command(name="gc")(collect)
    app.command()(reindex)
    app.command()(doctor)


def collect(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Delete nothing.")] = False,
    grace: Annotated[
        float,
        typer.Option(metavar="SECONDS", min=0, help="Keep what was in use so shortly before."),
    ] = 600,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Delete the blobs that no version, no alias and no living reader needs."""
    from upt_zoo.catalogue import home_store
    from upt_zoo.local import upkeep

    garbage = upkeep.collect(home_store(home), grace_s=grace, dry_run=dry_run)
    if garbage.young:
        typer.echo(f"kept {garbage.young} blobs of the last {grace:.0f} s (--grace)", err=True)
    if garbage.leased:
        typer.echo(f"kept {garbage.leased} blobs that are being read", err=True)
    if as_json:
        print_json({**garbage.to_json(), "deleted": not dry_run})
    else:
        verb = "would delete" if dry_run else "deleted"
        typer.echo(f"{verb} {len(garbage.paths)} blobs, {format_size(garbage.size_bytes)}")


def reindex(home: Home = None, as_json: AsJson = False) -> None:
    """Write the index anew from the blobs; aliases and times come from the old one."""
    from upt_zoo.catalogue import home_store
    from upt_zoo.local.recovery import rebuild

    rebuilt = rebuild(home_store(home))
    if not rebuilt.was_readable:
        typer.echo(
            "the old index could not be read: aliases, yanked versions, removed versions and the "
            "history are lost",
            err=True,
        )
    for what in rebuilt.lost:
        typer.echo(f"could not be read and is left out: {what}", err=True)
    if as_json:
        print_json(
            {
                "listed": rebuilt.listed,
                "added": list(rebuilt.added),
                "dropped": list(rebuilt.dropped),
                "aliases": list(rebuilt.aliases),
                "lost": list(rebuilt.lost),
            }
        )
        return
    typer.echo(f"{rebuilt.listed} versions, {len(rebuilt.aliases)} aliases")
    for what, names in (("added", rebuilt.added), ("dropped", rebuilt.dropped)):
        for name in names:
            typer.echo(f"{what} {name}")


def doctor(home: Home = None, as_json: AsJson = False) -> None:
    """Check the store: directory, disk, index, leftovers, backbones; exit code 65 for damage."""
    from upt_zoo.catalogue import home_store
    from upt_zoo.local.checkup import examine

    findings = examine(home_store(home))
    print_findings(findings, as_json=as_json)
    if any(finding.level == "damage" for finding in findings):
        raise typer.Exit(EXIT_CODES[Corrupt])
