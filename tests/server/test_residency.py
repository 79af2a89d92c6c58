import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from upt_server import residency as residency_module
from upt_server.residency import Residency
from upt_testing.adapters import random_tensors, tiny_spec
from upt_testing.backbones import write_tiny_backbone
from upt_testing.serving import TIMEOUT_S, FakeRunner, Publisher
from upt_zoo.backbone import Backbone
from upt_zoo.errors import (
    AdapterNotFound,
    Corrupt,
    InvalidReference,
    InvalidSpec,
    Overloaded,
    WrongBackbone,
)
from upt_zoo.local.store import Store, StoredAdapter
from upt_zoo.local.tags import move_alias, remove, yank
from upt_zoo.local.upkeep import collect
from upt_zoo.references import Reference
from upt_zoo.spec import AdapterSpec
from upt_zoo.tensors import Array


class Events:
    def __init__(self) -> None:
        self.loaded, self.evicted, self.resident = 0, 0, 0

    def adapter_loaded(self, seconds: float, resident: int) -> None:
        assert seconds >= 0
        self.loaded, self.resident = self.loaded + 1, resident

    def adapter_evicted(self, resident: int) -> None:
        self.evicted, self.resident = self.evicted + 1, resident

    def adapter_unloaded(self, resident: int) -> None:
        self.resident = resident


