"""Costs from what was measured: of a batch, of a busy server, of a router. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from upt_server.capacity.costs import BatchCosts, Costs, RouterCosts

_MOST_TOKENS = 2400  # little more than a full batch
_LENGTHS, _ROWS = (8, 32, 96), (1, 2, 4, 8, 16, 32, 64)
_QUANTILES = 101


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A batch to measure: ``length`` is each row's tokens, prompt vectors not among them."""

    rows: int
    length: int
    adapters: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A batch that was measured; ``tokens`` holds prompt vectors too."""

    rows: int
    tokens: int
    adapters: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """The costs, and the standard deviation of measured by modelled times."""

    costs: BatchCosts
    deviation: float


def shapes(prompt: int) -> list[Shape]:
    """Return batches of all sizes up to a full one, with one adapter and with one for each row."""
    return [
        Shape(rows=rows, length=length, adapters=adapters)
        for length in _LENGTHS
        for rows in _ROWS
        if rows * (length + prompt) <= _MOST_TOKENS
        for adapters in sorted({1, min(rows, 32)})
    ]


def fit(samples: Sequence[Sample]) -> Fit:
    """Fit costs, none below zero, by least squares of the relative errors."""
    seconds = np.array([sample.seconds for sample in samples])
    parts = [(1, each.rows, each.tokens, each.adapters) for each in samples]
    fixed, row, token, adapter = _nonnegative(parts, seconds)
    costs = BatchCosts(fixed_s=fixed, row_s=row, token_s=token, adapter_s=adapter)
    return Fit(costs=costs, deviation=float(np.std(seconds / modelled(costs, samples))))


def modelled(costs: BatchCosts, samples: Sequence[Sample]) -> NDArray[np.float64]:
    """Return the seconds that each batch should have taken."""
    return np.array(
        [
            costs.seconds(rows=each.rows, tokens=each.tokens, adapters=each.adapters)
            for each in samples
        ]
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Beyond:
    """What a busy server takes beyond its batches; see ``upt_server.capacity.costs.Costs``."""

    call_s: float
    handoff_s: float
    jitter: tuple[float, ...]


def beyond(costs: BatchCosts, samples: Sequence[Sample], elapsed_s: float) -> Beyond:
    """Say what all batches of ``elapsed_s`` seconds leave unexplained, one row being one call.

    What the batches took longer than they should is the calls', what passed between them the
    handoffs'; the rest is jitter.
    """
    seconds = np.array([sample.seconds for sample in samples])
    calls = sum(sample.rows for sample in samples)
    call_s = max(0.0, float(seconds.sum() - modelled(costs, samples).sum()) / calls)
    stretched = costs.model_copy(update={"row_s": costs.row_s + call_s})
    ratios = np.quantile(seconds / modelled(stretched, samples), np.linspace(0, 1, _QUANTILES))
    return Beyond(
        call_s=call_s,
        handoff_s=max(0.0, (elapsed_s - float(seconds.sum())) / len(samples)),
        jitter=tuple(float(round(ratio, 4)) for ratio in ratios / ratios.mean()),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What replicas behind a router did in ``elapsed_s``, and the CPU seconds that it took.

    A replica's runner had a batch for ``computing_s``, on average, whether or not it had a core.
    ``runners_s`` are those of the threads that compute, ``replicas_s`` the replicas' other ones,
    ``router_s`` those of all processes beside replicas and callers.
    """

    elapsed_s: float
    computing_s: float
    calls: int
    batches: int
    tokens: int
    callers_s: float
    router_s: float
    replicas_s: float
    runners_s: float


def routed(
    costs: Costs, spent: Sequence[Spent], idle: Spent, *, replicas: int, beyond_s: float
) -> RouterCosts:
    """Fit what calls and batches take behind a router, by least squares of the relative errors.

    ``costs`` say what a pause does. What passes between the batches of the busiest load is none.
    The last of ``spent`` is a lone caller, who waits ``beyond_s`` beyond its batches; in ``idle``
    nobody asked.
    """
    between_s = [(each.elapsed_s - each.computing_s) * replicas / each.batches for each in spent]
    warm_s = [
        each.runners_s - each.batches * costs.after_pause_s(gap_s - min(between_s))
        for each, gap_s in zip(spent, between_s, strict=True)
    ]
    fixed, row, token = _nonnegative(
        [(each.batches, each.calls, each.tokens) for each in spent], warm_s
    )
    callers = _of_loops(spent, idle, lambda each: each.callers_s)
    proxy = _of_loops(spent, idle, lambda each: each.router_s)
    replica = _of_loops(spent, idle, lambda each: each.replicas_s)
    loops = (callers, proxy, replica)
    return RouterCosts(
        batch=BatchCosts(fixed_s=fixed, row_s=row, token_s=token, adapter_s=0.0),
        round_s=sum(each.round_s for each in loops),
        caller_s=callers.call_s,
        proxy_s=proxy.call_s,
        replica_s=replica.call_s,
        way_s=max(0.0, beyond_s - sum(each.round_s + each.call_s for each in loops)),
        idle_cores=(idle.callers_s + idle.router_s + idle.replicas_s) / idle.elapsed_s,
    )


class _Loops(NamedTuple):
    round_s: float
    call_s: float


def _of_loops(spent: Sequence[Spent], idle: Spent, used: Callable[[Spent], float]) -> _Loops:
    rate = used(idle) / idle.elapsed_s
    asked_s = [used(each) - rate * each.elapsed_s for each in spent]
    return _Loops(*_nonnegative([(each.batches, each.calls) for each in spent], asked_s))


def _nonnegative(
    parts: Sequence[tuple[int, ...]], seconds: Sequence[float] | NDArray[np.float64]
) -> list[float]:
    """Return the costs of the parts, none below zero, by least squares of the relative errors."""
    measured = np.asarray(seconds)
    found, _ = nnls(np.array(parts, dtype=float) / measured[:, None], np.ones(len(measured)))
    return [float(each) for each in found]
