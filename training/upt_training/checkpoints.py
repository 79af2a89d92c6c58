"""Where a run's checkpoint stands until its result is safe."""

import hashlib
from pathlib import Path

import platformdirs

from upt_training.recipe import Learning


def user_checkpoints() -> Path:
    """Return the folder in the user's cache."""
    return platformdirs.user_cache_path("upt", appauthor=False) / "checkpoints"


def checkpoint_file(folder: Path, name: str, recipe: Learning) -> Path:
    """Say where a run's checkpoint stands, by its recipe; the folder is made."""
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(recipe.model_dump_json().encode()).hexdigest()[:12]
    return folder / f"{name}-{recipe.method}-{digest}.safetensors"
