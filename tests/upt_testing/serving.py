"""Servers for tests: a whole one on loopback, in this process, with any runner."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from upt_server.app import Ports, Server, build_engine
from upt_server.engine import Engine
from upt_server.metrics import Metrics
from upt_server.runner import Runner
from upt_server.scheduling import Budget
from upt_server.settings import Settings
from upt_server.telemetry.recorder import Recorder
from upt_testing.adapters import (
    BOTTLENECK,
    CLASSIFICATION,
    LORA,
    PREFIX,
    PROMPT,
    random_tensors,
    tiny_spec,
)
from upt_zoo.backbone import Backbone
from upt_zoo.local.store import Store, StoredAdapter
from upt_zoo.nn.adapter import PreparedAdapter, prepare
from upt_zoo.nn.packing import Row
from upt_zoo.spec import AdapterSpec, Head

TIMEOUT_S = 30.0  # far beyond what anything here takes; only a hanging test meets it


class FakeRunner:
    """Answers with a function of adapter and ids, so that an answer given to another row shows.

    ``hold`` makes it stop inside each batch until ``release``; ``batches`` is what it was given. It
    raises ``error``, and whenever a row holds ``unlucky_id``.
    """

    name = "fake"

    def __init__(self) -> None:
        self.batches: list[list[Row]] = []
        self.error: Exception | None = None
        self.unlucky_id: int | None = None
        self._free = threading.Event()
        self._free.set()
        self._entered = threading.Semaphore(0)

    def hold(self) -> None:
        self._free.clear()

    def release(self) -> None:
        self._free.set()

    async def entered(self) -> None:
        """Wait until one more batch has reached the runner."""
        is_entered = await asyncio.to_thread(self._entered.acquire, timeout=TIMEOUT_S)
        assert is_entered, "no batch reached the runner"

    def prepare(self, spec: AdapterSpec, tensors: Mapping[str, Tensor]) -> PreparedAdapter:
        return prepare(spec, tensors, dtype=torch.float32)

    def run(self, rows: Sequence[Row]) -> list[NDArray[np.float32]]:
        self.batches.append(list(rows))
        self._entered.release()
        assert self._free.wait(TIMEOUT_S), "the runner was never released"
        if self.error is not None:
            raise self.error
        if any(self.unlucky_id in row.ids for row in rows):
            raise RuntimeError("an unlucky row")
        return [expected_logits(row) for row in rows]


def expected_logits(row: Row) -> NDArray[np.float32]:
    """What ``FakeRunner`` answers: the head's bias plus the ids' sum."""
    bias: NDArray[np.float32] = row.adapter.head.out[1].numpy()
    return bias + np.float32(sum(row.ids))


@dataclass(frozen=True, slots=True, kw_only=True)
class Publisher:
    """Publishes UniPELT+Prompt adapters of random numbers for a backbone into a store."""

    store: Store
    backbone: Backbone

    def __call__(
        self, name: str, head: Head = CLASSIFICATION, *, version: str = "1.0.0", seed: int = 0
    ) -> StoredAdapter:
        spec = tiny_spec(
            backbone=self.backbone.identity,
            name=name,
            lora=LORA,
            prefix=PREFIX,
            bottleneck=BOTTLENECK,
            prompt=PROMPT,
            head=head,
        )
        return self.store.publish(spec, random_tensors(spec, seed), "# Card", version=version)


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A running server and its parts."""

    target: str
    http: str
    admin: str
    engine: Engine
    server: Server
    metrics: Metrics


def make_settings(home: Path, **changes: object) -> Settings:
    """Settings for tests: free ports on loopback."""
    values: dict[str, object] = {
        "home": home,
        "backbone": "",
        "host": "127.0.0.1",
        "grpc_port": 0,
        "http_port": 0,
        "preload": (),
        "precision": "exact",
        "runner": "auto",
        "runner_cache": None,
        "device": "cpu",
        "threads": 1,
        "budget": Budget(tokens=4096),
        "max_queue_tokens": 65_536,
        "max_adapter_bytes": 2**30,
        "drain_timeout_s": TIMEOUT_S,
    }
    return Settings(**(values | changes))  # type: ignore[arg-type]  # the tests' own shorthand


@asynccontextmanager
async def serving(
    settings: Settings,
    backbone: Backbone,
    runner: Runner,
    *,
    is_open: bool = True,
    recorder: Recorder | None = None,
) -> AsyncIterator[Served]:
    """Run a server; with ``is_open`` False it stays in the state of starting."""
    metrics, recorder = Metrics(), recorder or Recorder()
    engine = build_engine(settings, backbone, runner, metrics, recorder.tracer)
    server = Server(engine, metrics, settings, recorder)
    ports: Ports = await server.start()
    if is_open:
        await server.open()
    try:
        yield Served(
            target=f"127.0.0.1:{ports.grpc}",
            http=f"127.0.0.1:{ports.http}",
            admin=f"127.0.0.1:{ports.admin}",
            engine=engine,
            server=server,
            metrics=metrics,
        )
    finally:
        await server.drain()


async def until(is_true: Callable[[], bool]) -> None:
    """Let others run until a condition of this process holds."""
    async with asyncio.timeout(TIMEOUT_S):
        while not is_true():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.001)  # with 0 the loop would keep gRPC's own threads out
