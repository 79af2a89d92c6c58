"""Progress bars on stderr, where that is a terminal."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from upt_zoo.progress import Report, silent
from upt_zoo.terminal import printable

if TYPE_CHECKING:
    from rich.progress import TaskID

_MIN_BYTES = 1_000_000  # what is smaller is there before a bar could be read


@contextmanager
def progress_bars() -> Iterator[Report]:
    """Show what is reported, a bar for each thing that moves, until the context ends."""
    if not sys.stderr.isatty():
        yield silent
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        shown: dict[str, TaskID] = {}

        def report(what: str, done_bytes: int, total_bytes: int) -> None:
            if total_bytes < _MIN_BYTES:
                return
            if what not in shown:
                shown[what] = bars.add_task(escape(printable(what)), total=total_bytes)
            bars.update(shown[what], completed=done_bytes)

        yield report
