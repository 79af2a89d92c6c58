"""Costs from what was measured: of a busy server, of a router. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from upt_server.capacity.costs import BatchCosts, Costs, RouterCosts
from upt_server.results import BatchFacts

_QUANTILES = 101


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The batches that a busy server computed in ``elapsed_s``, one row being one call."""

    elapsed_s: float
    batches: Sequence[BatchFacts]

    @property
    def computing_s(self) -> float:
        """Seconds in which a batch was computed."""
        return sum(each.forward_ms for each in self.batches) / 1000

    @property
    def calls(self) -> int:
        """Rows of all batches."""
        return sum(each.rows for each in self.batches)


@dataclass(frozen=True, slots=True, kw_only=True)
class Busy:
    """What a busy server takes; see ``upt_server.capacity.costs.Costs``."""

    batch: BatchCosts
    call_s: float
    handoff_s: float
    jitter_root_s: tuple[float, ...]


def busy(loads: Sequence[Asked]) -> Busy:
    """Fit what batches take and what passes between them, by least squares of the relative errors.

    None is below zero. What a batch took longer or shorter than others of its load is jitter; a
    batch counts once for each of its calls, else the many small ones of few callers were all.
    """
    sums = [
        (
            len(load.batches),
            load.calls,
            sum(each.tokens for each in load.batches),
            sum(each.distinct_adapters for each in load.batches),
        )
        for load in loads
    ]
    fixed, row, token, adapter = _nonnegative(sums, [load.computing_s for load in loads])
    batch = BatchCosts(fixed_s=fixed, row_s=row, token_s=token, adapter_s=adapter)
    between_s = [load.elapsed_s - load.computing_s for load in loads]
    handoff_s, call_s = _nonnegative([(batches, calls) for batches, calls, *_ in sums], between_s)
    return Busy(
        batch=batch, call_s=call_s, handoff_s=handoff_s, jitter_root_s=_jitter(batch, loads)
    )


def _jitter(costs: BatchCosts, loads: Sequence[Asked]) -> tuple[float, ...]:
    off = np.concatenate([_off(costs, load) for load in loads])
    calls = [each.rows for load in loads for each in load.batches]
    quantiles = np.quantile(np.repeat(off, calls), np.linspace(0, 1, _QUANTILES))
    mean = np.trapezoid(quantiles) / (_QUANTILES - 1)  # of what is drawn, linear between them
    return tuple(float(round(each, 5)) for each in quantiles - mean)


def _off(costs: BatchCosts, load: Asked) -> NDArray[np.float64]:
    """Return by how much batches differ from what they should take in their load."""
    modelled_s = np.array(
        [
            costs.seconds(rows=each.rows, tokens=each.tokens, adapters=each.distinct_adapters)
            for each in load.batches
        ]
    )
    expected_s = modelled_s * load.computing_s / modelled_s.sum()
    seconds = np.array([each.forward_ms for each in load.batches]) / 1000
    return np.asarray((seconds - expected_s) / np.sqrt(expected_s))


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
