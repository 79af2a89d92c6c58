import fcntl
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from upt_testing.adapters import (
    BOTTLENECK,
    LORA,
    MULTI_LABEL,
    PREFIX,
    PROMPT,
    REGRESSION,
    SPAN,
    random_tensors,
    tiny_spec,
)
from upt_zoo.catalogue import embedded_catalogue, home_store, remote_store
from upt_zoo.errors import (
    AdapterNotFound,
    Conflict,
    Corrupt,
    InvalidInput,
    InvalidReference,
    InvalidSpec,
    Unavailable,
)
from upt_zoo.layout import tensor_shapes
from upt_zoo.local.store import Store, StoredAdapter
from upt_zoo.manifest import Index, Manifest, digest_of
from upt_zoo.references import Reference
from upt_zoo.spec import AdapterSpec
from upt_zoo.tensors import write_tensors

CARD = "# Tiny\n\nAn adapter for tests: ä.\n"
UNIPELT_PROMPT = tiny_spec(lora=LORA, prefix=PREFIX, bottleneck=BOTTLENECK, prompt=PROMPT)
GOLDEN_DIGEST = "sha256:3098bd065f0fa58d8766ba3a598e35266203662aa8a180fddab768d2e49aee3d"
BLOB_KINDS: dict[str, Callable[[StoredAdapter], str]] = {
    "manifest": lambda stored: stored.digest,
    "spec": lambda stored: stored.manifest.config.digest,
    "tensors": lambda stored: stored.manifest.tensors.digest,
    "card": lambda stored: stored.manifest.card.digest,
}
DAMAGES: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "flipped": lambda path: path.write_bytes(path.read_bytes()[:-1] + b"?"),
    "oversized": lambda path: os.truncate(path, 2**40),
}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "zoo")


def publish(
    store: Store, *, name: str = "tiny", seed: int = 0, version: str | None = None
) -> StoredAdapter:
    spec = tiny_spec(name=name, lora=LORA)
    return store.publish(spec, random_tensors(spec, seed), CARD, version=version)


def resolve(store: Store, text: str) -> StoredAdapter:
    return store.resolve(Reference.parse(text))


def blob_path(store: Store, digest: str) -> Path:
    return store.root / "blobs" / "sha256" / digest.removeprefix("sha256:")


def files(store: Store) -> dict[str, bytes]:
    paths = (path for path in store.root.rglob("*") if path.is_file())
    return {str(path.relative_to(store.root)): path.read_bytes() for path in paths}


def craft(store: Store, spec: bytes, tensors: bytes, card: bytes) -> Reference:
    """Write an adapter whose digests are right, whatever its blobs hold."""
    manifest = Manifest.of("tiny", "1.0.0", spec=spec, tensors=tensors, card=card).to_json()
    (store.root / "blobs" / "sha256").mkdir(parents=True)
    for blob in (spec, tensors, card, manifest):
        blob_path(store, digest_of(blob)).write_bytes(blob)
    (store.root / "index.json").write_bytes(Index().with_manifest(manifest).to_json())
    return Reference(name="tiny")


# Round trip


@pytest.mark.parametrize(
    "spec",
    [
        tiny_spec(),
        tiny_spec(lora=LORA, head=MULTI_LABEL),
        tiny_spec(prefix=PREFIX, head=REGRESSION),
        tiny_spec(bottleneck=BOTTLENECK, prompt=PROMPT, head=SPAN),
        UNIPELT_PROMPT,
    ],
    ids=lambda spec: spec.method,
)
def test_what_is_published_is_loaded(store: Store, spec: AdapterSpec) -> None:
    tensors = random_tensors(spec, 3)
    stored = store.publish(spec, tensors, CARD)
    loaded_spec, loaded = store.load(resolve(store, "tiny"))
    assert loaded_spec == spec
    assert loaded.keys() == tensors.keys()
    assert all(np.array_equal(loaded[name], tensor) for name, tensor in tensors.items())
    assert store.card(stored) == CARD
    store.verify(stored)


