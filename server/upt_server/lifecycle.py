"""What operators do to adapters in memory, by whichever protocol they ask. Knows none."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from upt_server.access.callers import Access
from upt_server.residency import Residency, Resident
from upt_zoo.local.store import StoredAdapter
from upt_zoo.references import Reference


class Lifecycle:
    """Loads, pins and unloads adapters for callers who may ask them.

    Every method raises ``Forbidden`` for other callers, and what ``Residency`` raises.
    """

    def __init__(self, residency: Residency, access: Access) -> None:
        self._residency, self._access = residency, access

    async def load(self, reference: Reference) -> StoredAdapter:
        """Load an adapter, which may be evicted later."""
        with self._asking(reference):
            return await self._residency.load(reference)

    async def pin(self, reference: Reference) -> StoredAdapter:
        """Load an adapter and keep it until it is unloaded."""
        with self._asking(reference):
            return await self._residency.pin(reference)

    async def preload(self, references: Sequence[Reference]) -> tuple[StoredAdapter, ...]:
        """Pin adapters in their order; those before one that cannot be loaded stay pinned."""
        with self._asking(*references):
            return tuple([await self._residency.pin(reference) for reference in references])

    async def unload(self, reference: Reference) -> StoredAdapter:
        """Drop an adapter from memory and its pin; who asks for it loads it again."""
        with self._asking(reference):
            return await self._residency.unload(reference)

    def resident(self) -> tuple[Resident, ...]:
        """Return what is in memory and may be asked, the least recently used first."""
        return tuple(
            each for each in self._residency.resident() if self._access.allows(each.stored.name)
        )

    @contextmanager
    def _asking(self, *references: Reference) -> Iterator[None]:
        self._access.check_adapters(reference.name for reference in references)
        with self._access.discreet():
            yield
