"""``upt-train add-example``: what was published without an example, once more with one."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from upt_testing.adapters import (
    BOTTLENECK,
    CLASSIFICATION,
    LORA,
    PREFIX,
    PROMPT,
    SPAN,
    random_tensors,
    tiny_spec,
)
from upt_testing.desks import Desk, make_desk
from upt_zoo.backbone import Backbone, resolve_backbone
from upt_zoo.local import tags
from upt_zoo.local.store import StoredAdapter
from upt_zoo.nn.adapter import prepare
from upt_zoo.nn.encoder import load_encoder
from upt_zoo.nn.example import record_example
from upt_zoo.references import Reference
from upt_zoo.spec import Head
from upt_zoo.tokenization import Tokenizer


@pytest.fixture
def desk(tmp_path: Path, backbone: Backbone) -> Desk:
    return make_desk(tmp_path, backbone)


def publish(desk: Desk, backbone: Backbone, name: str, head: Head = CLASSIFICATION) -> None:
    """Publish an adapter without an example, as one that was imported."""
    spec = tiny_spec(
        backbone=resolve_backbone(str(backbone.directory)).identity,
        name=name,
        lora=LORA,
        prefix=PREFIX,
        bottleneck=BOTTLENECK,
        prompt=PROMPT,
        head=head,
    )
    desk.store.publish(spec, random_tensors(spec, len(name)), f"# {name}\n")


def resolve(desk: Desk, reference: str) -> StoredAdapter:
    return desk.store.resolve(Reference.parse(reference))


def test_it_becomes_the_next_version_with_the_same_tensors_and_card(
    desk: Desk, backbone: Backbone
) -> None:
    publish(desk, backbone, "film")
    publish(desk, backbone, "reader", SPAN)
    result = desk.run("add-example", "film", "reader")
    for name, line in zip(("film", "reader"), result.stdout.splitlines(), strict=True):
        old, new = resolve(desk, f"{name}:1.0.0"), resolve(desk, name)
        assert line == f"{name}:1.0.1@{new.digest}"
        assert new.manifest.layers == old.manifest.layers
        assert old.spec.example is None
        assert old.spec == new.spec.model_copy(update={"example": None})
        spec, arrays = desk.store.load(new)
        tensors = {key: torch.from_numpy(array) for key, array in arrays.items()}
        again = record_example(
            load_encoder(backbone),
            spec,
            prepare(spec, tensors, dtype=torch.float32),
            Tokenizer(backbone.tokenizer_file),
        )
        assert spec.example == again


def test_what_has_an_example_stays_as_it_is(desk: Desk, backbone: Backbone) -> None:
    publish(desk, backbone, "film")
    said = desk.run("add-example", "film", "film:1.0.0", "--json")
    assert (said.code, said.stderr) == (0, "")
    assert json.loads(said.stdout) == [
        {"reference": "film:1.0.1", "digest": resolve(desk, "film").digest}
    ]
    result = desk.run("add-example", "film")
    assert (result.code, result.stdout) == (0, "")
    assert result.stderr == "film:1.0.1 has an example\n"
    assert desk.store.versions("film") == ("1.0.0", "1.0.1")


def test_nothing_is_published_where_one_of_them_is_damaged(desk: Desk, backbone: Backbone) -> None:
    publish(desk, backbone, "film")
    publish(desk, backbone, "other")
    tensors = resolve(desk, "other").manifest.tensors
    file = desk.store.blob_path(tensors.digest)
    file.chmod(0o644)
    damaged = np.frombuffer(file.read_bytes(), dtype=np.uint8).copy()
    damaged[-1] ^= 1
    file.write_bytes(damaged.tobytes())
    assert desk.run("add-example", "film", "other").code == 65
    assert desk.store.versions("film") == ("1.0.0",)


def test_an_adapter_that_is_not_in_the_store_is_refused(desk: Desk) -> None:
    assert "pull it first" in desk.run("add-example", "embedded/sst2").stderr
    assert desk.run("add-example", "nobody").code == 66


@pytest.mark.parametrize("is_yanked", [False, True])
def test_an_older_version_does_not_become_the_newest(
    desk: Desk, backbone: Backbone, is_yanked: bool
) -> None:
    publish(desk, backbone, "film")
    publish(desk, backbone, "film", SPAN)
    old = "film:1.0.1" if is_yanked else "film:1.0.0"
    if is_yanked:
        tags.yank(desk.store, Reference.parse(old))
    result = desk.run("add-example", old)
    assert (result.code, result.stdout) == (64, "")
    assert f"{old} would become the newest version" in result.stderr
    assert desk.store.versions("film") == ("1.0.0", "1.0.1")


def test_numbers_that_overflow_at_the_example_are_not_published(
    desk: Desk, backbone: Backbone
) -> None:
    spec = tiny_spec(
        backbone=resolve_backbone(str(backbone.directory)).identity, name="film", lora=LORA
    )
    tensors = random_tensors(spec, 1)
    largest = {name: np.full_like(array, 1e38) for name, array in tensors.items()}
    desk.store.publish(spec, largest, "# film")
    result = desk.run("add-example", "film")
    assert result.code == 65
    assert "film: its numbers overflow at the example" in result.stderr