def test_half_precision_is_kept(store: Store) -> None:
    spec = tiny_spec()
    halves = {name: t.astype(np.float16) for name, t in random_tensors(spec, 0).items()}
    _, loaded = store.load(store.publish(spec, halves, CARD))
    assert {tensor.dtype.name for tensor in loaded.values()} == {"float16"}


def test_the_digest_of_an_adapter_is_pinned(store: Store) -> None:
    tensors = {
        name: np.arange(math.prod(shape), dtype=np.float32).reshape(shape) * np.float32(0.125)
        for name, shape in tensor_shapes(UNIPELT_PROMPT).items()
    }
    assert store.publish(UNIPELT_PROMPT, tensors, CARD).digest == GOLDEN_DIGEST


def test_a_digest_does_not_depend_on_the_store(store: Store, tmp_path: Path) -> None:
    publish(store, seed=9, name="other")
    assert publish(store).digest == publish(Store(tmp_path / "elsewhere")).digest


def test_the_layout_is_that_of_the_standard(store: Store) -> None:
    stored = publish(store)
    assert json.loads((store.root / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads((store.root / "index.json").read_bytes())
    assert [entry["digest"] for entry in index["manifests"]] == [stored.digest]
    for path in (store.root / "blobs" / "sha256").iterdir():
        assert digest_of(path.read_bytes()) == f"sha256:{path.name}"


# Versions


def test_versions_count_patches_up_from_the_newest(store: Store) -> None:
    assert publish(store, seed=1).version == "1.0.0"
    assert publish(store, seed=2).version == "1.0.1"
    assert publish(store, seed=3, version="2.9.9").reference == "tiny:2.9.9"
    assert publish(store, seed=4, version="1.5.0").version == "1.5.0"
    assert publish(store, seed=5).version == "2.9.10"
    assert store.versions("tiny") == ("1.0.0", "1.0.1", "1.5.0", "2.9.9", "2.9.10")
    assert store.versions("unknown") == ()


def test_no_tag_means_the_newest_version_not_the_last_published(store: Store) -> None:
    newest = publish(store, version="1.10.0", seed=1)
    publish(store, version="1.9.0", seed=2)
    assert resolve(store, "tiny") == newest


def test_the_list_is_sorted_by_name_and_version(store: Store) -> None:
    for name, version in [("b", "1.0.0"), ("a", "1.10.0"), ("a", "1.9.0")]:
        publish(store, name=name, version=version)
    listed = store.list()
    assert [f"{r.name}:{r.tag}" for r in listed] == ["a:1.9.0", "a:1.10.0", "b:1.0.0"]
    assert all(store.resolve(reference).digest == reference.digest for reference in listed)


def test_publishing_the_same_bytes_again_changes_nothing(store: Store) -> None:
    first = publish(store, version="1.0.0")
    before = files(store)
    assert publish(store, version="1.0.0") == first
    assert files(store) == before


def test_a_version_never_changes(store: Store) -> None:
    publish(store, version="1.0.0", seed=1)
    before = files(store)
    with pytest.raises(Conflict, match=r"tiny:1\.0\.0 exists"):
        publish(store, version="1.0.0", seed=2)
    assert files(store) == before


def test_a_reader_sees_what_another_one_published_since(store: Store) -> None:
    reader = Store(store.root)
    assert reader.list() == ()
    publish(store)
    assert len(reader.list()) == 1


@pytest.mark.parametrize("version", ["stable", "1.0", "../1.0.0", "1.0.0-rc1"])
def test_only_versions_are_published(store: Store, version: str) -> None:
    with pytest.raises(InvalidReference, match=r"MAJOR\.MINOR\.PATCH"):
        publish(store, version=version)
    assert not store.root.exists()


@pytest.mark.parametrize("method", ["full", "bitfit", "ia3_prefix_bottleneck", "stacked_unipelt"])
def test_what_was_trained_for_comparison_is_not_published(store: Store, method: str) -> None:
    spec = tiny_spec().model_copy(update={"method": method})
    with pytest.raises(InvalidSpec, match="comparison only"):
        store.publish(spec, random_tensors(spec, 0), CARD)
    assert not store.root.exists()


def test_tensors_that_do_not_fit_the_spec_are_not_published(store: Store) -> None:
    spec = tiny_spec(lora=LORA)
    with pytest.raises(Corrupt, match="missing"):
        store.publish(spec, random_tensors(tiny_spec(), 0), CARD)
    wrong = random_tensors(spec, 0) | {"lora.q.a": np.zeros((1, 2, 3), dtype=np.float32)}
    with pytest.raises(Corrupt, match="expected shape"):
        store.publish(spec, wrong, CARD)
    assert not store.root.exists()


# Finding


def test_a_digest_finds_its_version(store: Store) -> None:
    first, second = publish(store, seed=1), publish(store, seed=2)
    assert resolve(store, f"tiny@{first.digest}") == first
    assert resolve(store, f"tiny:1.0.1@{second.digest}") == second


def test_a_version_with_another_digest_than_asked_for_is_corrupt(store: Store) -> None:
    first, second = publish(store, seed=1), publish(store, seed=2)
    with pytest.raises(Corrupt, match=second.digest):
        resolve(store, f"tiny:1.0.1@{first.digest}")


def test_an_unknown_name_suggests_close_ones_and_what_to_do(store: Store) -> None:
    publish(store, name="sentiment")
    with pytest.raises(AdapterNotFound, match="did you mean sentiment") as caught:
        resolve(store, "sentimant")
    assert "upt-zoo pull" in str(caught.value)
    assert "upt-zoo ls" in str(caught.value)


@pytest.mark.parametrize("text", ["tiny:2.0.0", "tiny:stable", f"tiny@sha256:{'0' * 64}"])
def test_an_unknown_version_names_those_that_exist(store: Store, text: str) -> None:
    publish(store)
    with pytest.raises(AdapterNotFound, match=r"it has 1\.0\.0"):
        resolve(store, text)


def test_a_directory_that_does_not_exist_is_an_empty_store(store: Store) -> None:
    assert store.list() == ()
    with pytest.raises(AdapterNotFound):
        resolve(store, "tiny")
    assert not store.root.exists()


# Damage and hostile bytes


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", BLOB_KINDS)
def test_a_damaged_blob_is_found_and_mended_by_pulling_again(
    store: Store, tmp_path: Path, kind: str, damage: str
) -> None:
    stored = publish(store)
    home = Store(tmp_path / "home")
    home.copy_from(store, Reference(name="tiny"))
    DAMAGES[damage](blob_path(home, BLOB_KINDS[kind](stored)))
    with pytest.raises(Corrupt, match="pull or publish"):
        home.verify(stored)
    assert home.copy_from(store, Reference(name="tiny")) == stored
    home.verify(stored)


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_a_blob_or_index_that_is_no_regular_file_neither_hangs_nor_fills_the_memory(
    store: Store, make: Callable[[Path], None]
) -> None:
    stored = publish(store)
    for path in (blob_path(store, stored.manifest.tensors.digest), store.root / "index.json"):
        path.unlink()
        make(path)
        with pytest.raises(Corrupt, match="regular file"):
            store.verify(store.resolve(Reference(name=stored.name)))


def test_a_damaged_index_is_corrupt_and_is_not_overwritten(store: Store) -> None:
    publish(store)
    (store.root / "index.json").write_bytes(b"{")
    with pytest.raises(Corrupt, match=r"index\.json"):
        publish(store, seed=2)
    assert (store.root / "index.json").read_bytes() == b"{"


def test_an_index_that_names_another_adapters_manifest_is_corrupt(store: Store) -> None:
    publish(store)
    path = store.root / "index.json"
    path.write_bytes(path.read_bytes().replace(b'"tiny"', b'"sst2"'))
    with pytest.raises(Corrupt, match=r"sst2:1\.0\.0, its manifest tiny:1\.0\.0"):
        resolve(store, "sst2")


@pytest.mark.parametrize(
    ("spec", "tensors", "card"),
    [
        (b"{}", write_tensors(random_tensors(tiny_spec(), 0)), b"# Tiny"),
        (tiny_spec().to_json(), b"not safetensors", b"# Tiny"),
        (tiny_spec().to_json(), write_tensors(random_tensors(UNIPELT_PROMPT, 0)), b"# Tiny"),
        (tiny_spec().to_json(), write_tensors(random_tensors(tiny_spec(), 0)), b"\xff"),
    ],
    ids=["spec", "tensors", "shapes", "card"],
)
def test_a_foreign_adapter_with_right_digests_and_wrong_content_is_not_pulled(
    store: Store, tmp_path: Path, spec: bytes, tensors: bytes, card: bytes
) -> None:
    reference = craft(store, spec, tensors, card)
    home = Store(tmp_path / "home")
    with pytest.raises(Corrupt):
        home.copy_from(store, reference)
    assert not home.root.exists()


# Pulling


def test_a_pulled_adapter_is_the_same_to_the_last_byte(store: Store, tmp_path: Path) -> None:
    stored = publish(store)
    home = Store(tmp_path / "home")
    assert home.copy_from(store, Reference(name="tiny")) == stored
    assert files(home) == files(store)


def test_pulling_twice_changes_nothing(store: Store, tmp_path: Path) -> None:
    publish(store)
    home = Store(tmp_path / "home")
    home.copy_from(store, Reference(name="tiny"))
    before = files(home)
    home.copy_from(store, Reference(name="tiny"))
    assert files(home) == before


def test_pulling_does_not_replace_a_version_by_other_bytes(store: Store, tmp_path: Path) -> None:
    publish(store, seed=1)
    home = Store(tmp_path / "home")
    mine = publish(home, seed=2)
    with pytest.raises(Conflict):
        home.copy_from(store, Reference(name="tiny"))
    assert resolve(home, "tiny") == mine


def test_entries_of_other_tools_survive_publishing(store: Store) -> None:
    publish(store)
    path = store.root / "index.json"
    index = json.loads(path.read_bytes())
    foreign = index["manifests"][0] | {"artifactType": "application/vnd.other", "note": 1}
    path.write_text(json.dumps(index | {"manifests": [foreign, *index["manifests"]]}))
    publish(store, seed=2)
    assert json.loads(path.read_bytes())["manifests"][0] == foreign
    assert store.versions("tiny") == ("1.0.0", "1.0.1")


# Writers that die, and several writers


def test_new_directories_are_durable_before_the_store_says_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, fsync, synced = Store(tmp_path / "a" / "zoo"), os.fsync, []

    def recording(descriptor: int) -> None:
        fsync(descriptor)
        is_layout = (store.root / "oci-layout").exists()
        synced.append((os.fstat(descriptor).st_ino, is_layout))

    monkeypatch.setattr(os, "fsync", recording)
    publish(store)
    new = (store.root / "blobs" / "sha256").relative_to(tmp_path)
    for parent in new.parents:
        assert ((tmp_path / parent).stat().st_ino, False) in synced, parent


class DiskFull(OSError):
    pass


def test_a_write_that_fails_anywhere_leaves_nothing_half_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, failures = os.fsync, 0
    for point in range(1, 100):
        store, calls = Store(tmp_path / str(point)), 0
        publish(store, name="before", seed=1)

        def failing(descriptor: int, point: int = point) -> None:
            nonlocal calls
            calls += 1
            if calls == point:
                raise DiskFull
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", failing)
        try:
            publish(store)
        except DiskFull:
            failures += 1
        else:
            break
        finally:
            monkeypatch.undo()
        for reference in store.list():
            store.verify(store.resolve(reference))
        assert [r.name for r in store.list()][:1] == ["before"]
        publish(store, version="1.0.0")
        assert not list(store.root.rglob(".*.tmp"))
    assert failures == 8  # manifest, spec, tensors and index, each with its directory


PUBLISH = """
import os, signal, sys
from pathlib import Path
from upt_testing.adapters import LORA, random_tensors, tiny_spec
from upt_zoo.local.store import Store

root, first_seed, count, dies_at = sys.argv[1], *map(int, sys.argv[2:])
fsync, calls = os.fsync, 0

def counting(descriptor):
    global calls
    calls += 1
    if calls == dies_at:
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(descriptor)

os.fsync = counting
spec = tiny_spec(lora=LORA)
for seed in range(first_seed, first_seed + count):
    Store(Path(root)).publish(spec, random_tensors(spec, seed), "# Tiny")
"""


def start_publishing(
    root: Path, *, first_seed: int = 0, count: int = 1, dies_at: int = 0
) -> "subprocess.Popen[bytes]":
    arguments = [str(root), str(first_seed), str(count), str(dies_at)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen([sys.executable, "-c", PUBLISH, *arguments], env=environment)


@pytest.mark.parametrize("dies_at", [4, 8, 12, 14])  # oci-layout, tensors, manifest, index
def test_a_killed_publisher_leaves_nothing_half_visible(store: Store, dies_at: int) -> None:
    publisher = start_publishing(store.root, dies_at=dies_at)
    assert publisher.wait(timeout=60) == -signal.SIGKILL
    assert list(store.root.rglob(".*.tmp"))
    assert store.list() == ()
    store.verify(publish(store))
    assert not list(store.root.rglob(".*.tmp"))


def test_publishers_in_several_processes_lose_nothing(store: Store) -> None:
    publishers = [start_publishing(store.root, first_seed=s, count=5) for s in (0, 100)]
    assert [publisher.wait(timeout=60) for publisher in publishers] == [0, 0]
    assert store.versions("tiny") == tuple(f"1.0.{patch}" for patch in range(10))
    for reference in store.list():
        store.verify(store.resolve(reference))


def test_of_two_publishers_of_one_version_exactly_one_wins(store: Store) -> None:
    with ThreadPoolExecutor(2) as threads:
        futures = [threads.submit(publish, store, seed=s, version="1.0.0") for s in (1, 2)]
        errors = [future.exception() for future in futures]
    assert sorted(type(error).__name__ for error in errors) == ["Conflict", "NoneType"]


def test_a_writer_that_never_ends_makes_the_next_one_give_up(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(store)
    monkeypatch.setattr("upt_zoo.local.store._LOCK_TIMEOUT_S", 0.0)
    with (store.root / ".lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(Unavailable, match="another process"):
            publish(store, seed=2)
    assert publish(store, seed=2).version == "1.0.1"


# Which stores there are


def test_a_read_only_store_refuses_to_be_written(store: Store) -> None:
    publish(store)
    with pytest.raises(InvalidInput, match="read-only"):
        publish(remote_store(store.root.as_uri()), seed=2)
    assert store.versions("tiny") == ("1.0.0",)


def test_the_embedded_catalogue_is_whole() -> None:
    catalogue = embedded_catalogue()
    for reference in catalogue.list():
        catalogue.verify(catalogue.resolve(reference))


def test_the_home_store_is_the_given_directory_else_the_users(tmp_path: Path) -> None:
    assert home_store(tmp_path).root == tmp_path
    assert home_store(None).root.name == "upt"


def test_a_directory_with_a_space_is_a_remote(tmp_path: Path) -> None:
    stored = publish(Store(tmp_path / "a zoo"))
    reference = Reference.parse((tmp_path / "a zoo").as_uri() + "/tiny")
    assert reference.remote is not None
    assert remote_store(reference.remote).resolve(reference) == stored


@pytest.mark.parametrize("remote", ["oci://host/zoo", "elsewhere", "file://host/zoo"])
def test_an_unsupported_remote_says_which_ones_there_are(remote: str) -> None:
    with pytest.raises(InvalidReference, match="expected embedded or file:///directory"):
        remote_store(remote)
