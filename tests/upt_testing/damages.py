"""Ways in which a store can be damaged without a digest being wrong, each by its name.

``INDEXES`` say something wrong about whole adapters, so an index can be written anew; ``CONTENTS``
are adapters whose digests are right and that are none.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from upt_testing.adapters import LORA, random_tensors, tiny_spec
from upt_testing.stores import publish
from upt_zoo.local import tags
from upt_zoo.local.store import Store
from upt_zoo.manifest import Index, Manifest, digest_of
from upt_zoo.references import Reference
from upt_zoo.tensors import write_tensors

NOTE = "vnd.upt.adapter."
HISTORY = NOTE + "history.tiny"
SPEC = tiny_spec(lora=LORA)
TENSORS = write_tensors(random_tensors(SPEC, 0))
CARD = b"# Tiny\n"


def lived_in(root: Path) -> Store:
    """Make a store with two names, three versions, an alias that has moved, and a yanked version.

    The versions of ``tiny`` are the first two entries of its index.
    """
    store = Store(root)
    for seed in (1, 2):
        publish(store, seed=seed)
        tags.move_alias(store, Reference(name="tiny"), "stable")
    publish(store, name="other")
    tags.yank(store, Reference(name="tiny", tag="1.0.0"))
    return store


def _edited(change: Callable[[Any], object]) -> Callable[[Path], object]:
    """Return what changes the values of the index."""

    def edit(root: Path) -> None:
        path = root / "index.json"
        values = json.loads(path.read_bytes())
        versions = [
            each for each in values["manifests"] if NOTE + "alias" not in each["annotations"]
        ]
        change({"index": values, "notes": values["annotations"], "entry": versions[0]})
        path.write_text(json.dumps(values))

    return edit


def _history(change: Callable[[list[Any]], object]) -> Callable[[Path], object]:
    def edit(values: Any) -> None:
        events = json.loads(values["notes"][HISTORY])
        change(events)
        values["notes"][HISTORY] = json.dumps(events)

    return _edited(edit)


def _noted(**notes: str) -> Callable[[Path], object]:
    named = {NOTE + key: text for key, text in notes.items()}
    return _edited(lambda values: values["entry"]["annotations"].update(named))


def _move_alias_astray(values: Any) -> None:
    alias = next(
        each for each in values["index"]["manifests"] if NOTE + "alias" in each["annotations"]
    )
    alias["digest"] = values["entry"]["digest"]  # and its version stays 1.0.1


INDEXES: dict[str, Callable[[Path], object]] = {
    "a history that is no JSON": _edited(lambda values: values["notes"].update({HISTORY: "[{"})),
    "a history that is no list": _edited(lambda values: values["notes"].update({HISTORY: "{}"})),
    "an unknown action": _history(lambda events: events[0].update(action="burn")),
    "an unknown key in a history": _history(lambda events: events[0].update(who="me")),
    "signatures that are no list": _noted(signatures="{}"),
    "a signature that is no base64": _noted(signatures='[{"payload":"{}","signature":"?"}]'),
    "an alias with another digest": _edited(_move_alias_astray),
    "metrics that are no JSON": _noted(metrics="{"),
    "another method than the blobs": _noted(method="best"),
    "another size than the blobs": _noted(size="5"),
    "a summary that is cut": _edited(
        lambda values: values["entry"]["annotations"].pop(NOTE + "size")
    ),
    "an entry of another size": _edited(lambda values: values["entry"].update(size=5)),
    "no oci-layout": lambda root: (root / "oci-layout").unlink(),
    "an oci-layout of another version": lambda root: (root / "oci-layout").write_text(
        '{"imageLayoutVersion":"2.0.0"}'
    ),
    "an oci-layout that is none": lambda root: (root / "oci-layout").write_text("[]"),
    "no index": lambda root: (root / "index.json").unlink(),
}


def _craft(
    *,
    spec: bytes = SPEC.to_json(),
    tensors: bytes = TENSORS,
    card: bytes = CARD,
    name: str = "tiny",
) -> Callable[[Path], object]:
    """Return what writes an adapter into a new store."""
    manifest = Manifest.of(name, "1.0.0", spec=spec, tensors=tensors, card=card).to_json()
    return lambda root: write_adapter(root, manifest, (spec, tensors, card))


def write_adapter(root: Path, manifest: bytes, blobs: tuple[bytes, ...]) -> None:
    """Write a manifest as it is and its blobs; the index lists it by its digest and size alone."""
    (root / "blobs" / "sha256").mkdir(parents=True)
    for blob in (*blobs, manifest):
        (root / "blobs" / "sha256" / digest_of(blob).removeprefix("sha256:")).write_bytes(blob)
    listed = Index().with_manifest(
        Manifest.of("tiny", "1.0.0", spec=blobs[0], tensors=blobs[1], card=blobs[2]).to_json()
    )
    values = json.loads(listed.to_json())
    values["manifests"][0].update(digest=digest_of(manifest), size=len(manifest))
    (root / "index.json").write_text(json.dumps(values))
    (root / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')


def _spec(old: str, new: str) -> bytes:
    text = SPEC.to_json().decode()
    assert text.count(old) == 1, old
    return text.replace(old, new).encode()


def _header(change: Callable[[str], str]) -> bytes:
    """Return the tensors under another header."""
    length = int.from_bytes(TENSORS[:8], "little")
    header = change(TENSORS[8 : 8 + length].decode().rstrip()).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + TENSORS[8 + length :]


def _repeat_first(header: str) -> str:
    """Name the first tensor twice, with the same place."""
    return header.replace("{", "{" + header[1 : header.index("},") + 2], 1)


def _two_titles(root: Path) -> None:
    spec = SPEC.to_json()
    manifest = Manifest.of("tiny", "1.0.0", spec=spec, tensors=TENSORS, card=CARD).to_json()
    twice = manifest.replace(b'{"annotations":{', b'{"annotations":{"a":"b","a":"c",', 1)
    write_adapter(root, twice, (spec, TENSORS, CARD))


# those of a spec, which `upt-zoo register` is given as a file
SPECS: dict[str, bytes] = {
    "a number that is not finite": _spec('"learning_rate":0.001', '"learning_rate":NaN'),
    "a number without end": _spec('"learning_rate":0.001', '"learning_rate":-Infinity'),
    "a number too large": _spec('"learning_rate":0.001', '"learning_rate":1e999'),
    "half a surrogate pair": _spec('"learning_rate"', '"\\ud800"'),
    "a key that repeats in a spec": _spec('"format":1', '"format":1,"format":1'),
    "a key that repeats in a recipe": _spec(
        '{"learning_rate"', '{"learning_rate":1,"learning_rate"'
    ),
    "an unknown key in a spec": _spec('"format":1', '"format":1,"formats":1'),
    "a method for comparison": _spec('"method":"lora"', '"method":"full"'),
    "served parameters that are not there": _spec('"served_parameters":', '"served_parameters":1'),
    "head parameters that are not there": _spec('"head_parameters":18', '"head_parameters":17'),
    "gates of a prefix without gates": _spec(
        '"prefix":null', '"prefix":{"gated":false,"gates":"separate","length":1}'
    ),
}
CONTENTS: dict[str, Callable[[Path], object]] = {
    **{name: _craft(spec=data) for name, data in SPECS.items()},
    "a tensor that repeats": _craft(tensors=_header(_repeat_first)),
    "a number in the tensors' metadata": _craft(
        tensors=_header(lambda header: header.replace("{", '{"__metadata__":{"a":1},', 1))
    ),
    "tensors of another spec": _craft(tensors=write_tensors(random_tensors(tiny_spec(), 0))),
    "bytes behind the tensors": _craft(tensors=TENSORS + b"\0\0\0\0"),
    "a card that is no UTF-8": _craft(card=b"\xff"),
    "a task of another name": _craft(spec=tiny_spec(name="other", lora=LORA).to_json()),
    "a key that repeats in a manifest": _two_titles,
}
