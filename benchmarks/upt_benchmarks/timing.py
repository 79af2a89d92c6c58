"""Two ways in turn, and what the pairs say: a median ratio and its interval."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

Timed = Callable[[], float]  # runs once and returns the milliseconds

_PAUSE_S = 0.01  # threads of the way before spin for a few milliseconds, then sleep
_FEWEST, _MOST = 6, 30
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


def clocked(run: Callable[[], object]) -> Timed:
    """Time a function of this process."""

    def timed() -> float:
        started = time.perf_counter()
        run()
        return (time.perf_counter() - started) * 1000

    return timed


def measure_pairs(
    reference: Timed, variant: Timed, *, pairs: int | None, budget_s: float, warm_ups: int = 2
) -> Pairs:
    """Run both in turn, the order alternating; without ``pairs`` as many as ``budget_s`` allows."""
    for _ in range(warm_ups):
        pair_ms = reference() + variant()
    if pairs is None:
        pairs = min(_MOST, max(_FEWEST, round(1000 * budget_s / pair_ms)))
    times: dict[Timed, list[float]] = {reference: [], variant: []}
    for index in range(pairs):
        for way in (reference, variant) if index % 2 == 0 else (variant, reference):
            time.sleep(_PAUSE_S)
            times[way].append(way())
    return Pairs(reference_ms=tuple(times[reference]), variant_ms=tuple(times[variant]))


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
