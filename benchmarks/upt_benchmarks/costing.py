"""Costs from what was measured: of a busy server, of a router. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from upt_benchmarks.asking import Seen
from upt_server.capacity.costs import TOGETHER_S, BatchCosts, RouterCosts

# not the least and the most: one batch that the machine held up would be in one draw of a hundred
_QUANTILES = np.linspace(0.005, 0.995, 100)

_Array: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Busy:
    """What a busy server takes; see ``upt_server.capacity.costs.Costs``."""

    batch: BatchCosts
    beside_s: float
    call_s: float
    handoff_s: float
    jitter_root_s: tuple[float, ...]


def busy(closed: Sequence[Seen], at_random: Sequence[Seen]) -> Busy:
    """Fit what batches take and what passes between them, by least squares of the relative errors.

    None is below zero. Calls at random times say what those that come alone do to a batch, callers
    in closed loops the rest. What a batch took longer or shorter than others of its load is jitter;
    a batch counts once for each of its calls, else the many small ones of few callers were all.
    """
    beside_s = _beside(at_random)
    loads = [_Load(each) for each in closed]
    computing_s = [each.seconds.sum() - beside_s * each.alone.sum() for each in loads]
    found = _nonnegative(np.stack([each.sizes.sum(axis=0) for each in loads]), computing_s)
    fixed, row, token, adapter = found
    between_s = [each.elapsed_s - each.computing_s for each in closed]
    handoff_s, call_s = _nonnegative(
        np.array([(len(each.batches), len(each.waited_s)) for each in closed]), between_s
    )
    return Busy(
        batch=BatchCosts(fixed_s=fixed, row_s=row, token_s=token, adapter_s=adapter),
        beside_s=beside_s,
        call_s=call_s,
        handoff_s=handoff_s,
        jitter_root_s=_jitter(
            loads, [load.sizes @ found + beside_s * load.alone for load in loads]
        ),
    )


class _Load:
    """The batches of one load, in their order."""

    def __init__(self, seen: Seen) -> None:
        batches = sorted(seen.batches.items(), key=lambda each: each[1])
        facts = [each for each, _ in batches]
        self.sizes = np.array([(1, f.rows, f.tokens, f.distinct_adapters) for f in facts], float)
        self.seconds = np.array([each.forward_ms for each in facts]) / 1000
        self._start_s = np.array([start_s for _, start_s in batches])
        sent_s = np.sort(np.array(seen.sent_at_s))
        self._alone_s = sent_s[np.diff(sent_s, prepend=-np.inf) > TOGETHER_S]
        self.alone = self.alone_within(self.seconds)

    def alone_within(self, seconds: _Array) -> _Array:
        """Count the calls that came alone in the first so many seconds of each batch."""
        ends, starts = (
            np.searchsorted(self._alone_s, at) for at in (self._start_s + seconds, self._start_s)
        )
        return (ends - starts).astype(float)


def _beside(at_random: Sequence[Seen]) -> float:
    """Return by how much a call that comes alone makes a batch longer.

    Only calls in the first half of what a batch should take count: the longer one takes for other
    reasons, the more calls come while it does.
    """
    loads = [_Load(each) for each in at_random]
    sizes = np.concatenate([each.sizes for each in loads])
    root = np.sqrt(np.concatenate([each.seconds for each in loads]))
    found, _ = nnls(sizes / root[:, None], root)
    alone = np.concatenate([each.alone_within(each.sizes @ found / 2) for each in loads])
    *_, beside_s = nnls(np.column_stack([sizes, alone]) / root[:, None], root)[0]
    return float(beside_s)


def _jitter(loads: Sequence[_Load], modelled_s: Sequence[_Array]) -> tuple[float, ...]:
    off = []
    for load, each_s in zip(loads, modelled_s, strict=True):
        expected_s = each_s * load.seconds.sum() / each_s.sum()
        off.append((load.seconds - expected_s) / np.sqrt(expected_s))
    calls = np.concatenate([load.sizes[:, 1] for load in loads]).astype(int)
    quantiles = np.quantile(np.repeat(np.concatenate(off), calls), _QUANTILES)
    mean = np.trapezoid(quantiles) / (len(quantiles) - 1)  # of what is drawn, linear between them
    return tuple(float(round(each, 5)) for each in quantiles - mean)


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


def routed(spent: Sequence[Spent], idle: Spent, *, beyond_s: float) -> RouterCosts:
    """Fit what calls and batches take behind a router, by least squares of the relative errors.

    The last of ``spent`` is a lone caller, who waits ``beyond_s`` beyond its batches; in ``idle``
    nobody asked.
    """
    fixed, row, token = _nonnegative(
        np.array([(each.batches, each.calls, each.tokens) for each in spent]),
        [each.runners_s for each in spent],
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
    return _Loops(*_nonnegative(np.array([(each.batches, each.calls) for each in spent]), asked_s))


def _nonnegative(parts: _Array, seconds: Sequence[float]) -> list[float]:
    """Return the costs of the parts, none below zero, by least squares of the relative errors."""
    measured = np.asarray(seconds)
    found, _ = nnls(parts / measured[:, None], np.ones(len(measured)))
    return [float(each) for each in found]
