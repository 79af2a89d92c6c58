"""What is simulated: routing, capacity over four orders of magnitude, failures, bursts, scaling."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import get_args

from upt_benchmarks.fleets.fleet import Fleet, Scaling
from upt_benchmarks.fleets.routing import Routing
from upt_benchmarks.fleets.runs import Seen, Setting, run
from upt_benchmarks.fleets.tables import Row
from upt_benchmarks.fleets.traffic import Burst, Bursty, Traffic
from upt_server.capacity.clock import Clock
from upt_server.capacity.costs import Costs
from upt_server.capacity.demand import Popularity, Slice, cut, lru_hit_rate, popularity
from upt_server.capacity.planning import Load, most_per_s, plan, slots_of
from upt_server.capacity.replica import Limits

TOKENS, P99_S, MEMORY_BYTES = 40, 0.25, 2048 * 2**20
_MAGNITUDES = (1_000, 10_000, 100_000, 1_000_000)
_USED = 0.65  # of what full batches could do, where nothing else is said
_BURSTED = 4
_SLICE = 8  # servers that are simulated of a large fleet
_ROUTED, _SLOTS = 1000, 200
_SCALED = 2


@dataclass(frozen=True, slots=True)
class Scenarios:
    """All runs on the costs of one machine."""

    costs: Costs

    def routing(self) -> Iterator[Row]:
        """1,000 adapters by popularity, room for 200 in each server: where calls find theirs.

        ``best`` holds the most popular 200 · n for ever, each in one place; ``best_lru`` shares
        adapters out evenly by popularity and lets each server forget what it was not asked for.
        """
        limits = Limits(slots=_SLOTS)
        shares = popularity("zipf", _ROUTED)
        for servers in (2, 4, 8):
            best = float(shares[: servers * _SLOTS].sum())
            parts = [shares[at::servers] for at in range(servers)]
            best_lru = sum(lru_hit_rate(part, _SLOTS) * float(part.sum()) for part in parts)
            per_s = _USED * servers * self._most_per_s(limits)
            asked = cut(shares, per_s, servers=servers, kept=servers)
            for routing in get_args(Routing):
                seen = self._run(limits, asked, servers, routing=routing, seconds=40.0)
                yield {
                    "servers": servers,
                    "routing": routing,
                    "hit_rate": round(seen.hit_rate, 4),
                    "of_best": round(seen.hit_rate / best, 4),
                    "of_best_lru": round(seen.hit_rate / best_lru, 4),
                    "p50_ms": _ms(seen.p50_s),
                    "p99_ms": _ms(seen.p99_s),
                }

    def capacity(self, kind: Popularity) -> Iterator[Row]:
        """Plan for each number of adapters and of calls, and simulate the plan.

        Of more than eight servers a slice of eight is simulated: each server with the adapters and
        calls that it would get, among eight instead of all of them.
        """
        limits = Limits(slots=slots_of(self.costs, MEMORY_BYTES))
        for adapters in _MAGNITUDES:
            shares = popularity(kind, adapters)
            for per_s in _MAGNITUDES:
                load = Load(
                    adapters=adapters, per_s=per_s, p99_s=P99_S, tokens=TOKENS, popularity=kind
                )
                made = plan(load, self.costs, limits)
                needed = made.replicas - made.spare
                kept = min(needed, _SLICE)
                asked = cut(shares, per_s, servers=needed, kept=kept)
                seen = self._run(limits, asked, kept, seconds=20.0)
                yield {
                    "adapters": adapters,
                    "calls_per_s": per_s,
                    "replicas": made.replicas,
                    "memory_gb": round(made.replicas * made.memory_bytes / 1e9, 1),
                    "disk_gb_each": round(made.store_bytes / 1e9, 1),
                    "simulated": kept,
                    "p50_ms": _ms(seen.p50_s),
                    "p99_ms": _ms(seen.p99_s),
                    "lost": seen.lost,
                    "hit_rate": round(seen.hit_rate, 4),
                    "loads_per_s_each": round(seen.loads_per_s / kept, 1),
                    "hottest_on": max(1, round(float(shares[0]) * needed)),
                }

    def failures(self) -> Iterator[Row]:
        """Kill one of eight servers under load, and another later; callers try again for 10 s."""
        for routing in get_args(Routing):
            seen = self._run(
                self._roomy(), self._asked(_SLICE, _USED), _SLICE, routing=routing, happen=_kill_two
            )
            yield {
                "routing": routing,
                "lost": seen.lost,
                "retried": seen.retried,
                "p50_ms": _ms(seen.p50_s),
                "p99_ms": _ms(seen.p99_s),
                "hit_rate": round(seen.hit_rate, 4),
            }

    def bursts(self) -> Iterator[Row]:
        """Offer four servers bursts of a second or of ten, twice the calm rate."""
        for used in (0.4, 0.6):
            for burst_s in (1.0, 10.0):
                burst = Burst(times=2.0, calm_s=4 * burst_s, burst_s=burst_s)
                asked = self._asked(_BURSTED, used)
                seen = self._run(
                    self._roomy(),
                    asked,
                    _BURSTED,
                    traffic=_bursty(asked.per_s, burst, is_regular=True),
                )
                yield {
                    "calm_used": used,
                    "burst_used": 2 * used,
                    "burst_s": burst_s,
                    "p50_ms": _ms(seen.p50_s),
                    "p99_ms": _ms(seen.p99_s),
                    "retried": seen.retried,
                    "lost": seen.lost,
                }

    def scaling(self) -> Iterator[Row]:
        """Let the rate triple for a minute and a half, by servers that start in different times."""
        calm_s = burst_s = 90.0
        burst = Burst(times=3.0, calm_s=calm_s, burst_s=burst_s)
        asked = self._asked(_SCALED, 0.6)
        for start_s in (self.costs.start_s, 30.0, 120.0):
            for target in (0.5, 0.7):
                scaling = Scaling(target=target, fewest=_SCALED)
                setting = Setting(
                    costs=self.costs.model_copy(update={"start_s": start_s}),
                    limits=self._roomy(),
                    asked=asked,
                    servers=_SCALED,
                    seconds=calm_s + burst_s,
                    warm_s=30.0,
                )
                seen = run(
                    setting,
                    traffic=_bursty(asked.per_s, burst, is_regular=True),
                    happen=_scaled(scaling),
                )
                yield {
                    "start_s": round(start_s, 1),
                    "target_busy": target,
                    "mean_servers": round(seen.servers, 1),
                    "p50_ms": _ms(seen.p50_s),
                    "p99_ms": _ms(seen.p99_s),
                    "retried": seen.retried,
                    "lost": seen.lost,
                }

    def _most_per_s(self, limits: Limits) -> float:
        return most_per_s(TOKENS, self.costs, limits)

    def _roomy(self) -> Limits:
        return Limits(slots=_SLOTS)

    def _asked(self, servers: int, used: float) -> Slice:
        per_s = used * servers * self._most_per_s(self._roomy())
        return cut(popularity("zipf", _ROUTED), per_s, servers=servers, kept=servers)

    def _run(
        self,
        limits: Limits,
        asked: Slice,
        servers: int,
        *,
        routing: Routing = "affinity",
        seconds: float = 60.0,
        traffic: Callable[[Random], Traffic] | None = None,
        happen: Callable[[Clock, Fleet], None] | None = None,
    ) -> Seen:
        setting = Setting(
            costs=self.costs,
            limits=limits,
            asked=asked,
            servers=servers,
            routing=routing,
            tokens=TOKENS,
            seconds=seconds,
        )
        return run(setting, traffic=traffic, happen=happen)


def _kill_two(clock: Clock, fleet: Fleet) -> None:
    clock.after(30.0, lambda: fleet.kill(0))
    clock.after(50.0, lambda: fleet.kill(3))


def _bursty(per_s: float, burst: Burst, *, is_regular: bool = False) -> Callable[[Random], Traffic]:
    return lambda source: Bursty(per_s, burst, source, is_regular=is_regular)


def _scaled(scaling: Scaling) -> Callable[[Clock, Fleet], None]:
    return lambda _, fleet: fleet.scale(scaling)


def _ms(seconds: float) -> float | None:
    """Return milliseconds; None: more calls were lost than the percentile allows."""
    return round(1000 * seconds, 1) if seconds < float("inf") else None
