"""Everything that goes wrong in production, on purpose and really: no call of ours is replaced.

Owned by the event loop of the program that soaks a server; see ``benchmarks/soak.py``.
"""

import asyncio
import contextlib
import resource
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from upt_server.runner import Runner
from upt_zoo.local.store import Store, StoredAdapter
from upt_zoo.nn.adapter import PreparedAdapter
from upt_zoo.nn.packing import Row
from upt_zoo.references import Reference
from upt_zoo.spec import AdapterSpec

_CALLS_UNTIL_KILLED = """
import asyncio, sys
from upt_server.client import AsyncClient
async def main():
    async with AsyncClient(sys.argv[1]) as client:
        print("asking", flush=True)
        while True:
            await asyncio.gather(
                *(client.predict(sys.argv[2], "a film of two people by the sea") for _ in range(8)),
                return_exceptions=True,
            )
asyncio.run(main())
"""


class FaultyRunner:
    """A runner that raises or stalls when told to, and always raises for rows with some token.

    ``lonely_raises`` counts the batches of one row that it was told to raise for: larger ones are
    computed again in halves, and nobody notices.
    """

    def __init__(self, runner: Runner, *, unlucky_token: int) -> None:
        self._runner, self._unlucky_token = runner, unlucky_token
        self._next: float | Exception | None = None
        self.lonely_raises = 0
        self._lock = threading.Lock()
        self.name = runner.name

    def raise_next(self) -> None:
        """Let the next batch raise."""
        with self._lock:
            self._next = RuntimeError("the runner was told to raise")

    def stall_next(self, seconds: float) -> None:
        """Let the next batch take longer."""
        with self._lock:
            self._next = seconds

    def prepare(self, spec: AdapterSpec, tensors: Mapping[str, Tensor]) -> PreparedAdapter:
        """Prepare an adapter, faultlessly."""
        return self._runner.prepare(spec, tensors)

    def run(self, rows: Sequence[Row]) -> list[NDArray[np.float32]]:
        """Compute rows, or do what was asked for."""
        with self._lock:
            todo, self._next = self._next, None
        if isinstance(todo, Exception):
            self.lonely_raises += len(rows) == 1
            raise todo
        if todo is not None:
            time.sleep(todo)
        if any(self._unlucky_token in row.ids for row in rows):
            raise RuntimeError("a row that cannot be computed")
        return self._runner.run(rows)


@contextmanager
def full_disk() -> Iterator[None]:
    """Let every write to a file fail that makes it longer; sockets and pipes go on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def damaged(store: Store, stored: StoredAdapter) -> Iterator[None]:
    """Change one byte of an adapter's tensors, and mend it in the end."""
    path = store.blob_path(stored.manifest.tensors.digest)
    whole = path.read_bytes()
    _replace(path, whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        yield
    finally:
        _replace(path, whole)


def _replace(path: Path, data: bytes) -> None:
    partial = path.with_name(path.name + ".other")
    partial.write_bytes(data)
    partial.replace(path)


@asynccontextmanager
async def hanging_remote() -> AsyncIterator[str]:
    """Listen like a registry, accept connections and never say a word; give its reference."""
    is_over = asyncio.Event()

    async def hang(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await is_over.wait()
        writer.close()

    server = await asyncio.start_server(hang, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield f"oci://127.0.0.1:{port}/team"
    finally:
        is_over.set()
        server.close()


async def pull_from(remote: str, home: Path, seconds: float) -> None:
    """Pull from a remote that never answers, in a process that is killed after a while."""
    command = ["-m", "upt_zoo.cli", "pull", f"{remote}/film", "--home", str(home)]
    async with _process(command) as process:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), seconds)


async def ask_until_killed(target: str, reference: Reference, seconds: float) -> None:
    """Ask from a process that is killed in the middle of its calls."""
    async with _process(["-c", _CALLS_UNTIL_KILLED, target, str(reference)]) as process:
        assert process.stdout is not None
        await process.stdout.readline()
        await asyncio.sleep(seconds)


@asynccontextmanager
async def _process(arguments: Sequence[str]) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
        await process.communicate()
