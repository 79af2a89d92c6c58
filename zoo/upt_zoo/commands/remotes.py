"""The commands that talk to remotes: ``push``, ``bundle``, ``login`` and ``logout``."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from upt_zoo.commands.bars import progress_bars
from upt_zoo.options import Adapter, AsJson, Home, Offline, complete_adapter, print_json
from upt_zoo.progress import Report, silent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from upt_zoo.local.store import Store, StoredAdapter
    from upt_zoo.references import Reference
    from upt_zoo.remote.remotes import Remotes


def add_remote_commands(app: typer.Typer) -> None:
    """Register the commands."""
    for command in (push, bundle, login, logout):
        app.command()(command)


def read_remotes(*, offline: bool, report: Report = silent) -> "Remotes":
    """Read the user's settings of remotes; ``report`` is told how far transfers have come.

    Raises:
        InvalidInput: a setting is unknown, malformed, or contradicts another one.
    """
    from upt_zoo.remote.remotes import Remotes

    environment = {**os.environ, **({"UPT_ZOO_OFFLINE": "1"} if offline else {})}
    return Remotes.read(environment, report=report)


def store_of(
    context: typer.Context, reference: "Reference", home: Path | None, *, offline: bool
) -> "Store":
    """Open the user's store; what has a remote is copied until the command ends."""
    from upt_zoo.catalogue import home_store

    if reference.remote is None:
        return home_store(home)
    return context.with_resource(read_remotes(offline=offline).borrow(reference, reference.remote))


def push(
    ref: Adapter,
    remote: Annotated[
        str,
        typer.Argument(
            metavar="REMOTE", help="oci://host[:port]/prefix, hf://owner or file:///directory"
        ),
    ],
    home: Home = None,
    offline: Offline = False,
    as_json: AsJson = False,
) -> None:
    """Copy a version from the store to a remote, to the same digest.

    A version that is there with other bytes is never replaced.
    """
    from upt_zoo.catalogue import home_store
    from upt_zoo.references import Reference

    reference = local_reference(Reference.parse(ref))
    with progress_bars() as report:
        remotes = read_remotes(offline=offline, report=report)
        stored = remotes.push(reference, home_store(home), remote)
    typer.echo(f"pushed {stored.reference} to {remote}", err=True)
    print_digests([stored], as_json=as_json)


def bundle(
    refs: Annotated[
        list[str],
        typer.Argument(
            metavar="REF...", help="Adapters of the store.", autocompletion=complete_adapter
        ),
    ],
    out: Annotated[Path, typer.Option(help="The file to write.", dir_okay=False)],
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Write adapters into one file for sites without a network.

    There, pull file:///directory/FILE.tar/name reads it.
    """
    from upt_zoo.catalogue import home_store
    from upt_zoo.references import Reference
    from upt_zoo.remote.bundle import write_bundle

    references = [local_reference(Reference.parse(ref)) for ref in refs]
    with progress_bars() as report:
        stored = write_bundle(home_store(home), references, out, report=report)
    typer.echo(f"wrote {out}", err=True)
    print_digests(stored, as_json=as_json)


def login(
    host: Annotated[str, typer.Argument(metavar="HOST", help="host[:port] of a registry")],
    username: Annotated[str | None, typer.Option(help="Asked for if left out.")] = None,
    password_stdin: Annotated[
        bool, typer.Option("--password-stdin", help="Read the password from standard input.")
    ] = False,
) -> None:
    """Keep a name and a password for a registry, after trying them there.

    They go into credentials.json in the configuration directory, which only you can read.
    """
    from upt_zoo.errors import InvalidInput
    from upt_zoo.remote.credentials import Credentials

    remotes = read_remotes(offline=False)
    with remotes.connect(f"oci://{host}", None) as connection:
        challenge = connection.challenge()
        if challenge is None:
            typer.echo(f"{host} lets everybody in; nothing to keep", err=True)
            return
        asking = connection.token_host(challenge) if challenge.scheme == "bearer" else host
    username = username or str(typer.prompt("Username", err=True))
    if ":" in username:
        raise InvalidInput(f"username {username!r}: expected one without a colon")
    credentials = Credentials(
        username=username,
        password=_password(username, asking, is_piped=password_stdin),
        token_host=asking,
    )
    remotes.log_in(host, credentials)
    typer.echo(f"{username} may use {host}", err=True)


def logout(
    host: Annotated[str, typer.Argument(metavar="HOST", help="host[:port] of a registry")],
) -> None:
    """Forget the name and password that login keeps for a registry; nothing is sent.

    What Docker's config.json holds stays.
    """
    from upt_zoo.remote.credentials import drop_credentials, read_credentials
    from upt_zoo.remote.remotes import credentials_path

    is_dropped = drop_credentials(host, credentials_path())
    typer.echo(f"{'forgot' if is_dropped else 'nothing is kept of'} {host}", err=True)
    if read_credentials(host, read_remotes(offline=True).credential_files):
        typer.echo(f"Docker's config.json still names a password for {host}", err=True)


def local_reference(reference: "Reference") -> "Reference":
    """Return a reference that has no remote.

    Raises:
        InvalidReference: it has one.
    """
    from upt_zoo.errors import InvalidReference

    if reference.remote is not None:
        raise InvalidReference(f"{reference}: expected an adapter of the store; pull it first")
    return reference


def print_digests(adapters: "Sequence[StoredAdapter]", *, as_json: bool) -> None:
    """Print which versions a command wrote."""
    if as_json:
        print_json([{"reference": each.reference, "digest": each.digest} for each in adapters])
        return
    for each in adapters:
        typer.echo(f"{each.reference}@{each.digest}")


def _password(username: str, asking: str, *, is_piped: bool) -> str:
    if is_piped:
        return sys.stdin.readline().rstrip("\r\n")
    text = f"Password of {username}, to be shown to {asking}"
    return str(typer.prompt(text, hide_input=True, err=True))
