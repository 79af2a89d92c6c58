"""Moves aliases, takes moves back, yanks and removes versions; each is one change of the index.

A version never changes and never moves. An alias, any other tag, points to one version of the same
adapter. Whoever reads sees the state before a change or after it, with its history.
"""

import os
from collections.abc import Callable
from contextlib import suppress

from upt_zoo.close_names import did_you_mean
from upt_zoo.errors import AdapterNotFound, Conflict, Corrupt, InvalidReference
from upt_zoo.local.edits import drop_alias, drop_version, set_alias, set_yanked
from upt_zoo.local.history import Action, Event, earlier_version
from upt_zoo.local.listing import Alias, Listed, Listing, events_of
from upt_zoo.local.store import Store
from upt_zoo.manifest import MAX_MANIFEST_BYTES, Index, Manifest
from upt_zoo.references import Reference, is_alias, is_version


def move_alias(store: Store, reference: Reference, alias: str) -> Event | None:
    """Point an alias to what a reference means; None if it points there already.

    Raises:
        AdapterNotFound: no such version.
        Corrupt: its manifest or spec is damaged.
        InvalidReference: the alias is a version or no tag.
    """
    if not is_alias(alias):
        raise InvalidReference(
            f"expected an alias such as stable (letters, digits, _ . -, and not "
            f"MAJOR.MINOR.PATCH, which never moves), got {alias!r}"
        )

    def plan(_: Index, listing: Listing) -> tuple[Listed, Event] | None:
        stored = store.resolve(reference)
        before = listing.aliases.get(stored.name, {}).get(alias)
        if before is not None and before.digest == stored.digest:
            return None
        return listing.versions[stored.name][stored.version], Event(
            time=store.now(),
            action="tag",
            alias=alias,
            before=before.version if before else None,
            after=stored.version,
        )

    return _apply(store, plan, set_alias)


def roll_back(store: Store, reference: Reference) -> Event:
    """Point an alias back to where it pointed before its last move.

    Raises:
        AdapterNotFound: no such alias, or no move of it is left, or that version is gone.
        Conflict: that version has been yanked since.
        Corrupt: the history cannot be read.
    """

    done: list[Event] = []

    def change(index: Index, listing: Listing) -> Index:
        alias = _alias(store, listing, reference)
        version = earlier_version(events_of(index, alias.name), alias.alias, alias.version)
        if version is None:
            raise AdapterNotFound(
                f"expected a move of {reference} to take back, got none before the one to "
                f"{alias.version}; `upt-zoo history {reference}` shows where it has pointed, "
                f"`upt-zoo tag {alias.name}:VERSION {alias.alias}` moves it"
            )
        target = _check_target(listing.versions[alias.name].get(version), alias, version)
        event = Event(
            time=store.now(),
            action="rollback",
            alias=alias.alias,
            before=alias.version,
            after=version,
        )
        done.append(event)
        return set_alias(index, target, event)

    store.edit(change)
    return done[0]


def yank(store: Store, reference: Reference, *, undo: bool = False) -> Event | None:
    """Mark a version as one that a bare name never means; None if that is so already.

    ``undo`` takes the mark back. The version can still be named, by aliases too.

    Raises:
        AdapterNotFound: no such version.
        InvalidReference: the reference does not name one version.
    """

    def plan(_: Index, listing: Listing) -> tuple[Listed, Event] | None:
        target = _version(store, listing, reference)
        if (target.yanked is None) == undo:
            return None
        action: Action = "unyank" if undo else "yank"
        return target, Event(time=store.now(), action=action, before=target.version)

    return _apply(store, plan, set_yanked)


