"""Which adapters are in memory: loaded on demand, kept while leased, evicted when unused.

Owned by the event loop; reading, checking and preparing an adapter happens on a thread.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from types import TracebackType
from typing import Protocol, Self

import torch

from upt_server.resolver import Resolver
from upt_server.runner import Runner
from upt_zoo.backbone import Backbone
from upt_zoo.errors import InvalidSpec, Overloaded, WrongAnswer, WrongBackbone
from upt_zoo.local.store import Store, StoredAdapter
from upt_zoo.nn.adapter import PreparedAdapter
from upt_zoo.references import Reference, is_alias

_LOGGER = logging.getLogger(__name__)
_LOAD_THREADS = 2
_FOLLOW_RETRY_S = 10.0  # between attempts to load what an alias leads to, if it cannot be loaded


class ResidencyObserver(Protocol):
    """Is told what happens to adapters in memory."""

    def adapter_loaded(self, seconds: float, resident: int) -> None:
        """One was read from the store; ``resident`` are in memory."""
        ...

    def adapter_evicted(self, resident: int) -> None:
        """One was dropped to make room; ``resident`` are left in memory."""
        ...

    def adapter_unloaded(self, resident: int) -> None:
        """One was dropped because somebody asked for it; ``resident`` are left in memory."""
        ...


class Lease:
    """The right to use an adapter; it stays in memory until the lease is given back.

    ``stored`` is what the reference meant when the lease was taken.
    """

    def __init__(
        self, stored: StoredAdapter, prepared: PreparedAdapter, give_back: Callable[[], None]
    ) -> None:
        self.stored, self.prepared = stored, prepared
        self._give_back = give_back

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._give_back()


@dataclass(frozen=True, slots=True, kw_only=True)
class Resident:
    """An adapter in memory; ``leases`` counts those who use it, its pin among them."""

    stored: StoredAdapter
    size_bytes: int
    leases: int
    is_pinned: bool


@dataclass(slots=True, kw_only=True, eq=False)
class _Slot:
    """One adapter on its way into memory or in it; leased by everybody who waits or computes.

    ``is_checked``: it has answered as it should. ``is_unwanted``: it goes with its last lease,
    unless somebody asks for it before.
    """

    stored: StoredAdapter
    loading: asyncio.Task[PreparedAdapter]
    size_bytes: int = 0
    leases: int = 0
    is_checked: bool = False
    is_unwanted: bool = False

    @property
    def is_loaded(self) -> bool:
        return self.size_bytes > 0

    @property
    def is_evictable(self) -> bool:
        return self.leases == 0 and self.is_loaded


class Residency:
    """Adapters in memory, at most ``limit_bytes`` of them, least recently used first out.

    ``check`` raises ``WrongAnswer`` for an adapter that shall not be served; it is asked of those
    loaded by name and of an alias's next version, with ``are_all_checked`` of every one.
    """

    def __init__(
        self,
        store: Store,
        backbone: Backbone,
        runner: Runner,
        *,
        limit_bytes: int,
        observer: ResidencyObserver,
        check: Callable[[StoredAdapter, PreparedAdapter], Awaitable[None]] | None = None,
        are_all_checked: bool = False,
    ) -> None:
        self._store, self._backbone, self._runner = store, backbone, runner
        self.limit_bytes, self._observer = limit_bytes, observer
        self._slots: OrderedDict[str, _Slot] = OrderedDict()  # by digest, last used last
        self._used_bytes = self._loaded = 0  # of the slots that are loaded
        self._pins: dict[str, Lease] = {}  # by digest
        self._led_to: dict[Reference, StoredAdapter] = {}  # by alias
        self._retry_at: dict[str, float] = {}  # by digest, the event loop's time
        self._check, self._are_all_checked = check, are_all_checked
        self._refused: dict[str, str] = {}  # why, by digest
        self._warned_of: set[str] = set()  # digests; one is loaded as often as it is evicted
        self._threads = ThreadPoolExecutor(_LOAD_THREADS, thread_name_prefix="upt-load")
        self.resolver = Resolver(store, backbone.identity.digest, self._threads)

    async def acquire(self, reference: Reference) -> Lease:
        """Lease an adapter, loading it if need be; concurrent callers share one load.

        An alias that has moved leads to where it led before until the other version is loaded, so
        that nobody waits for it; one that cannot be loaded is logged and tried again later.

        Raises:
            AdapterNotFound: no such name, tag or digest.
            Corrupt: its bytes do not match their digest, its format or its spec.
            InvalidSpec: it is larger than all the memory for adapters.
            Overloaded: everything in memory is in use, and there is no room for it.
            WrongAnswer: it has not answered its own example as it should.
            WrongBackbone: it was trained on another backbone, or for longer rows than this takes.
        """
        stored = await self._resolve(reference)
        if stored.digest in self._refused:
            raise WrongAnswer(self._refused[stored.digest])
        return await self._lease(stored, is_checked=self._are_all_checked)

    async def load(self, reference: Reference) -> StoredAdapter:
        """Check and load an adapter without using it; it may be evicted.

        One that was refused before is tried again. It raises what ``acquire`` does.
        """
        with await self._lease(await self._resolve(reference), is_checked=True) as lease:
            return lease.stored

    async def pin(self, reference: Reference) -> StoredAdapter:
        """Check and load an adapter and never evict it; only ``unload`` ends that.

        It raises what ``acquire`` does.
        """
        lease = await self._lease(await self._resolve(reference), is_checked=True)
        with self._pins.get(lease.stored.digest, nullcontext()):  # one pin is enough
            self._pins[lease.stored.digest] = lease
        return lease.stored

    async def unload(self, reference: Reference) -> StoredAdapter:
        """Drop an adapter from memory, its pin too; what computes with it finishes first.

        It stays in the store: who asks for it loads it again. One that is not in memory stays so.

        Raises:
            AdapterNotFound: no such name, tag or digest.
            Corrupt: the adapter's manifest or spec is damaged.
        """
        stored = await self.resolver.resolve(reference)
        slot = self._slots.get(stored.digest)
        if slot is not None:
            slot.is_unwanted = True
            with self._pins.pop(stored.digest, nullcontext()):
                pass
            self._drop_unwanted(slot)
        return stored

    def resident(self) -> tuple[Resident, ...]:
        """Return what is in memory, the least recently used first."""
        return tuple(
            Resident(
                stored=slot.stored,
                size_bytes=slot.size_bytes,
                leases=slot.leases,
                is_pinned=digest in self._pins,
            )
            for digest, slot in self._slots.items()
            if slot.is_loaded
        )

    @property
    def used_bytes(self) -> int:
        """How much of ``limit_bytes`` is taken."""
        return self._used_bytes

    def is_resident(self, digest: str) -> bool:
        """Tell whether an adapter is in memory right now."""
        slot = self._slots.get(digest)
        return slot is not None and slot.is_loaded

    @property
    def refused(self) -> Mapping[str, str]:
        """Why adapters are not served, by digest."""
        return self._refused

    def close(self) -> None:
        """End the loading threads."""
        self._threads.shutdown()

    async def _resolve(self, reference: Reference) -> StoredAdapter:
        """Find the version that is meant, or, for an alias that moved, was meant before."""
        stored = await self.resolver.resolve(reference)
        if reference.tag is not None and is_alias(reference.tag):
            return self._follow(reference, stored)
        return stored

    def _follow(self, reference: Reference, stored: StoredAdapter) -> StoredAdapter:
        """Return the version that an alias leads to now: the one before while ``stored`` loads."""
        before = self._led_to.get(reference)
        if before is not None and before.digest != stored.digest:
            if self.is_resident(before.digest) and not self.is_resident(stored.digest):
                self._load_behind(reference, stored)
                return before
            _LOGGER.info("%s leads to %s@%s", reference, stored.reference, stored.digest)
        self._led_to[reference] = stored
        return stored

    def _load_behind(self, reference: Reference, stored: StoredAdapter) -> None:
        """Load a version for which nobody waits."""
        now = asyncio.get_running_loop().time()
        if stored.digest in self._slots or now < self._retry_at.get(stored.digest, now):
            return
        self._retry_at[stored.digest] = now + _FOLLOW_RETRY_S

        def tell(error: BaseException | None) -> None:
            if error is not None:
                _LOGGER.error("%s stays where it led before: %s", reference, error)

        try:
            slot = self._slot_of(stored, is_checked=True)
        except WrongBackbone as error:
            tell(error)
        else:
            slot.loading.add_done_callback(lambda loading: tell(loading.exception()))

    async def _lease(self, stored: StoredAdapter, *, is_checked: bool) -> Lease:
        slot = self._slot_of(stored, is_checked=is_checked)
        slot.is_unwanted = False
        self._slots.move_to_end(stored.digest)
        slot.leases += 1
        try:
            # shielded: who leaves does not take the load away from those who stay
            prepared = await asyncio.shield(slot.loading)
            if is_checked:
                await self._check_slot(slot, prepared)
        except BaseException:
            self._give_back(slot)
            raise
        return Lease(stored, prepared, partial(self._give_back, slot))

    def _slot_of(self, stored: StoredAdapter, *, is_checked: bool) -> _Slot:
        """Return the adapter's slot; a load begins where there is none."""
        slot = self._slots.get(stored.digest)
        if slot is None:
            self._check_backbone(stored)
            loading = asyncio.create_task(self._load(stored, is_checked=is_checked))
            self._slots[stored.digest] = slot = _Slot(stored=stored, loading=loading)
        return slot

    async def _check_slot(self, slot: _Slot, prepared: PreparedAdapter) -> None:
        """Hold an adapter to its example, once; one that fails is not served from here on."""
        if self._check is None or slot.is_checked:
            return
        try:
            await self._check(slot.stored, prepared)
        except WrongAnswer as error:
            self._refused[slot.stored.digest] = str(error)
            slot.is_unwanted = True
            raise
        self._refused.pop(slot.stored.digest, None)
        slot.is_checked = True

    def _give_back(self, slot: _Slot) -> None:
        slot.leases -= 1
        self._drop_unwanted(slot)

    def _drop_unwanted(self, slot: _Slot) -> None:
        if slot.is_unwanted and slot.is_evictable:
            slot.is_unwanted = False
            self._drop(slot)
            self._observer.adapter_unloaded(self._loaded)

    async def _load(self, stored: StoredAdapter, *, is_checked: bool) -> PreparedAdapter:
        started = perf_counter()
        try:
            prepared = await asyncio.get_running_loop().run_in_executor(
                self._threads, self._read, stored
            )
            if is_checked:  # before anybody can use it
                await self._check_slot(self._slots[stored.digest], prepared)
            size_bytes = prepared.size_bytes()
            self._make_room(stored, size_bytes)
        except BaseException:
            del self._slots[stored.digest]  # the next caller tries again
            raise
        slot = self._slots[stored.digest]
        slot.size_bytes = size_bytes
        self._used_bytes += size_bytes
        self._loaded += 1
        self._observer.adapter_loaded(perf_counter() - started, self._loaded)
        self._drop_unwanted(slot)  # all who waited for it may have left
        return prepared

    def _read(self, stored: StoredAdapter) -> PreparedAdapter:
        spec, arrays = self._store.load(stored)
        self._warn_of_precision(stored, spec.lineage.precision)
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return self._runner.prepare(spec, tensors)

    def _warn_of_precision(self, stored: StoredAdapter, trained: str) -> None:
        """Say once of an adapter that it learnt on other numbers than it is served with."""
        if (trained == "int8") == self._runner.name.endswith("int8"):
            return  # bf16 and fp32 give the same metrics within 0.1 point (docs/decisions/log.md)
        if stored.digest in self._warned_of:
            return
        self._warned_of.add(stored.digest)
        _LOGGER.warning(
            "%s learnt on a backbone in %s and is served by %s: its metrics may not hold",
            stored.reference,
            trained,
            self._runner.name,
        )

    def _make_room(self, stored: StoredAdapter, size_bytes: int) -> None:
        if size_bytes > self.limit_bytes:
            raise InvalidSpec(
                f"{stored.reference} takes {size_bytes} bytes, this server has "
                f"{self.limit_bytes} for all adapters; give it more memory for adapters"
            )
        missing = self._used_bytes + size_bytes - self.limit_bytes
        oldest = []
        for slot in self._slots.values():
            if missing <= 0:
                break
            if slot.is_evictable:
                oldest.append(slot)
                missing -= slot.size_bytes
        if missing > 0:
            raise Overloaded(
                f"no room for {stored.reference} ({size_bytes} bytes): all other adapters of the "
                f"{self.limit_bytes} bytes for adapters are in use"
            )
        for slot in oldest:
            self._drop(slot)
            self._observer.adapter_evicted(self._loaded)

    def _drop(self, slot: _Slot) -> None:
        del self._slots[slot.stored.digest]
        self._used_bytes -= slot.size_bytes
        self._loaded -= 1

    def _check_backbone(self, stored: StoredAdapter) -> None:
        wanted, here = stored.spec.backbone, self._backbone.identity
        if wanted.digest != here.digest:
            raise WrongBackbone(
                f"{stored.reference} belongs to the backbone {wanted.hub_id} ({wanted.digest}), "
                f"this server runs {here.hub_id} ({here.digest})"
            )
        sizes = ("family", "layers", "hidden", "heads", "intermediate")
        wrong = [name for name in sizes if getattr(wanted, name) != getattr(here, name)]
        if wrong:  # the digest is right, so the spec lies
            raise WrongBackbone(
                f"{stored.reference} has the digest of {here.hub_id}, but another "
                f"{' and '.join(wrong)}"
            )
        if stored.spec.task.max_tokens > self._backbone.config.max_tokens:
            raise WrongBackbone(
                f"{stored.reference} takes rows of {stored.spec.task.max_tokens} tokens, the "
                f"backbone of this server {self._backbone.config.max_tokens}"
            )
