"""What is known of an adapter once it has answered a labelled file, and what to do with it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from upt_training.data import Split
from upt_training.inspection import Inspection, inspect
from upt_training.metrics import outcomes_of
from upt_training.models import Model, load_model
from upt_training.verdict import PROMOTED, Rival, Verdict, judge, without_reading
from upt_zoo.errors import InvalidInput
from upt_zoo.local.store import Store, StoredAdapter
from upt_zoo.references import Reference, version_order
from upt_zoo.spec import DataFile
from upt_zoo.tasks import Task

Gates = Sequence[Mapping[str, float]]  # a layer's mean gates by name, one each


@dataclass(frozen=True, slots=True, kw_only=True)
class Review:
    """``adapter`` is its reference with its digest; ``gates`` are empty where it has none."""

    adapter: str
    file: DataFile
    inspection: Inspection
    gates: Gates
    verdict: Verdict


def review(
    store: Store,
    stored: StoredAdapter,
    task: Task,
    split: Split,
    *,
    against: Reference | None = None,
    worst: int = 20,
) -> Review:
    """Let an adapter answer a file, and judge it beside ``against``, else beside ``rival_of`` it.

    The ``worst`` mistakes are kept.

    Raises:
        InvalidInput: ``against`` is the adapter itself, or answers with other labels or by another
            backbone.
        UptError: an adapter or the backbone cannot be found or read.
    """
    other = rival_of(store, stored) if against is None else store.resolve(against)
    if other is not None and other.digest == stored.digest:
        raise InvalidInput(f"--against: {stored.reference} stands beside itself; name another one")
    if other is not None and not is_comparable(stored, other):
        raise InvalidInput(
            f"--against: {other.reference} has other fields, labels or another backbone than "
            f"{stored.reference}; name a version of the same"
        )
    model = load_model(store, stored)
    texts = [example.texts for example in split.examples]
    answers = model.answers(texts)
    outcomes = outcomes_of(task, split.examples, answers)
    rival = (
        without_reading(task, outcomes)
        if other is None
        else _answering(model, store, other, task, split)
    )
    gates = model.gates(texts)
    return Review(
        adapter=f"{stored.reference}@{stored.digest}",
        file=split.file,
        inspection=inspect(task, split.examples, answers, worst=worst),
        gates=gates if any(gates) else (),
        verdict=judge(task, Reference.parse(stored.reference), outcomes, rival),
    )


def rival_of(store: Store, stored: StoredAdapter) -> StoredAdapter | None:
    """Return what stands before a version: the promoted one, else the newest of a lower number.

    What is yanked is passed over, as is what cannot be compared. None is there for a first version.
    """
    listing = store.listing()
    promoted = listing.select(Reference(name=stored.name, tag=PROMOTED))
    lower = [
        each
        for each in listing.versions.get(stored.name, {}).values()
        if each.yanked is None and version_order(each.version) < version_order(stored.version)
    ]
    lower.sort(key=lambda each: version_order(each.version), reverse=True)
    for each in (*filter(None, [promoted]), *lower):
        other = store.resolve(Reference(name=each.name, tag=each.version))
        if other.digest != stored.digest and is_comparable(stored, other):
            return other
    return None


def is_comparable(one: StoredAdapter, other: StoredAdapter) -> bool:
    """Tell whether two adapters answer the same rows alike, on the same backbone."""
    first, second = one.spec, other.spec
    return (
        first.backbone.digest == second.backbone.digest
        and first.task.fields == second.task.fields
        and (first.head.kind, first.head.labels) == (second.head.kind, second.head.labels)
    )


def _answering(model: Model, store: Store, other: StoredAdapter, task: Task, split: Split) -> Rival:
    answers = model.of_another(store, other).answers([each.texts for each in split.examples])
    return Rival(
        name=other.reference,
        reference=Reference.parse(other.reference),
        outcomes=outcomes_of(task, split.examples, answers),
    )
