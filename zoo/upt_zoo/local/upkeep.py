"""Frees the disk of what nobody can reach.

What is kept: all that the index leads to, entries of other tools included, so a version is pinned
by being listed; all that a living reader has leased (``leases``); and whatever was written
or removed within the grace, because a reader may have resolved it a moment ago and be about to load
it. A server holds what it has loaded in memory and needs no blob any more. A pull keeps its bytes
in memory until it holds the writer's lock, which a collection holds too.
"""

import json
import re
import time
from dataclasses import dataclass
from pathlib import Path

from upt_zoo.errors import Corrupt
from upt_zoo.local.leases import read_leases
from upt_zoo.local.store import Store
from upt_zoo.manifest import ARTIFACT_TYPE, MAX_MANIFEST_BYTES, Index

GRACE_S = 600.0  # far longer than a call may take from resolving an adapter to loading it
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Garbage:
    """Blobs that nothing leads to: those to delete, and those kept for a while."""

    paths: tuple[Path, ...]
    size_bytes: int
    young: int
    leased: int

    def to_json(self) -> dict[str, int]:
        """Return its figures."""
        return {
            "blobs": len(self.paths),
            "size_bytes": self.size_bytes,
            "kept_young": self.young,
            "kept_leased": self.leased,
        }


def collect(store: Store, *, grace_s: float = GRACE_S, dry_run: bool = False) -> Garbage:
    """Delete the blobs that nothing leads to; ``dry_run`` only names them.

    Raises:
        Corrupt: what the index or a manifest leads to cannot be told; nothing was deleted.
        InvalidInput: the store is read-only.
    """
    with store.writing():
        garbage = find_garbage(store, grace_s=grace_s)
        if not dry_run:
            store.remove_leftovers()
            for path in garbage.paths:
                path.unlink(missing_ok=True)
        return garbage


def find_garbage(store: Store, *, grace_s: float = GRACE_S) -> Garbage:
    """Look for blobs that nothing leads to; without the writer's lock it is a guess.

    Raises:
        Corrupt: what the index or a manifest leads to cannot be told.
    """
    index, _ = store.read_index()
    leased = read_leases(store.root)
    reachable = _reachable(store, index)
    before = time.time() - grace_s
    paths: list[Path] = []
    size_bytes = young = kept = 0
    for path, status in store.blobs:
        digest = f"sha256:{path.name}"
        if digest in reachable:
            continue
        if digest in leased:
            kept += 1
        elif status.st_mtime > before:
            young += 1
        else:
            paths.append(path)
            size_bytes += status.st_size
    return Garbage(paths=tuple(paths), size_bytes=size_bytes, young=young, leased=kept)


def _reachable(store: Store, index: Index) -> frozenset[str]:
    """Return the digests that the index leads to, through manifests and indexes within it."""
    reached: set[str] = set()
    pending = [(entry.digest, entry.artifact_type == ARTIFACT_TYPE) for entry in index.manifests]
    while pending:
        digest, is_ours = pending.pop()
        if digest in reached:
            continue
        reached.add(digest)
        if not is_ours and not store.blob_path(digest).exists():
            continue  # a layout of other tools may leave out what it names
        document = _read_document(store, digest)
        named = set(_DIGEST.findall(document))
        if '"manifests"' in document:
            pending += [(each, False) for each in named]
        else:
            reached |= named
    return frozenset(reached)


def _read_document(store: Store, digest: str) -> str:
    """Read a manifest or an index of any tool, to see which digests it names.

    Escaped letters would hide a digest, so the document is spelt anew.
    """
    try:
        data = store.blobs.read(digest, MAX_MANIFEST_BYTES)
        return json.dumps(json.loads(data))
    except Corrupt as error:
        raise Corrupt(
            f"nothing was deleted, because it cannot be told what is needed: {error.what}, or "
            f"remove it",
            error.place,
        ) from error
    except (ValueError, RecursionError) as error:
        raise Corrupt(
            f"nothing was deleted, because it cannot be told what {digest} needs: {error}; pull "
            f"the adapter again or remove it"
        ) from error
