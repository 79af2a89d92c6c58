"""Two replicas of one thread each against one server of two threads, on the same cores.

    python benchmarks/replicas.py [--seconds 15] [--rounds 2] [--out MEASURED.json]

``one`` is one server of two threads. ``ports`` are two servers of one thread each, behind a port
each and asked for every second call; ``ray`` are two replicas of one thread each behind the one
port of Ray Serve (``deploy/ray/serve.yaml``). ``mixed`` has 64 callers who ask again as soon as
they are answered, for texts of mixed lengths; ``small`` the same for texts of eight tokens;
``alone`` one caller. Clients and servers share the machine. Every round measures every way.
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

from upt_benchmarks.asking import ask_in_closed_loop
from upt_benchmarks.fleets.against import ADAPTERS, CALLERS, SMALL
from upt_benchmarks.machine import this_machine
from upt_benchmarks.served import (
    mixed_texts,
    named_specs,
    percentiles,
    publish_random,
    texts_of,
)
from upt_benchmarks.ways import Way, running
from upt_server.client import AsyncClient
from upt_zoo.backbone import resolve_backbone

_WARM_S = 2.0


def main() -> int:
    """Measure, print."""
    arguments = _parser().parse_args()
    measured: dict[str, list[dict[str, object]]] = {way: [] for way in get_args(Way)}
    with tempfile.TemporaryDirectory(prefix="upt-replicas-") as folder:
        home = Path(folder)
        names = publish_random(home, named_specs(resolve_backbone(), ADAPTERS))
        for _ in range(arguments.rounds):
            for way in get_args(Way):
                with running(way, home, names) as targets:
                    measured[way].append(asyncio.run(_measure(targets, names, arguments.seconds)))
                print(way, measured[way][-1], file=sys.stderr)
    text = json.dumps({"machine": asdict(this_machine()), **measured}, indent=2)
    if arguments.out:
        arguments.out.write_text(text + "\n")
    print(text)
    return 0


async def _measure(
    targets: Sequence[str], names: Sequence[str], seconds: float
) -> dict[str, object]:
    mixed, small = mixed_texts(), texts_of([SMALL])
    measured: dict[str, object] = {}
    async with AsyncExitStack() as open_clients:
        clients = [
            await open_clients.enter_async_context(AsyncClient(target, timeout_s=60))
            for target in targets
        ]
        await ask_in_closed_loop(clients, names, mixed, callers=CALLERS, seconds=_WARM_S)
        for workload, texts, callers in (
            ("mixed", mixed, CALLERS),
            ("small", small, CALLERS),
            ("alone", mixed, 1),
        ):
            seen = await ask_in_closed_loop(clients, names, texts, callers=callers, seconds=seconds)
            measured[workload] = {
                "per_s": round(len(seen.waited_s) / seen.elapsed_s, 1),
                **percentiles(seen.waited_s),
            }
    return measured


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measure two replicas against one server.")
    parser.add_argument("--seconds", type=float, default=15, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, metavar="FILE")
    return parser


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
