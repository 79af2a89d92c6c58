import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from upt_testing.stores import Clock, blob_names, needs, publish, resolve
from upt_zoo.catalogue import remote_store
from upt_zoo.errors import (
    AdapterNotFound,
    Conflict,
    Corrupt,
    InvalidInput,
    InvalidReference,
)
from upt_zoo.local import tags
from upt_zoo.local.history import MAX_EVENTS, Event, earlier_version, format_events, parse_events
from upt_zoo.local.store import Store
from upt_zoo.references import Reference


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "zoo", clock=Clock())


def move(store: Store, text: str, alias: str) -> Event | None:
    return tags.move_alias(store, Reference.parse(text), alias)


def roll_back(store: Store, text: str) -> Event:
    return tags.roll_back(store, Reference.parse(text))


def yank(store: Store, text: str, *, undo: bool = False) -> Event | None:
    return tags.yank(store, Reference.parse(text), undo=undo)


def remove(store: Store, text: str, reason: str | None = None) -> tuple[Event, ...]:
    return tags.remove(store, Reference.parse(text), reason=reason)


def publish_versions(store: Store, count: int) -> None:
    for seed in range(count):
        publish(store, seed=seed)


# Aliases


def test_an_alias_leads_to_its_version_until_it_is_moved(store: Store) -> None:
    publish_versions(store, 2)
    move(store, "tiny:1.0.0", "stable")
    assert resolve(store, "tiny:stable").version == "1.0.0"
    event = move(store, "tiny:1.0.1", "stable")
    assert event is not None
    assert (event.before, event.after) == ("1.0.0", "1.0.1")
    assert resolve(store, "tiny:stable").version == "1.0.1"


def test_an_alias_takes_what_a_bare_name_or_another_alias_means_at_that_moment(
    store: Store,
) -> None:
    publish_versions(store, 2)
    move(store, "tiny", "canary")
    move(store, "tiny:canary", "stable")
    publish(store, seed=9)
    assert resolve(store, "tiny:stable").version == "1.0.1"


def test_an_alias_with_a_digest_must_lead_to_it(store: Store) -> None:
    publish_versions(store, 2)
    move(store, "tiny:1.0.0", "stable")
    first, second = resolve(store, "tiny:1.0.0"), resolve(store, "tiny:1.0.1")
    assert resolve(store, f"tiny:stable@{first.digest}") == first
    with pytest.raises(Corrupt, match=first.digest):
        resolve(store, f"tiny:stable@{second.digest}")


def test_moving_an_alias_to_where_it_is_changes_nothing(store: Store) -> None:
    publish(store)
    move(store, "tiny", "stable")
    before = (store.root / "index.json").read_bytes()
    assert move(store, "tiny:1.0.0", "stable") is None
    assert (store.root / "index.json").read_bytes() == before


@pytest.mark.parametrize("alias", ["1.0.0", "2.10.3", "", "-x", "a/b", "a b", "x" * 129, "ä"])
def test_a_version_or_no_tag_at_all_is_no_alias(store: Store, alias: str) -> None:
    publish(store)
    with pytest.raises(InvalidReference, match="expected an alias"):
        move(store, "tiny", alias)


def test_an_alias_that_is_misspelt_is_understood(store: Store) -> None:
    publish(store)
    move(store, "tiny", "stable")
    with pytest.raises(AdapterNotFound, match="did you mean stable"):
        roll_back(store, "tiny:stabel")


def test_an_alias_cannot_lead_to_nothing_or_to_damage(store: Store) -> None:
    stored = publish(store)
    with pytest.raises(AdapterNotFound):
        move(store, "tiny:2.0.0", "stable")
    store.blob_path(stored.digest).write_bytes(b"{}")
    with pytest.raises(Corrupt):
        move(store, "tiny:1.0.0", "stable")
    assert store.listing().aliases == {}


