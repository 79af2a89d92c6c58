"""Looks after the health of a store: each check says what is wrong and what to do about it.

It writes nothing and waits for nobody, so beside a running writer a finding may be out of date.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial

from upt_zoo.backbone import is_on_this_machine
from upt_zoo.errors import AdapterNotFound, Corrupt
from upt_zoo.findings import Finding, run_checks
from upt_zoo.local.listing import Listed, check_notes, events_of, histories
from upt_zoo.local.store import Store
from upt_zoo.local.upkeep import find_garbage
from upt_zoo.references import Reference

_LOW_DISK_BYTES = 1_000_000_000  # some hundred adapters and the blobs of a pull
_SHOWN = 3


def examine(store: Store) -> tuple[Finding, ...]:
    """Run every check; one that cannot be run is itself damage."""
    checks: dict[str, Callable[[Store], Finding]] = {
        "directory": _directory,
        "disk": _disk,
        "index": _index,
        "manifests": _manifests,
        "leftovers": _leftovers,
        "garbage": _garbage,
        "backbones": _backbones,
    }
    return run_checks(
        {name: partial(check, store) for name, check in checks.items()}, worst="damage"
    )


def _directory(store: Store) -> Finding:
    root = store.root
    if not root.exists():
        return Finding(check="directory", level="ok", text=f"{root} will be made when it is needed")
    paths = [root, *(path for path in (store.blobs.directory,) if path.exists())]
    closed = [path for path in paths if not os.access(path, os.R_OK | os.W_OK | os.X_OK)]
    if closed:
        return Finding(
            check="directory",
            level="warning",
            text=f"{', '.join(map(str, closed))} cannot be read and written by this user",
            remedy="change its owner or its mode, or use another UPT_ZOO_HOME",
        )
    return Finding(check="directory", level="ok", text=f"{root} can be read and written")


def _disk(store: Store) -> Finding:
    place = next(path for path in (store.root, *store.root.parents) if path.exists())
    free = shutil.disk_usage(place).free
    text = f"{free / 1e9:.1f} GB free"
    if free < _LOW_DISK_BYTES:
        return Finding(
            check="disk", level="warning", text=text, remedy="upt-zoo gc, or a larger disk"
        )
    return Finding(check="disk", level="ok", text=text)


def _index(store: Store) -> Finding:
    try:
        store.index.check_layout()
        index, listing = store.read_index()
        for name in histories(index):
            events_of(index, name)
        for each in listing.all():
            listing.check_aliases(each)
            check_notes(index, each)
    except Corrupt as error:
        return Finding(check="index", level="damage", text=str(error), remedy="upt-zoo reindex")
    listed = listing.all()
    bare = [each for each in listed if each.summary is None]
    if bare:
        return Finding(
            check="index",
            level="warning",
            text=f"{len(bare)} of {len(listed)} versions are listed without a summary",
            remedy="upt-zoo reindex makes `upt-zoo ls` fast",
        )
    return Finding(check="index", level="ok", text=f"{len(listed)} versions")


def _manifests(store: Store) -> Finding:
    damaged = [each for each in store.listing().all() if not _is_there(store, each)]
    if damaged:
        return Finding(
            check="manifests",
            level="damage",
            text=f"{len(damaged)} are missing or cut: {_some(damaged)}",
            remedy="pull or publish them again, or upt-zoo reindex drops them",
        )
    return Finding(check="manifests", level="ok", text="all there; upt-zoo verify reads every byte")


def _is_there(store: Store, listed: Listed) -> bool:
    try:
        store.summarise(listed)
    except Corrupt:
        return False
    return True


def _leftovers(store: Store) -> Finding:
    found = list(store.leftovers())
    if found:
        return Finding(
            check="leftovers",
            level="warning",
            text=f"{len(found)} temporary files of killed writers",
            remedy="upt-zoo gc removes them",
        )
    return Finding(check="leftovers", level="ok", text="none")


def _garbage(store: Store) -> Finding:
    garbage = find_garbage(store, grace_s=0)
    if garbage.paths:
        return Finding(
            check="garbage",
            level="ok",
            text=f"{len(garbage.paths)} blobs that nothing leads to, {garbage.size_bytes} bytes",
            remedy="upt-zoo gc frees them",
        )
    return Finding(check="garbage", level="ok", text="none")


def _backbones(store: Store) -> Finding:
    wanted = sorted(set(_hub_ids(store)))
    missing = [hub_id for hub_id in wanted if not is_on_this_machine(hub_id)]
    if missing:
        return Finding(
            check="backbones",
            level="warning",
            text=f"not on this machine: {', '.join(missing)}",
            remedy="the server fetches them from the hub when it starts; fetch them before if it "
            "has no network",
        )
    return Finding(check="backbones", level="ok", text=", ".join(wanted) or "none is needed")


def _hub_ids(store: Store) -> Iterator[str]:
    """Yield where the backbone of each adapter's newest version can be found."""
    for name in store.listing().versions:
        try:
            yield store.resolve(Reference(name=name)).spec.backbone.hub_id
        except (AdapterNotFound, Corrupt):
            continue


def _some(listed: list[Listed]) -> str:
    names = ", ".join(each.reference for each in listed[:_SHOWN])
    return f"{names}, …" if len(listed) > _SHOWN else names
