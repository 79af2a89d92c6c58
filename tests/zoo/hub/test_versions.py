"""Versions on a Hub: there and back, unchanged, and from those who are trusted."""

from pathlib import Path

import pytest

from upt_testing.hub_client import pull, push
from upt_testing.hubs import Hub
from upt_testing.keys import Keys
from upt_testing.stores import publish, resolve
from upt_zoo.errors import (
    AdapterNotFound,
    Conflict,
    Corrupt,
    InvalidReference,
    Unavailable,
    Untrusted,
)
from upt_zoo.local.store import Store
from upt_zoo.remote.remotes import Remotes

pytestmark = pytest.mark.filterwarnings(
    "ignore:Use 'content:DeprecationWarning"  # huggingface-hub's own, when it uploads by LFS
)


def blobs(store: Store) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (store.root / "blobs" / "sha256").iterdir()}


# There and back


def test_what_is_pushed_is_pulled_to_the_last_byte(
    remotes: Remotes, hub: Hub, store: Store, home: Store, remote: str
) -> None:
    stored = publish(store, version="1.0.0")
    assert push(remotes, store, remote) == stored
    assert pull(remotes, home, f"{remote}/tiny:1.0.0") == stored
    assert blobs(home) == blobs(store)
    home.verify(stored)
    assert any(agent.startswith("upt-zoo/") for agent in hub.user_agents)


def test_a_bare_name_is_the_newest_version(
    remotes: Remotes, store: Store, home: Store, remote: str
) -> None:
    for version in ("1.9.0", "1.10.0", "1.2.0"):
        stored = publish(store, version=version, seed=int(version[2]))
        push(remotes, store, remote, stored.reference)
    assert pull(remotes, home, f"{remote}/tiny").version == "1.10.0"


def test_a_repository_may_have_a_name_of_its_own(
    remotes: Remotes, hub: Hub, store: Store, home: Store, owner: str
) -> None:
    stored = publish(store, version="1.0.0")
    push(remotes, store, f"hf://{owner}/MiniLM-for_tests.v2")
    assert pull(remotes, home, f"hf://{owner}/MiniLM-for_tests.v2/tiny") == stored
    assert "upt/manifest.json" in hub.repository(f"{owner}/MiniLM-for_tests.v2").files("1.0.0")
    with pytest.raises(AdapterNotFound, match="it holds tiny"):
        pull(remotes, home, f"hf://{owner}/MiniLM-for_tests.v2/other")


def test_any_revision_can_be_pulled(
    remotes: Remotes, hub: Hub, store: Store, home: Store, remote: str, owner: str
) -> None:
    first = publish(store, version="1.0.0")
    push(remotes, store, remote)
    repository = hub.repository(f"{owner}/tiny")
    commit = repository.resolve("main")
    second = publish(store, version="1.1.0", seed=1)
    push(remotes, store, remote)
    repository.git("branch", "beta", "main")
    assert pull(remotes, home, f"{remote}/tiny:beta") == second
    assert pull(remotes, home, f"{remote}/tiny:{commit}") == first


def test_a_digest_is_found_and_a_tag_must_have_it(
    remotes: Remotes, store: Store, home: Store, remote: str
) -> None:
    first, second = publish(store, version="1.0.0"), publish(store, version="1.0.1", seed=1)
    for stored in (first, second):
        push(remotes, store, remote, stored.reference)
    assert pull(remotes, home, f"{remote}/tiny@{first.digest}") == first
    with pytest.raises(Corrupt, match="expected that digest"):
        pull(remotes, home, f"{remote}/tiny:1.0.0@{second.digest}")


@pytest.mark.parametrize("text", ["other", "tiny:9.9.9", "tiny:beta", f"tiny@sha256:{'0' * 64}"])
def test_what_the_hub_lacks_is_not_found(
    remotes: Remotes, store: Store, home: Store, remote: str, text: str
) -> None:
    publish(store, version="1.0.0")
    push(remotes, store, remote)
    with pytest.raises(AdapterNotFound):
        pull(remotes, home, f"{remote}/{text}")
    assert not home.root.exists()


@pytest.mark.parametrize("remote", ["hf://a/b/c", "hf://", "hf://-a", "hf://a//", "hf://a.../b"])
def test_what_no_repository_can_be_called_is_refused(
    remotes: Remotes, home: Store, remote: str
) -> None:
    with pytest.raises(InvalidReference):
        pull(remotes, home, f"{remote}/tiny")


# Versions never change


