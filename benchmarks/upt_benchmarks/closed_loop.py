"""Callers of a real server who ask again as soon as they are answered, and what they saw."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter

from upt_server.client import AsyncClient
from upt_server.results import BatchFacts


@dataclass(slots=True, kw_only=True)
class Seen:
    """How long each call took, and the batches that the calls were in."""

    elapsed_s: float = 0.0
    waited_s: list[float] = field(default_factory=list)
    batches: set[BatchFacts] = field(default_factory=set)


async def ask_in_closed_loop(
    clients: Sequence[AsyncClient],
    names: Sequence[str],
    texts: Sequence[str],
    *,
    callers: int,
    seconds: float,
) -> Seen:
    """Let ``callers``, shared out evenly over the clients, ask for random adapters and texts."""
    source, seen = random.Random(1), Seen()
    started = perf_counter()

    async def ask_again(client: AsyncClient) -> None:
        while (asked_s := perf_counter()) - started < seconds:
            asked = [(source.choice(names), [source.choice(texts)])]
            prediction = await client.predict_many(asked)
            seen.waited_s.append(perf_counter() - asked_s)
            seen.batches.update(prediction.batches)

    await asyncio.gather(*(ask_again(clients[index % len(clients)]) for index in range(callers)))
    seen.elapsed_s = perf_counter() - started
    return seen
