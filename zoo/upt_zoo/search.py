"""Finds adapters by words: in their names, task descriptions, labels and names of data."""

from collections.abc import Iterable, Iterator, Sequence

from upt_zoo.errors import AdapterNotFound, Corrupt
from upt_zoo.local.store import Store, StoredAdapter
from upt_zoo.references import Reference
from upt_zoo.spec import AdapterSpec


def search(stores: Iterable[Store], words: Sequence[str]) -> Iterator[tuple[Store, StoredAdapter]]:
    """Yield the newest version of every adapter that has all the words, store by store.

    Upper and lower case are one, and a word may be a part of another. What is damaged or wholly
    yanked is passed over; ``upt-zoo verify`` tells of damage.
    """
    for store in stores:
        for name in sorted(store.listing().versions):
            try:
                stored = store.resolve(Reference(name=name))
            except (AdapterNotFound, Corrupt):
                continue
            if matches(stored.spec, words):
                yield store, stored


def matches(spec: AdapterSpec, words: Iterable[str]) -> bool:
    """Tell whether every word occurs in what a spec says about its task."""
    task, lineage = spec.task, spec.lineage
    files = (file.name for file in lineage.files)
    parts = [task.name, task.description or "", *(spec.head.labels or ()), lineage.data, *files]
    text = "\n".join(parts).casefold()
    return all(word.casefold() in text for word in words)