def test_pushing_again_changes_nothing_and_other_bytes_are_refused(
    remotes: Remotes, hub: Hub, store: Store, tmp_path: Path, remote: str, owner: str
) -> None:
    stored = publish(store, version="1.0.0")
    push(remotes, store, remote)
    before = hub.repository(f"{owner}/tiny").git("for-each-ref")
    assert push(remotes, store, remote) == stored
    other = Store(tmp_path / "other")
    publish(other, version="1.0.0", seed=1)
    with pytest.raises(Conflict, match=r"tiny:1\.0\.0 exists"):
        push(remotes, other, remote)
    assert hub.repository(f"{owner}/tiny").git("for-each-ref") == before


def test_a_branch_or_a_tag_that_moves_cannot_change_a_version_in_the_store(
    remotes: Remotes, hub: Hub, store: Store, home: Store, tmp_path: Path, remote: str, owner: str
) -> None:
    first = publish(store, version="1.0.0")
    push(remotes, store, remote)
    pull(remotes, home, f"{remote}/tiny:main")
    publish(store, version="1.1.0", seed=1)
    push(remotes, store, remote)
    assert pull(remotes, home, f"{remote}/tiny:main").version == "1.1.0"
    assert resolve(home, "tiny:1.0.0") == first
    elsewhere = f"hf://{owner}/elsewhere"
    forged = Store(tmp_path / "forged")
    publish(forged, version="1.0.0", seed=2)
    push(remotes, forged, elsewhere)
    repository, other = (hub.repository(f"{owner}/{name}") for name in ("tiny", "elsewhere"))
    repository.git("fetch", "--quiet", str(other.folder), "main")
    oid = resolve(forged, "tiny").manifest.tensors.digest.removeprefix("sha256:")
    repository.lfs_file(oid).parent.mkdir(parents=True, exist_ok=True)
    repository.lfs_file(oid).write_bytes(other.lfs_file(oid).read_bytes())
    repository.git("tag", "--force", "1.0.0", "FETCH_HEAD")
    with pytest.raises(Conflict, match=r"tiny:1\.0\.0 exists"):
        pull(remotes, home, f"{remote}/tiny:1.0.0")
    assert resolve(home, "tiny:1.0.0") == first
    home.verify(first)
    repository.git("tag", "9.9.9", "main")
    with pytest.raises(Corrupt, match=r"its manifest tiny:1\.1\.0"):
        pull(remotes, home, f"{remote}/tiny")


def test_a_push_that_breaks_off_shows_no_version_and_is_repeated(
    remotes: Remotes, hub: Hub, store: Store, home: Store, remote: str
) -> None:
    stored = publish(store, version="1.0.0")
    hub.before["tag"] = break_off
    with pytest.raises(Unavailable):
        push(remotes, store, remote)
    with pytest.raises(AdapterNotFound):
        pull(remotes, home, f"{remote}/tiny")
    assert push(remotes, store, remote) == stored
    assert pull(remotes, home, f"{remote}/tiny") == stored


def test_a_push_that_is_repeated_tags_what_it_committed_and_not_what_came_after(
    remotes: Remotes, hub: Hub, store: Store, home: Store, tmp_path: Path, remote: str
) -> None:
    stored = publish(store, version="1.0.0")
    hub.before["tag"] = break_off
    with pytest.raises(Unavailable):
        push(remotes, store, remote)
    other = Store(tmp_path / "other")
    later = publish(other, version="1.1.0", seed=1)
    hub.before["revision"] = lambda: void(push(remotes, other, remote))
    with pytest.raises(Unavailable, match="try again"):
        push(remotes, store, remote)
    assert push(remotes, store, remote) == stored
    assert pull(remotes, home, f"{remote}/tiny:1.0.0") == stored
    assert pull(remotes, home, f"{remote}/tiny") == later


def test_of_two_who_push_at_once_one_is_told_to_try_again(
    remotes: Remotes, hub: Hub, store: Store, remote: str, owner: str
) -> None:
    publish(store, version="1.0.0")
    push(remotes, store, remote)
    publish(store, version="1.0.1", seed=1)
    repository = hub.repository(f"{owner}/tiny")
    hub.before["commit"] = lambda: void(repository.commit("Meanwhile", {"notes.md": b"?"}))
    with pytest.raises(Unavailable, match="try again"):
        push(remotes, store, remote)
    push(remotes, store, remote)
    assert "notes.md" in repository.files("1.0.1")


