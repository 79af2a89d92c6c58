"""What a hot adapter does to the others: 31 at their share, one at ten times its own.

    python benchmarks/fairness.py [--seconds 15] [--rounds 3] [--load 0.5] [--out FILE]

Capacity is what 64 callers get who ask again at once. ``without``: 32 adapters ask for ``--load``
of it, each the same, at random times (Poisson). ``tenfold``: one of them asks for ten times that.
``flood``: one of them asks for all of the capacity. Waiting is that of the other 31, from when a
call was due. The three are measured in turn, round by round.

A few lines for people go to stderr, JSON to stdout.
"""

import argparse
import asyncio
import os
import random
import sys
from collections.abc import Sequence
from statistics import median
from time import perf_counter

from upt_benchmarks.arrivals import answered_per_s, send_at_random
from upt_benchmarks.loaded import (
    ADAPTERS,
    CALLERS,
    load_parser,
    print_measured,
    serving_random,
)
from upt_benchmarks.served import mixed_texts, named_specs, percentiles
from upt_server.client import AsyncClient
from upt_zoo.backbone import resolve_backbone
from upt_zoo.errors import Overloaded

_TARGET = 2.0


def main() -> int:
    """Measure, print."""
    arguments = _parser().parse_args()
    specs = named_specs(resolve_backbone(), ADAPTERS)
    with serving_random(specs, arguments.precision) as (server, names):
        measured = asyncio.run(_measure(server.target, names, arguments))
    print_measured(arguments, measured)
    print(_summary(measured), file=sys.stderr)
    return 0


async def _measure(
    target: str, names: Sequence[str], arguments: argparse.Namespace
) -> dict[str, object]:
    texts, source = mixed_texts(), random.Random(0)
    async with AsyncClient(target, timeout_s=60) as client:

        async def ask() -> None:
            await client.predict(source.choice(names), source.choice(texts))

        await answered_per_s(ask, callers=CALLERS, seconds=2.0)  # warm
        capacity = await answered_per_s(ask, callers=CALLERS, seconds=arguments.seconds)
        share = arguments.load * capacity / ADAPTERS
        hot_rates = {"without": share, "tenfold": 10 * share, "flood": capacity}
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in hot_rates}
        for seed in range(arguments.rounds):
            for name, hot in hot_rates.items():
                load = _Load(client, names, texts)
                rounds[name].append(await load.run(share, hot, arguments.seconds, seed))
    middle = {
        name: {key: round(median(each[key] for each in runs), 2) for key in runs[0]}
        for name, runs in rounds.items()
    }
    ratios = {
        name: round(middle[name]["p99_ms"] / middle["without"]["p99_ms"], 2)
        for name in ("tenfold", "flood")
    }
    return {
        "capacity_rows_per_s": round(capacity, 1),
        "load": arguments.load,
        "others": middle,
        "p99_ratio": ratios,
        "rounds": rounds,
    }


class _Load:
    """One measurement: the first adapter is the hot one."""

    def __init__(self, client: AsyncClient, names: Sequence[str], texts: Sequence[str]) -> None:
        self._client, self._names, self._texts = client, names, texts
        self._source = random.Random(3)
        self._waited: list[float] = []
        self._refused = {"hot": 0, "others": 0}

    async def run(self, share: float, hot: float, seconds: float, seed: int) -> dict[str, float]:
        """Return how long the others waited; rates are calls a second."""
        others = share * (len(self._names) - 1)
        await asyncio.gather(
            send_at_random(self._ask_hot, per_s=hot, seconds=seconds, seed=seed),
            send_at_random(self._ask_other, per_s=others, seconds=seconds, seed=seed + 1000),
        )
        return percentiles(self._waited) | {
            "refused": self._refused["others"],
            "hot_refused": self._refused["hot"],
        }

    async def _ask_hot(self, _: float) -> None:
        await self._ask(self._names[0], "hot")

    async def _ask_other(self, due_s: float) -> None:
        if await self._ask(self._source.choice(self._names[1:]), "others"):
            self._waited.append(perf_counter() - due_s)

    async def _ask(self, name: str, who: str) -> bool:
        try:
            await self._client.predict(name, self._source.choice(self._texts))
        except Overloaded:
            self._refused[who] += 1
            return False
        return True


def _summary(measured: dict[str, object]) -> str:
    ratios = measured["p99_ratio"]
    assert isinstance(ratios, dict)
    verdict = "met" if ratios["tenfold"] <= _TARGET else "missed"
    return (
        f"capacity {measured['capacity_rows_per_s']} rows/s; p99 of the 31 others beside a hot "
        f"adapter: {ratios['tenfold']} x at ten times its share (at most {_TARGET:g}: {verdict}), "
        f"{ratios['flood']} x when it asks for all of the machine"
    )


def _parser() -> argparse.ArgumentParser:
    parser = load_parser("Measure what a hot adapter does to the others.", seconds=15)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--load", type=float, default=0.5, help="of all 32, as part of capacity")
    return parser


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
