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


def set_threads(threads: int | None) -> None:
    """Let torch compute with so many threads, if a number is given."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