def test_aliases_of_several_names_are_apart(store: Store) -> None:
    publish(store, name="a")
    publish(store, name="a-b")
    move(store, "a", "b-x")
    move(store, "a-b", "x")
    assert resolve(store, "a:b-x").name == "a"
    assert resolve(store, "a-b:x").name == "a-b"
    entries = json.loads((store.root / "index.json").read_bytes())["manifests"]
    names = [entry["annotations"]["org.opencontainers.image.ref.name"] for entry in entries]
    assert len(set(names)) == len(names) == 4


def test_an_alias_is_an_entry_of_its_own_that_other_tools_can_address(store: Store) -> None:
    stored = publish(store)
    move(store, "tiny", "stable")
    version, alias = json.loads((store.root / "index.json").read_bytes())["manifests"]
    assert alias["digest"] == version["digest"] == stored.digest
    assert alias["size"] == version["size"]
    assert alias["annotations"] == {
        "org.opencontainers.image.title": "tiny",
        "org.opencontainers.image.version": "1.0.0",
        "org.opencontainers.image.ref.name": "tiny--stable",
        "vnd.upt.adapter.alias": "stable",
    }


def test_an_alias_whose_digest_is_not_its_versions_is_corrupt(store: Store) -> None:
    publish_versions(store, 2)
    move(store, "tiny:1.0.0", "stable")
    path = store.root / "index.json"
    index = json.loads(path.read_bytes())
    index["manifests"][2]["digest"] = index["manifests"][1]["digest"]
    path.write_text(json.dumps(index))
    with pytest.raises(Corrupt, match="upt-zoo tag"):
        resolve(store, "tiny:stable")
    assert resolve(store, "tiny:1.0.0").version == "1.0.0"


def test_an_alias_entry_alone_still_lists_its_version(store: Store) -> None:
    stored = publish(store)
    move(store, "tiny", "stable")
    path = store.root / "index.json"
    index = json.loads(path.read_bytes())
    path.write_text(json.dumps(index | {"manifests": index["manifests"][1:]}))
    assert resolve(store, "tiny:1.0.0") == resolve(store, "tiny:stable") == stored


def test_a_reader_sees_an_alias_move(store: Store) -> None:
    publish_versions(store, 2)
    reader = Store(store.root)
    move(store, "tiny:1.0.0", "stable")
    assert resolve(reader, "tiny:stable").version == "1.0.0"
    move(store, "tiny:1.0.1", "stable")
    assert resolve(reader, "tiny:stable").version == "1.0.1"


def test_movers_at_once_lose_no_event(store: Store) -> None:
    publish_versions(store, 4)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda n: move(Store(store.root), f"tiny:1.0.{n}", f"a{n}"), range(4)))
    events = tags.history(store, "tiny")
    assert {event.alias for event in events} == {"a0", "a1", "a2", "a3"}
    assert {resolve(store, f"tiny:a{n}").version for n in range(4)} == set(store.versions("tiny"))


# History and going back


def test_going_back_goes_further_back_each_time(store: Store) -> None:
    publish_versions(store, 3)
    for version in ("1.0.0", "1.0.1", "1.0.2"):
        move(store, f"tiny:{version}", "stable")
    assert roll_back(store, "tiny:stable").after == "1.0.1"
    assert roll_back(store, "tiny:stable").after == "1.0.0"
    with pytest.raises(
        AdapterNotFound, match=r"none before the one to 1\.0\.0; .*history tiny:stable"
    ):
        roll_back(store, "tiny:stable")
    assert resolve(store, "tiny:stable").version == "1.0.0"


def test_after_going_back_an_alias_moves_on_and_back_to_where_it_was(store: Store) -> None:
    publish_versions(store, 3)
    for version in ("1.0.0", "1.0.1"):
        move(store, f"tiny:{version}", "stable")
    roll_back(store, "tiny:stable")
    move(store, "tiny:1.0.2", "stable")
    assert roll_back(store, "tiny:stable").after == "1.0.0"


