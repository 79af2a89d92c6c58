"""``upt-server top``: what a running server does, read from its metrics."""

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from upt_server.options import OwnCertificate, OwnKey, OwnToken, TrustedCa, client_tls, read_token
from upt_zoo.errors import Unavailable
from upt_zoo.terminal import format_size, printable

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from upt_server.activity import Activity, Reading
    from upt_server.metrics_client import MetricsClient

_TARGET = "127.0.0.1:8000"
_HEADER = ("adapter", "inputs/s", "errors/s", "p50 ms", "p99 ms", "share")


def top(
    server: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="The server's port for HTTP.")
    ] = _TARGET,
    interval_s: Annotated[float, typer.Option(min=0.1, help="Time between two readings.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Stop after the first interval.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one line of JSON an interval.")
    ] = False,
    token_file: OwnToken = None,
    ca: TrustedCa = None,
    cert: OwnCertificate = None,
    key: OwnKey = None,
) -> None:
    """Show what a server does, adapter by adapter, until Ctrl-C; one that goes is waited for."""
    from upt_server.metrics_client import MetricsClient

    token, tls = read_token(token_file), client_tls(ca, cert, key)
    try:
        with MetricsClient(server, token=token, tls=tls) as client:
            _show(_moments(client, interval_s, is_once=once), as_json=as_json)
    except KeyboardInterrupt:  # the way to end it, no failure
        return


def _moments(
    client: "MetricsClient", interval_s: float, *, is_once: bool
) -> "Iterator[Activity | Unavailable]":
    """Yield what each interval brought, and once of a server that is away that it is.

    Raises:
        Unavailable: nobody answers at first, or when there is but one interval.
    """
    from upt_server.activity import compare

    before: Reading | None = client.read()
    while True:
        time.sleep(interval_s)
        try:
            after = client.read()
        except Unavailable as error:
            if is_once:
                raise
            if before is not None:
                yield error
            before = None
            continue
        if before is not None:  # else the server is back, and counts from here
            yield compare(before, after)
            if is_once:
                return
        before = after


def _show(moments: "Iterator[Activity | Unavailable]", *, as_json: bool) -> None:
    from pydantic_core import to_json
    from rich.console import Console
    from rich.live import Live

    console = Console()
    if console.is_terminal and not as_json:
        with Live("reading", console=console, auto_refresh=False) as live:
            for moment in moments:
                shown = _away(moment) if isinstance(moment, Unavailable) else _render(moment)
                live.update(shown, refresh=True)
        return
    for moment in moments:
        if isinstance(moment, Unavailable):
            typer.echo(_away(moment).plain, err=True)
        elif as_json:
            typer.echo(to_json(moment))
        else:
            console.print(_render(moment))


def _away(error: Unavailable) -> "Text":
    from rich.text import Text

    return Text(f"{printable(str(error))} Trying again until Ctrl-C.")


def _render(activity: "Activity") -> "RenderableType":
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for place, title in enumerate(_HEADER):
        table.add_column(title, justify="right" if place else "left", overflow="fold")
    for each in activity.adapters:
        table.add_row(
            Text(printable(each.adapter)),
            f"{each.inputs_per_s:.1f}",
            f"{each.errors_per_s:.1f}",
            _ms(each.p50_ms),
            _ms(each.p99_ms),
            _percent(each.share),
        )
    return Group(*map(Text, _totals(activity)), table)


def _totals(activity: "Activity") -> list[str]:
    return [
        f"{activity.inputs_per_s:.1f} inputs/s, {activity.errors_per_s:.1f} errors/s, "
        f"{activity.rejected_per_s:.1f} calls/s turned away, p50 {_ms(activity.p50_ms)} ms, "
        f"p99 {_ms(activity.p99_ms)} ms",
        f"{activity.batches_per_s:.1f} batches/s, {_percent(activity.batch_fill)} full, "
        f"{activity.queue_rows} rows wait",
        f"{activity.resident} adapters in memory, {format_size(activity.adapter_bytes)} of "
        f"{format_size(activity.max_adapter_bytes)}, {activity.loads} loaded and "
        f"{activity.evictions} evicted in {activity.seconds:.1f} s",
    ]


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"