@pytest.mark.parametrize("seed", [0, 1])
def test_of_two_who_push_a_version_at_once_the_first_tag_counts(
    remotes: Remotes, hub: Hub, store: Store, tmp_path: Path, remote: str, seed: int
) -> None:
    """With equal bytes both have pushed it."""
    publish(store, version="1.0.0", seed=seed)
    first = Store(tmp_path / "first")
    stored = publish(first, version="1.0.0")
    hub.before["tag"] = lambda: void(push(remotes, first, remote))
    if seed == 0:
        assert push(remotes, store, remote) == stored
    else:
        with pytest.raises(Conflict, match=stored.digest):
            push(remotes, store, remote)


def void(_: object) -> None:
    pass


def break_off() -> None:
    raise ConnectionAbortedError


def test_what_is_not_ours_is_not_overwritten(
    remotes: Remotes, hub: Hub, store: Store, owner: str
) -> None:
    publish(store, version="1.0.0")
    publish(store, name="other", version="1.0.0", seed=1)
    push(remotes, store, f"hf://{owner}/shared")
    with pytest.raises(Conflict, match="holds tiny; other needs"):
        push(remotes, store, f"hf://{owner}/shared", "other")
    foreign = hub.repository(f"{owner}/foreign")
    foreign.create()
    foreign.commit("A model", {"README.md": b"Mine", "config.json": b"{}"})
    with pytest.raises(Conflict, match="holds other files"):
        push(remotes, store, f"hf://{owner}/foreign")
    assert foreign.read("README.md") == b"Mine"
    new = hub.repository(f"{owner}/new")
    new.create()
    new.git("tag", "1.0.0", "main")
    with pytest.raises(Conflict, match=r"tiny:1\.0\.0 exists"):
        push(remotes, store, f"hf://{owner}/new")


# Trust


def test_what_the_cache_has_damaged_is_loaded_again(
    remotes: Remotes, store: Store, home: Store, online: Path, remote: str
) -> None:
    stored = publish(store, version="1.0.0")
    push(remotes, store, remote)
    pull(remotes, home, f"{remote}/tiny")
    cached = [path for path in online.rglob("blobs/*") if path.is_file()]
    assert len(cached) == 4
    for path in cached:
        path.write_bytes(path.read_bytes()[::-1])
    home.blob_path(stored.manifest.tensors.digest).unlink()
    assert pull(remotes, home, f"{remote}/tiny") == stored
    home.verify(stored)


@pytest.mark.parametrize("path", ["upt/spec.json", "upt/card.md", "upt/manifest.json"])
@pytest.mark.parametrize("change", [b"!", b"!" * 5_000_000])
def test_what_the_hub_has_damaged_is_refused(
    remotes: Remotes,
    hub: Hub,
    store: Store,
    home: Store,
    remote: str,
    owner: str,
    path: str,
    change: bytes,
) -> None:
    publish(store, version="1.0.0")
    push(remotes, store, remote)
    repository = hub.repository(f"{owner}/tiny")
    repository.commit("Damage", {path: change + repository.read(path)[1:]})
    with pytest.raises(Corrupt):
        pull(remotes, home, f"{remote}/tiny:main")
    assert not home.root.exists()


def test_a_signature_is_kept_beside_its_version_and_asked_for_by_either_name(
    remotes: Remotes, hub: Hub, store: Store, home: Store, tmp_path: Path, remote: str, owner: str
) -> None:
    stored = publish(store, version="1.0.0")
    push(remotes, store, remote)
    ours, theirs = (Keys(tmp_path, name) for name in ("ours", "theirs"))
    strict = Remotes(trusted_keys={f"hf://{owner.lower()}/tiny": (ours.public,)})
    spellings = (f"{remote}/tiny:1.0.0", f"hf://{owner}/tiny/tiny", f"{remote}/tiny:main")
    for text in spellings:
        with pytest.raises(Untrusted):
            pull(strict, home, text)
    for keys in (ours, theirs):
        store.add_signatures(stored, [keys.sign(stored.name, stored.digest)])
        push(remotes, store, remote)
    before = hub.repository(f"{owner}/tiny").git("for-each-ref")
    push(remotes, store, remote)
    assert hub.repository(f"{owner}/tiny").git("for-each-ref") == before  # nothing is signed twice
    for text in spellings:
        assert pull(strict, home, text) == stored
    assert set(home.read_signatures("tiny", stored.digest)) == set(
        store.read_signatures("tiny", stored.digest)
    )
    repository = hub.repository(f"{owner}/tiny")
    path = f"upt/signatures/{stored.digest.removeprefix('sha256:')}.json"
    repository.commit("Damage", {path: b"\xff"})
    with pytest.raises(Corrupt, match="not UTF-8"):
        pull(remotes, home, f"{remote}/tiny")