class SlowStore(Store):
    """Stops inside each load until released."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.entered, self.released = threading.Event(), threading.Event()

    def load(self, stored: StoredAdapter) -> tuple[AdapterSpec, dict[str, Array]]:
        self.entered.set()
        assert self.released.wait(TIMEOUT_S)
        return super().load(stored)


Make = Callable[..., Residency]


@pytest.fixture
def events() -> Events:
    return Events()


@pytest.fixture
def make(backbone: Backbone, store: Store, events: Events) -> Iterator[Make]:
    made = []

    def make(store: Store = store, limit_bytes: int = 2**30) -> Residency:
        made.append(
            Residency(store, backbone, FakeRunner(), limit_bytes=limit_bytes, observer=events)
        )
        return made[-1]

    yield make
    for residency in made:
        residency.close()


def ref(text: str) -> Reference:
    return Reference.parse(text)


async def size_of(residency: Residency, name: str) -> int:
    with await residency.acquire(ref(name)) as lease:
        return lease.prepared.size_bytes()


async def test_an_adapter_is_loaded_once_for_all_who_ask_at_once(
    make: Make, store: Store, events: Events
) -> None:
    slow = SlowStore(store.root)
    residency = make(slow)
    asking = [asyncio.create_task(residency.acquire(ref("sst2"))) for _ in range(20)]
    await asyncio.to_thread(slow.entered.wait, TIMEOUT_S)
    slow.released.set()
    leases = await asyncio.gather(*asking)
    assert events.loaded == 1
    assert len({id(lease.prepared) for lease in leases}) == 1


async def test_who_leaves_while_loading_takes_nothing_from_who_stays(
    make: Make, store: Store, events: Events
) -> None:
    slow = SlowStore(store.root)
    residency = make(slow)
    leaving, staying = (asyncio.create_task(residency.acquire(ref("sst2"))) for _ in range(2))
    await asyncio.to_thread(slow.entered.wait, TIMEOUT_S)
    leaving.cancel()
    slow.released.set()
    with await staying as lease:
        assert lease.stored.reference == "sst2:1.0.0"
    assert events.loaded == 1


async def test_the_least_recently_used_adapter_makes_room(make: Make, events: Events) -> None:
    size = await size_of(make(), "sst2")
    residency = make(limit_bytes=2 * size)
    for name in ("sst2", "cola", "sst2"):
        with await residency.acquire(ref(name)):
            pass
    with await residency.acquire(ref("stsb")) as lease:
        resident = {
            name: residency.is_resident((await residency.resolver.resolve(ref(name))).digest)
            for name in ("sst2", "cola", "stsb")
        }
        assert lease.prepared.size_bytes() <= size
    assert resident == {"sst2": True, "cola": False, "stsb": True}
    assert (events.evicted, events.resident) == (1, 2)


async def test_a_leased_adapter_is_never_evicted(make: Make, events: Events) -> None:
    size = await size_of(make(), "sst2")
    residency = make(limit_bytes=size)
    with await residency.acquire(ref("sst2")) as lease:
        with pytest.raises(Overloaded, match=r"no room for cola:1\.0\.0"):
            await residency.acquire(ref("cola"))
        assert residency.is_resident(lease.stored.digest)
    with await residency.acquire(ref("cola")):
        assert not residency.is_resident(lease.stored.digest)
    assert events.evicted == 1


async def test_a_pinned_adapter_is_never_evicted(make: Make) -> None:
    size = await size_of(make(), "sst2")
    residency = make(limit_bytes=size)
    stored = await residency.pin(ref("sst2"))
    with pytest.raises(Overloaded):
        await residency.acquire(ref("cola"))
    assert residency.is_resident(stored.digest)


async def test_an_evicted_adapter_comes_back_equal(make: Make) -> None:
    size = await size_of(make(), "sst2")
    residency = make(limit_bytes=size)
    heads = []
    for name in ("sst2", "cola", "sst2"):
        with await residency.acquire(ref(name)) as lease:
            heads.append(lease.prepared.head.out[0])
    assert torch.equal(heads[0], heads[2])
    assert not torch.equal(heads[0], heads[1])


async def test_a_bare_name_follows_new_versions_and_a_version_stays(
    make: Make, publish: Publisher
) -> None:
    residency = make()
    with await residency.acquire(ref("sst2")) as before:
        publish("sst2", version="1.1.0", seed=9)
        with await residency.acquire(ref("sst2")) as after:
            assert (before.stored.version, after.stored.version) == ("1.0.0", "1.1.0")
        with await residency.acquire(ref("sst2:1.0.0")) as old:
            assert old.stored == before.stored
            assert old.prepared is before.prepared


async def test_an_unchanged_store_is_asked_once(make: Make, store: Store) -> None:
    asked = []

    class CountingStore(Store):
        def resolve(self, reference: Reference, *, backbone: str | None = None) -> StoredAdapter:
            asked.append(reference)
            return super().resolve(reference, backbone=backbone)

    residency = make(CountingStore(store.root))
    for _ in range(3):
        with await residency.acquire(ref("sst2")):
            pass
    assert asked == [ref("sst2")]


async def test_a_name_unknown_now_may_be_known_later(make: Make, publish: Publisher) -> None:
    residency = make()
    with pytest.raises(AdapterNotFound):
        await residency.acquire(ref("later"))
    publish("later")
    with await residency.acquire(ref("later")) as lease:
        assert lease.stored.name == "later"


async def test_a_store_that_does_not_exist_has_no_adapters(make: Make, tmp_path: Path) -> None:
    with pytest.raises(AdapterNotFound):
        await make(Store(tmp_path / "nowhere")).acquire(ref("sst2"))


async def test_another_backbone_is_refused_before_anything_is_loaded(
    make: Make, store: Store, events: Events, tmp_path: Path
) -> None:
    other = write_tiny_backbone(tmp_path / "other", "roberta", seed=5)
    Publisher(store=store, backbone=other)("foreign")
    with pytest.raises(WrongBackbone, match=r"upt/tiny-roberta-5.*upt/tiny-bert-0"):
        await make().acquire(ref("foreign"))
    assert events.loaded == 0


async def test_a_bare_name_means_the_newest_version_for_this_backbone(
    make: Make, store: Store, tmp_path: Path
) -> None:
    other = write_tiny_backbone(tmp_path / "other", "roberta", seed=5)
    Publisher(store=store, backbone=other)("sst2", version="1.1.0")
    residency = make()
    with await residency.acquire(ref("sst2")) as lease:
        assert lease.stored.version == "1.0.0"
    with pytest.raises(WrongBackbone):
        await residency.acquire(ref("sst2:1.1.0"))


async def test_an_alias_is_followed_while_the_server_runs(
    make: Make, store: Store, backbone: Backbone
) -> None:
    Publisher(store=store, backbone=backbone)("sst2", version="1.1.0", seed=7)
    writer, residency = Store(store.root), make()
    move_alias(writer, ref("sst2:1.0.0"), "stable")
    with await residency.acquire(ref("sst2:stable")) as lease:
        assert lease.stored.version == "1.0.0"
    move_alias(writer, ref("sst2:1.1.0"), "stable")
    await until_version(residency, "sst2:stable", "1.1.0")
    move_alias(writer, ref("sst2:1.0.0"), "stable")  # still in memory: at once
    assert await version_of(residency, "sst2:stable") == "1.0.0"
    yank(writer, ref("sst2:1.1.0"))
    with await residency.acquire(ref("sst2")) as lease:
        assert lease.stored.version == "1.0.0"


async def version_of(residency: Residency, text: str) -> str:
    with await residency.acquire(ref(text)) as lease:
        return lease.stored.version


async def until_version(residency: Residency, text: str, version: str) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while await version_of(residency, text) != version:  # noqa: ASYNC110 - a move has no event
            await asyncio.sleep(0.001)


async def test_nobody_waits_for_the_version_that_an_alias_has_moved_to(
    make: Make, store: Store, backbone: Backbone, events: Events
) -> None:
    Publisher(store=store, backbone=backbone)("sst2", version="1.1.0", seed=7)
    move_alias(store, ref("sst2:1.0.0"), "stable")
    slow = SlowStore(store.root)
    slow.released.set()
    residency = make(slow)
    with await residency.acquire(ref("sst2:stable")) as running:
        slow.released.clear()
        move_alias(store, ref("sst2:1.1.0"), "stable")
        assert {await version_of(residency, "sst2:stable") for _ in range(20)} == {"1.0.0"}
        slow.released.set()
        await until_version(residency, "sst2:stable", "1.1.0")
        assert running.stored.version == "1.0.0"
        assert residency.is_resident(running.stored.digest)
    assert events.loaded == 2  # one load, however many asked meanwhile


@pytest.mark.parametrize("fault", ["damaged", "foreign"])
async def test_an_alias_moved_to_a_broken_version_stays_where_it_led(
    make: Make,
    store: Store,
    backbone: Backbone,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    other = write_tiny_backbone(tmp_path / "other", "roberta", seed=5)
    publisher = Publisher(store=store, backbone=other if fault == "foreign" else backbone)
    stored = publisher("sst2", version="1.1.0", seed=7)
    move_alias(store, ref("sst2:1.0.0"), "stable")
    blob = store.blob_path(stored.manifest.tensors.digest)
    whole = blob.read_bytes()
    blob.write_bytes(whole[:-1] + b"\0" if fault == "damaged" else whole)
    residency = make()
    assert await version_of(residency, "sst2:stable") == "1.0.0"
    move_alias(store, ref("sst2:1.1.0"), "stable")
    while "sst2:stable stays where it led before" not in caplog.text:
        assert await version_of(residency, "sst2:stable") == "1.0.0"
        await asyncio.sleep(0.001)
    assert await version_of(residency, "sst2:stable") == "1.0.0"
    assert caplog.text.count("stays where it led") == 1  # it is not tried with every call
    if fault == "damaged":
        blob.write_bytes(whole)
        monkeypatch.setattr(residency_module, "_FOLLOW_RETRY_S", 0.0)
        residency._retry_at.clear()
        await until_version(residency, "sst2:stable", "1.1.0")


async def test_an_adapter_is_unloaded_at_once_unless_somebody_computes_with_it(
    make: Make, events: Events
) -> None:
    residency = make()
    stored = await residency.load(ref("sst2"))
    with await residency.acquire(ref("sst2")):
        assert await residency.unload(ref("sst2")) == stored
        assert residency.is_resident(stored.digest)
    assert not residency.is_resident(stored.digest)
    assert (events.evicted, events.resident) == (0, 0)
    await residency.unload(ref("sst2"))  # it is not there any more
    with await residency.acquire(ref("sst2")) as lease:
        assert lease.stored == stored
    assert events.loaded == 2


async def test_an_adapter_asked_for_again_before_it_has_gone_stays(make: Make) -> None:
    residency = make()
    with await residency.acquire(ref("sst2")) as lease:
        await residency.unload(ref("sst2"))
        with await residency.acquire(ref("sst2")) as again:
            assert again.prepared is lease.prepared
    assert residency.is_resident(lease.stored.digest)


async def test_an_adapter_unloaded_while_it_loads_goes_when_it_is_there(
    make: Make, store: Store, events: Events
) -> None:
    slow = SlowStore(store.root)
    residency = make(slow)
    leaving = asyncio.create_task(residency.acquire(ref("sst2")))
    await asyncio.to_thread(slow.entered.wait, TIMEOUT_S)
    await residency.unload(ref("sst2"))
    leaving.cancel()
    slow.released.set()
    async with asyncio.timeout(TIMEOUT_S):
        while not events.loaded:  # noqa: ASYNC110 - a load has no event
            await asyncio.sleep(0.001)
    assert residency.resident() == ()


async def test_a_pin_counts_once_and_ends_with_unloading(make: Make) -> None:
    residency = make()
    await residency.pin(ref("sst2"))
    await residency.pin(ref("sst2:1.0.0"))
    await residency.load(ref("cola"))
    assert [
        (each.stored.name, each.leases, each.is_pinned, each.size_bytes > 0)
        for each in residency.resident()
    ] == [("sst2", 1, True, True), ("cola", 0, False, True)]
    await residency.unload(ref("sst2"))
    assert [each.stored.name for each in residency.resident()] == ["cola"]


async def test_what_is_in_memory_outlives_its_blobs(make: Make, store: Store) -> None:
    residency = make()
    with await residency.acquire(ref("sst2")) as lease:
        remove(store, ref("sst2:1.0.0"))
        collect(store, grace_s=0)
        assert lease.prepared.size_bytes() > 0
    with pytest.raises(AdapterNotFound):
        await residency.acquire(ref("sst2"))


@pytest.mark.parametrize("size", ["layers", "heads", "intermediate"])
async def test_a_spec_that_lies_about_its_backbone_is_refused(
    make: Make, store: Store, backbone: Backbone, events: Events, size: str
) -> None:
    identity = backbone.identity
    lie = identity.model_copy(update={size: getattr(identity, size) // 2})
    spec = tiny_spec(backbone=lie, name="liar")
    store.publish(spec, random_tensors(spec, 0), "")
    with pytest.raises(WrongBackbone, match=f"another {size}"):
        await make().acquire(ref("liar"))
    assert events.loaded == 0


async def test_an_adapter_larger_than_the_memory_evicts_nobody(make: Make, events: Events) -> None:
    size = await size_of(make(), "sst2")
    with pytest.raises(InvalidSpec, match="more memory for adapters"):
        await make(limit_bytes=size - 1).acquire(ref("sst2"))
    assert events.evicted == 0


async def test_rows_longer_than_the_backbone_are_refused(
    make: Make, store: Store, backbone: Backbone
) -> None:
    spec = tiny_spec(backbone=backbone.identity, name="long")
    task = spec.task.model_copy(update={"max_tokens": backbone.config.max_tokens + 1})
    spec = spec.model_copy(update={"task": task})
    store.publish(spec, random_tensors(spec, 0), "")
    with pytest.raises(WrongBackbone, match="321 tokens"):
        await make().acquire(ref("long"))


async def test_damaged_bytes_are_refused_until_they_are_mended(
    make: Make, store: Store, events: Events
) -> None:
    stored = store.resolve(ref("sst2"))
    blob = store.root / "blobs" / "sha256" / stored.manifest.tensors.digest.removeprefix("sha256:")
    whole = blob.read_bytes()
    blob.write_bytes(whole[:-1] + b"\0")
    residency = make()
    with pytest.raises(Corrupt):
        await residency.acquire(ref("sst2"))
    assert not residency.is_resident(stored.digest)
    blob.write_bytes(whole)
    with await residency.acquire(ref("sst2")):
        assert events.loaded == 1


async def test_the_server_opens_no_remote_for_a_caller(make: Make) -> None:
    with pytest.raises(InvalidReference, match="its own store"):
        await make().acquire(ref("file:///tmp/sst2"))


@pytest.mark.parametrize(
    ("trained", "runner", "is_told"),
    [("fp32", "native-int8", True), ("int8", "torch-fp32", True), ("bf16", "torch-fp32", False)],
)
async def test_the_log_tells_once_of_an_adapter_that_learnt_on_other_numbers(
    make: Make,
    store: Store,
    backbone: Backbone,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    trained: str,
    runner: str,
    is_told: bool,
) -> None:
    monkeypatch.setattr(FakeRunner, "name", runner)
    spec = tiny_spec(backbone=backbone.identity, name="numbers")
    lineage = spec.lineage.model_copy(update={"precision": trained})
    spec = spec.model_copy(update={"lineage": lineage})
    store.publish(spec, random_tensors(spec, 0), "")
    residency = make()
    for _ in range(2):
        await residency.load(ref("numbers"))
        await residency.unload(ref("numbers"))
    assert caplog.text.count("its metrics may not hold") == is_told