def test_the_history_says_when_what_moved_from_where_to_where(store: Store) -> None:
    publish_versions(store, 2)
    move(store, "tiny:1.0.0", "stable")
    move(store, "tiny:1.0.0", "canary")
    move(store, "tiny:1.0.1", "stable")
    roll_back(store, "tiny:stable")
    events = tags.history(store, "tiny", "stable")
    assert [(event.action, event.before, event.after) for event in events] == [
        ("tag", None, "1.0.0"),
        ("tag", "1.0.0", "1.0.1"),
        ("rollback", "1.0.1", "1.0.0"),
    ]
    times = [event.time for event in tags.history(store, "tiny")]
    assert times == sorted(times)
    assert len(times) == 4
    created = [listed.created for listed in store.listing().all()]
    assert created == ["2026-01-01T00:01:00Z", "2026-01-01T00:02:00Z"]


def test_going_back_to_what_is_gone_or_yanked_is_refused(store: Store) -> None:
    publish_versions(store, 2)
    move(store, "tiny:1.0.0", "stable")
    move(store, "tiny:1.0.1", "stable")
    yank(store, "tiny:1.0.0")
    with pytest.raises(Conflict, match="yanked"):
        roll_back(store, "tiny:stable")
    remove(store, "tiny:1.0.0")
    with pytest.raises(AdapterNotFound, match="removed"):
        roll_back(store, "tiny:stable")
    assert resolve(store, "tiny:stable").version == "1.0.1"


@pytest.mark.parametrize("text", ["tiny", "tiny:1.0.0", "tiny:canary", "other:stable"])
def test_only_an_alias_that_exists_goes_back(store: Store, text: str) -> None:
    publish(store)
    move(store, "tiny", "stable")
    with pytest.raises((InvalidReference, AdapterNotFound)):
        roll_back(store, text)


def test_the_history_of_nothing_is_not_found(store: Store) -> None:
    publish(store)
    assert tags.history(store, "tiny") == ()
    for name, alias in (("other", None), ("tiny", "stable")):
        with pytest.raises(AdapterNotFound):
            tags.history(store, name, alias)


def test_the_history_is_bounded(store: Store) -> None:
    events = [Event(time="t", action="tag", alias="a", after=str(n)) for n in range(MAX_EVENTS + 5)]
    kept = parse_events(format_events(events))
    assert len(kept) == MAX_EVENTS
    assert kept[-1] == events[-1]


@pytest.mark.parametrize("text", ["", "{}", "[1]", '[{"time":"t","action":"explode"}]'])
def test_a_damaged_history_is_corrupt(text: str) -> None:
    with pytest.raises(Corrupt, match="history"):
        parse_events(text)


def test_where_an_alias_was_before_is_told_from_its_moves_alone() -> None:
    def tag(after: str) -> Event:
        return Event(time="t", action="tag", alias="a", after=after)

    gone = Event(time="t", action="untag", alias="a", before="1.0.1")
    other = Event(time="t", action="tag", alias="b", after="9.0.0")
    assert earlier_version([tag("1.0.0"), other, tag("1.0.1")], "a", "1.0.1") == "1.0.0"
    assert earlier_version([tag("1.0.0"), tag("1.0.1"), gone, tag("1.0.1")], "a", "1.0.1") is None
    assert earlier_version([], "a", "1.0.0") is None


# Yanked versions


def test_a_bare_name_never_means_a_yanked_version(store: Store) -> None:
    publish_versions(store, 3)
    yank(store, "tiny:1.0.2")
    assert resolve(store, "tiny").version == "1.0.1"
    assert store.resolve(Reference(name="tiny"), backbone="sha256:" + "ab" * 32).version == "1.0.1"
    yank(store, "tiny:1.0.2", undo=True)
    assert resolve(store, "tiny").version == "1.0.2"


def test_a_yanked_version_can_be_named(store: Store) -> None:
    stored = publish(store)
    move(store, "tiny", "stable")
    yank(store, "tiny:1.0.0")
    for text in ("tiny:1.0.0", f"tiny@{stored.digest}", "tiny:stable"):
        assert resolve(store, text) == stored
    with pytest.raises(AdapterNotFound, match=r"yanked; name one: 1\.0\.0, stable"):
        resolve(store, "tiny")


