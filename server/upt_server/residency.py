"""Which adapters are in memory: loaded on demand, kept while leased, evicted when unused.

Owned by the event loop; reading, checking and preparing an adapter happens on a thread.
"""

import asyncio
import logging
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter
from types import TracebackType
from typing import Protocol, Self

import torch

from upt_server.resolver import Resolver
from upt_server.runner import Runner
from upt_zoo.backbone import Backbone
from upt_zoo.errors import InvalidSpec, Overloaded, WrongBackbone
from upt_zoo.local.store import Store, StoredAdapter
from upt_zoo.nn.adapter import PreparedAdapter
from upt_zoo.references import Reference

_LOGGER = logging.getLogger(__name__)
_LOAD_THREADS = 2


class ResidencyObserver(Protocol):
    """Is told what happens to adapters in memory."""

    def adapter_loaded(self, seconds: float, resident: int) -> None:
        """One was read from the store; ``resident`` are in memory."""
        ...

    def adapter_evicted(self, resident: int) -> None:
        """One was dropped to make room; ``resident`` are left in memory."""
        ...


class Lease:
    """The right to use an adapter; it stays in memory until the lease is given back.

    ``stored`` is what the reference meant when the lease was taken.
    """

    def __init__(self, stored: StoredAdapter, prepared: PreparedAdapter, slot: "_Slot") -> None:
        self.stored, self.prepared = stored, prepared
        self._slot = slot

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._slot.leases -= 1


@dataclass(slots=True, kw_only=True, eq=False)
class _Slot:
    """One adapter on its way into memory or in it; leased by everybody who waits or computes."""

    loading: asyncio.Task[PreparedAdapter]
    size_bytes: int = 0
    leases: int = 0

    @property
    def is_evictable(self) -> bool:
        return self.leases == 0 and self.size_bytes > 0


class Residency:
    """Adapters in memory, at most ``limit_bytes`` of them, least recently used first out."""

    def __init__(
        self,
        store: Store,
        backbone: Backbone,
        runner: Runner,
        *,
        limit_bytes: int,
        observer: ResidencyObserver,
    ) -> None:
        self._store, self._backbone, self._runner = store, backbone, runner
        self._limit_bytes, self._observer = limit_bytes, observer
        self._slots: OrderedDict[str, _Slot] = OrderedDict()  # by digest, last used last
        self._pins: list[Lease] = []
        self._threads = ThreadPoolExecutor(_LOAD_THREADS, thread_name_prefix="upt-load")
        self.resolver = Resolver(store, backbone.identity.digest, self._threads)

    async def acquire(self, reference: Reference) -> Lease:
        """Lease an adapter, loading it if need be; concurrent callers share one load.

        Raises:
            AdapterNotFound: no such name, tag or digest.
            Corrupt: its bytes do not match their digest, its format or its spec.
            InvalidSpec: it is larger than all the memory for adapters.
            Overloaded: everything in memory is in use, and there is no room for it.
            WrongBackbone: it was trained on another backbone, or for longer rows than this takes.
        """
        stored = await self.resolver.resolve(reference)
        self._check_backbone(stored)
        slot = self._slots.get(stored.digest)
        if slot is None:
            slot = _Slot(loading=asyncio.create_task(self._load(stored)))
            self._slots[stored.digest] = slot
        self._slots.move_to_end(stored.digest)
        slot.leases += 1
        try:
            # shielded: who leaves does not take the load away from those who stay
            prepared = await asyncio.shield(slot.loading)
        except BaseException:
            slot.leases -= 1
            raise
        return Lease(stored, prepared, slot)

    async def pin(self, reference: Reference) -> StoredAdapter:
        """Load an adapter and never evict it."""
        lease = await self.acquire(reference)
        self._pins.append(lease)
        return lease.stored

    def is_resident(self, digest: str) -> bool:
        """Tell whether an adapter is in memory right now."""
        slot = self._slots.get(digest)
        return slot is not None and slot.size_bytes > 0

    def close(self) -> None:
        """End the loading threads."""
        self._threads.shutdown()

    async def _load(self, stored: StoredAdapter) -> PreparedAdapter:
        started = perf_counter()
        try:
            prepared = await asyncio.get_running_loop().run_in_executor(
                self._threads, self._read, stored
            )
            size_bytes = prepared.size_bytes()
            self._make_room(stored, size_bytes)
        except BaseException:
            del self._slots[stored.digest]  # the next caller tries again
            raise
        self._slots[stored.digest].size_bytes = size_bytes
        self._observer.adapter_loaded(perf_counter() - started, self._count())
        return prepared

    def _read(self, stored: StoredAdapter) -> PreparedAdapter:
        spec, arrays = self._store.load(stored)
        trained = spec.lineage.precision
        if (trained == "int8") != self._runner.name.endswith("int8"):
            # bf16 and fp32 give the same metrics within 0.1 point (docs/decisions/log.md)
            _LOGGER.warning(
                "%s learnt on a backbone in %s and is served by %s: its metrics may not hold",
                stored.reference,
                trained,
                self._runner.name,
            )
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return self._runner.prepare(spec, tensors)

    def _make_room(self, stored: StoredAdapter, size_bytes: int) -> None:
        if size_bytes > self._limit_bytes:
            raise InvalidSpec(
                f"{stored.reference} takes {size_bytes} bytes, this server has "
                f"{self._limit_bytes} for all adapters; give it more memory for adapters"
            )
        room = self._limit_bytes - sum(slot.size_bytes for slot in self._slots.values())
        evictable = {digest: slot for digest, slot in self._slots.items() if slot.is_evictable}
        if room + sum(slot.size_bytes for slot in evictable.values()) < size_bytes:
            raise Overloaded(
                f"no room for {stored.reference} ({size_bytes} bytes): all other adapters of the "
                f"{self._limit_bytes} bytes for adapters are in use"
            )
        for digest, slot in evictable.items():
            if room >= size_bytes:
                break
            del self._slots[digest]
            room += slot.size_bytes
            self._observer.adapter_evicted(self._count())

    def _count(self) -> int:
        return sum(slot.size_bytes > 0 for slot in self._slots.values())

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
