"""Measure real servers, for the simulator to be held to.

    python benchmarks/predictions.py --out MEASURED.json [--seconds 15] [--precision exact]

32 adapters, clients and servers on one machine. ``closed`` has 64 callers who ask again as soon as
they are answered, for texts of mixed lengths; ``half`` sends at half of that rate at random times
(Poisson), and waiting counts from when a call was due; ``small`` is ``closed`` with texts of eight
tokens. ``two_closed``, ``two_half`` and ``two_small`` are the same, with two servers of one thread
each in place of one of two, each behind a port of its own and asked for every second call.
``benchmarks/fleet.py --against MEASURED.json`` holds what the simulator predicts to these.
"""

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import asdict
from itertools import cycle
from pathlib import Path
from time import perf_counter

from upt_benchmarks.arrivals import send_at_random
from upt_benchmarks.closed_loop import Seen, ask_in_closed_loop
from upt_benchmarks.machine import this_machine
from upt_benchmarks.served import (
    mixed_texts,
    named_specs,
    percentiles,
    publish_random,
    running_server,
    texts_of,
)
from upt_server.client import AsyncClient
from upt_zoo.backbone import resolve_backbone

ADAPTERS, CALLERS, SMALL, THREADS = 32, 64, 8, 2
_WARM_S = 2.0


def main() -> int:
    """Measure, print."""
    arguments = _parser().parse_args()
    result: dict[str, object] = {
        "machine": asdict(this_machine()),
        "precision": arguments.precision,
    }
    with tempfile.TemporaryDirectory(prefix="upt-predictions-") as home:
        names = publish_random(Path(home), named_specs(resolve_backbone(), ADAPTERS))
        for prefix, servers in (("", 1), ("two_", 2)):
            threads = str(THREADS // servers)
            options = ["--precision", arguments.precision, "--threads", threads]
            with ExitStack() as running:
                targets = [
                    running.enter_context(
                        running_server(Path(home), [*options, "--preload", ",".join(names)])
                    ).target
                    for _ in range(servers)
                ]
                measured = asyncio.run(_measure(targets, names, arguments.seconds))
            result |= {f"{prefix}{workload}": seen for workload, seen in measured.items()}
    text = json.dumps(result, indent=2)
    arguments.out.write_text(text + "\n")
    print(text)
    return 0


async def _measure(
    targets: Sequence[str], names: Sequence[str], seconds: float
) -> dict[str, dict[str, float]]:
    mixed, small = mixed_texts(), texts_of([SMALL])
    async with AsyncExitStack() as open_clients:
        clients = [
            await open_clients.enter_async_context(AsyncClient(target, timeout_s=60))
            for target in targets
        ]
        await ask_in_closed_loop(clients, names, mixed, callers=CALLERS, seconds=_WARM_S)
        measured: dict[str, dict[str, float]] = {}
        for workload, texts in (("closed", mixed), ("small", small)):
            seen = await ask_in_closed_loop(clients, names, texts, callers=CALLERS, seconds=seconds)
            measured[workload] = _figures(seen)
        half = measured["closed"]["per_s"] / 2
        seen = await _at_random(clients, names, mixed, per_s=half, seconds=seconds)
        measured["half"] = _figures(seen)
    return measured


def _figures(seen: Seen) -> dict[str, float]:
    count = len(seen.batches)
    return {
        "per_s": round(len(seen.waited_s) / seen.elapsed_s, 1),
        **percentiles(seen.waited_s),
        "batch_rows": round(sum(each.rows for each in seen.batches) / count, 2),
        "batch_tokens": round(sum(each.tokens for each in seen.batches) / count, 1),
        "batch_p99_ms": round(
            sorted(each.forward_ms for each in seen.batches)[int(0.99 * count)], 1
        ),
        "batch_ms": round(sum(each.forward_ms for each in seen.batches) / count, 2),
    }


async def _at_random(
    clients: Sequence[AsyncClient],
    names: Sequence[str],
    texts: Sequence[str],
    *,
    per_s: float,
    seconds: float,
) -> Seen:
    source, seen, turns = random.Random(2), Seen(elapsed_s=seconds), cycle(clients)

    async def ask(due_s: float) -> None:
        asked = [(source.choice(names), [source.choice(texts)])]
        prediction = await next(turns).predict_many(asked)
        seen.waited_s.append(perf_counter() - due_s)
        seen.batches.update(prediction.batches)

    await send_at_random(ask, per_s=per_s, seconds=seconds, seed=3)
    return seen


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measure real servers, for the simulator.")
    parser.add_argument("--seconds", type=float, default=15, help="of each measurement")
    parser.add_argument("--precision", choices=["exact", "fast"], default="exact")
    parser.add_argument("--out", type=Path, metavar="FILE", required=True)
    return parser


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
