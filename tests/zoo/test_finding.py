import json
from pathlib import Path

import numpy as np
import pytest

from upt_testing.adapters import LORA, PROMPT, random_tensors, tiny_spec
from upt_testing.stores import publish
from upt_zoo.comparison import compare_specs, compare_tensors
from upt_zoo.errors import Corrupt, InvalidInput, InvalidSpec
from upt_zoo.local import tags
from upt_zoo.local.drafts import read_drafts
from upt_zoo.local.store import Store
from upt_zoo.references import Reference
from upt_zoo.search import matches, search
from upt_zoo.spec import AdapterSpec, Head
from upt_zoo.tensors import Array, write_tensors

SPEC = tiny_spec(lora=LORA)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "zoo")


def write(folder: Path, spec: AdapterSpec = SPEC, seed: int = 0) -> Path:
    folder.mkdir()
    (folder / "spec.json").write_text(json.dumps(spec.model_dump(mode="json"), indent=4))
    (folder / "tensors.safetensors").write_bytes(write_tensors(random_tensors(spec, seed)))
    (folder / "card.md").write_text("# Made elsewhere\n")
    return folder


# Searching


def test_words_are_looked_for_in_all_that_says_what_a_task_is() -> None:
    task = SPEC.task.model_copy(update={"description": "Tells Äpfel from pears."})
    spec = SPEC.model_copy(update={"task": task})
    for word in ("tiny", "TINY", "äpfel", "negative", "upt/tiny-data", "train.tsv", "ear"):
        assert matches(spec, [word]), word
    assert matches(spec, ["pears", "positive"])
    assert not matches(spec, ["pears", "bananas"])
    assert matches(tiny_spec(head=Head(kind="regression", outputs=1)), ["tiny"])


def test_the_newest_version_of_every_store_is_found(store: Store, tmp_path: Path) -> None:
    other = Store(tmp_path / "other")
    publish(store, seed=1)
    newest = publish(store, seed=2)
    elsewhere = publish(other, name="more")
    found = list(search([store, other], ["tiny-data"]))
    assert found == [(store, newest), (other, elsewhere)]
    assert [stored for _, stored in search([store, other], ["more"])] == [elsewhere]


def test_what_is_damaged_or_yanked_is_passed_over(store: Store) -> None:
    damaged, yanked = publish(store, name="a"), publish(store, name="b")
    whole = publish(store, name="c")
    store.blob_path(damaged.digest).unlink()
    tags.yank(store, Reference.parse(yanked.reference))
    assert [stored for _, stored in search([store], ["negative"])] == [whole]


# Comparing


def test_equal_adapters_have_no_differences() -> None:
    tensors = random_tensors(SPEC, 0)
    assert compare_specs(SPEC, SPEC) == ()
    changes = compare_tensors(tensors, random_tensors(SPEC, 0))
    assert {change.verdict for change in changes} == {"equal"}
    assert [change.name for change in changes] == sorted(tensors)


def test_fields_that_differ_are_named_with_both_values() -> None:
    other = tiny_spec(lora=LORA.model_copy(update={"rank": 4}), prompt=PROMPT)
    changes = {change.field: (change.first, change.second) for change in compare_specs(SPEC, other)}
    assert changes["lora.rank"] == (2, 4)
    assert changes["prompt.length"] == (None, 2)
    assert changes["method"] == ("lora", "lora_prompt")
    assert "head.outputs" not in changes


def test_tensors_are_compared_by_shape_and_distance() -> None:
    one: dict[str, Array] = {
        "same": np.ones(3, dtype=np.float32),
        "half": np.full(4, 2.0, dtype=np.float32),
        "zero": np.zeros(2, dtype=np.float32),
        "shape": np.ones((2, 2), dtype=np.float32),
        "first": np.ones(1, dtype=np.float32),
    }
    other: dict[str, Array] = {
        "same": np.ones(3, dtype=np.float16),
        "half": np.ones(4, dtype=np.float32),
        "zero": np.zeros(2, dtype=np.float32),
        "shape": np.ones(4, dtype=np.float32),
        "second": np.ones(1, dtype=np.float32),
    }
    found = {each.name: (each.verdict, each.relative) for each in compare_tensors(one, other)}
    assert found == {
        "first": ("only in the first", None),
        "half": ("differs", 0.5),
        "same": ("equal", 0.0),
        "second": ("only in the second", None),
        "shape": ("shape", None),
        "zero": ("equal", 0.0),
    }


def test_the_distance_does_not_depend_on_the_order() -> None:
    one, other = random_tensors(SPEC, 1), random_tensors(SPEC, 2)
    assert compare_tensors(one, other) == compare_tensors(other, one)
    assert all(0 < (each.relative or 0) <= 2 for each in compare_tensors(one, other))


# Registering


def test_a_directory_is_what_was_written_elsewhere(store: Store, tmp_path: Path) -> None:
    folder = write(tmp_path / "made")
    (added,) = store.publish_all(read_drafts([folder]))
    assert added == store.resolve(Reference(name="tiny"))
    assert added.spec == SPEC
    assert store.card(added) == "# Made elsewhere\n"
    store.verify(added)


def test_three_files_are_told_by_their_suffixes(store: Store, tmp_path: Path) -> None:
    folder = write(tmp_path / "made")
    files = [folder / "card.md", folder / "tensors.safetensors", folder / "spec.json"]
    (added,) = store.publish_all(read_drafts(files, version="3.0.0"))
    assert added.version == "3.0.0"


def test_many_directories_are_published_together(store: Store, tmp_path: Path) -> None:
    folders = [write(tmp_path / str(seed), seed=seed) for seed in range(3)]
    added = store.publish_all(read_drafts(folders))
    assert [each.version for each in added] == ["1.0.0", "1.0.1", "1.0.2"]
    (folders[2] / "card.md").unlink()
    with pytest.raises(InvalidInput, match=r"card\.md"):
        store.publish_all(read_drafts(folders))
    assert len(store.list()) == 3


def test_what_is_not_an_adapter_is_refused(store: Store, tmp_path: Path) -> None:
    bad_spec, bad_tensors, bad_card, wrong = (write(tmp_path / name) for name in "abcd")
    (bad_spec / "spec.json").write_text("{}")
    (bad_tensors / "tensors.safetensors").write_bytes(b"no")
    (bad_card / "card.md").write_bytes(b"\xff")
    (wrong / "tensors.safetensors").write_bytes(write_tensors(random_tensors(tiny_spec(), 0)))
    for folder, error in (
        (bad_spec, InvalidSpec),
        (bad_tensors, Corrupt),
        (bad_card, Corrupt),
        (wrong, Corrupt),
    ):
        with pytest.raises(error):
            store.publish_all(read_drafts([folder]))
    assert store.list() == ()


@pytest.mark.parametrize("names", [["spec.json"], ["spec.json", "card.md", "card.md"], ["x.txt"]])
def test_other_files_than_three_are_refused(tmp_path: Path, names: list[str]) -> None:
    folder = write(tmp_path / "made")
    with pytest.raises(InvalidInput, match="expected directories with"):
        list(read_drafts([folder / name for name in names]))


def test_a_spec_that_never_ends_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("upt_zoo.local.drafts._MAX_SPEC_BYTES", 10)
    with pytest.raises(InvalidInput, match="at most 10 bytes"):
        list(read_drafts([write(tmp_path / "made")]))
