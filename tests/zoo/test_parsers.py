"""Whatever bytes and texts come in, a parser gives a value or one of upt's errors."""

import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from upt_testing.stores import publish
from upt_zoo.errors import AdapterNotFound, Corrupt, InvalidReference
from upt_zoo.local.edits import alias_of, drop_alias, drop_version, set_alias, set_yanked
from upt_zoo.local.history import Event, earlier_version, format_events, parse_events
from upt_zoo.local.listing import ALIAS, METRICS, SIZE, YANKED, Listed, Listing, events_of
from upt_zoo.local.recovery import rebuild
from upt_zoo.local.store import Store
from upt_zoo.manifest import ARTIFACT_TYPE, REF_NAME, TITLE, VERSION, Index, Manifest, entry_of
from upt_zoo.references import Reference, is_alias

MANIFEST = Manifest.of("tiny", "1.2.0", spec=b"{}", tensors=b"tensors", card=b"# Tiny").to_json()
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
keys = st.sampled_from([TITLE, VERSION, ALIAS, YANKED, METRICS, SIZE, REF_NAME, "other"])
notes = st.dictionaries(keys, st.sampled_from(["tiny", "1.0.0", "stable", "a--b", "", "{}", "9"]))
entries = st.fixed_dictionaries(
    {
        "mediaType": st.just("application/vnd.oci.image.manifest.v1+json"),
        "digest": st.sampled_from(["sha256:" + "0f" * 32, "sha256:" + "ab" * 32]),
        "size": st.integers(min_value=0, max_value=9),
    },
    optional={"artifactType": st.sampled_from([ARTIFACT_TYPE, "x"]), "annotations": notes},
)
indexes = st.fixed_dictionaries(
    {"schemaVersion": st.just(2), "manifests": st.lists(entries, max_size=5)},
    optional={"annotations": st.dictionaries(st.text(max_size=5), st.text(max_size=5))},
)


def edited(data: bytes, place: int, value: object) -> bytes:
    """Replace the nth value of a JSON object, counted through its nested objects."""
    document = json.loads(data)
    places = [
        (parent, key)
        for parent in (document, document["config"], *document["layers"], document["annotations"])
        for key in parent
    ]
    parent, key = places[place % len(places)]
    parent[key] = value
    return json.dumps(document).encode()


@given(st.binary(max_size=200) | values.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_a_document_or_corrupt(data: bytes) -> None:
    for parse in (Manifest.from_json, Index.from_json):
        with suppress(Corrupt):
            parse(data)
    with suppress(Corrupt):
        parse_events(data.decode(errors="replace"))


@given(st.integers(min_value=0, max_value=30), values)
def test_a_manifest_with_one_other_value_is_read_or_corrupt(place: int, value: object) -> None:
    try:
        manifest = Manifest.from_json(edited(MANIFEST, place, value))
    except Corrupt:
        return
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert Reference.parse(f"{manifest.name}:{manifest.version}").tag == manifest.version


@given(indexes)
def test_any_index_of_entries_is_read_or_corrupt(document: object) -> None:
    index = Index.from_json(json.dumps(document).encode())
    assert Index.from_json(index.to_json()) == index
    with suppress(Corrupt):
        listing = Listing.of(index)
        for listed in listing.all():
            assert listing.select(Reference.parse(listed.reference)) == listed
            listed.summary  # noqa: B018 - it must not raise
        for name, aliases in listing.aliases.items():
            for alias in aliases:
                with suppress(Corrupt):
                    assert listing.select(Reference.parse(f"{name}:{alias}")) is not None


@given(indexes, st.sampled_from(["tag", "untag", "yank", "unyank", "remove"]))
def test_a_change_leaves_what_it_does_not_mean(document: object, action: str) -> None:
    index = Index.from_json(json.dumps(document).encode()).with_manifest(MANIFEST)
    try:
        target = Listing.of(index).versions["tiny"]["1.2.0"]
    except Corrupt:
        return
    changed = apply(index, target, action)
    others = [each for each in index.manifests if not means(each.annotations, target)]
    assert [each for each in changed.manifests if not means(each.annotations, target)] == others
    assert len(events_of(changed, "tiny")) == 1
    assert Index.from_json(changed.to_json()) == changed


def apply(index: Index, target: Listed, action: str) -> Index:
    event = Event.model_validate(
        {"time": "t", "action": action, "alias": "mine", "before": "1.2.0", "after": "1.2.0"}
    )
    if action == "tag":
        return set_alias(index, target, event)
    if action == "untag":
        return drop_alias(index, target.name, event)
    if action == "remove":
        return drop_version(index, target, [event])
    return set_yanked(index, target, event)


def means(annotations: dict[str, str] | None, target: Listed) -> bool:
    noted = annotations or {}
    return (noted.get(TITLE), noted.get(VERSION)) == (target.name, target.version)


@given(st.from_regex(r"[a-z0-9]+([._-][a-z0-9]+)*", fullmatch=True), st.text(max_size=12))
def test_the_name_for_other_tools_leads_back_to_its_alias(name: str, alias: str) -> None:
    if len(name) > 128 or not is_alias(alias):
        return
    manifest = Manifest.of(name, "1.0.0", spec=b"", tensors=b"", card=b"").to_json()
    entry = entry_of(manifest).model_copy(update={"annotations": {REF_NAME: f"{name}--{alias}"}})
    assert alias_of(entry) == alias
    assert alias_of(entry_of(manifest)) is None


events = st.lists(
    st.builds(
        Event,
        time=st.just("t"),
        action=st.sampled_from(["tag", "rollback", "untag", "yank"]),
        alias=st.sampled_from(["a", "b", None]),
        after=st.sampled_from(["1.0.0", "1.0.1", "1.0.2"]),
    ),
    max_size=12,
)


@given(events, st.sampled_from(["1.0.0", "1.0.1"]))
def test_going_back_never_stays_and_always_goes_where_the_alias_was(
    happened: list[Event], current: str
) -> None:
    assert parse_events(format_events(happened)) == tuple(happened)
    earlier = earlier_version(happened, "a", current)
    assert earlier != current
    assert earlier is None or earlier in {
        event.after for event in happened if event.alias == "a" and event.action == "tag"
    }


@given(st.text(max_size=60))
def test_any_reference_is_found_or_refused(text: str) -> None:
    listing = Listing.of(Index().with_manifest(MANIFEST))
    with suppress(InvalidReference):
        listing.select(Reference.parse(text))


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(document=indexes)
def test_any_index_can_be_rebuilt(store: Store, document: object) -> None:
    (store.root / "index.json").write_text(json.dumps(document))
    rebuild(store)
    assert "tiny" in store.listing().versions
    with suppress(AdapterNotFound):  # yanked by that index
        store.verify(store.resolve(Reference(name="tiny")))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "zoo")
    publish(store)
    return store
