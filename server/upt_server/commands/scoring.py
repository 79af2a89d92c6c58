"""``upt-server score``: the answers to all rows of a file."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from upt_server.options import (
    OwnCertificate,
    OwnKey,
    OwnToken,
    TrustedCa,
    client_tls,
    read_token,
)
from upt_zoo.errors import Corrupt, DataNotFound, InvalidInput, Unavailable
from upt_zoo.options import AsJson, Home, complete_adapter, print_json
from upt_zoo.terminal import EXIT_CODES

if TYPE_CHECKING:
    from pydantic import JsonValue

    from upt_server.client import AsyncClient
    from upt_server.inputs import Options
    from upt_server.results import AdapterDescription
    from upt_server.scoring.score_file import ScoreFile

Rows = Annotated[
    Path,
    typer.Argument(metavar="FILE", dir_okay=False, help="Rows: FILE.jsonl or FILE.csv."),
]


def score(
    file: Rows,
    adapter: Annotated[
        str,
        typer.Option(
            "--adapter",
            metavar="REF",
            help="name[:version][@digest]",
            autocompletion=complete_adapter,
        ),
    ],
    out: Annotated[
        Path, typer.Option(metavar="FILE", dir_okay=False, help="Where the answers go, in JSONL.")
    ],
    server: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="The server to ask.", show_default="one of its own"),
    ] = None,
    columns: Annotated[
        str,
        typer.Option(
            metavar="NAME,NAME",
            help="Columns in the order of the task's fields.",
            show_default="named as these",
        ),
    ] = "",
    at_once: Annotated[int, typer.Option(min=1, max=1024, help="Rows at work at once.")] = 64,
    refuse_truncation: Annotated[
        bool, typer.Option("--refuse-truncation", help="Give no answer to a row that is too long.")
    ] = False,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens of a row.", show_default="the task's")
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens that windows share.", show_default="the task's"),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(min=1, help="Best labels or spans.", show_default="all, or one")
    ] = None,
    logits: Annotated[bool, typer.Option("--logits", help="Give raw scores too.")] = False,
    gates: Annotated[bool, typer.Option("--gates", help="Give each layer's gates too.")] = False,
    home: Home = None,
    token_file: OwnToken = None,
    ca: TrustedCa = None,
    cert: OwnCertificate = None,
    key: OwnKey = None,
    as_json: AsJson = False,
) -> None:
    """Answer all rows of a file; the exit code is 65 if one has no answer.

    The same command goes on where a stopped one ended.
    """
    import asyncio

    from upt_server.client import AsyncClient
    from upt_server.inputs import Options
    from upt_server.scoring.own_server import own_server

    if not file.is_file():
        raise DataNotFound(f"no file {file}")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"the folder of --out does not exist: {out.parent}; make it first")
    options = Options(
        is_truncation_refused=refuse_truncation,
        max_tokens=max_tokens,
        stride=stride,
        top_k=top_k,
        has_logits=logits,
        has_gates=gates,
    )

    async def ask_all(target: str) -> "dict[str, JsonValue]":
        tls, token = client_tls(ca, cert, key), read_token(token_file)
        async with AsyncClient(target, tls=tls, token=token) as client:
            about = await client.adapter(adapter)
            chosen = [name for name in columns.split(",") if name] or list(about.fields)
            return await _score(client, about, (file, chosen, out), options, at_once)

    with nullcontext(server) if server else own_server(home) as target:
        try:
            outcome = asyncio.run(ask_all(target))
        except TimeoutError as error:
            raise Unavailable(f"{target}: {error}") from error
    if as_json:
        print_json(outcome)
    if outcome["rows_without_answer"]:
        raise typer.Exit(EXIT_CODES[Corrupt])


async def _score(
    client: "AsyncClient",
    about: "AdapterDescription",
    what: tuple[Path, list[str], Path],
    options: "Options",
    at_once: int,
) -> "dict[str, JsonValue]":
    """Score the rows that are not yet in the file of scores; say what came of it."""
    from dataclasses import asdict
    from itertools import islice

    from upt_server.results import Output
    from upt_server.scoring.lines import count_failures
    from upt_server.scoring.rows import read_rows
    from upt_server.scoring.score_file import Job, ScoreFile, digest_and_lines
    from upt_server.scoring.scorer import Scorer

    file, columns, out = what
    _check(about, options, columns)
    who = about.identity
    pinned = f"{who.name}:{who.version}@{who.digest}"  # a tag that moves meanwhile changes nothing

    async def ask(texts: tuple[str, ...]) -> Output:
        return await client.predict(pinned, *texts, options=options)

    rows = read_rows(file, columns)
    digest, lines = digest_and_lines(file)
    job = Job(rows_digest=digest, adapter=pinned, columns=columns, options=asdict(options))
    with ScoreFile(out, job) as scores:
        done = scores.lines
        if done:
            typer.echo(f"{out}: going on behind row {done}", err=True)
        with _showing(scores, lines) as write:
            scorer = Scorer(ask, write, at_once=at_once)
            await scorer.score(islice(rows, done, None), done + 1)
        scores.finish()
    with out.open("rb") as written:  # by the runs before, too
        failures = count_failures(written)
    typer.echo(f"{out}: {scores.lines - done} rows by {pinned}", err=True)
    if failures:
        typer.echo(
            f"{out}: {failures} of {scores.lines} rows have no answer; "
            'their lines, those with "error", say why',
            err=True,
        )
    return {
        "out": str(out),
        "adapter": pinned,
        "rows": scores.lines,
        "rows_before": done,
        "rows_without_answer": failures,
    }


def _check(about: "AdapterDescription", options: "Options", columns: Sequence[str]) -> None:
    """Refuse what no row could be answered with."""
    from upt_server.inputs import choose_format
    from upt_zoo.spec import TaskInput

    if len(columns) != len(about.fields):
        raise InvalidInput(
            f"task {about.task} takes {' and '.join(about.fields)}: expected as many --columns, "
            f"got {len(columns)}"
        )
    task = TaskInput(
        name=about.task, fields=about.fields, max_tokens=about.max_tokens, metric=about.metric
    )
    choose_format(task, options, about.head)


@contextmanager
def _showing(scores: "ScoreFile", rows: int) -> "Iterator[Callable[[str], None]]":
    """Yield what appends a line, and show on a terminal how far it is."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True)
    bar = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*bar, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=max(rows, scores.lines), completed=scores.lines)

        def write(line: str) -> None:
            scores.append(line)
            progress.advance(task)

        yield write
