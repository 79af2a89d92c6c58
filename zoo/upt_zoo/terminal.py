"""How the three commands speak: one line and a code for an error, tables, and silence if asked.

What is printed may come from foreign adapters and servers, so control characters, with which a
text could drive the terminal, are dropped everywhere.

Exit codes (those of sysexits.h, 2 for a wrong command line):

    0   done                                64  InvalidInput
    65  Corrupt                             65  Overflowed
    66  NotFound                            69  Unavailable
    69  TimeoutError                        70  anything that is a fault of upt
    73  Conflict                            74  the operating system refused
    75  Overloaded                              (OSError)
    77  Forbidden
"""

import os
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stderr
from itertools import zip_longest
from pathlib import Path
from typing import Annotated

import typer

from upt_zoo.errors import (
    Conflict,
    Corrupt,
    Forbidden,
    InvalidInput,
    NotFound,
    Overflowed,
    Overloaded,
    Unavailable,
    UptError,
)

UNEXPECTED = 70
_MANY_ROWS = 500  # rich takes half a millisecond a row to find out how wide it is
_GAP = 2  # blanks between two columns
_NARROW = 16  # the widest column is folded alone while it keeps as many letters
EXIT_CODES: dict[type[Exception], int] = {
    InvalidInput: 64,
    Corrupt: 65,
    Overflowed: 65,
    NotFound: 66,
    Unavailable: 69,
    TimeoutError: 69,  # an OSError, but not the system's
    Conflict: 73,
    OSError: 74,
    Overloaded: 75,
    Forbidden: 77,
}
# what is not of our tree: cause and cure, as the classes of the tree say theirs
OTHERS: dict[type[Exception], tuple[str, str]] = {
    TimeoutError: (
        "No answer before the deadline, the caller's or the server's own.",
        "try again with more time, or send less at once",
    ),
    OSError: (
        "The operating system refused: disk, port, rights.",
        "do what the message says on this machine",
    ),
}


def make_app(help: str) -> typer.Typer:
    """Return a command line without commands; ``--quiet`` and ``--version`` are its own.

    Quiet, commands say nothing on stderr; an error is still said, since ``run_command`` does it.
    Shells can complete it.
    """
    app = typer.Typer(
        help=help,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # it would read the brackets of the grammar as markup
    )
    app.callback()(_hush)
    return app


def is_quiet(context: typer.Context) -> bool:
    """Tell whether the command line asks for silence."""
    return bool(context.find_root().params.get("quiet"))


def run_command(app: Callable[[], object], program: str) -> None:
    """Run a command line; an error becomes one line on stderr and the exit code of its class."""
    try:
        app()
    except Exception as error:  # noqa: BLE001 - the edge: every error becomes one line and a code
        typer.echo(f"{program}: {printable(_message(error, program))}", err=True)
        if sys.flags.dev_mode:
            traceback.print_exception(error)
        sys.exit(exit_code(error))


def exit_code(error: Exception) -> int:
    """Return the code of the nearest class in the table."""
    codes = (EXIT_CODES[kind] for kind in type(error).__mro__ if kind in EXIT_CODES)
    return next(codes, UNEXPECTED)


def print_table(
    header: Sequence[str] | None, rows: Iterable[Sequence[str]], *, empty: str | None = None
) -> None:
    """Print rows in columns, as wide as the terminal; many rows, as wide as they are.

    Where they do not fit, the widest column is folded, and the others if that is not enough.

    ``empty`` is said instead, on stderr, where there are no rows.
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    if not rows and empty is not None:
        typer.echo(printable(empty), err=True)
        return
    if len(rows) > _MANY_ROWS:
        _print_columns([list(header), *rows] if header else rows)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    widths = _widths([list(header), *rows] if header else rows)
    widest = widths.index(max(widths)) if widths else 0
    others = sum(widths) - max(widths, default=0) + _GAP * (len(widths) - 1)
    is_roomy = console.width - others >= _NARROW
    table = Table(box=None, pad_edge=False, show_header=header is not None)
    for index in range(len(widths)):
        title = header[index] if header else ""
        table.add_column(title, overflow="fold", no_wrap=is_roomy and index != widest)
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)


def format_size(size_bytes: int) -> str:
    """Spell a size for people."""
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 1e5 else f"{size_bytes / 1e3:.1f} kB"


def format_metrics(metrics: Mapping[str, float]) -> str:
    """Spell metrics for people; they are in percent."""
    return ", ".join(f"{name} {value:.1f}" for name, value in sorted(metrics.items()))


def printable(text: str) -> str:
    """Drop control characters but for line ends."""
    if text.isprintable():
        return text
    return "".join(letter for letter in text if letter.isprintable() or letter == "\n")


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        from importlib.metadata import version

        typer.echo(f"upt {version('upt-zoo')}")
        raise typer.Exit


def _hush(
    context: typer.Context,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Say nothing on stderr but errors.")
    ] = False,
    version: Annotated[  # its callback ends the command
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version of upt."
        ),
    ] = False,
) -> None:
    if quiet:
        nowhere = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - the context ends it
        context.with_resource(redirect_stderr(context.with_resource(nowhere)))


def _print_columns(rows: Sequence[Sequence[str]]) -> None:
    widths = _widths(rows)
    lines = (
        " ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
    typer.echo("\n".join(lines))


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip_longest(*rows, fillvalue="")]


def _message(error: Exception, program: str) -> str:
    """Say what went wrong in one line."""
    if isinstance(error, UptError | OSError):
        return " ".join(str(error).split())
    return (
        f"unexpected {type(error).__name__}, a fault of {program}; please report it with the "
        f"output under PYTHONDEVMODE=1"
    )