def test_after_a_yanked_version_comes_the_next_number(store: Store) -> None:
    publish(store)
    yank(store, "tiny:1.0.0")
    assert publish(store, seed=1).version == "1.0.1"


def test_yanking_twice_changes_nothing(store: Store) -> None:
    publish(store)
    assert yank(store, "tiny:1.0.0", undo=True) is None
    assert yank(store, "tiny:1.0.0") is not None
    assert yank(store, "tiny:1.0.0") is None


def test_yanked_stays_yanked_when_it_is_copied(store: Store, tmp_path: Path) -> None:
    publish(store)
    yank(store, "tiny:1.0.0")
    home = Store(tmp_path / "home")
    home.copy_from(store, Reference.parse("tiny:1.0.0"))
    assert home.listing().versions["tiny"]["1.0.0"] == store.listing().versions["tiny"]["1.0.0"]


# Removing


def test_a_removed_version_is_gone_and_its_blobs_wait_for_a_collection(store: Store) -> None:
    publish_versions(store, 2)
    stored = resolve(store, "tiny:1.0.1")
    remove(store, "tiny:1.0.1")
    assert resolve(store, "tiny").version == "1.0.0"
    assert needs(stored) <= blob_names(store)
    assert publish(store, seed=1, version="1.0.1") == stored


def test_a_version_is_not_removed_under_an_alias(store: Store) -> None:
    publish(store)
    move(store, "tiny", "stable")
    move(store, "tiny", "canary")
    with pytest.raises(Conflict, match=r"tiny:canary, tiny:stable points to tiny:1\.0\.0"):
        remove(store, "tiny:1.0.0")
    events = remove(store, "tiny:1.0.0", reason="wrong labels")
    assert [event.action for event in events] == ["untag", "untag", "remove"]
    assert {event.reason for event in tags.history(store, "tiny")[2:]} == {"wrong labels"}
    assert store.list() == ()
    assert store.listing().aliases == {}


def test_an_alias_is_removed_without_its_version(store: Store) -> None:
    publish(store)
    move(store, "tiny", "stable")
    remove(store, "tiny:stable")
    with pytest.raises(AdapterNotFound):
        resolve(store, "tiny:stable")
    assert resolve(store, "tiny").version == "1.0.0"


def test_a_damaged_version_can_be_removed(store: Store) -> None:
    stored = publish(store)
    store.blob_path(stored.digest).unlink()
    remove(store, "tiny:1.0.0")
    assert store.list() == ()


CHANGES: dict[str, Callable[[Store], object]] = {
    "tag": lambda store: move(store, "tiny", "stable"),
    "rollback": lambda store: roll_back(store, "tiny:stable"),
    "yank": lambda store: yank(store, "tiny:1.0.0"),
    "remove": lambda store: remove(store, "tiny:1.0.0"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_read_only_store_is_not_changed(store: Store, change: str) -> None:
    publish(store)
    with pytest.raises(InvalidInput, match="read-only"):
        CHANGES[change](remote_store(store.root.as_uri()))


@pytest.mark.parametrize("text", ["tiny", "tiny:9.9.9", "other:1.0.0", f"tiny@sha256:{'0' * 64}"])
def test_only_one_version_that_exists_is_yanked_or_removed(store: Store, text: str) -> None:
    publish(store)
    for change in (yank, remove):
        with pytest.raises((InvalidReference, AdapterNotFound)):
            change(store, text)


def test_entries_of_other_tools_survive_all_changes(store: Store) -> None:
    publish(store)
    path = store.root / "index.json"
    index = json.loads(path.read_bytes())
    foreign = index["manifests"][0] | {"artifactType": "application/vnd.other", "note": 1}
    index |= {"manifests": [foreign, *index["manifests"]], "annotations": {"a": "b"}, "more": 2}
    path.write_text(json.dumps(index))
    move(store, "tiny", "stable")
    yank(store, "tiny:1.0.0")
    remove(store, "tiny:1.0.0", reason="a test")
    written = json.loads(path.read_bytes())
    assert written["manifests"] == [foreign]
    assert written["annotations"]["a"] == "b"
    assert written["more"] == 2
