"""A server that is killed and comes back on its port, and callers who must lose nothing."""

import random
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic, sleep
from types import TracebackType
from typing import Self

from upt_benchmarks.ports import free_port
from upt_benchmarks.truth import Truth
from upt_server.client import Client
from upt_zoo.errors import UptError
from upt_zoo.references import Reference

_PATIENCE_S = 120.0  # of a caller; a start takes a few seconds, on a busy machine many
_REMEMBERED_S = 6.0  # the server writes down what is in memory every five


class KilledServer:
    """``upt-server run`` with ``options`` on one port, in one process after the other."""

    def __init__(self, options: Sequence[str]) -> None:
        self._options, self._port = options, free_port()
        self._process: subprocess.Popen[str] | None = None
        self.target = f"127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start it and wait until it is ready."""
        ports = ["--grpc-port", str(self._port), "--http-port", "0"]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "upt_server.cli", "run", "--json", *ports, *self._options],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline(), "the server did not start"

    def kill(self) -> None:
        """End it without a word."""
        assert self._process is not None
        with self._process as process:
            process.kill()
        self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._process is not None:
            self.kill()


@dataclass(slots=True, kw_only=True)
class Persistent:
    """A caller in a thread of its own, who asks again and again and judges every answer.

    ``calls`` are the times of begin and end of those that were answered, by ``monotonic``.
    """

    target: str
    truth: Truth
    asked: Sequence[tuple[Reference, str]]
    source: random.Random
    token: str | None = None
    calls: list[tuple[float, float]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def ask_until(self, is_over: threading.Event) -> None:
        """Ask one call after the other."""
        with Client(self.target, token=self.token, retry_for_s=_PATIENCE_S) as client:
            while not is_over.is_set():
                self._ask(client)

    def _ask(self, client: Client) -> None:
        inputs, begin_s = (
            self.source.choices(self.asked, k=self.source.choice((1, 2, 4))),
            monotonic(),
        )
        try:
            prediction = client.predict_many((str(adapter), [text]) for adapter, text in inputs)
        except (UptError, TimeoutError) as error:
            self.faults.append(f"lost: {type(error).__name__}: {error}")
            return
        self.calls.append((begin_s, monotonic()))
        for output, (adapter, text) in zip(prediction.outputs, inputs, strict=True):
            if fault := self.truth.fault_in(output, adapter, text, begin_s):
                self.faults.append(fault)


@contextmanager
def asking(callers: Sequence[Persistent]) -> Iterator[None]:
    """Let every caller ask, until the context is left and its last call has ended."""
    is_over = threading.Event()
    threads = [threading.Thread(target=each.ask_until, args=[is_over]) for each in callers]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


def ask_through_kills(
    server: KilledServer, callers: Sequence[Persistent], kills: int, source: random.Random
) -> dict[str, object]:
    """Kill and start a running server ``kills`` times while callers ask; tell what became of it."""
    killed_at_s: list[float] = []
    with asking(callers):
        for _ in range(kills):
            sleep(_REMEMBERED_S + source.uniform(0, 1))
            killed_at_s.append(monotonic())
            server.kill()
            sleep(source.uniform(0, 2))
            server.start()
        sleep(1)
    calls = [call for each in callers for call in each.calls]
    return {
        "kills": kills,
        "calls": len(calls),
        "calls_at_work_when_killed": sum(
            begin_s < at_s < end_s for begin_s, end_s in calls for at_s in killed_at_s
        ),
        "longest_call_s": round(max(end_s - begin_s for begin_s, end_s in calls), 1),
        "faults": [fault for each in callers for fault in each.faults],
    }


def warm_faults(server: KilledServer, asked: set[str]) -> list[str]:
    """Kill the server, start it, and say what it has in memory before anybody asks, if wrong."""
    sleep(_REMEMBERED_S)
    server.kill()
    server.start()
    with Client(server.target) as client:
        resident = {each.identity.name for each in client.adapters() if each.is_resident}
    if resident == asked:
        return []
    return [f"in memory after a start: {sorted(resident)}, before: {sorted(asked)}"]
