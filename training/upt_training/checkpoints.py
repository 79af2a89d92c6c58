"""Where a run's checkpoint stands until its result is safe."""

import fcntl
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs

from upt_training.recipe import Learning
from upt_zoo.errors import Conflict


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
    """Keep other processes from a checkpoint, and so from a run, until this one is done.

    Who is killed lets go of it, too.

    Raises:
        Conflict: another process does the same run.
    """
    claim = checkpoint.with_suffix(".lock")
    with claim.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Conflict(
                f"{checkpoint}: another process does this run; wait for it, or end it and go on"
            ) from error
        try:
            yield
        finally:
            claim.unlink(missing_ok=True)
