import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from upt_testing.stores import (
    age,
    blob_names,
    check_whole,
    draft,
    needs,
    publish,
    resolve,
)
from upt_zoo.errors import Conflict, Corrupt, InvalidInput, InvalidReference
from upt_zoo.local import tags
from upt_zoo.local.checkup import examine
from upt_zoo.local.leases import read_leases
from upt_zoo.local.listing import Summary
from upt_zoo.local.recovery import rebuild
from upt_zoo.local.store import Store
from upt_zoo.local.upkeep import collect
from upt_zoo.manifest import digest_of
from upt_zoo.references import Reference

HELD = """
import sys
from pathlib import Path
from upt_zoo.references import Reference
from upt_zoo.local.store import Store

store = Store(Path(sys.argv[1]))
with store.lease(store.resolve(Reference.parse(sys.argv[2]))):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "zoo")


def move(store: Store, text: str, alias: str) -> None:
    tags.move_alias(store, Reference.parse(text), alias)


def remove(store: Store, text: str) -> None:
    tags.remove(store, Reference.parse(text), reason="a test")


def index_of(store: Store) -> dict[str, object]:
    values = json.loads((store.root / "index.json").read_bytes())
    assert isinstance(values, dict)
    return values


# Collecting


def test_what_the_index_leads_to_is_kept_and_the_rest_goes(store: Store) -> None:
    kept, removed = publish(store, seed=1), publish(store, seed=2)
    stray = store.blob_path(digest_of(b"stray"))
    stray.write_bytes(b"stray")
    remove(store, removed.reference)
    age(store)
    garbage = collect(store)
    assert {path.name for path in garbage.paths} == (needs(removed) - needs(kept)) | {stray.name}
    assert blob_names(store) == needs(kept)
    assert garbage.size_bytes > 0
    check_whole(store.root)


def test_a_dry_run_deletes_nothing(store: Store) -> None:
    stored = publish(store)
    remove(store, stored.reference)
    age(store)
    assert {path.name for path in collect(store, dry_run=True).paths} == needs(stored)
    assert blob_names(store) == needs(stored)


def test_what_was_removed_a_moment_ago_can_still_be_loaded(store: Store) -> None:
    stored = publish(store)
    age(store)
    remove(store, stored.reference)
    garbage = collect(store)
    assert (garbage.paths, garbage.young) == ((), 4)
    store.load(stored)
    assert len(collect(store, grace_s=0).paths) == 4


def test_an_alias_pins_its_version(store: Store) -> None:
    stored = publish(store)
    move(store, "tiny", "stable")
    path = store.root / "index.json"
    index = json.loads(path.read_bytes())
    path.write_text(json.dumps(index | {"manifests": index["manifests"][1:]}))
    collect(store, grace_s=0)
    assert blob_names(store) == needs(stored)


def test_what_a_living_process_has_leased_is_kept_until_it_ends(store: Store) -> None:
    stored = publish(store)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    reader = subprocess.Popen(
        [sys.executable, "-c", HELD, str(store.root), stored.reference],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert reader.stdout is not None
    assert reader.stdout.readline() == b"held\n"
    remove(store, stored.reference)
    garbage = collect(store, grace_s=0)
    assert (garbage.paths, garbage.leased) == ((), 4)
    store.load(stored)
    reader.send_signal(signal.SIGKILL)
    reader.communicate(timeout=60)
    assert len(collect(store, grace_s=0).paths) == 4
    assert not list((store.root / "leases").iterdir())


def test_a_lease_ends_with_its_block(store: Store) -> None:
    stored = publish(store)
    with store.lease(stored):
        assert {digest.removeprefix("sha256:") for digest in read_leases(store.root)} == needs(
            stored
        )
    assert read_leases(store.root) == frozenset()


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_a_store_that_cannot_be_written_is_read_without_a_lease(
    store: Store, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(path: Path, *, exist_ok: bool) -> None:
        raise OSError(code, "refused", path)

    stored = publish(store)
    monkeypatch.setattr(Path, "mkdir", refuse)
    with store.lease(stored):
        assert read_leases(store.root) == frozenset()
        store.load(stored)


def test_a_lease_that_was_never_finished_goes_after_an_hour(store: Store) -> None:
    publish(store)
    (store.root / "leases").mkdir()
    young, old = (store.root / "leases" / name for name in (".a.tmp", ".b.tmp"))
    young.touch()
    old.touch()
    os.utime(old, (0, 0))
    assert read_leases(store.root) == frozenset()
    assert young.exists()
    assert not old.exists()


def test_blobs_of_other_tools_entries_are_kept(store: Store) -> None:
    publish(store)
    layer = b"layer"
    manifest = json.dumps({"config": {}, "layers": [{"digest": digest_of(layer)}]}).encode()
    nested = json.dumps({"manifests": [{"digest": digest_of(manifest)}]}).encode()
    for data in (layer, manifest, nested):
        store.blob_path(digest_of(data)).write_bytes(data)
    index = json.loads((store.root / "index.json").read_bytes())
    media_type = "application/vnd.oci.image.index.v1+json"
    for digest in (digest_of(nested), digest_of(b"left out of a sparse layout")):
        index["manifests"].append({"mediaType": media_type, "digest": digest, "size": 1})
    (store.root / "index.json").write_text(json.dumps(index))
    before = blob_names(store)
    collect(store, grace_s=0)
    assert blob_names(store) == before


def test_nothing_is_deleted_where_it_cannot_be_told_what_is_needed(store: Store) -> None:
    damaged = publish(store, seed=1)
    publish(store, seed=2)
    store.blob_path(damaged.digest).write_bytes(b"{}")
    before = blob_names(store)
    with pytest.raises(Corrupt, match="nothing was deleted"):
        collect(store, grace_s=0)
    (store.root / "index.json").unlink()
    with pytest.raises(Corrupt, match="upt-zoo reindex"):
        collect(store, grace_s=0)
    assert blob_names(store) == before


def test_files_that_are_no_blobs_are_left_alone(store: Store) -> None:
    publish(store)
    note = store.blob_path("sha256:note.txt")
    note.write_text("mine")
    os.utime(note, (0, 0))
    collect(store, grace_s=0)
    assert note.exists()


def test_a_collection_removes_leftovers_that_nobody_announced(store: Store) -> None:
    publish(store)
    leftover = store.root / ".index.json.tmp"
    leftover.touch()
    collect(store)
    assert not leftover.exists()


def test_an_empty_store_has_no_garbage(store: Store) -> None:
    assert collect(store).paths == ()


def test_a_read_only_store_is_not_collected(store: Store) -> None:
    publish(store)
    with pytest.raises(InvalidInput, match="read-only"):
        collect(Store(store.root, is_read_only=True))


# Rebuilding the index


def test_a_rebuilt_index_says_the_same(store: Store) -> None:
    for seed in range(3):
        publish(store, seed=seed)
    publish(store, name="other")
    move(store, "tiny:1.0.1", "stable")
    tags.yank(store, Reference.parse("tiny:1.0.2"))
    listing, events = store.listing(), tags.history(store, "tiny")
    rebuilt = rebuild(store)
    assert (rebuilt.listed, rebuilt.added, rebuilt.dropped) == (4, (), ())
    assert store.listing() == listing
    assert tags.history(store, "tiny") == events
    before = (store.root / "index.json").read_bytes()
    rebuild(store)
    assert (store.root / "index.json").read_bytes() == before


@pytest.mark.parametrize(
    "damage",
    [
        Path.unlink,
        lambda path: path.write_bytes(b"{"),
        lambda path: path.write_bytes(b"[" * 100_000),
        lambda path: path.write_bytes(b'{"manifests":{}}'),
        lambda path: path.write_bytes(b'{"manifests":[1,{}],"annotations":[]}'),
    ],
    ids=["missing", "cut", "deep", "other", "entries"],
)
def test_a_lost_index_is_rebuilt_from_the_blobs_alone(
    store: Store, damage: Callable[[Path], object]
) -> None:
    stored = [publish(store, seed=1), publish(store, seed=2), publish(store, name="other")]
    damage(store.root / "index.json")
    rebuilt = rebuild(store)
    assert rebuilt.listed == 3
    assert {reference.digest for reference in store.list()} == {each.digest for each in stored}
    assert all(listed.created for listed in store.listing().all())
    check_whole(store.root)


def test_what_is_not_whole_is_not_listed(store: Store) -> None:
    whole, cut, missing, spec = (publish(store, seed=seed) for seed in range(4))
    store.blob_path(cut.manifest.tensors.digest).write_bytes(b"x")
    store.blob_path(missing.manifest.tensors.digest).unlink()
    store.blob_path(spec.digest).write_bytes(b"{}")
    rebuilt = rebuild(store)
    assert [reference.digest for reference in store.list()] == [whole.digest]
    assert rebuilt.dropped == ("tiny:1.0.1", "tiny:1.0.2", "tiny:1.0.3")


def test_what_was_removed_stays_removed(store: Store) -> None:
    publish(store, seed=1)
    removed = publish(store, seed=2)
    remove(store, removed.reference)
    assert rebuild(store).listed == 1
    publish(store, seed=3, version="1.0.1")
    rebuild(store)
    assert resolve(store, "tiny:1.0.1").digest != removed.digest


def test_an_entry_without_a_summary_gets_one_and_a_lie_is_corrected(store: Store) -> None:
    first, second = publish(store, seed=1), publish(store, seed=2)
    path = store.root / "index.json"
    index = json.loads(path.read_bytes())
    for key in ("vnd.upt.adapter.method", "vnd.upt.adapter.size", "vnd.upt.adapter.metrics"):
        del index["manifests"][0]["annotations"][key]
    index["manifests"][1]["annotations"]["vnd.upt.adapter.method"] = "magic"
    path.write_text(json.dumps(index))
    store.verify_listing(first)
    assert store.summarise(store.listing().versions["tiny"]["1.0.0"]).method == "lora"
    with pytest.raises(Corrupt, match="upt-zoo reindex"):
        store.verify_listing(second)
    rebuild(store)
    for listed in store.listing().all():
        assert listed.summary == Summary.of(first.spec, first.size_bytes)


def test_entries_that_another_tool_wrote_for_our_manifests_become_ours(store: Store) -> None:
    stored = publish(store)
    path = store.root / "index.json"
    entry = json.loads(path.read_bytes())["manifests"][0]
    bare = {key: entry[key] for key in ("mediaType", "digest", "size")}
    name = "org.opencontainers.image.ref.name"
    entries = [
        bare | {"annotations": {name: tag}} for tag in ("tiny-1.0.0", "tiny--stable", "latest")
    ]
    path.write_text(json.dumps({"schemaVersion": 2, "manifests": entries}))
    assert resolve(store, "tiny:stable") == resolve(store, "tiny") == stored
    assert rebuild(store).aliases == ("tiny:stable",)
    assert resolve(store, "tiny:stable") == stored
    assert len(json.loads(path.read_bytes())["manifests"]) == 2


def test_a_pull_and_a_publish_say_the_same_of_a_version(store: Store, tmp_path: Path) -> None:
    stored = publish(store)
    home = Store(tmp_path / "home")
    home.copy_from(store, Reference.parse(stored.reference))
    assert index_of(home) == index_of(store)


# Many at once


def test_a_batch_publishes_what_single_calls_publish(store: Store, tmp_path: Path) -> None:
    one_by_one = Store(tmp_path / "single")
    drafts = [draft(name=name, seed=seed) for name in ("a", "b") for seed in range(3)]
    added = store.publish_all(drafts)
    expected = [one_by_one.publish(each.spec, each.tensors, each.card) for each in drafts]
    assert list(added) == expected
    assert blob_names(store) == blob_names(one_by_one)
    assert store.list() == one_by_one.list()
    check_whole(store.root)


def test_a_batch_becomes_visible_as_a_whole_or_not_at_all(store: Store) -> None:
    publish(store, seed=1, version="1.0.0")
    drafts = [draft(seed=2, version="1.1.0"), draft(seed=3, version="1.0.0")]
    with pytest.raises(Conflict):
        store.publish_all(drafts)
    assert store.versions("tiny") == ("1.0.0",)
    with pytest.raises(InvalidReference):
        store.publish_all([draft(name="b"), draft(version="stable")])
    assert store.versions("b") == ()


def test_publishing_a_batch_again_changes_nothing(store: Store) -> None:
    drafts = [draft(seed=1, version="1.0.0"), draft(seed=2, version="1.0.1")]
    first = store.publish_all(drafts)
    before = (store.root / "index.json").stat()
    assert store.publish_all(drafts) == first
    assert (store.root / "index.json").stat() == before
    assert store.publish_all([]) == ()


def test_a_batch_larger_than_what_is_in_memory_at_once_is_whole(store: Store) -> None:
    store.publish_all(draft(name=f"t{n % 40}", seed=n) for n in range(160))
    assert len(store.list()) == 160
    check_whole(store.root)


def test_a_disk_that_fails_under_a_batch_leaves_nothing_visible(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(store)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", _fail)
        with pytest.raises(OSError, match="disk full"):
            store.publish_all([draft(seed=seed) for seed in range(3)])
    assert len(store.list()) == 1
    assert not list(store.leftovers())


def _fail(descriptor: int) -> None:
    raise OSError("disk full")


# The doctor


def levels(store: Store) -> dict[str, str]:
    return {finding.check: finding.level for finding in examine(store)}


def test_a_healthy_store_has_nothing_to_do(store: Store) -> None:
    assert set(levels(store).values()) == {"ok"}
    publish(store)
    found = levels(store)
    assert found.pop("backbones") == "warning"  # the tests' backbone exists nowhere
    assert set(found.values()) == {"ok"}


def test_the_doctor_finds_damage_and_writes_nothing(store: Store) -> None:
    stored = publish(store)
    store.blob_path(stored.digest).unlink()
    (store.root / ".x.tmp").touch()
    before = sorted(store.root.rglob("*"))
    found = levels(store)
    assert (found["manifests"], found["leftovers"], found["garbage"]) == (
        "damage",
        "warning",
        "damage",
    )
    (store.root / "index.json").write_bytes(b"{")
    assert levels(store)["index"] == "damage"
    assert sorted(store.root.rglob("*")) == before


def test_the_doctor_names_what_can_be_collected_and_rebuilt(store: Store) -> None:
    publish(store, seed=1)
    publish(store, seed=2)
    remove(store, "tiny:1.0.1")
    path = store.root / "index.json"
    path.write_bytes(path.read_bytes().replace(b"vnd.upt.adapter.method", b"org.example.method"))
    remedies = {finding.check: finding.remedy for finding in examine(store)}
    assert "upt-zoo gc" in remedies["garbage"]
    assert "upt-zoo reindex" in remedies["index"]


def test_the_doctor_sees_little_room_and_closed_doors(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(store)
    monkeypatch.setattr("upt_zoo.local.checkup._LOW_DISK_BYTES", 2**62)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    found = levels(store)
    assert (found["disk"], found["directory"]) == ("warning", "warning")
