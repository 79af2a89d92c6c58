"""Writes the index of a store and its ``oci-layout`` anew from its blobs.

Every whole adapter among the blobs is listed, but for versions of which the old index says that
they were removed. What blobs do not hold comes from the old index, as far as that can be read:
aliases, yanked versions, times, signatures, the history, and the entries of other tools. Of a
history, the events that can be read are kept. An entry that another tool wrote for one of our
manifests, ``name--alias``, becomes an alias again.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from upt_zoo.contents import read_spec
from upt_zoo.errors import Corrupt
from upt_zoo.local.edits import alias_entry, alias_of
from upt_zoo.local.files import read_file
from upt_zoo.local.history import format_events, salvage_events
from upt_zoo.local.index_file import MAX_INDEX_BYTES
from upt_zoo.local.listing import (
    ALIAS,
    CREATED,
    HISTORY,
    YANKED,
    Listed,
    Summary,
    events_of,
    histories,
    read_entry,
)
from upt_zoo.local.store import Store
from upt_zoo.manifest import (
    ARTIFACT_TYPE,
    MAX_MANIFEST_BYTES,
    Descriptor,
    Index,
    Manifest,
    digest_of,
    entry_of,
)
from upt_zoo.references import version_order
from upt_zoo.signatures import SIGNATURES, parse_signatures

_ENTRIES = TypeAdapter(Descriptor)
_NOTES = TypeAdapter(dict[str, str])


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuilt:
    """What became of an index: versions it lists, those it did not list before, and those it did.

    ``lost`` names what could not be read and was left out, ``was_readable`` is False if there was
    an index and nothing could be saved of it.
    """

    listed: int
    added: tuple[str, ...]
    dropped: tuple[str, ...]
    aliases: tuple[str, ...]
    lost: tuple[str, ...]
    was_readable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """A whole adapter among the blobs."""

    manifest: bytes
    summary: Summary
    created: str
    key: tuple[str, str]  # name and version

    @property
    def digest(self) -> str:
        return digest_of(self.manifest)


def rebuild(store: Store) -> Rebuilt:
    """Replace the index by one that lists every whole adapter among the blobs.

    Raises:
        InvalidInput: the store is read-only.
        Unavailable: somebody else has been writing for a minute.
    """
    with store.writing():
        salvaged = _salvage(store.root / "index.json")
        old, lost = _mend(salvaged or Index())
        before = _versions(old)
        found = _choose(_search(store), before, old)
        store.index.write_layout()
        store.index.write(_index_of(old, before, found))
        return Rebuilt(
            listed=len(found),
            added=_names(found.keys() - before.keys()),
            dropped=_names(before.keys() - found.keys()),
            aliases=tuple(sorted(_alias_names(store))),
            lost=lost,
            was_readable=salvaged is not None,
        )


def _salvage(path: Path) -> Index | None:
    """Read what can be read of an index; None if nothing can. A missing one is empty."""
    try:
        values = json.loads(read_file(path, MAX_INDEX_BYTES))
    except FileNotFoundError:
        return Index()
    except (Corrupt, ValueError, RecursionError):
        return None
    if not isinstance(values, dict) or not isinstance(values.get("manifests"), list):
        return None
    entries: list[Descriptor] = []
    for each in values["manifests"]:
        with suppress(ValidationError):
            entries.append(_ENTRIES.validate_json(json.dumps(each)))
    annotations = None
    with suppress(ValidationError):
        annotations = _NOTES.validate_json(json.dumps(values.get("annotations")))
    return Index(manifests=tuple(entries), annotations=annotations)


def _mend(old: Index) -> tuple[Index, tuple[str, ...]]:
    """Leave out histories and signatures that cannot be read, and name them."""
    lost: list[str] = []
    annotations = dict(old.annotations or {})
    for name in histories(old):
        try:
            events_of(old, name)
        except Corrupt:
            lost.append(f"part of the history of {name}")
            annotations[HISTORY + name] = format_events(salvage_events(annotations[HISTORY + name]))
    entries: list[Descriptor] = []
    for entry in old.manifests:
        notes = dict(entry.annotations or {})
        try:
            parse_signatures(notes.get(SIGNATURES))
        except Corrupt:
            lost.append(f"the signatures of {entry.digest}")
            del notes[SIGNATURES]
        changed = {"annotations": notes} if len(notes) < len(entry.annotations or {}) else {}
        entries.append(entry.model_copy(update=changed))
    changed_index = {"manifests": tuple(entries), "annotations": annotations or None}
    return old.model_copy(update=changed_index), tuple(lost)


def _versions(old: Index) -> dict[tuple[str, str], Listed]:
    """Return the versions that an index lists; entries that cannot be read are left out."""
    versions: dict[tuple[str, str], Listed] = {}
    for entry in old.manifests:
        if entry.artifact_type == ARTIFACT_TYPE and ALIAS not in (entry.annotations or {}):
            with suppress(Corrupt):
                listed = read_entry(entry)
                versions.setdefault((listed.name, listed.version), listed)
    return versions


def _search(store: Store) -> Iterator[_Found]:
    """Yield the whole adapters among the blobs, the latest written first."""
    candidates = [each for each in store.blobs if each[1].st_size <= MAX_MANIFEST_BYTES]
    candidates.sort(key=lambda each: (-each[1].st_mtime, each[0].name))
    for path, status in candidates:
        with suppress(Corrupt, FileNotFoundError):
            data = read_file(path, MAX_MANIFEST_BYTES)
            if ARTIFACT_TYPE.encode() in data and digest_of(data) == f"sha256:{path.name}":
                yield _open(store, data, status.st_mtime)


def _open(store: Store, data: bytes, changed: float) -> _Found:
    """Read one manifest; its blobs must be there in full length, and the spec be one.

    Raises:
        Corrupt: not the manifest of an adapter, or its spec has other bytes or is none.
        FileNotFoundError: a blob is missing.
    """
    manifest = Manifest.from_json(data)
    for blob in manifest.blobs:
        if store.blob_path(blob.digest).stat().st_size != blob.size:
            raise Corrupt(f"{blob.digest} is not of {blob.size} bytes")
    spec = read_spec(manifest, store.blobs.read(manifest.config.digest, manifest.config.size))
    return _Found(
        manifest=data,
        summary=Summary.of(spec, sum(blob.size for blob in manifest.blobs)),
        created=datetime.fromtimestamp(changed, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        key=(manifest.name, manifest.version),
    )


def _choose(
    found: Iterable[_Found], before: Mapping[tuple[str, str], Listed], old: Index
) -> dict[tuple[str, str], _Found]:
    """Choose one manifest a version: the one that was listed, else the latest written."""
    chosen: dict[tuple[str, str], _Found] = {}
    removed: dict[str, set[str]] = {}
    for each in found:
        name, version = each.key
        listed = before.get(each.key)
        if listed is None and version in removed.setdefault(name, _removed(old, name)):
            continue
        if each.key not in chosen or (listed and listed.digest == each.digest):
            chosen[each.key] = each
    order = sorted(chosen, key=lambda key: (key[0], version_order(key[1])))
    return {key: chosen[key] for key in order}


def _removed(old: Index, name: str) -> set[str]:
    return {str(event.before) for event in events_of(old, name) if event.action == "remove"}


def _index_of(
    old: Index, before: Mapping[tuple[str, str], Listed], found: Mapping[tuple[str, str], _Found]
) -> Index:
    entries = []
    for key, each in found.items():
        listed = before.get(key)
        known = listed.annotations if listed and listed.digest == each.digest else {}
        kept = {note: known[note] for note in (CREATED, YANKED, SIGNATURES) if note in known}
        notes = {CREATED: each.created} | kept | each.summary.to_annotations()
        entries.append(entry_of(each.manifest, notes))
    versions = {entry.digest: read_entry(entry) for entry in entries}
    foreign = (each for each in old.manifests if each.artifact_type != ARTIFACT_TYPE)
    others = [each for each in foreign if each.digest not in versions]
    aliases: dict[tuple[str, str], Descriptor] = {}
    for pointer in old.manifests:
        alias = alias_of(pointer)
        if pointer.digest in versions and alias is not None:
            target = versions[pointer.digest]
            aliases.setdefault((target.name, alias), alias_entry(target, alias))
    return old.model_copy(update={"manifests": (*others, *entries, *aliases.values())})


def _alias_names(store: Store) -> Iterator[str]:
    for aliases in store.listing().aliases.values():
        yield from (f"{each.name}:{each.alias}" for each in aliases.values())


def _names(keys: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    return tuple(f"{name}:{version}" for name, version in sorted(keys))
