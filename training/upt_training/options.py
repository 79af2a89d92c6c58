"""Options that several commands of ``upt-train`` share."""

from pathlib import Path
from typing import Annotated

import typer

DataFolder = Annotated[
    Path | None,
    typer.Option(
        "--data",
        envvar="UPT_DATA_DIR",
        help="Folder of <task>/<split>.jsonl.gz.",
        show_default="the Hugging Face hub",
        file_okay=False,
        exists=True,
    ),
]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads that compute.")]
Device = Annotated[
    str, typer.Option(metavar="DEVICE", help="Where torch computes: cpu, cuda or cuda:NUMBER.")
]
NoTexts = Annotated[
    bool, typer.Option("--no-texts", help="Leave the texts of worst errors out of report.html.")
]
SplitName = Annotated[
    str | None, typer.Option(help="The file to read.", show_default="the first dev file")
]
OwnRecipe = Annotated[
    Path | None,
    typer.Option(
        metavar="RECIPE.yaml",
        help="The recipe of a task of one's own.",
        show_default="a task of the catalogue",
    ),
]
NoPublish = Annotated[
    bool, typer.Option("--no-publish", help="Leave the zoo as it is; for comparisons.")
]


def complete_task(incomplete: str) -> list[str]:
    """Return the tasks of the catalogue that begin so, for a shell to offer."""
    from upt_zoo.tasks import TASKS

    return [name for name in TASKS if name.startswith(incomplete)]


def set_threads(threads: int | None) -> None:
    """Let torch compute with so many threads, if a number is given."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
