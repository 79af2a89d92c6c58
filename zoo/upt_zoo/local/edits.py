"""Changes of an index, each from one value to the next. Pure: ``upt_zoo.local.store`` writes it.

A change to a tag writes its event into the same index, so that both become visible in one rename.
"""

from collections.abc import Iterable

from upt_zoo.local.history import Event, format_events
from upt_zoo.local.listing import ALIAS, HISTORY, YANKED, Listed, events_of
from upt_zoo.manifest import (
    ARTIFACT_TYPE,
    MANIFEST_TYPE,
    REF_NAME,
    TITLE,
    VERSION,
    Descriptor,
    Index,
)
from upt_zoo.references import is_alias
from upt_zoo.signatures import (
    SIGNATURES,
    Signature,
    format_signatures,
    of_digest,
    parse_signatures,
)


def set_alias(index: Index, target: Listed, event: Event) -> Index:
    """Point the event's alias to a version; wherever it pointed before, it does not any more."""
    alias = str(event.alias)
    kept = (each for each in index.manifests if not _is_alias(each, target.name, alias))
    changed = _with_entries(index, (*kept, alias_entry(target, alias)))
    return _with_events(changed, target.name, [event])


def alias_entry(target: Listed, alias: str) -> Descriptor:
    """Return the entry of an alias: the version's own, with a name of its own for other tools.

    ``name--alias`` is unambiguous, since neither a name nor a version contains ``--``.
    """
    return Descriptor(
        media_type=MANIFEST_TYPE,
        digest=target.digest,
        size=target.manifest_bytes,
        artifact_type=ARTIFACT_TYPE,
        annotations={
            TITLE: target.name,
            VERSION: target.version,
            ALIAS: alias,
            REF_NAME: f"{target.name}--{alias}",
        },
    )


def alias_of(entry: Descriptor) -> str | None:
    """Return the alias that an entry stands for, by the name for other tools if it has no other."""
    notes = entry.annotations or {}
    alias = notes.get(ALIAS) or notes.get(REF_NAME, "").partition("--")[2]
    return alias if is_alias(alias) else None


def drop_alias(index: Index, name: str, event: Event) -> Index:
    """Remove the event's alias; its version stays."""
    kept = (each for each in index.manifests if not _is_alias(each, name, str(event.alias)))
    return _with_events(_with_entries(index, kept), name, [event])


def set_yanked(index: Index, target: Listed, event: Event) -> Index:
    """Mark a version as yanked, or take the mark back."""
    mark = {YANKED: event.time} if event.action == "yank" else {}

    def marked(entry: Descriptor) -> Descriptor:
        if not _is_version(entry, target):
            return entry
        kept = {key: value for key, value in (entry.annotations or {}).items() if key != YANKED}
        return entry.model_copy(update={"annotations": kept | mark})

    entries = (marked(each) for each in index.manifests)
    return _with_events(_with_entries(index, entries), target.name, [event])


def add_signatures(index: Index, target: Listed, signatures: Iterable[Signature]) -> Index:
    """Note signatures of a version, those first; the same index if there is none to be added.

    Raises:
        Corrupt: what the index says of its signatures cannot be read.
    """
    known = parse_signatures(target.annotations.get(SIGNATURES))
    added = [each for each in of_digest(signatures, target.digest) if each not in known]
    if not added:
        return index
    text = format_signatures(of_digest([*added, *known], target.digest))

    def signed(entry: Descriptor) -> Descriptor:
        if entry.digest != target.digest or entry.annotations != target.annotations:
            return entry
        return entry.model_copy(update={"annotations": {**target.annotations, SIGNATURES: text}})

    return _with_entries(index, (signed(each) for each in index.manifests))


def drop_version(index: Index, target: Listed, events: Iterable[Event]) -> Index:
    """Remove a version and all aliases that point to it."""
    kept = (each for each in index.manifests if not _is_version(each, target))
    return _with_events(_with_entries(index, kept), target.name, events)


def _with_entries(index: Index, entries: Iterable[Descriptor]) -> Index:
    return index.model_copy(update={"manifests": tuple(entries)})


def _with_events(index: Index, name: str, events: Iterable[Event]) -> Index:
    history = format_events([*events_of(index, name), *events])
    annotations = {**(index.annotations or {}), HISTORY + name: history}
    return index.model_copy(update={"annotations": annotations})


def _is_version(entry: Descriptor, target: Listed) -> bool:
    """Tell whether an entry is that of a version or of an alias that points to it."""
    noted = entry.annotations or {}
    return entry.artifact_type == ARTIFACT_TYPE and (
        (noted.get(TITLE), noted.get(VERSION)) == (target.name, target.version)
    )


def _is_alias(entry: Descriptor, name: str, alias: str) -> bool:
    noted = entry.annotations or {}
    return entry.artifact_type == ARTIFACT_TYPE and (
        (noted.get(TITLE), noted.get(ALIAS)) == (name, alias)
    )