def remove(store: Store, reference: Reference, *, reason: str | None = None) -> tuple[Event, ...]:
    """Remove a version, or an alias, from the index; blobs stay until they are collected.

    With a ``reason``, aliases that point to the version go with it.

    Raises:
        AdapterNotFound: no such version or alias.
        Conflict: an alias points to the version, and there is no reason.
        InvalidReference: the reference names neither one version nor an alias.
    """
    removed: list[Event] = []

    def change(index: Index, listing: Listing) -> Index:
        if reference.tag is not None and is_alias(reference.tag):
            alias = _alias(store, listing, reference)
            removed.append(_untag(store, alias.alias, alias.version, reason))
            return drop_alias(index, alias.name, removed[0])
        target = _version(store, listing, reference)
        aliases = listing.aliases_of(target)
        if aliases and not reason:
            raise Conflict(
                f"{', '.join(f'{target.name}:{alias}' for alias in aliases)} points to "
                f"{target.reference}; move it, or say why both must go with --force-with REASON"
            )
        removed.extend(_untag(store, alias, target.version, reason) for alias in aliases)
        removed.append(
            Event(time=store.now(), action="remove", before=target.version, reason=reason)
        )
        _touch(store, target)
        return drop_version(index, target, removed)

    store.edit(change)
    return tuple(removed)


def history(store: Store, name: str, alias: str | None = None) -> tuple[Event, ...]:
    """Return what happened to an adapter's tags, or to one alias, from the oldest to the newest.

    Raises:
        AdapterNotFound: no such adapter or alias, today or before.
        Corrupt: the history cannot be read.
    """
    index, listing = store.read_index()
    events = events_of(index, name)
    if alias is not None:
        events = tuple(event for event in events if event.alias == alias)
    is_known = alias in listing.aliases.get(name, {}) if alias else name in listing.versions
    if not (events or is_known):
        store.resolve(Reference(name=name, tag=alias))  # raises, with a hint
    return events


_Plan = Callable[[Index, Listing], "tuple[Listed, Event] | None"]


def _apply(
    store: Store, plan: _Plan, apply: Callable[[Index, Listed, Event], Index]
) -> Event | None:
    """Plan and apply a change under the writer's lock; None if there is nothing to change."""
    planned: list[Event] = []

    def change(index: Index, listing: Listing) -> Index:
        found = plan(index, listing)
        if found is None:
            return index
        planned.append(found[1])
        return apply(index, *found)

    store.edit(change)
    return planned[0] if planned else None


def _alias(store: Store, listing: Listing, reference: Reference) -> Alias:
    """Return the alias that is named; its own digest decides where it points."""
    tag = reference.tag
    if tag is None or is_version(tag) or reference.digest is not None:
        raise InvalidReference(f"expected NAME:ALIAS, got {reference}")
    alias = listing.aliases.get(reference.name, {}).get(tag)
    if alias is None:
        hint = did_you_mean(tag, listing.aliases.get(reference.name, {})) or ";"
        raise AdapterNotFound(f"no alias {reference} in {store.root}{hint} `upt-zoo ls` shows them")
    return alias


def _version(store: Store, listing: Listing, reference: Reference) -> Listed:
    """Return the one version that is named, which may be damaged."""
    if reference.digest is None and (reference.tag is None or not is_version(reference.tag)):
        raise InvalidReference(f"expected NAME:MAJOR.MINOR.PATCH or NAME@DIGEST, got {reference}")
    listed = listing.select(reference)
    if listed is None or reference.digest not in (None, listed.digest):
        raise AdapterNotFound(f"no {reference} in {store.root}; `upt-zoo ls` lists what is here")
    return listed


def _check_target(target: Listed | None, alias: Alias, version: str) -> Listed:
    where = f"{alias.name}:{alias.alias} pointed to {version} before, which"
    remedy = f"`upt-zoo tag {alias.name}:VERSION {alias.alias}` moves it"
    if target is None:
        raise AdapterNotFound(f"{where} has been removed; {remedy}")
    if target.yanked is not None:
        raise Conflict(f"{where} has been yanked; {remedy}")
    return target


def _untag(store: Store, alias: str, version: str, reason: str | None) -> Event:
    return Event(time=store.now(), action="untag", alias=alias, before=version, reason=reason)


def _touch(store: Store, target: Listed) -> None:
    """Note at a version's blobs that they were needed until this moment.

    Whoever resolved it before it is removed can still load it within the grace of a collection.
    """
    with suppress(OSError, Corrupt):  # of what is damaged there is nothing to load
        manifest = Manifest.from_json(store.blobs.read(target.digest, MAX_MANIFEST_BYTES))
        for digest in (target.digest, *(blob.digest for blob in manifest.blobs)):
            os.utime(store.blob_path(digest))
