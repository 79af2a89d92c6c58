"""A server under load to which everything happens that can, and whose callers must not notice.

    python benchmarks/soak.py [--minutes 15] [--seed 0] [--names 12] [--runner auto] [--out FILE]

Three versions of each of ``--names`` adapters and an alias each, memory for half of them, and 24
callers who ask for random ones by random references, with random deadlines, and leave at random
times. Meanwhile adapters are loaded, pinned and unloaded, aliases move, an adapter's bytes are
damaged and mended, the disk is full, a remote hangs, the runner raises or stalls, clients are
killed; one text can never be computed.

Every answer must come from a digest that the reference could mean, and be that of the same text
run alone. The server's counts must fit the callers'. In the end no lease, task, thread or
descriptor may be left, and memory must not have grown (in runs of three minutes and more). Exit
code 1 where anything of this fails.

A few lines for people go to stderr, JSON to stdout.
"""

import argparse
import asyncio
import json
import logging
import os
import random
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from time import monotonic

from upt_benchmarks.callers import Callers
from upt_benchmarks.leaks import Held, growth_mb, leaks, memory_leaks, resident_mb
from upt_benchmarks.machine import this_machine
from upt_benchmarks.mishaps import Mishaps
from upt_benchmarks.soaked import Soaked, build_soaked
from upt_server.client import AsyncClient
from upt_server.precision import RUNNERS
from upt_server.working_set import remembering
from upt_zoo.backbone import resolve_backbone

CALLERS = 24
_SETTLE_S = 60.0
_SAMPLES = 200
_WARM_S = 180.0  # in shorter runs memory is still growing to what it needs


def main() -> int:
    """Soak, print; 1 where anything was wrong."""
    arguments = _parser().parse_args()
    logging.disable(logging.CRITICAL)  # thousands of faults are meant
    with tempfile.TemporaryDirectory(prefix="upt-soak-") as home:
        result = asyncio.run(_soak(Path(home), arguments))
    text = json.dumps({"machine": asdict(this_machine()), **result}, indent=2)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n")
    print(text)
    print(_summary(result), file=sys.stderr)
    return 1 if result["faults"] else 0


async def _soak(home: Path, arguments: argparse.Namespace) -> dict[str, object]:
    seconds, source = arguments.minutes * 60, random.Random(arguments.seed)
    # in the loop, which grpc.aio remembers
    soaked = build_soaked(home, resolve_backbone(), names=arguments.names, runner=arguments.runner)
    ports = await soaked.server.start()
    await soaked.server.open()
    target, samples = f"127.0.0.1:{ports.grpc}", list[float]()
    async with AsyncClient(target, timeout_s=60) as client:
        callers, mishaps = Callers(soaked, client, source), Mishaps(soaked, target, source)
        async with remembering(soaked.home / "working-set.json", soaked.engine.resident):
            await callers.greet()
            before = await _settled(soaked)
            async with asyncio.TaskGroup() as around:
                endless = (mishaps.happen(), _sample(samples, seconds / _SAMPLES))
                tasks = [around.create_task(each) for each in endless]
                ends_at_s = monotonic() + seconds
                await asyncio.gather(*(callers.ask_until(ends_at_s) for _ in range(CALLERS)))
                for task in tasks:
                    task.cancel()
            after = await _settled(soaked)
            callers.check_counts()
            left = _left_leases(soaked)
    await soaked.server.drain()
    faults = [*callers.faults, *mishaps.faults, *left, *leaks(before, after)]
    if seconds >= _WARM_S:
        faults += memory_leaks(samples)
    evictions = soaked.evictions()
    if not evictions:
        faults.append("nothing was ever evicted, though there is memory for half of the adapters")
    return {
        "seconds": seconds,
        "inputs": dict(callers.outcomes.most_common()),
        "happened": {**dict(mishaps.counts.most_common()), "evictions": evictions},
        "held": {"before": asdict(before), "after": asdict(after)},
        "memory_mb": {
            "curve": [round(each) for each in samples[:: _SAMPLES // 20]],
            "growth_when_warm": round(growth_mb(samples), 1),
        },
        "faults": faults,
    }


async def _sample(samples: list[float], every_s: float) -> None:
    while True:
        samples.append(resident_mb())
        await asyncio.sleep(every_s)


async def _settled(soaked: Soaked) -> Held:
    """Count what is held once nothing is at work any more."""
    async with asyncio.timeout(_SETTLE_S):
        while soaked.engine.status().calls:  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.05)
    await asyncio.sleep(2.0)  # connections of killed clients, loads for nobody
    return Held.now()


def _left_leases(soaked: Soaked) -> list[str]:
    return [
        f"{each.stored.reference} is left with {each.leases} leases"
        for each in soaked.engine.lifecycle.resident()
        if each.leases
    ]


def _summary(result: dict[str, object]) -> str:
    faults, memory = result["faults"], result["memory_mb"]
    assert isinstance(faults, list)
    assert isinstance(memory, dict)
    lines = [
        f"{result['seconds']:g} s, inputs {result['inputs']}",
        f"happened: {result['happened']}",
        f"memory when warm grew by {memory['growth_when_warm']} MiB",
        *(f"WRONG: {fault}" for fault in faults[:20]),
        "nothing wrong" if not faults else f"{len(faults)} things wrong",
    ]
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Let everything happen to a server under load.")
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--names", type=int, default=12, help="of adapters, three versions each")
    parser.add_argument("--runner", choices=["auto", *RUNNERS["exact"]], default="auto")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the JSON there too")
    return parser


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
