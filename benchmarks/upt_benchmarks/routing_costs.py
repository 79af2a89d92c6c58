"""What it takes to answer calls behind Ray Serve's proxy, by the CPU time of its processes."""

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from upt_benchmarks.asking import Seen, ask_in_closed_loop
from upt_benchmarks.costing import Spent, routed
from upt_benchmarks.processors import Used, used_by
from upt_benchmarks.ray_app import RayApp, running_ray
from upt_benchmarks.served import texts_of
from upt_server.capacity.costs import RouterCosts
from upt_server.client import AsyncClient

# callers and the tokens of their texts; a lone one last
_ASKED = ((32, 32), (32, 96), (12, 32), (4, 32), (1, 32))
_WARM_S, _SECONDS, _IDLE_S = 2.0, 5.0, 3.0


class _Processes(NamedTuple):
    callers: set[int]
    router: set[int]
    replicas: set[int]

    def used(self) -> tuple[Used, Used, Used]:
        return used_by(self.callers), used_by(self.router), used_by(self.replicas)


def measure_router(home: Path, names: Sequence[str], precision: str) -> RouterCosts:
    """Start the application of ``deploy/ray/serve.yaml`` with two replicas, and ask it."""
    with running_ray() as app:
        app.deploy({"home": str(home), "preload": ",".join(names), "precision": precision})
        return asyncio.run(_measure(app, names))


async def _measure(app: RayApp, names: Sequence[str]) -> RouterCosts:
    replicas = app.replicas()
    processes = _Processes({os.getpid()}, app.processes() - replicas, replicas)
    async with AsyncClient(app.target, timeout_s=60) as client:

        async def ask(callers: int, tokens: int, seconds: float) -> Seen:
            texts = texts_of([tokens])
            return await ask_in_closed_loop(
                [client], names, texts, callers=callers, seconds=seconds
            )

        callers, tokens = _ASKED[0]
        await ask(callers, tokens, _WARM_S)
        spent: list[Spent] = []
        for callers, tokens in _ASKED:
            before, seen = processes.used(), await ask(callers, tokens, _SECONDS)
            spent.append(_spent(seen, before, processes.used()))
        before = processes.used()
        await asyncio.sleep(_IDLE_S)
        idle = _spent(Seen(elapsed_s=_IDLE_S), before, processes.used())
    lone_s = median(seen.waited_s)
    batch_s = median(each.forward_ms for each in seen.batches) / 1000
    return routed(spent, idle, beyond_s=lone_s - batch_s)


def _spent(seen: Seen, before: Sequence[Used], after: Sequence[Used]) -> Spent:
    callers, router, replicas = (now.since(then) for now, then in zip(after, before, strict=True))
    return Spent(
        elapsed_s=seen.elapsed_s,
        calls=len(seen.waited_s),
        batches=len(seen.batches),
        tokens=sum(each.tokens for each in seen.batches),
        callers_s=callers.others_s + callers.runners_s,
        router_s=router.others_s + router.runners_s,
        replicas_s=replicas.others_s,
        runners_s=replicas.runners_s,
    )
