"""``upt-server status`` and ``upt-server admin``: what operators ask a running server."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from upt_server.options import (
    Adapter,
    AdminTarget,
    OwnCertificate,
    OwnKey,
    OwnToken,
    TrustedCa,
    connected,
)
from upt_zoo.options import AsJson, complete_adapter, print_json
from upt_zoo.terminal import format_size, print_table

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from google.protobuf.message import Message
    from pydantic import JsonValue

    from upt_protos.v1.admin_pb2 import ResidentAdapter
    from upt_server.admin_client import AdminClient

_TARGET = "127.0.0.1:8002"
app = typer.Typer(
    help="Load, pin and unload adapters of a running server.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
Adapters = Annotated[
    list[str],
    typer.Argument(
        metavar="REF...", help="name[:version][@digest]", autocompletion=complete_adapter
    ),
]


@app.command()
def load(
    ref: Adapter,
    server: AdminTarget = _TARGET,
    token_file: OwnToken = None,
    ca: TrustedCa = None,
    cert: OwnCertificate = None,
    key: OwnKey = None,
    as_json: AsJson = False,
) -> None:
    """Load an adapter before anybody asks for it; it may be evicted again."""
    with _asking(server, token_file, ca, cert, key) as client:
        _print_resident([client.load(ref)], as_json=as_json)


@app.command()
def pin(
    refs: Adapters,
    server: AdminTarget = _TARGET,
    token_file: OwnToken = None,
    ca: TrustedCa = None,
    cert: OwnCertificate = None,
    key: OwnKey = None,
    as_json: AsJson = False,
) -> None:
    """Load adapters and keep them until they are unloaded."""
    with _asking(server, token_file, ca, cert, key) as client:
        _print_resident(client.preload(refs), as_json=as_json)


@app.command()
def unload(
    ref: Adapter,
    server: AdminTarget = _TARGET,
    token_file: OwnToken = None,
    ca: TrustedCa = None,
    cert: OwnCertificate = None,
    key: OwnKey = None,
    as_json: AsJson = False,
) -> None:
    """Drop an adapter from memory, and its pin; calls that use it finish first."""
    with _asking(server, token_file, ca, cert, key) as client:
        dropped = client.unload(ref)
    if as_json:
        print_json(_facts(dropped))
    else:
        typer.echo(f"unloaded {dropped.adapter}@{dropped.digest}")


@app.command()
def drain(
    server: AdminTarget = _TARGET,
    token_file: OwnToken = None,
    ca: TrustedCa = None,
    cert: OwnCertificate = None,
    key: OwnKey = None,
) -> None:
    """Make a server stop as SIGTERM does: it finishes the calls inside first."""
    with _asking(server, token_file, ca, cert, key) as client:
        client.drain()


def status(
    server: AdminTarget = _TARGET,
    token_file: OwnToken = None,
    ca: TrustedCa = None,
    cert: OwnCertificate = None,
    key: OwnKey = None,
    as_json: AsJson = False,
) -> None:
    """Show how a server is and what is in its memory."""
    from upt_protos.v1.admin_pb2 import State

    with _asking(server, token_file, ca, cert, key) as client:
        state, adapters = client.status(), client.resident()
    if as_json:
        print_json({**_facts(state), "adapters": [*map(_facts, adapters)]})
        return

    typer.echo(
        f"{State.Name(state.state).removeprefix('STATE_').lower()}, upt {state.version}, "
        f"{state.precision}, {state.calls} calls inside, {state.queue_rows} rows wait, adapters "
        f"take {format_size(state.adapter_bytes)} of {format_size(state.max_adapter_bytes)}"
    )
    _print_resident(adapters, as_json=False)


def _asking(
    server: str, token_file: Path | None, ca: Path | None, cert: Path | None, key: Path | None
) -> "AbstractContextManager[AdminClient]":
    from upt_server.admin_client import AdminClient

    return connected(AdminClient, server, token_file, ca, cert, key)


def _facts(message: "Message") -> "dict[str, JsonValue]":
    from google.protobuf.json_format import MessageToDict

    facts: dict[str, JsonValue] = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return facts


def _print_resident(adapters: "Iterable[ResidentAdapter]", *, as_json: bool) -> None:
    if as_json:
        print_json([*map(_facts, adapters)])
        return
    print_table(
        ("adapter", "digest", "size", "in use by", "pinned"),
        (
            (
                each.adapter,
                each.digest.removeprefix("sha256:")[:12],
                format_size(each.size_bytes),
                str(each.leases),
                "yes" if each.pinned else "no",
            )
            for each in adapters
        ),
        empty="no adapters in memory; a call for one, or `upt-server admin load`, loads it",
    )
