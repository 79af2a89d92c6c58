"""Publish adapters that a page takes for granted: ``python adapters.py people sst2:1.1.0``.

Versions of the catalogue's adapters are the catalogue's under another number. The others stand for
what readers have trained themselves: right in form, with numbers drawn by chance.
"""

import sys

from upt_testing.adapters import BOTTLENECK, EMBEDDING, LORA, TOKENS, random_tensors, tiny_spec
from upt_zoo.catalogue import embedded_catalogue, home_store
from upt_zoo.local.store import Store
from upt_zoo.references import Reference
from upt_zoo.spec import AdapterSpec, Head

CATALOGUE = embedded_catalogue()
BACKBONE = CATALOGUE.resolve(Reference.parse("sst2")).spec.backbone
TICKETS = Head(
    kind="classification", outputs=3, labels=("billing", "access", "other"), layers=2, pooling="cls"
)
LABELS_OF_MNLI = CATALOGUE.resolve(Reference.parse("mnli")).spec.head.labels
PLAIN_LORA = LORA.model_copy(update={"gated": False})
OWN: dict[str, AdapterSpec] = {
    "people": tiny_spec(name="people", backbone=BACKBONE, lora=LORA, head=TOKENS),
    "alike": tiny_spec(name="alike", backbone=BACKBONE, lora=LORA, head=EMBEDDING),
    "tickets": tiny_spec(
        name="tickets", backbone=BACKBONE, bottleneck=BOTTLENECK, lora=LORA, head=TICKETS
    ),
    "plain-lora": tiny_spec(
        name="plain-lora",
        backbone=BACKBONE,
        lora=PLAIN_LORA,
        head=Head(kind="classification", outputs=3, labels=LABELS_OF_MNLI, layers=2),
    ),
}


def publish(store: Store, name: str) -> None:
    """Publish one adapter."""
    reference = Reference.parse(name)
    if reference.name in OWN:
        spec = OWN[reference.name]
        store.publish(spec, random_tensors(spec, seed=1), "# An example\n")
        return
    stored = CATALOGUE.resolve(Reference.parse(reference.name))
    spec, tensors = CATALOGUE.load(stored)
    store.publish(spec, tensors, CATALOGUE.card(stored), version=reference.tag)


for each in sys.argv[1:]:
    publish(home_store(), each)
