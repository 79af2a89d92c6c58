"""The command ``add-example``: gives imported and older adapters what servers check them by."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import typer

from upt_training.options import Threads, set_threads
from upt_zoo.options import Adapters, AsJson, Home

if TYPE_CHECKING:
    from upt_training.models import Model
    from upt_zoo.local.draft import Draft
    from upt_zoo.local.store import Store, StoredAdapter
    from upt_zoo.references import Reference


def add_example(
    refs: Adapters, home: Home = None, threads: Threads = None, as_json: AsJson = False
) -> None:
    """Publish adapters once more, with the example by which servers check them at start.

    For those that were imported, or trained before there were examples. Each becomes its name's
    next version, with the same tensors and card; one that has an example stays as it is. An older
    version is refused, since it would become the newest.
    """
    from upt_zoo.catalogue import home_store
    from upt_zoo.commands.remotes import local_reference, print_digests
    from upt_zoo.references import Reference

    store = home_store(home)
    chosen = [_newest(store, local_reference(Reference.parse(ref))) for ref in refs]
    without = {each.digest: each for each in chosen if each.spec.example is None}
    for each in chosen:
        if each.digest not in without:
            typer.echo(f"{each.reference} has an example", err=True)
    set_threads(threads)
    drafts = list(_with_examples(store, without.values()))
    print_digests(store.publish_all(drafts) if drafts else (), as_json=as_json)


def _newest(store: "Store", reference: "Reference") -> "StoredAdapter":
    from upt_zoo.errors import InvalidInput

    stored = store.resolve(reference)
    newest = store.resolve(replace(reference, tag=None, digest=None))
    if stored.digest != newest.digest:
        raise InvalidInput(
            f"{stored.reference} would become the newest version in place of {newest.reference}; "
            f"expected {stored.name}, which means that one"
        )
    return stored


def _with_examples(store: "Store", adapters: "Iterable[StoredAdapter]") -> "Iterator[Draft]":
    from upt_training.models import load_model
    from upt_zoo.local.draft import Draft
    from upt_zoo.nn.example import record_example

    models: dict[str, Model] = {}  # one for each backbone
    for stored in adapters:
        backbone = stored.spec.backbone.digest
        known = models.get(backbone)
        model = known.of_another(store, stored) if known else load_model(store, stored)
        models[backbone] = model
        example = record_example(model.encoder, model.spec, model.adapter, model.tokenizer)
        spec, tensors = store.load(stored)
        yield Draft(
            spec=spec.model_copy(update={"example": example}),
            tensors=tensors,
            card=store.card(stored),
        )
