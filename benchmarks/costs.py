"""What serving costs on this machine: the numbers that ``upt-server plan`` and the simulator take.

    python benchmarks/costs.py [--precision exact] [--threads 2] [--ray] [--out COSTS.json]

Prints the JSON of ``upt_server.capacity.costs.Costs``. A server that 2 to 32 callers keep busy,
with texts of 12 or 96 tokens and one adapter or 32, gives the costs of a batch and of what passes
between two; calls at random times what they wait beyond queue and batch, and what a batch loses to
those that come while it is computed; loads through the residency, alone and beside a busy runner,
those of an adapter. Takes about two minutes, in which nothing else should run.

``--ray`` measures what two replicas behind Ray Serve take on this machine too, by the CPU time of
their processes (Linux), under five loads: 1 to 32 callers, texts of 32 or of 96 tokens.
"""

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import NamedTuple

import numpy as np
import torch

from upt_benchmarks.asking import ask_at_random, ask_in_closed_loop
from upt_benchmarks.costing import Busy, busy
from upt_benchmarks.machine import this_machine
from upt_benchmarks.ours import Engine, runner_of
from upt_benchmarks.routing_costs import measure_router
from upt_benchmarks.served import (
    ServerProcess,
    named_specs,
    publish_random,
    running_server,
    texts_of,
)
from upt_benchmarks.workloads import (
    PROMPT_LENGTH,
    UNION,
    adapter_spec,
    adapter_tensors,
    row_lengths,
    token_rows,
)
from upt_server.capacity.costs import Costs, RouterCosts
from upt_server.client import AsyncClient
from upt_server.precision import Precision
from upt_server.residency import Residency
from upt_server.runner import Runner
from upt_zoo.backbone import Backbone, resolve_backbone
from upt_zoo.local.draft import Draft
from upt_zoo.local.store import Store
from upt_zoo.references import Reference

_ADAPTERS, _TOKENS = 32, 32
# callers, the tokens of their texts, and the adapters that they ask for
_CALLERS = (2, 8, 32)
_ASKED = tuple(product(_CALLERS, (12, 96), (1, _ADAPTERS)))
_WARM_S, _LOAD_S, _BUSY_S = 2.0, 6.0, 4.0
_STORED, _COLD = 120, 100
_SEED = 1000  # far from those of benchmarks/predictions.py


class Loading(NamedTuple):
    """What an adapter costs to read, and the memory it takes."""

    load_s: float
    work_s: float
    size_bytes: int
    stored_bytes: int


class Serving(NamedTuple):
    """What the server costs."""

    busy: Busy
    edge_s: float
    server_bytes: int
    start_s: float


def main() -> int:
    """Measure, print."""
    arguments = _parser().parse_args()
    torch.set_num_threads(arguments.threads)
    backbone = resolve_backbone()
    runner = runner_of(
        backbone, arguments.precision, wanted="auto", threads=arguments.threads, device="cpu"
    )
    loading = _loading(backbone, runner)
    options = ["--precision", arguments.precision, "--threads", str(arguments.threads)]
    serving = _serving(backbone, options, loading.size_bytes)
    machine = this_machine()
    costs = Costs(
        machine=machine.cpu,
        cores=machine.cores,
        date=machine.date,
        backbone=backbone.identity.hub_id,
        runner=f"{runner.name}, {arguments.threads} threads",
        batch=serving.busy.batch,
        alone_s=serving.busy.alone_s,
        together_s=serving.busy.together_s,
        call_s=serving.busy.call_s,
        handoff_s=serving.busy.handoff_s,
        edge_s=serving.edge_s,
        load_s=loading.load_s,
        load_work_s=loading.work_s,
        jitter_root_s=serving.busy.jitter_root_s,
        prompt_tokens=PROMPT_LENGTH,
        adapter_bytes=loading.size_bytes,
        stored_bytes=loading.stored_bytes,
        server_bytes=serving.server_bytes,
        start_s=serving.start_s,
    )
    if arguments.ray:
        costs = costs.model_copy(update={"router": _router(backbone, arguments.precision)})
    text = costs.model_dump_json(indent=2)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n")
    print(text)
    return 0


def _loading(backbone: Backbone, runner: Runner) -> Loading:
    spec = adapter_spec(UNION, backbone.identity)
    tensors = {name: t.numpy().astype(np.float16) for name, t in adapter_tensors(spec, 0).items()}
    names = [f"task{index}" for index in range(_STORED)]
    with tempfile.TemporaryDirectory(prefix="upt-costs-") as home:
        store = Store(Path(home))
        store.publish_all(
            Draft(
                spec=spec.model_copy(update={"task": spec.task.model_copy(update={"name": name})}),
                tensors=tensors,
                card="# Random",
                version="1.0.0",
            )
            for name in names
        )
        return asyncio.run(_load_all(store, backbone, runner, names))


