"""One simulated server under calls at random times (Poisson): what its callers would see."""

from collections import Counter
from dataclasses import dataclass, field
from random import Random

import numpy as np

from upt_server.capacity.clock import Clock
from upt_server.capacity.costs import Costs
from upt_server.capacity.demand import Draws, Slice
from upt_server.capacity.replica import Call, Limits, Replica
from upt_zoo.errors import Overloaded, Unavailable

_FEWEST_WARM = 500  # calls, and as many as fill the memory for adapters once


@dataclass(slots=True, kw_only=True)
class Waits:
    """How long answered calls took, and how others ended, from ``counts_from_s`` on."""

    counts_from_s: float = 0.0
    answered_s: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)

    def note(self, began_s: float, now_s: float, error: Overloaded | Unavailable | None) -> None:
        """Count a call that ended now."""
        if began_s < self.counts_from_s:
            return
        if error is None:
            self.answered_s.append(now_s - began_s)
        else:
            self.errors[type(error).__name__] += 1

    def percentile_s(self, percent: float) -> float:
        """Return the time within which so many percent were answered; inf where they were not."""
        lost = [float("inf")] * self.errors.total()
        waits = sorted([*self.answered_s, *lost]) or [float("inf")]
        return waits[min(len(waits) - 1, int(len(waits) * percent / 100))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A server in steady state; ``busy`` is the share of the time in which its runner computes."""

    per_s: float
    mean_s: float
    p50_s: float
    p99_s: float
    refused: int
    hit_rate: float
    loads_per_s: float
    busy: float
    rows_a_batch: float


def try_server(
    costs: Costs, limits: Limits, asked: Slice, *, tokens: int, calls: int, seed: int = 0
) -> Outcome:
    """Ask one server for its slice until about ``calls`` calls have ended.

    It starts with the most popular adapters in memory; what comes before memory is in its steady
    state is not counted.
    """
    clock, source = Clock(), Random(seed)
    replica = Replica(clock, costs, limits, source)
    replica.slots.fill(by_popularity(asked)[: limits.slots])
    draws = Draws(asked, tokens, seed)
    warm_s = max(_FEWEST_WARM, min(limits.slots, calls)) / asked.per_s
    ends_s = warm_s + calls / asked.per_s
    waits = Waits(counts_from_s=warm_s)

    def arrive() -> None:
        began_s = clock.now_s
        if began_s > ends_s:
            return
        adapter, text_tokens = draws.next()
        replica.submit(
            Call(
                adapter=adapter,
                tokens=text_tokens + costs.prompt_tokens,
                ended=lambda _, error: waits.note(began_s, clock.now_s, error),
            )
        )
        clock.after(source.expovariate(asked.per_s), arrive)

    clock.after(source.expovariate(asked.per_s), arrive)
    clock.run(warm_s)
    before = replica.counts()
    clock.run(ends_s)
    after, seconds = replica.counts(), ends_s - warm_s
    clock.run(ends_s + limits.timeout_s)  # whoever is inside still counts
    leases = after.hits + after.loads - before.hits - before.loads
    return Outcome(
        per_s=(after.rows - before.rows) / seconds,
        mean_s=sum(waits.answered_s) / max(1, len(waits.answered_s)),
        p50_s=waits.percentile_s(50),
        p99_s=waits.percentile_s(99),
        refused=waits.errors.total(),
        hit_rate=(after.hits - before.hits) / max(1, leases),
        loads_per_s=(after.loads - before.loads) / seconds,
        busy=(after.busy_s - before.busy_s) / seconds,
        rows_a_batch=(after.rows - before.rows) / max(1, after.batches - before.batches),
    )


def by_popularity(asked: Slice) -> list[str]:
    """Return a slice's adapters, the most popular one last."""
    names: list[int] = asked.adapters[np.argsort(asked.rates, kind="stable")].tolist()
    return [str(name) for name in names]
