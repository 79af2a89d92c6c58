"""Several ways in turn, and what their pairs say: a median ratio and its interval."""

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from statistics import median

Timed = Callable[[], float]  # runs once and returns the milliseconds

_PAUSE_S = 0.01  # threads of the way before spin for a few milliseconds, then sleep
_FEWEST, _MOST = 6, 60  # rounds of the ways that share a budget
_TAIL = 0.025


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Milliseconds of the reference and of the variant, measured in turn."""

    reference_ms: tuple[float, ...]
    variant_ms: tuple[float, ...]

    @property
    def ratios(self) -> tuple[float, ...]:
        """Reference time / variant time of each pair: above 1 the variant is faster."""
        pairs = zip(self.reference_ms, self.variant_ms, strict=True)
        return tuple(reference / variant for reference, variant in pairs)


@dataclass(frozen=True, slots=True)
class Rounds:
    """Milliseconds by way and by number of the round."""

    times: Mapping[str, Mapping[int, float]]

    def pairs(self, reference: str, variant: str) -> Pairs:
        """Return the times of the rounds in which both took part."""
        first, second = self.times[reference], self.times[variant]
        both = sorted(first.keys() & second.keys())
        return Pairs(
            reference_ms=tuple(first[at] for at in both),
            variant_ms=tuple(second[at] for at in both),
        )


def clocked(run: Callable[[], object]) -> Timed:
    """Time a function of this process."""

    def timed() -> float:
        started = time.perf_counter()
        run()
        return (time.perf_counter() - started) * 1000

    return timed


def measure_rounds(
    ways: Mapping[str, Timed],
    always: Collection[str],
    *,
    rounds: int,
    budget_s: float,
    warm_ups: int = 2,
) -> Rounds:
    """Run all ways in rounds, each round in another order, so that all meet the same minutes.

    The ways named in ``always`` take part in ``rounds`` rounds; the others in as many, evenly
    spread and all in the same ones, as ``budget_s`` seconds allow, six at least.
    """
    for _ in range(warm_ups):
        cost_ms = {name: way() for name, way in ways.items()}
    others_ms = sum(cost for name, cost in cost_ms.items() if name not in always)
    shared = round(1000 * budget_s / others_ms) if others_ms else 0
    shared = min(max(shared, _FEWEST), rounds if always else max(rounds, _MOST))
    total = max(rounds if always else 0, shared)
    order = Random(0)
    times: dict[str, dict[int, float]] = {name: {} for name in ways}
    for at in range(total):
        is_shared = at * shared // total != (at + 1) * shared // total
        chosen = [name for name in ways if is_shared or name in always]
        for name in order.sample(chosen, len(chosen)):
            time.sleep(_PAUSE_S)
            times[name][at] = ways[name]()
    return Rounds(times)


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return a 95 % interval of the median, from order statistics; all values where few.

    Between the j-th smallest and the j-th largest of n values lies the median with probability
    1 - 2 P(Binomial(n, 1/2) < j), whatever the distribution.
    """
    ordered = sorted(values)
    skipped, tail = 0, 2.0 ** -len(ordered)
    while tail <= _TAIL:
        skipped += 1
        tail += math.comb(len(ordered), skipped) * 2.0 ** -len(ordered)
    first = max(0, skipped - 1)
    return ordered[first], ordered[-1 - first]


def middle(values: Sequence[float]) -> float:
    """Return the median."""
    return float(median(values))