async def _load_all(
    store: Store, backbone: Backbone, runner: Runner, names: Sequence[str]
) -> Loading:
    ample = Residency(store, backbone, runner, limit_bytes=2**40, observer=_Nobody())
    took = []
    for name in names[:_COLD]:
        started = perf_counter()
        with await ample.acquire(Reference(name=name)) as lease:
            took.append(perf_counter() - started)
            size, stored = lease.prepared.size_bytes(), lease.stored.size_bytes
    ample.close()
    ids = token_rows(row_lengths("mix", _ADAPTERS), backbone.config.vocab_size)
    run = Engine(runner, backbone).mixed(ids, UNION, _ADAPTERS)
    alone_s = await asyncio.to_thread(_seconds_each, run, _BUSY_S)
    little = Residency(store, backbone, runner, limit_bytes=2 * size, observer=_Nobody())
    beside = asyncio.create_task(asyncio.to_thread(_seconds_each, run, _BUSY_S))
    loads = 0
    while not beside.done():
        with await little.acquire(Reference(name=names[loads % len(names)])):
            loads += 1
    beside_s = await beside
    little.close()
    batches = _BUSY_S / beside_s
    return Loading(
        load_s=median(took),
        work_s=max(0.0, (beside_s - alone_s) * batches / loads),
        size_bytes=size,
        stored_bytes=stored,
    )


def _seconds_each(run: Callable[[], object], seconds: float) -> float:
    run()
    started, runs = perf_counter(), 0
    while perf_counter() - started < seconds:
        run()
        runs += 1
    return (perf_counter() - started) / runs


def _serving(backbone: Backbone, options: Sequence[str], adapter_bytes: int) -> Serving:
    with tempfile.TemporaryDirectory(prefix="upt-costs-") as home:
        names = publish_random(Path(home), named_specs(backbone, _ADAPTERS))
        started = perf_counter()
        with running_server(Path(home), [*options, "--preload", ",".join(names)]) as server:
            start_s = perf_counter() - started
            found, edge_s = asyncio.run(_calls(server, names))
            held_bytes = int(server.resident_mb() * 2**20)
    return Serving(
        busy=found,
        edge_s=edge_s,
        server_bytes=held_bytes - _ADAPTERS * adapter_bytes,
        start_s=start_s,
    )


def _router(backbone: Backbone, precision: Precision) -> RouterCosts:
    with tempfile.TemporaryDirectory(prefix="upt-costs-") as home:
        names = publish_random(Path(home), named_specs(backbone, _ADAPTERS))
        return measure_router(Path(home), names, precision)


async def _calls(server: ServerProcess, names: Sequence[str]) -> tuple[Busy, float]:
    async with AsyncClient(server.target, timeout_s=60) as client:
        loads = []
        for index, (callers, tokens, adapters) in enumerate(_ASKED):
            asking = partial(
                ask_in_closed_loop, [client], names[:adapters], texts_of([tokens]), callers=callers
            )
            await asking(seconds=_WARM_S if index == 0 else _WARM_S / 4)
            loads.append(await asking(seconds=_LOAD_S))
        # half of what the most callers, who ask for all adapters, got
        rates = {
            tokens: len(seen.waited_s) / seen.elapsed_s / 2
            for (callers, tokens, adapters), seen in zip(_ASKED, loads, strict=True)
            if (callers, adapters) == (_CALLERS[-1], _ADAPTERS)
        }
        asking = partial(ask_at_random, [client], names, seconds=_LOAD_S)
        at_random = [
            await asking(texts_of([tokens]), per_s=per_s, seed=_SEED + tokens)
            for tokens, per_s in rates.items()
        ]
        few = await asking(texts_of([_TOKENS]), per_s=min(rates.values()), seed=_SEED)
        return busy(loads, [*at_random, few]), median(few.beyond_s)


class _Nobody:
    """Observes nothing."""

    def adapter_loaded(self, seconds: float, resident: int) -> None:
        """Do nothing."""

    def adapter_evicted(self, resident: int) -> None:
        """Do nothing."""

    def adapter_unloaded(self, resident: int) -> None:
        """Do nothing."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measure what serving costs on this machine.")
    parser.add_argument("--precision", choices=["exact", "fast"], default="exact")
    parser.add_argument("--threads", type=int, default=2, help="that compute")
    parser.add_argument("--ray", action="store_true", help="what replicas behind Ray take too")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the JSON there too")
    return parser


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
