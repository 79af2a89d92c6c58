"""Many registered adapters, few in memory: what loading on demand costs.

    python benchmarks/residency.py [--registered 10000] [--resident 1000] [--seconds 15]

Prints JSON. ``cold`` is the time from a request for an adapter that is in the store and not in
memory to its first answer (a row of 32 tokens). ``zipf`` has 64 callers asking for adapters by
popularity (the k-th in proportion to k ** -1.1), with room for ``--resident`` of them, and the same
calls with all of the asked ones in memory.
"""

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import cycle
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch

from upt_benchmarks.machine import this_machine
from upt_benchmarks.ours import runner_of
from upt_benchmarks.workloads import (
    UNION,
    adapter_spec,
    adapter_tensors,
    drawn_adapters,
    row_lengths,
    token_rows,
)
from upt_server.batcher import Batcher, Job
from upt_server.residency import Residency
from upt_server.results import BatchFacts
from upt_server.runner import Runner
from upt_server.scheduling import Budget
from upt_zoo.backbone import Backbone, resolve_backbone
from upt_zoo.local.draft import Draft
from upt_zoo.local.store import Store
from upt_zoo.nn.packing import Row
from upt_zoo.references import Reference

CALLERS, BATCH, THREADS = 64, 32, 2
_DISTINCT = 50  # sets of numbers; more adapters share them under names of their own
_COLD, _PUBLISHED_AT_ONCE = 200, 500


class Loads:
    """Counts what the residency does."""

    def __init__(self) -> None:
        self.loaded = self.evicted = 0

    def adapter_loaded(self, seconds: float, resident: int) -> None:
        """Count a load."""
        self.loaded += 1

    def adapter_evicted(self, resident: int) -> None:
        """Count an eviction."""
        self.evicted += 1

    def adapter_unloaded(self, resident: int) -> None:
        """Nobody asks for that here."""


def main() -> int:
    """Measure, print."""
    arguments = _parser().parse_args()
    torch.set_num_threads(THREADS)
    backbone = resolve_backbone()
    runner = runner_of(backbone, "exact", wanted="auto", threads=THREADS, device="cpu")
    with tempfile.TemporaryDirectory(prefix="upt-residency-") as home:
        store = Store(Path(home))
        started = perf_counter()
        _publish(store, backbone, arguments.registered)
        published_s = perf_counter() - started
        started = perf_counter()
        assert len(Store(Path(home)).list()) == arguments.registered
        listed_s = perf_counter() - started
        bench = Bench(store, backbone, runner, arguments.registered)
        result = {
            "machine": asdict(this_machine()),
            "runner": runner.name,
            "registered": arguments.registered,
            "published_s": round(published_s, 1),
            "listed_s": round(listed_s, 3),
            "cold": asyncio.run(bench.cold()),
            "zipf": asyncio.run(bench.zipf(arguments.resident, arguments.seconds)),
        }
    print(json.dumps(result, indent=2))
    return 0


def _publish(store: Store, backbone: Backbone, count: int) -> None:
    spec = adapter_spec(UNION, backbone.identity)
    numbers = [
        {name: t.numpy().astype(np.float16) for name, t in adapter_tensors(spec, seed).items()}
        for seed in range(_DISTINCT)
    ]

    def drafts(indices: Sequence[int]) -> Iterator[Draft]:
        for index in indices:
            task = spec.task.model_copy(update={"name": _name(index)})
            yield Draft(
                spec=spec.model_copy(update={"task": task}),
                tensors=numbers[index % _DISTINCT],
                card="# Random",
                version="1.0.0",
            )

    for start in range(0, count, _PUBLISHED_AT_ONCE):
        store.publish_all(drafts(range(start, min(count, start + _PUBLISHED_AT_ONCE))))


