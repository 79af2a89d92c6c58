"""How often calls find their adapter in memory, in two real replicas behind Ray Serve.

    python benchmarks/affinity.py [--adapters 1000] [--slots 200] [--seconds 30] [--out FILE]

``affinity`` routes as ``deploy/ray/serve.yaml`` says, ``ray`` as Ray does by itself: to the less
busy of two. 8 callers draw adapters by popularity (zipf, as ``upt-server plan`` does) and ask
again as soon as they are answered; what they are told of loading says whether the adapter was
there. ``best`` is the share of the most popular adapters that fit into both replicas.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from math import ceil
from pathlib import Path
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from upt_benchmarks.machine import this_machine
from upt_benchmarks.ray_app import RayApp, running_ray
from upt_benchmarks.served import mixed_texts, named_specs, percentiles, publish_random
from upt_server.capacity.costs import read_costs
from upt_server.capacity.demand import popularity
from upt_server.client import AsyncClient
from upt_zoo.backbone import resolve_backbone

_REPLICAS, _CALLERS = 2, 8
_LOAD_MS = 1.0  # finding an adapter in memory takes a tenth of it, reading one three times as long


def main() -> int:
    """Measure, print."""
    arguments = _parser().parse_args()
    shares = popularity("zipf", arguments.adapters)
    room = _REPLICAS * arguments.slots
    best = float(shares[:room].sum())
    measured: dict[str, object] = {"machine": asdict(this_machine()), "best": round(best, 4)}
    with tempfile.TemporaryDirectory(prefix="upt-affinity-") as folder:
        names = publish_random(Path(folder), named_specs(resolve_backbone(), arguments.adapters))
        memory_mb = ceil(arguments.slots * read_costs().adapter_bytes / 2**20)
        args = {"home": folder, "adapter-memory-mb": memory_mb}
        for routing, router in (("affinity", _router(arguments.slots)), ("ray", {})):
            with running_ray() as app:
                app.deploy(args, ray_options={"request_router_config": router})
                seen = asyncio.run(_ask(app, names, shares, 2 * room, arguments.seconds))
            measured[routing] = {"of_best": round(seen["hit_rate"] / best, 4), **seen}
            print(routing, measured[routing], file=sys.stderr)
    text = json.dumps(measured, indent=2)
    if arguments.out:
        arguments.out.write_text(text + "\n")
    print(text)
    return 0


def _router(slots: int) -> dict[str, object]:
    return {
        "request_router_class": "upt_server.ray.router:AdapterRouter",
        "request_router_kwargs": {"slots": slots},
    }


async def _ask(
    app: RayApp, names: Sequence[str], shares: NDArray[np.float64], warm: int, seconds: float
) -> dict[str, float]:
    source, texts = np.random.default_rng(0), mixed_texts()
    load_ms: list[float] = []
    waited_s: list[float] = []
    async with AsyncClient(app.target, timeout_s=60) as client:
        # what may be in memory, the most popular last
        for name in reversed(names[:warm]):
            await client.predict(name, texts[0])
        started = perf_counter()

        async def ask_again() -> None:
            while (asked_s := perf_counter()) - started < seconds:
                name = names[source.choice(len(names), p=shares)]
                prediction = await client.predict_many([(name, [str(source.choice(texts))])])
                load_ms.append(prediction.timings.load_ms)
                waited_s.append(perf_counter() - asked_s)

        await asyncio.gather(*(ask_again() for _ in range(_CALLERS)))
    return {
        "hit_rate": round(sum(each < _LOAD_MS for each in load_ms) / len(load_ms), 4),
        "calls": len(load_ms),
        **percentiles(waited_s),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measure where calls find their adapters.")
    parser.add_argument("--adapters", type=int, default=1000)
    parser.add_argument("--slots", type=int, default=200, help="that fit into a replica's memory")
    parser.add_argument("--seconds", type=float, default=30, help="of each measurement")
    parser.add_argument("--out", type=Path, metavar="FILE")
    return parser


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
