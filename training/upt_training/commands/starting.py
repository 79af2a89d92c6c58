"""The command that makes a recipe out of a table: ``init``."""

import json
import re
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from upt_zoo.options import AsJson
from upt_zoo.terminal import print_table, printable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from upt_training.starting.columns import Column
    from upt_training.starting.detection import Layout
    from upt_training.starting.survey import Survey

Kind = Literal[
    "classification", "multi_label", "regression", "span", "token_classification", "embedding"
]


def init(
    table: Annotated[
        Path,
        typer.Option(
            "--from",
            metavar="FILE",
            help="CSV, TSV, JSON lines, Parquet or CoNLL, with texts and answers.",
            dir_okay=False,
        ),
    ],
    name: Annotated[
        str | None, typer.Option(help="Name of the task and adapter.", show_default="the file's")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write there.", show_default="./NAME", file_okay=False),
    ] = None,
    dev: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Rows to measure on.",
            show_default="a fifth of the rows",
            dir_okay=False,
        ),
    ] = None,
    test: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="More rows to measure on.", dir_okay=False),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN", help="With texts; given twice for pairs.", show_default="looked for"
        ),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="With the answers.", show_default="looked for"),
    ] = None,
    head: Annotated[
        Kind | None, typer.Option(help="Kind of the answers.", show_default="looked for")
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(help="Hub id or directory to learn on.", show_default="the embedded one"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Over the split and the training.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Make a recipe out of a table: find texts and answers, survey the rows, split them.

    Nothing is learnt yet. Rows are told by their numbers; no text is printed.
    """
    from upt_training.row_files import read_rows
    from upt_training.starting.columns import columns_of
    from upt_training.starting.detection import Choice, detect
    from upt_training.starting.folder import (
        lengths_of,
        make_recipe,
        make_task,
        note_on_length,
        with_length,
        write_folder,
    )
    from upt_training.starting.rows import labelled_rows
    from upt_training.starting.splitting import splits_of
    from upt_training.starting.survey import survey, warnings_of
    from upt_zoo.backbone import EMBEDDED_HUB_ID, resolve_backbone
    from upt_zoo.tokenization import Tokenizer

    named = {"train": table, "dev": dev, "test": test}
    files = {split: file for split, file in named.items() if file is not None}
    rows = {split: read_rows(file) for split, file in files.items()}
    columns = columns_of([row for some in rows.values() for row in some])
    choice = Choice(texts=tuple(text or ()), gold=label, head=head, has_files=len(files) > 1)
    layout = detect(columns, choice)
    usable = {split: labelled_rows(layout, files[split].name, some) for split, some in rows.items()}
    splits = splits_of(layout, usable, seed=seed)
    left_out = dict.fromkeys((file.name for file in files.values()), 0)  # some may have one name
    for split, file in files.items():
        left_out[file.name] += len(rows[split]) - len(usable[split])
    found = survey(layout, splits, left_out=left_out)
    task = make_task(name or _name_of(table), table.name, layout, list(splits))
    known = resolve_backbone(backbone or EMBEDDED_HUB_ID)
    lengths = lengths_of(task, splits["train"], Tokenizer(known.tokenizer_file))
    task = with_length(task, lengths, longest=known.config.max_tokens)
    recipe = make_recipe(task, found, backbone=backbone or EMBEDDED_HUB_ID, seed=seed)
    length, warnings = note_on_length(task, lengths), warnings_of(found)
    notes = [layout.summary, length, *warnings]
    file = write_folder(out or Path(task.name), recipe, splits, notes)
    command = f"upt-train run {shlex.quote(str(file))}"
    if as_json:
        facts = {
            "recipe": str(file),
            "layout": asdict(layout),
            "survey": asdict(found),
            "length": length,
            "warnings": warnings,
            "next": command,
        }
        typer.echo(json.dumps(facts, indent=2))
        return
    _print_columns(columns, layout)
    _print_counts(found)
    typer.echo(length)
    for warning in warnings:
        typer.echo(printable(f"- {warning}"))
    typer.echo(f"wrote {file}; look at it, then: {command}")


def _name_of(file: Path) -> str:
    """Make a name of a file's: small letters, digits, and a dash for all else."""
    return re.sub(r"[^a-z0-9]+", "-", file.name.partition(".")[0].lower()).strip("-") or "task"


def _print_columns(columns: "Iterable[Column]", layout: "Layout") -> None:
    roles = dict.fromkeys(layout.fields, "text")
    roles |= {layout.gold: f"answer: {layout.head}, since {layout.reason}"}
    roles |= {each: "place of the answer" for each in (layout.start,) if each}
    roles |= {each: "split" for each in (layout.split,) if each}
    print_table(
        ("column", "holds", "different", "taken as"),
        [
            (
                each.name,
                f"{each.kind}, {each.words:.0f} words" if each.words else each.kind,
                f"{each.distinct:,}",
                roles.get(each.name, "not used"),
            )
            for each in columns
        ],
    )


def _print_counts(found: "Survey") -> None:
    counts = [("rows", *(f"{count:,}" for count in found.rows.values()))]
    counts += [
        (label, *(f"{by_split[split]:,}" for split in found.rows))
        for label, by_split in found.labels.items()
    ]
    print_table(("", *found.rows), counts)