class Bench:
    """One store and one runner, asked in different ways."""

    def __init__(self, store: Store, backbone: Backbone, runner: Runner, registered: int) -> None:
        self._store, self._backbone, self._runner = store, backbone, runner
        self._registered = registered
        vocabulary = backbone.config.vocab_size
        self._rows = token_rows(row_lengths("mix", BATCH), vocabulary)
        (self._short,) = token_rows([32], vocabulary)

    async def cold(self) -> dict[str, object]:
        """Ask each of some adapters for the first time, one after the other."""
        residency = self._residency(2**40, Loads())
        source = np.random.RandomState(2)
        times = []
        for index in source.permutation(self._registered)[:_COLD].tolist():
            started = perf_counter()
            with await residency.acquire(Reference(name=_name(index))) as lease:
                row = Row(ids=self._short, type_ids=[0] * 32, adapter=lease.prepared)
                await asyncio.to_thread(self._runner.run, [row])
            times.append((perf_counter() - started) * 1000)
        residency.close()
        return {
            "adapters": len(times),
            "p50_ms": round(median(times), 2),
            "p99_ms": round(float(np.percentile(times, 99)), 2),
        }

    async def zipf(self, resident: int, seconds: float) -> dict[str, object]:
        """Ask by popularity, with little room and with room for all that are asked."""
        (asked,) = drawn_adapters("zipf", registered=self._registered, rows=200_000, batches=1)
        with await self._residency(2**40, Loads()).acquire(Reference(name=_name(0))) as lease:
            size = lease.prepared.size_bytes()
        loads = Loads()
        little = self._residency(resident * size, loads)
        # the memory as it is in the long run, and the numbers of all in the page cache
        rate, answered = await self._ask(little, cycle(asked), seconds)
        loads.loaded = loads.evicted = 0
        rate, answered = await self._ask(little, cycle(asked[answered:]), seconds)
        seen = asked[: 2 * answered]
        little.close()
        ample = self._residency(2**40, Loads())
        for index in sorted(set(seen)):
            await ample.pin(Reference(name=_name(index)))
        all_rate, _ = await self._ask(ample, cycle(seen), seconds)
        ample.close()
        return {
            "resident": resident,
            "rows_per_s": round(rate, 1),
            "loads_per_s": round(loads.loaded / seconds, 1),
            "evictions_per_s": round(loads.evicted / seconds, 1),
            "all_resident_rows_per_s": round(all_rate, 1),
            "ratio": round(rate / all_rate, 3),
        }

    def _residency(self, limit_bytes: int, loads: Loads) -> Residency:
        return Residency(
            self._store, self._backbone, self._runner, limit_bytes=limit_bytes, observer=loads
        )

    async def _ask(
        self, residency: Residency, asked: Iterator[int], seconds: float
    ) -> tuple[float, int]:
        """Let the callers ask for ``seconds``; return rows a second and rows."""
        batcher = Batcher(
            self._runner,
            budget=Budget(tokens=2048),
            max_queue_tokens=2**20,
            observe=_ignore,
        )
        rows, answered, started = cycle(self._rows), 0, perf_counter()

        async def ask_again() -> None:
            nonlocal answered
            while perf_counter() - started < seconds:
                reference, ids = Reference(name=_name(next(asked))), next(rows)
                with await residency.acquire(reference) as lease:
                    row = Row(ids=ids, type_ids=[0] * len(ids), adapter=lease.prepared)
                    await batcher.compute([Job(row=row, adapter=lease.stored.digest)])
                answered += 1

        await asyncio.gather(*(ask_again() for _ in range(CALLERS)))
        rate = answered / (perf_counter() - started)
        await batcher.close()
        return rate, answered


def _name(index: int) -> str:
    return f"task{index}"


def _ignore(_: BatchFacts) -> None:
    pass


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measure loading on demand.")
    parser.add_argument("--registered", type=int, default=10_000, help="adapters in the store")
    parser.add_argument("--resident", type=int, default=1000, help="adapters that fit into memory")
    parser.add_argument("--seconds", type=float, default=15, help="of each measurement")
    return parser


if __name__ == "__main__":
    sys.exit(main())
