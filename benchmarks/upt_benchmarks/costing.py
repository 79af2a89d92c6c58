"""Costs from what was measured: of a busy server, of a router. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from upt_benchmarks.asking import Seen
from upt_server.capacity.costs import APART_S, BatchCosts, RouterCosts

# not the least and the most: one batch that the machine held up would be in one draw of a hundred
_QUANTILES = np.linspace(0.005, 0.995, 100)
_STEADY = 0.99  # of the batches of a load, by their seconds a token
_ROUNDS = 3

_Array: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Busy:
    """What a busy server takes; see ``upt_server.capacity.costs.Costs``."""

    batch: BatchCosts
    alone_s: float
    together_s: float
    call_s: float
    handoff_s: float
    jitter_root_s: tuple[float, ...]


def busy(closed: Sequence[Seen], at_random: Sequence[Seen]) -> Busy:
    """Fit what batches and calls take, and what passes between batches; none is below zero.

    Single batches of calls at random times, nearly all for different adapters, say what rows,
    tokens and calls that come alone take; the sums of callers in closed loops what calls take that
    come together, and what is saved where rows share an adapter. What batches took longer or
    shorter than others of their load is jitter; a batch counts once for each of its calls, else the
    many small ones of few callers were all.
    """
    apart, loads = [_Load(each) for each in at_random], [_Load(each) for each in closed]
    alone_s, together_s = _alone(apart), 0.0
    for _ in range(_ROUNDS):  # some of the calls at random times come together too
        by_itself_s = [
            each.seconds - each.beside_s(alone_s) - together_s * each.together for each in apart
        ]
        fixed, row, token = _of_batches(apart, by_itself_s)
        by_size_s = [load.sizes @ (fixed, row, token) + load.beside_s(alone_s) for load in loads]
        together_s, adapter = _of_sums(loads, by_size_s, row)
    modelled_s = [
        each_s + together_s * load.together - adapter * load.shared
        for each_s, load in zip(by_size_s, loads, strict=True)
    ]
    between_s = [each.elapsed_s - each.computing_s for each in closed]
    handoff_s, call_s = _nonnegative(
        np.array([(len(each.batches), len(each.waited_s)) for each in closed]), between_s
    )
    return Busy(
        batch=BatchCosts(fixed_s=fixed, row_s=row - adapter, token_s=token, adapter_s=adapter),
        alone_s=alone_s,
        together_s=together_s,
        call_s=call_s,
        handoff_s=handoff_s,
        jitter_root_s=_jitter(loads, modelled_s),
    )


class _Load:
    """The batches of one load: their seconds, and (1, rows, tokens) of each.

    ``together`` holds each batch's share of the calls that came right after others, ``shared`` its
    rows without an adapter of their own; ``is_steady`` tells the batches that nothing held up.
    """

    def __init__(self, seen: Seen) -> None:
        self.sizes = np.array([(1, each.rows, each.tokens) for each in seen.batches], float)
        self.seconds = np.array([each.forward_ms for each in seen.batches]) / 1000
        self._start_s = np.array(list(seen.batches.values()))
        sent_s = np.sort(np.array(seen.sent_at_s))
        self._alone_at_s = sent_s[np.diff(sent_s, prepend=-np.inf) > APART_S]
        rows = self.sizes[:, 1]
        self.together = (len(sent_s) - len(self._alone_at_s)) * rows / rows.sum()
        self.shared = rows - np.array([each.distinct_adapters for each in seen.batches])
        per_token_s = self.seconds / self.sizes[:, 2]
        self.is_steady = per_token_s <= np.quantile(per_token_s, _STEADY)

    def alone_within(self, seconds: _Array) -> _Array:
        """Count the calls that came alone in the first so many seconds of each batch."""
        ends, starts = (
            np.searchsorted(self._alone_at_s, at) for at in (self._start_s + seconds, self._start_s)
        )
        return (ends - starts).astype(float)

    def beside_s(self, alone_s: float) -> _Array:
        """Return what calls that came alone took from each batch: no more than was left of it.

        A call that takes all that was left doubles it, so that is half of what the end tells.
        """
        ends_s = self._start_s + self.seconds
        first, last = (np.searchsorted(self._alone_at_s, at) for at in (self._start_s, ends_s))
        return np.array(
            [
                np.minimum(alone_s, (end_s - self._alone_at_s[one:end]) / 2).sum()
                for one, end, end_s in zip(first, last, ends_s, strict=True)
            ]
        )


def _alone(loads: Sequence[_Load]) -> float:
    """Return by how much a call that comes alone makes a batch longer.

    The longer a batch takes for other reasons, the more calls come while it does. So only those in
    the first half of what it should take tell, as an instrument: what each adds, by the calls that
    then come in all, since a longer batch sees more of them. Of those at its end only a part
    counts, which depends on the answer.
    """
    seconds = [each.seconds for each in loads]
    found = _of_batches(loads, seconds)
    halves = [each.alone_within(each.sizes @ found / 2) for each in loads]
    *_, added_s = _of_batches(loads, seconds, halves)
    if not added_s:
        return 0.0
    alone_s = added_s
    for _ in range(_ROUNDS):
        whole = [each.beside_s(alone_s) / alone_s for each in loads]
        alone_s = added_s / _of_batches(loads, whole, halves)[-1]
    return alone_s


def _of_batches(
    loads: Sequence[_Load], wanted: Sequence[_Array], beside: Sequence[_Array] = ()
) -> list[float]:
    """Fit single batches but those that the machine held up; a load counts by its tokens."""
    parts = np.concatenate([each.sizes for each in loads])
    weights = np.concatenate([each.is_steady / np.sqrt(each.sizes[:, 2].sum()) for each in loads])
    if beside:
        parts = np.column_stack([parts, np.concatenate(beside)])
    found, _ = nnls(parts * weights[:, None], np.concatenate(wanted) * weights)
    return [float(each) for each in found]


def _of_sums(
    loads: Sequence[_Load], modelled_s: Sequence[_Array], row_s: float
) -> tuple[float, float]:
    """Fit what calls that come together add to whole loads, and shared adapters save.

    An adapter is no more than a row.
    """
    sums = np.array([each.seconds.sum() for each in loads])
    together = np.array([each.together.sum() for each in loads]) / sums
    shared = np.array([each.shared.sum() for each in loads]) / sums
    left = 1 - np.array([each.sum() for each in modelled_s]) / sums
    (together_s, adapter_s), _ = nnls(np.column_stack([together, -shared]), left)
    if adapter_s > row_s:
        (together_s,), _ = nnls(together[:, None], left + row_s * shared)
    return float(together_s), min(float(adapter_s), row_s)


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

    ``runners_s`` are those of the threads that compute, ``replicas_s`` the replicas' other ones,
    ``router_s`` those of all processes beside replicas and callers.
    """

    elapsed_s: float
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
