"""Replicas that share one machine's cores with their router and their callers, in simulated time.

Whoever works has a share of the cores, one core at most (processor sharing); a runner's is a third
of an event loop's, as the kernel gives it (``upt_server.batcher``). Event loops do their work in
turn. A call passes the loops of its caller, the proxy and a replica, there and back.
"""

from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from upt_server.capacity.clock import Act, Clock
from upt_server.capacity.costs import RouterCosts
from upt_server.capacity.machine import Side

_WEIGHT = 3.0  # of a loop; a runner has 1
_NOTHING_S = 1e-9  # left of a work that is done


@dataclass(slots=True, eq=False)
class _Work:
    left_s: float
    then: Act
    gives_way: bool = False


class Cores:
    """So many cores, not necessarily whole ones, for any number of works at a time."""

    def __init__(self, clock: Clock, count: float) -> None:
        self._clock, self._count = clock, count
        self._works: list[_Work] = []
        self._rates = {True: 0.0, False: 0.0}  # by whether a work gives way
        self._seen_at_s = 0.0
        self._plans = 0

    def run(self, seconds: float, then: Act, *, gives_way: bool = False) -> None:
        """Have a core compute for so many seconds in all; then call ``then``."""
        self._advance()
        self._works.append(_Work(seconds, then, gives_way))
        self._plan()

    def _advance(self) -> None:
        passed_s = self._clock.now_s - self._seen_at_s
        for work in self._works:
            work.left_s -= passed_s * self._rates[work.gives_way]
        self._seen_at_s = self._clock.now_s

    def _plan(self) -> None:
        self._plans += 1  # whatever was planned before is void
        if not self._works:
            return
        runners = sum(work.gives_way for work in self._works)
        loops = len(self._works) - runners
        of_loop = min(1.0, self._count * _WEIGHT / (_WEIGHT * loops + runners))
        of_runner = min(1.0, (self._count - loops * of_loop) / max(1, runners))
        self._rates = {True: of_runner, False: of_loop}
        next_s = min(max(0.0, work.left_s) / self._rates[work.gives_way] for work in self._works)
        self._clock.after(next_s, partial(self._finish, self._plans))

    def _finish(self, plan: int) -> None:
        if plan != self._plans:
            return
        self._advance()
        done = [work for work in self._works if work.left_s <= _NOTHING_S]
        self._works = [work for work in self._works if work.left_s > _NOTHING_S]
        self._plan()
        for work in done:
            work.then()


class Loop:
    """An event loop: one work at a time, in turn."""

    def __init__(self, cores: Cores) -> None:
        self._cores = cores
        self._waiting: deque[_Work] = deque()
        self._is_busy = False

    def run(self, seconds: float, then: Act) -> None:
        """Do a work when those before it are done; then call ``then``."""
        work = _Work(seconds, then)
        if self._is_busy:
            self._waiting.append(work)
        else:
            self._is_busy = True
            self._start(work)

    def _start(self, work: _Work) -> None:
        self._cores.run(work.left_s, partial(self._finish, work))

    def _finish(self, work: _Work) -> None:
        work.then()
        if self._waiting:
            self._start(self._waiting.popleft())
        else:
            self._is_busy = False


_Steps: TypeAlias = tuple[tuple[Loop, float], ...]


class SharedMachine:
    """The cores, and the loops that all calls pass."""

    def __init__(self, clock: Clock, costs: RouterCosts, cores: int) -> None:
        self._clock, self._costs = clock, costs
        self._cores = Cores(clock, cores - costs.idle_cores)
        self._callers, self._proxy = Loop(self._cores), Loop(self._cores)

    def place(self) -> "Place":
        """Return what one more replica runs on."""
        loop, costs = Loop(self._cores), self._costs
        steps = (
            (self._callers, costs.caller_s / 2),
            (self._proxy, costs.proxy_s / 2),
            (loop, costs.replica_s / 2),
        )
        return Place(self._clock, costs, self._cores, steps)


class Place:
    """One replica's part of a shared machine; ``steps`` are a call's way in, the last its own."""

    def __init__(self, clock: Clock, costs: RouterCosts, cores: Cores, steps: _Steps) -> None:
        self._clock, self._costs, self._cores = clock, costs, cores
        self._steps: dict[Side, _Steps] = {"in": steps, "out": steps[::-1]}
        self._loop = steps[-1][0]

    def carry(self, side: Side, then: Act) -> None:
        """Have a call, or its answer, pass the loops one after the other."""
        self._step(self._steps[side], then)

    def compute(self, seconds: float, then: Act) -> None:
        """Have a batch take its share of the cores, and the loop notice that it is done."""
        done = partial(self._loop.run, self._costs.round_s, then)
        self._cores.run(seconds, done, gives_way=True)

    def hand_over(self, calls: int, then: Act) -> None:
        """Have it at once, however many calls: the loop has taken its time."""
        self._clock.after(0.0, then)

    def _step(self, left: _Steps, then: Act) -> None:
        if not left:
            self._clock.after(self._costs.way_s / 2, then)
            return
        (loop, seconds), *after = left
        loop.run(seconds, lambda: self._step(tuple(after), then))
