"""What a reference means right now, asked of the disk only when the store has changed."""

from asyncio import get_running_loop
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from upt_zoo.errors import InvalidReference
from upt_zoo.local.index_file import Stamp
from upt_zoo.local.store import Store, StoredAdapter
from upt_zoo.references import Reference


class Resolver:
    """Resolves references, with a memory that ends when the store's index is replaced.

    So a bare name follows newly published versions for this backbone without a restart.
    ``threads`` does the reading.
    """

    def __init__(self, store: Store, backbone_digest: str, threads: ThreadPoolExecutor) -> None:
        self._store, self._threads = store, threads
        self._resolve = partial(store.resolve, backbone=backbone_digest)
        self._stamp: Stamp | None = None
        self._known: dict[Reference, StoredAdapter] = {}

    async def resolve(self, reference: Reference) -> StoredAdapter:
        """Find the version that is meant.

        Raises:
            AdapterNotFound: no such name, tag or digest.
            Corrupt: the adapter's manifest or spec is damaged.
            InvalidReference: the reference names a remote.
        """
        if reference.remote is not None:
            raise InvalidReference(
                f"{reference}: the server answers from its own store; leave out {reference.remote}/"
            )
        stamp = self._store.stamp()
        if stamp != self._stamp:
            self._stamp, self._known = stamp, {}
        known = self._known  # a later index gets a memory of its own
        stored = known.get(reference)
        if stored is None:
            stored = await get_running_loop().run_in_executor(
                self._threads, self._resolve, reference
            )
            known[reference] = stored
        return stored

    async def references(self) -> tuple[Reference, ...]:
        """Return every version that can be named, by name, then from oldest to newest."""
        return await get_running_loop().run_in_executor(self._threads, self._store.list)
