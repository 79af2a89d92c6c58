"""The command that reads run records: ``table``."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from upt_training.options import complete_task
from upt_zoo.errors import InvalidInput, NotFound
from upt_zoo.options import AsJson

if TYPE_CHECKING:
    from upt_training.records import Record
    from upt_training.table import Cell, Choice


_Rows = list[dict[str, object]]


def table(
    records: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Folder of run records.", file_okay=False)
    ],
    split: Annotated[
        str | None, typer.Option(help="The file to read off.", show_default="the first dev file")
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            help="A row, run or not; repeatable.",
            show_default="all that were run",
            autocompletion=complete_task,
        ),
    ] = None,
    train_rows: Annotated[
        list[int] | None, typer.Option(help="Of each --task, learnt from so many; repeatable.")
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="A column, run or not; repeatable.", show_default="all that were run"),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="METHOD", help="Print each method's points above this one, with intervals."
        ),
    ] = None,
    runs: Annotated[
        bool, typer.Option("--runs", help="Print each run, and the command that repeats it.")
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.svg",
            help="Draw scores against parameters; with --against, the points and intervals.",
            dir_okay=False,
        ),
    ] = None,
    published: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Draw others' points on these rows too: a table of row, method, points, source.",
            dir_okay=False,
        ),
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print tasks by methods, mean and deviation over seeds, out of run records alone."""
    from upt_training.table import Choice, cells_of, read_records
    from upt_training.table import as_csv as csv_of

    if as_csv and as_json:
        raise InvalidInput("expected --csv or --json, got both")
    if runs and against is not None:
        raise InvalidInput("expected --runs or --against, got both")
    if published is not None and (against is None or plot is None):
        raise InvalidInput("--published: expected --against METHOD and --plot FILE.svg beside it")
    choice = Choice.of(tasks=task or (), train_rows=train_rows or (), methods=method or ())
    found = choice.of_records(read_records(records), against)
    if plot is not None and against is None:
        _draw(cells_of(found, split=split), plot)
    if runs:
        rows, markdown = _runs(found, records, split)
    elif against is not None:
        rows, markdown = _differences(found, against, split, plot, published)
    else:
        rows, markdown = lay_out(found, choice, split)
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    else:
        typer.echo(csv_of(rows) if as_csv else markdown, nl=not as_csv)


def lay_out(
    found: "Sequence[Record]", choice: "Choice", split: str | None = None
) -> tuple[_Rows, str]:
    """Lay records out as tasks by methods: the cells for JSON, and the table as text."""
    from upt_training.runs import unlike
    from upt_training.table import as_markdown, cells_of

    cells = cells_of(found, split=split)
    notes = [f"{row}: recipes differ in {', '.join(keys)}" for row, keys in unlike(found).items()]
    markdown = "\n\n".join([as_markdown(cells, choice), *notes])
    return [cell.as_json() for cell in cells], markdown


def _differences(
    found: "Sequence[Record]",
    against: str,
    split: str | None,
    plot: Path | None,
    published: Path | None,
) -> tuple[_Rows, str]:
    from upt_training.differences import as_markdown, differences_of, read_published

    others = read_published(published) if published is not None else ()
    points = differences_of(found, against, split=split)
    if plot is not None:
        from upt_training.drawing import draw_differences, save

        save(draw_differences(points, others), plot)
    return [each.as_json() for each in points], as_markdown(points)


def _runs(found: "Sequence[Record]", folder: Path, split: str | None) -> tuple[_Rows, str]:
    from upt_training.runs import as_markdown, listed

    each_run = listed(found, folder, split=split)
    return [run.as_json() for run in each_run], as_markdown(each_run)


def _draw(cells: "Sequence[Cell]", file: Path) -> None:
    from upt_training.drawing import draw_scores, save

    if not cells:
        raise NotFound("--plot: no runs of these tasks and methods to draw")
    save(draw_scores(cells), file)
