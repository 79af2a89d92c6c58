"""Hold what the simulator predicts to real servers.

    python benchmarks/predictions.py --costs COSTS.json [--way ray] [--seconds 15] [--rounds 2]
    python benchmarks/predictions.py --costs COSTS.json --measured MEASURED.json

32 adapters, clients and servers on one machine. ``closed`` has 64 callers who ask again as soon as
they are answered, for texts of mixed lengths; ``half`` sends at half of that rate at random times
(Poisson), and waiting counts from when a call was due; ``small`` is ``closed`` with texts of eight
tokens. ``--way`` says of what: ``one`` server of two threads; two servers of one thread, each with
one of two ``ports`` and asked for every second call, which nothing is predicted for; or two
replicas of one thread behind the one port of Ray Serve (``deploy/ray/serve.yaml``).

The costs are measured beforehand by ``benchmarks/costs.py``, from other calls than these; those
behind Ray by ``--threads 1 --ray``. ``--out`` keeps what was measured, ``--measured`` takes it from
there instead of measuring. Prints Markdown: what was predicted, what each round measured, and by
how much the prediction misses it.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict
from pathlib import Path
from typing import get_args

from upt_benchmarks.asking import Seen, ask_at_random, ask_in_closed_loop
from upt_benchmarks.fleets.against import ADAPTERS, CALLERS, SMALL, Pair, compare
from upt_benchmarks.fleets.tables import Row, as_markdown
from upt_benchmarks.machine import this_machine
from upt_benchmarks.served import (
    mixed_texts,
    named_specs,
    percentiles,
    publish_random,
    texts_of,
)
from upt_benchmarks.ways import Way, running
from upt_server.capacity.costs import read_costs
from upt_server.client import AsyncClient
from upt_zoo.backbone import resolve_backbone

_WARM_S = 2.0


def main() -> int:
    """Measure, predict, print."""
    arguments = _parser().parse_args()
    if arguments.measured is not None:
        measured = json.loads(arguments.measured.read_text(encoding="utf-8"))
    else:
        measured = _measured(arguments.way, arguments)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(measured, indent=2) + "\n")
    if measured["way"] == "ports":
        print(json.dumps(measured, indent=2))
        return 0
    pairs = compare(read_costs(arguments.costs), measured["workloads"], way=measured["way"])
    print(as_markdown([_row(pair) for pair in pairs]))
    return 0


def _measured(way: Way, arguments: argparse.Namespace) -> dict[str, object]:
    rounds: list[dict[str, dict[str, float]]] = []
    with tempfile.TemporaryDirectory(prefix="upt-predictions-") as folder:
        home = Path(folder)
        names = publish_random(home, named_specs(resolve_backbone(), ADAPTERS))
        with running(way, home, names, precision=arguments.precision) as targets:
            for seed in range(arguments.rounds):
                rounds.append(asyncio.run(_measure(targets, names, arguments.seconds, seed)))
                print(rounds[-1], file=sys.stderr, flush=True)
    return {
        "machine": asdict(this_machine()),
        "precision": arguments.precision,
        "way": way,
        "workloads": {name: [each[name] for each in rounds] for name in rounds[0]},
    }


def _row(pair: Pair) -> Row:
    return {
        "workload": pair.workload,
        "figure": pair.figure,
        "predicted": pair.predicted,
        "measured": "; ".join(f"{each:g}" for each in pair.measured),
        "off": "; ".join(f"{each:+.0%}" for each in pair.off),
    }


async def _measure(
    targets: Sequence[str], names: Sequence[str], seconds: float, seed: int
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
        seen = await ask_at_random(clients, names, mixed, per_s=half, seconds=seconds, seed=seed)
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Hold the simulator to real servers.")
    parser.add_argument("--way", choices=get_args(Way), default="one")
    parser.add_argument("--costs", type=Path, metavar="FILE", help="of benchmarks/costs.py")
    parser.add_argument("--measured", type=Path, metavar="FILE", help="of an earlier --out")
    parser.add_argument("--seconds", type=float, default=15, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--precision", choices=["exact", "fast"], default="exact")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write what was measured there")
    return parser


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
