"""What is asked of a fleet: which adapters, how often, for texts of which lengths. Pure.

The cut: one of n servers is asked for its share of everything. An adapter that alone asks for m
servers' worth of calls is asked for on m of them, in equal parts; one that asks for less is asked
for on one. So a slice of f · n servers sees each adapter with probability min(1, f · m).
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Popularity = Literal["zipf", "uniform"]
Floats = NDArray[np.float64]

_ZIPF_EXPONENT = 1.1
_SIGMA, _SHORTEST, _LONGEST = 0.7, 3, 256
_DRAWN_AT_ONCE = 8192


@dataclass(frozen=True, slots=True)
class Slice:
    """Some servers' share of the calls: each adapter's number and its calls a second."""

    adapters: NDArray[np.int64]
    rates: Floats

    @property
    def per_s(self) -> float:
        """Calls a second of all adapters together."""
        return float(self.rates.sum())


def popularity(kind: Popularity, adapters: int) -> Floats:
    """Return each adapter's share of the calls; ``zipf``: the k-th in proportion to k ** -1.1."""
    if kind == "uniform":
        return np.full(adapters, 1 / adapters)
    weights: Floats = np.arange(1, adapters + 1, dtype=np.float64) ** -_ZIPF_EXPONENT
    shares: Floats = weights / weights.sum()
    return shares


def cut(shares: Floats, per_s: float, *, servers: int, kept: int, seed: int = 0) -> Slice:
    """Return what ``kept`` of ``servers`` servers are asked for: all, or a slice with its share."""
    rates = shares * per_s
    if kept >= servers:
        return Slice(np.arange(len(shares)), rates)
    at = np.maximum(1.0, shares * servers)  # servers that each adapter is asked for on
    odds = np.minimum(1.0, at * kept / servers)
    source = np.random.default_rng(seed)
    there = np.flatnonzero(source.random(len(shares)) < odds)
    if not len(there):  # no server is without adapters
        there = source.choice(len(shares), 1, p=odds / odds.sum())
    cut_rates = rates[there] * (kept / servers) / odds[there]
    # which adapters were drawn shall not change how much is asked in all
    return Slice(there, cut_rates * (per_s * kept / servers / cut_rates.sum()))


def lru_hit_rate(rates: Floats, slots: int) -> float:
    """Estimate which share of independent calls finds its adapter among the last ``slots`` used.

    With T such that ``slots`` = Σₖ 1 - exp(-λₖ T), the rate is Σₖ λₖ (1 - exp(-λₖ T)) / Σₖ λₖ.

    Source: Che, Tung and Wang 2002, Hierarchical web caching systems, section III.
    """
    if slots >= len(rates):
        return 1.0
    low, high = 0.0, slots / float(rates.sum())
    while _filled(rates, high) < slots:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _filled(rates, middle) < slots else (low, middle)
    return float((rates * -np.expm1(-rates * high)).sum() / rates.sum())


def _filled(rates: Floats, seconds: float) -> float:
    return float(-np.expm1(-rates * seconds).sum())


class Draws:
    """Draws calls of a slice, one after the other: the adapter's name and the text's tokens.

    Lengths are log-normal as those of the benchmarks' mixed texts, between 3 and 256 tokens.
    """

    def __init__(self, asked: Slice, tokens: int, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._edges = np.cumsum(asked.rates)
        self._names = asked.adapters
        self._location = math.log(tokens) - _SIGMA**2 / 2
        self._drawn: list[tuple[str, int]] = []

    def next(self) -> tuple[str, int]:
        """Draw a call."""
        if not self._drawn:
            self._draw()
        return self._drawn.pop()

    def _draw(self) -> None:
        at = self._random.random(_DRAWN_AT_ONCE) * self._edges[-1]
        names = self._names[np.searchsorted(self._edges, at, side="right")].tolist()
        lengths = self._random.lognormal(self._location, _SIGMA, _DRAWN_AT_ONCE)
        tokens = np.clip(np.rint(lengths), _SHORTEST, _LONGEST).astype(int).tolist()
        self._drawn = [(str(name), n) for name, n in zip(names, tokens, strict=True)]
