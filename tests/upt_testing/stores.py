"""Makers of small stores for tests, and what must hold of a store after anything at all."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from upt_testing.adapters import LORA, random_tensors, tiny_spec
from upt_zoo.local.draft import Draft
from upt_zoo.local.store import Store, StoredAdapter
from upt_zoo.references import Reference

CARD = "# Tiny\n"


class Clock:
    """A clock that goes on by a minute whenever it is looked at."""

    def __init__(self) -> None:
        self._time = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        self._time += timedelta(minutes=1)
        return self._time


def draft(*, name: str = "tiny", seed: int = 0, version: str | None = None) -> Draft:
    """Make a draft of a LoRA adapter; equal arguments give equal bytes."""
    spec = tiny_spec(name=name, lora=LORA)
    return Draft(spec=spec, tensors=random_tensors(spec, seed), card=CARD, version=version)


def publish(
    store: Store, *, name: str = "tiny", seed: int = 0, version: str | None = None
) -> StoredAdapter:
    """Publish a draft."""
    made = draft(name=name, seed=seed, version=version)
    return store.publish(made.spec, made.tensors, made.card, version=version)


def resolve(store: Store, text: str) -> StoredAdapter:
    """Resolve a reference as a user writes it."""
    return store.resolve(Reference.parse(text))


def blob_names(store: Store) -> set[str]:
    """Return the names of all blobs."""
    return {path.name for path in (store.root / "blobs" / "sha256").glob("[!.]*")}


def needs(stored: StoredAdapter) -> set[str]:
    """Return the names of the blobs of a version, its manifest included."""
    digests = {stored.digest, *(blob.digest for blob in stored.manifest.blobs)}
    return {digest.removeprefix("sha256:") for digest in digests}


def age(store: Store, seconds: float = 3600) -> None:
    """Make all blobs look as if they had been written so long ago."""
    for path in (store.root / "blobs" / "sha256").iterdir():
        status = path.stat()
        os.utime(path, (status.st_atime - seconds, status.st_mtime - seconds))


def check_whole(root: Path) -> None:
    """Assert that every version listed verifies, and that every alias leads to one."""
    store = Store(root)
    listing = store.listing()
    for listed in listing.all():
        stored = resolve(store, listed.reference)
        store.verify(stored)
        store.verify_listing(stored)
    for name, aliases in listing.aliases.items():
        for alias in aliases:
            resolve(store, f"{name}:{alias}")
