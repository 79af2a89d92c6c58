"""Damage that no digest tells: who finds it, and what mends it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from upt_testing.adapters import LORA, random_tensors, tiny_spec
from upt_testing.commands import Run
from upt_testing.damages import CARD, CONTENTS, INDEXES, NOTE, SPEC, SPECS, TENSORS, lived_in
from upt_testing.stores import check_whole, publish
from upt_zoo.contents import check_blobs
from upt_zoo.errors import Corrupt, InvalidInput, InvalidSpec
from upt_zoo.json_text import check_json, format_json
from upt_zoo.local import tags
from upt_zoo.local.checkup import examine
from upt_zoo.local.store import Store
from upt_zoo.manifest import Manifest
from upt_zoo.references import Reference

# the doctor opens no spec
ONLY_IN_BLOBS = (INDEXES["another method than the blobs"], INDEXES["another size than the blobs"])


@pytest.mark.parametrize("damage", INDEXES.values(), ids=INDEXES)
def test_an_index_that_is_wrong_is_found_and_mended(
    run: Run, home: Store, damage: Callable[[Path], object]
) -> None:
    lived_in(home.root)
    assert run("verify").code == 0
    listed = home.list()
    damage(home.root)
    assert run("verify").code == 65
    assert run("doctor").code == (0 if damage in ONLY_IN_BLOBS else 65)
    assert run("reindex").code == 0
    assert run("verify").code == 0
    assert "damage" not in {finding.level for finding in examine(home)}
    assert home.list() == listed
    check_whole(home.root)


@pytest.mark.parametrize("damage", CONTENTS.values(), ids=CONTENTS)
def test_what_is_no_adapter_is_found_and_not_copied(
    run: Run, home: Store, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    damage(home.root)
    assert run("verify", "tiny").code == 65
    assert run("verify").code == 65
    with pytest.raises(Corrupt):
        Store(tmp_path / "goal").copy_from(home, Reference(name="tiny"))
    assert not (tmp_path / "goal").exists()
    assert run("rm", "tiny:1.0.0").code == 0
    assert run("verify").code == 0


@pytest.mark.parametrize("data", SPECS.values(), ids=SPECS)
def test_what_is_no_spec_is_not_registered(
    run: Run, home: Store, tmp_path: Path, data: bytes
) -> None:
    names = {"spec.json": data, "tensors.safetensors": TENSORS, "card.md": CARD}
    for name, content in names.items():
        (tmp_path / name).write_bytes(content)
    result = run("register", str(tmp_path))
    assert result.code == 64
    assert home.list() == ()


# What reindex keeps


def test_events_that_can_be_read_outlive_those_that_cannot(run: Run, home: Store) -> None:
    lived_in(home.root)
    before = tags.history(home, "tiny")
    INDEXES["an unknown action"](home.root)
    assert run("history", "tiny").code == 65
    result = run("reindex")
    assert "part of the history of tiny" in result.stderr
    assert tags.history(home, "tiny") == before[1:]
    assert run("rollback", "tiny:stable").code == 66  # where it was before, nobody knows any more


def test_reindex_names_what_it_could_not_keep(run: Run, home: Store) -> None:
    lived_in(home.root)
    INDEXES["signatures that are no list"](home.root)
    assert run("show", "tiny:1.0.0").code == 65
    lost = json.loads(run("reindex", "--json").stdout)["lost"]
    assert lost == [f"the signatures of {home.list()[1].digest}"]
    assert json.loads(run("reindex", "--json").stdout)["lost"] == []
    assert home.listing().versions["tiny"]["1.0.0"].yanked is not None


def test_ls_shows_an_alias_that_leads_astray(run: Run, home: Store) -> None:
    lived_in(home.root)
    INDEXES["an alias with another digest"](home.root)
    result = run("ls", "--json")
    assert result.code == 65
    damages = [each.get("damage") for each in json.loads(result.stdout)]
    assert [each is None for each in damages] == [True, True, False]
    assert "upt-zoo tag tiny:1.0.1 stable" in damages[2]


def test_blobs_without_an_index_are_no_empty_store(run: Run, home: Store) -> None:
    lived_in(home.root)
    (home.root / "index.json").unlink()
    for command in (["ls"], ["show", "tiny"], ["gc"], ["tag", "tiny", "new"]):
        result = run(*command)
        assert result.code == 65, command
        assert "upt-zoo reindex" in result.stderr
    with pytest.raises(Corrupt, match="upt-zoo reindex"):
        publish(home, seed=3)


def test_an_index_is_there_before_the_first_blob(home: Store) -> None:
    with home.writing():
        assert json.loads((home.root / "index.json").read_bytes())["manifests"] == []
    assert home.list() == ()


def test_the_history_of_a_name_without_versions_is_looked_at(run: Run, home: Store) -> None:
    lived_in(home.root)
    run("rm", "other:1.0.0")
    path = home.root / "index.json"
    values = json.loads(path.read_bytes())
    values["annotations"][NOTE + "history.other"] = "?"
    path.write_text(json.dumps(values))
    assert run("doctor").code == 65
    run("reindex")
    assert run("doctor").code == 0
    assert home.versions("other") == ("1.0.0",)  # that it was removed stood in the history


def test_an_index_is_json_again_whatever_another_tool_wrote(run: Run, home: Store) -> None:
    lived_in(home.root)
    path = home.root / "index.json"
    foreign = {"mediaType": "a/b", "digest": "sha256:" + "0" * 64, "size": 1, "artifactType": "a/c"}
    values = json.loads(path.read_bytes())
    values["manifests"].append({**foreign, "note": float("nan")})
    path.write_text(json.dumps(values))
    assert run("tag", "tiny", "new").code == 0
    check_json(path.read_bytes())
    assert run("verify").code == 0


def test_an_entry_that_says_nothing_is_slow_and_no_damage(run: Run, home: Store) -> None:
    lived_in(home.root)
    path = home.root / "index.json"
    values = json.loads(path.read_bytes())
    for note in ("method", "metrics", "size"):
        del values["manifests"][0]["annotations"][NOTE + note]
    path.write_text(json.dumps(values))
    assert {each.check: each.level for each in examine(home)}["index"] == "warning"
    assert run("verify").code == 0
    assert run("ls").code == 0


def test_a_card_that_is_no_text_is_not_shown(run: Run, home: Store) -> None:
    CONTENTS["a card that is no UTF-8"](home.root)
    result = run("show", "tiny")
    assert result.code == 65
    assert "not UTF-8" in result.stderr


def test_an_entry_of_another_tool_whose_manifest_is_gone_is_left_alone(
    run: Run, home: Store
) -> None:
    stored = publish(home)
    path = home.root / "index.json"
    values = json.loads(path.read_bytes())
    del values["manifests"][0]["artifactType"]
    path.write_text(json.dumps(values))
    assert [each.digest for each in home.list()] == [stored.digest]
    home.blob_path(stored.digest).write_bytes(b"{}")
    again = Store(home.root)
    assert again.list() == ()
    assert len(again.read_index()[0].manifests) == 1


# Before anything is written


def test_a_text_that_utf_8_cannot_hold_is_not_published(home: Store) -> None:
    spec = tiny_spec(lora=LORA)
    recipe = spec.lineage.model_copy(update={"recipe": {"note": "\ud800"}})
    with pytest.raises(InvalidSpec, match="cannot be written"):
        home.publish(spec.model_copy(update={"lineage": recipe}), random_tensors(spec, 0), "# Tiny")
    with pytest.raises(InvalidInput, match="card"):
        home.publish(spec, random_tensors(spec, 0), "\ud800")
    assert not home.root.exists()


@pytest.mark.parametrize("counts", [{"served_parameters": 0}, {"head_parameters": 10**9}])
def test_parameters_are_counted_before_they_are_published(
    home: Store, counts: dict[str, int]
) -> None:
    lineage = SPEC.lineage.model_copy(update=counts)
    spec = SPEC.model_copy(update={"lineage": lineage})
    with pytest.raises(InvalidSpec, match="expected served_parameters"):
        home.publish(spec, random_tensors(spec, 0), "# Tiny")
    assert not home.root.exists()


def test_other_forms_of_the_same_document_are_read() -> None:
    values = json.loads(SPEC.to_json())
    loose = json.dumps(values, indent=2).replace("4.0", "40e-1").encode() + b"\n"
    manifest = Manifest.of("tiny", "1.0.0", spec=loose, tensors=TENSORS, card=CARD)
    written = json.loads(manifest.to_json())
    del written["artifactType"], written["mediaType"]
    again = Manifest.from_json(json.dumps(written | {"unknown": 1}, indent=1).encode())
    assert check_blobs(again, (loose, TENSORS, CARD)) == SPEC


# JSON


@pytest.mark.parametrize(
    "data",
    [
        b"NaN",
        b"[-Infinity]",
        b"1e400",
        b'{"a":1,"a":1}',
        b'[{"b":{"a":1,"a":2}}]',
        b'"\\ud800"',
        b'{"\\udfff":1}',
        b"\xef\xbb\xbf{}",
        b'"\xff"',
        b"[" * 100_000,
        b"{}{}",
        b"",
    ],
)
def test_what_readers_would_read_differently_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        check_json(data)


def test_what_all_readers_read_alike_is_let_through() -> None:
    check_json(b' {"a": [1, 1.5e3, true, null, "\\ud83d\\ude00", "\xc3\xa4"]}\n')


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\ud800", {"\ud800": 1}])
def test_what_is_no_json_is_not_written(value: object) -> None:
    with pytest.raises(ValueError, match=r"."):
        format_json(value)
