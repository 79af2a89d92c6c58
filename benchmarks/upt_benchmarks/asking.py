"""Callers of a real server, and what they saw: in a closed loop, or at random times."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle
from time import perf_counter

from upt_benchmarks.arrivals import send_at_random
from upt_server.client import AsyncClient
from upt_server.results import BatchFacts


@dataclass(slots=True, kw_only=True)
class Seen:
    """How long each call of one text took, of it beyond queue and batch, and when it was sent.

    And the batches, by when each started by the callers' clock: its calls were sent so long before,
    and were so long on their way, in loading, tokenising and the queue; the way is not known.
    """

    elapsed_s: float = 0.0
    waited_s: list[float] = field(default_factory=list)
    beyond_s: list[float] = field(default_factory=list)
    sent_at_s: list[float] = field(default_factory=list)
    batches: dict[BatchFacts, float] = field(default_factory=dict)

    @property
    def computing_s(self) -> float:
        """Seconds in which a batch was computed."""
        return sum(each.forward_ms for each in self.batches) / 1000

    async def ask(
        self, client: AsyncClient, name: str, text: str, *, due_s: float | None = None
    ) -> None:
        """Ask, and note what is seen; waiting counts from when the call was due."""
        sent_s = perf_counter()
        prediction = await client.predict_many([(name, [text])])
        waited_s, spent = perf_counter() - (sent_s if due_s is None else due_s), prediction.timings
        self.waited_s.append(waited_s)
        self.beyond_s.append(waited_s - (spent.queue_ms + spent.forward_ms) / 1000)
        self.sent_at_s.append(sent_s)
        started_s = sent_s + (spent.load_ms + spent.tokenize_ms + spent.queue_ms) / 1000
        for batch in prediction.batches:
            self.batches[batch] = max(started_s, self.batches.get(batch, started_s))


async def ask_in_closed_loop(
    clients: Sequence[AsyncClient],
    names: Sequence[str],
    texts: Sequence[str],
    *,
    callers: int,
    seconds: float,
) -> Seen:
    """Let ``callers``, shared out evenly over the clients, ask for random adapters and texts.

    Each asks again as soon as it is answered.
    """
    source, seen = random.Random(1), Seen()
    started = perf_counter()

    async def ask_again(client: AsyncClient) -> None:
        while perf_counter() - started < seconds:
            await seen.ask(client, source.choice(names), source.choice(texts))

    await asyncio.gather(*(ask_again(clients[index % len(clients)]) for index in range(callers)))
    seen.elapsed_s = perf_counter() - started
    return seen


async def ask_at_random(
    clients: Sequence[AsyncClient],
    names: Sequence[str],
    texts: Sequence[str],
    *,
    per_s: float,
    seconds: float,
    seed: int = 0,
) -> Seen:
    """Ask for random adapters and texts ``per_s`` times a second (Poisson), clients in turn."""
    source, seen, turns = random.Random(seed), Seen(elapsed_s=seconds), cycle(clients)

    async def ask(due_s: float) -> None:
        await seen.ask(next(turns), source.choice(names), source.choice(texts), due_s=due_s)

    await send_at_random(ask, per_s=per_s, seconds=seconds, seed=seed + 1)
    return seen
