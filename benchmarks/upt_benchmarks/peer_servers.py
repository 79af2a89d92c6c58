"""Plain servers of other libraries, each a process in the library's own environment.

A server (``benchmarks/peers``) is told its setup as JSON and answers JSON over gRPC.
"""

import json
import os
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc.aio

from upt_benchmarks.loaded import ADAPTERS, THREADS
from upt_benchmarks.peers import PEER_SOURCES, QUIET, PeerFailed, PeerName
from upt_benchmarks.side_by_side import Predict

ENVIRONMENT: PeerName = "adapterhub"  # of all: it has transformers too
# by the name of the way: the program, and how many adapters or models it holds
SERVERS: Mapping[str, tuple[str, int]] = {
    "adapters_grouped": ("adapterhub_server.py", ADAPTERS),
    "full_models": ("full_models_server.py", 8),
}

_METHOD = "/peer.Peer/Predict"
_TIMEOUT_S = 60
# the callers have the same cores: threads that spin would wait for one that they keep from running
# (beside other work full models answered 5 to 22 rows/s by torch's default, 25 to 29 so)
_WAITING = {"OMP_NUM_THREADS": str(THREADS), "OMP_WAIT_POLICY": "PASSIVE"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerServer:
    """Where it listens, and with what it computes."""

    target: str
    versions: Mapping[str, str]


@contextmanager
def peer_server(way: str, python: Path, checkpoint: Path) -> Iterator[PeerServer]:
    """Run a server of ``SERVERS`` by this interpreter, on a free port of loopback.

    Raises:
        PeerFailed: it could not be started; it said why on standard error.
    """
    program, models = SERVERS[way]
    setup = {"checkpoint": str(checkpoint), "models": models, "threads": THREADS}
    with subprocess.Popen(
        [str(python), str(PEER_SOURCES / program), json.dumps(setup)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **QUIET, **_WAITING},
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise PeerFailed(f"{way}: the server ended with {process.wait()}; see above")
            ready = json.loads(line)
            yield PeerServer(target=f"127.0.0.1:{ready['port']}", versions=ready["versions"])
        finally:
            process.terminate()


@asynccontextmanager
async def calling_peer(target: str, names: Sequence[str]) -> AsyncIterator[Predict]:
    """Yield what asks a server for a text's label; task i is the i-th name."""
    tasks = {name: index for index, name in enumerate(names)}
    async with grpc.aio.insecure_channel(target) as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(_METHOD)

        async def predict(name: str, text: str) -> object:
            asked = json.dumps({"task": tasks[name], "text": text}).encode()
            return json.loads(await call(asked, timeout=_TIMEOUT_S))["label"]

        yield predict
