"""Which of many runs are registered in the zoo, and how: all at once."""

import math
from collections.abc import Iterable, Sequence
from statistics import fmean

from upt_training.records import Record
from upt_zoo.local.draft import Draft
from upt_zoo.local.store import Store, StoredAdapter
from upt_zoo.references import Reference


def best_of(records: Iterable[Record]) -> list[Record]:
    """Choose one run of each task, of those that gave an adapter.

    The best epoch on the held-out rows decides, never a dev or test file: the mean over a recipe's
    seeds, since each seed holds out rows of its own and cannot be compared with another one. Of
    the best recipe's runs, and of equal recipes, it is the first.
    """
    by_task: dict[str, dict[str, list[Record]]] = {}
    for record in records:
        if record.adapter is not None:
            recipe = record.recipe.model_copy(update={"seed": 0}).model_dump_json()
            by_task.setdefault(record.recipe.task_name, {}).setdefault(recipe, []).append(record)
    return [max(recipes.values(), key=_held_out)[0] for recipes in by_task.values()]


def _held_out(runs: Sequence[Record]) -> float:
    return fmean(max(run.holdout, default=-math.inf) for run in runs)


def register(records: Iterable[Record], source: Store, target: Store) -> list[StoredAdapter]:
    """Publish the adapters of runs in one step, each as its name's next version.

    ``source`` is where the runs published them. What the target has, to the byte, stays as it is.

    Raises:
        AdapterNotFound: the source does not have an adapter that a record names.
        Corrupt: an adapter is damaged.
    """
    found: list[StoredAdapter] = []
    drafts: list[Draft] = []
    for record in records:
        stored = source.resolve(Reference.parse(record.adapter or ""))
        known = _known(stored, target)
        if known is not None:
            found.append(known)
            continue
        spec, tensors = source.load(stored)
        drafts.append(Draft(spec=spec, tensors=tensors, card=source.card(stored)))
    return [*found, *target.publish_all(drafts)] if drafts else found


def _known(stored: StoredAdapter, target: Store) -> StoredAdapter | None:
    versions = (
        target.resolve(Reference(name=stored.name, tag=version))
        for version in target.versions(stored.name)
    )
    same = (each for each in versions if each.manifest.blobs == stored.manifest.blobs)
    return next(same, None)
