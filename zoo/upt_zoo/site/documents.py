"""The JSON documents that the page reads: the catalogue, and one for each version."""

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping

from pydantic import JsonValue

from upt_zoo.description import describe, summary_of
from upt_zoo.errors import Corrupt, NotFound
from upt_zoo.layout import gate_names, tensor_shapes
from upt_zoo.local.hints import not_found
from upt_zoo.local.listing import Listed, Listing, events_of
from upt_zoo.local.store import Store, StoredAdapter
from upt_zoo.references import Reference
from upt_zoo.site.cards import parse_card
from upt_zoo.spec import AdapterSpec, Curve

CATALOGUE = "data/catalogue.json"

logger = logging.getLogger(__name__)


def document_path(name: str, version: str) -> str:
    """Return where a page looks for the document of a version."""
    return f"data/adapters/{name}/{version}.json"


class Documents:
    """Writes what a page shows of a store.

    ``curves``, by digest, are of adapters whose specs have none.
    """

    def __init__(self, store: Store, curves: Mapping[str, Curve] | None = None) -> None:
        self._store, self._curves = store, curves or {}

    def catalogue(self, is_shown: Callable[[str], bool] = lambda _: True) -> dict[str, JsonValue]:
        """List every version whose adapter's name ``is_shown``; damaged ones are left out.

        Raises:
            Corrupt: the index cannot be read.
        """
        listing = self._store.listing()
        entries: list[JsonValue] = []
        for listed in listing.all():
            if not is_shown(listed.name):
                continue
            try:
                entries.append(self._entry(listing, listed))
            except (Corrupt, NotFound) as error:  # damaged, or removed meanwhile
                logger.warning("left out of the page: %s", error)
        return {"adapters": entries}

    def adapter(self, name: str, version: str) -> dict[str, JsonValue]:
        """Say everything about one version, its card and its history too.

        Raises:
            AdapterNotFound: there is no such version.
            Corrupt: it is damaged.
        """
        index, listing = self._store.read_index()
        listed = listing.versions.get(name, {}).get(version)
        if listed is None:
            raise not_found(Reference(name=name, tag=version), listing, self._store.root)
        stored = self._resolve(listed)
        curve = stored.spec.lineage.curve or self._curves.get(stored.digest)
        return {
            **describe(stored),
            **_standing(listing, listed),
            "versions": list(self._store.versions(name)),
            "history": [event.model_dump(mode="json") for event in events_of(index, name)],
            "parts": dict(_parts(stored.spec)),
            "gates": list(gate_names(stored.spec)),
            "example": list(stored.spec.example.texts) if stored.spec.example else None,
            "curve": curve.model_dump(mode="json") if curve else None,
            "card": parse_card(self._store.card(stored)),
        }

    def _entry(self, listing: Listing, listed: Listed) -> dict[str, JsonValue]:
        stored = self._resolve(listed)
        return {**summary_of(stored), **_standing(listing, listed), **_facts(stored)}

    def _resolve(self, listed: Listed) -> StoredAdapter:
        return self._store.resolve(
            Reference(name=listed.name, tag=listed.version, digest=listed.digest)
        )


def _standing(listing: Listing, listed: Listed) -> dict[str, JsonValue]:
    return {
        "created": listed.created,
        "yanked": listed.yanked,
        "aliases": list(listing.aliases_of(listed)),
    }


def _facts(stored: StoredAdapter) -> dict[str, JsonValue]:
    spec = stored.spec
    return {
        "description": spec.task.description,
        "fields": list(spec.task.fields),
        "head": spec.head.kind,
        "labels": list(spec.head.labels or ()),
        "metric": spec.task.metric,
        "backbone": spec.backbone.hub_id,
        "backbone_digest": spec.backbone.digest,
        "data": spec.lineage.data,
        "licence": spec.lineage.licence,
        "commercial_use": spec.lineage.commercial_use,
        "gates": list(gate_names(spec)),
    }


def _parts(spec: AdapterSpec) -> Counter[str]:
    """Count the numbers of each component, those of gates apart."""
    counts: Counter[str] = Counter()
    for name, shape in tensor_shapes(spec).items():
        counts["gates" if ".gate." in name else name.partition(".")[0]] += math.prod(shape)
    return counts
