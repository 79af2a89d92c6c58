"""Where a run's checkpoint stands until its result is safe."""

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import platformdirs

from upt_training.recipe import Learning
from upt_zoo.errors import Unavailable


def user_checkpoints() -> Path:
    """Return the folder in the user's cache."""
    return platformdirs.user_cache_path("upt", appauthor=False) / "checkpoints"


def checkpoint_file(folder: Path, name: str, recipe: Learning) -> Path:
    """Say where a run's checkpoint stands, by its recipe; the folder is made."""
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(recipe.model_dump_json().encode()).hexdigest()[:12]
    return folder / f"{name}-{recipe.method}-{digest}.safetensors"


@contextmanager
def claimed(checkpoint: Path) -> Iterator[None]:
    """Keep other processes from a run until this one is done with it, or is killed.

    Raises:
        Unavailable: another process does the same run.
    """
    claim = checkpoint.with_suffix(".lock")
    with claim.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_ours = _stands_at(claim, file)  # who has just ended may have removed it
        except BlockingIOError:
            is_ours = False
        if not is_ours:
            raise Unavailable(
                f"{checkpoint}: another process does this run; wait for it, or end it and go on"
            )
        try:
            yield
        finally:
            if _stands_at(claim, file):
                claim.unlink(missing_ok=True)


def _stands_at(path: Path, file: BinaryIO) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
