"""One run of a simulated fleet, from its setting to what callers saw."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from upt_benchmarks.fleets.fleet import Fleet
from upt_benchmarks.fleets.routing import Routing, router_of
from upt_benchmarks.fleets.traffic import Steady, Traffic
from upt_server.capacity.clock import Clock
from upt_server.capacity.costs import Costs
from upt_server.capacity.demand import Draws, Slice
from upt_server.capacity.replica import Counts, Limits
from upt_server.capacity.trial import Waits, by_popularity

_RETRY_FOR_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A fleet of ``servers`` that is asked a slice; the first ``warm_s`` seconds do not count."""

    costs: Costs
    limits: Limits
    asked: Slice
    servers: int
    routing: Routing = "affinity"
    tokens: int = 40
    warm_s: float = 10.0
    seconds: float = 60.0
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What callers saw; ``lost`` had no answer after all attempts. ``servers`` is the mean."""

    per_s: float
    p50_s: float
    p99_s: float
    lost: int
    retried: int
    hit_rate: float
    loads_per_s: float
    rows_a_batch: float
    servers: float


def run(
    setting: Setting,
    *,
    traffic: Callable[[Random], Traffic] | None = None,
    happen: Callable[[Clock, Fleet], None] | None = None,
) -> Seen:
    """Simulate. ``traffic`` None is Poisson at the slice's rate; ``happen`` plans what befalls."""
    clock, source = Clock(), Random(setting.seed)
    router = router_of(setting.routing, setting.limits.slots, Random(setting.seed + 1))
    fleet = Fleet(clock, setting.costs, setting.limits, router, source=source)
    fleet.open(setting.servers)
    fleet.warm(by_popularity(setting.asked)[-2 * setting.servers * setting.limits.slots :])
    draws = Draws(setting.asked, setting.tokens, setting.seed)
    calls = Steady(setting.asked.per_s, source) if traffic is None else traffic(source)
    ends_s, waits = setting.warm_s + setting.seconds, Waits(counts_from_s=setting.warm_s)

    def arrive() -> None:
        if clock.now_s <= ends_s:
            fleet.ask(*draws.next(), waits, retry_for_s=_RETRY_FOR_S)
            clock.after(calls.pause_s(), arrive)

    clock.after(calls.pause_s(), arrive)
    if happen is not None:
        happen(clock, fleet)
    clock.run(setting.warm_s)
    before, paid_s, retried = fleet.counts(), fleet.paid_server_s(), fleet.retried
    clock.run(ends_s)
    after, paid_s = fleet.counts(), fleet.paid_server_s() - paid_s
    clock.run(ends_s + _RETRY_FOR_S + setting.limits.timeout_s)
    return Seen(
        per_s=len(waits.answered_s) / setting.seconds,
        p50_s=waits.percentile_s(50),
        p99_s=waits.percentile_s(99),
        lost=waits.errors.total(),
        retried=fleet.retried - retried,
        servers=paid_s / setting.seconds,
        **_rates(before, after, setting.seconds),
    )


def _rates(before: Counts, after: Counts, seconds: float) -> dict[str, float]:
    hits, loads = after.hits - before.hits, after.loads - before.loads
    return {
        "hit_rate": hits / max(1, hits + loads),
        "loads_per_s": loads / seconds,
        "rows_a_batch": (after.rows - before.rows) / max(1, after.batches - before.batches),
    }
