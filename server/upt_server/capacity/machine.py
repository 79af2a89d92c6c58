"""What a simulated server runs on: who does its work, and how long that takes."""

import math
from typing import Literal, Protocol

from upt_server.capacity.clock import Act, Clock
from upt_server.capacity.costs import APART_S, Costs

Side = Literal["in", "out"]
_NOTHING_S = 1e-9  # left of a batch that is done


class Machine(Protocol):
    """Does the work of one server."""

    def carry(self, side: Side, then: Act) -> None:
        """Bring a call in, or its answer out; then call ``then``."""
        ...

    def compute(self, seconds: float, then: Act) -> None:
        """Compute a batch that takes so long by itself; call ``then`` when it is done."""
        ...

    def hand_over(self, calls: int, then: Act) -> None:
        """Make the runner ready, after a batch of so many calls or none; then call ``then``."""
        ...


class OwnMachine:
    """A machine of its own."""

    def __init__(self, clock: Clock, costs: Costs) -> None:
        self._clock, self._costs = clock, costs
        self._free_at_s = 0.0  # the event loop
        self._came_at_s = -math.inf  # the last call
        self._ends_s = 0.0  # the batch that is computed
        self._is_computing = False
        self._owed_s = 0.0  # by the next batch, for calls

    def carry(self, side: Side, then: Act) -> None:
        """Have the event loop turn to the call, in or out, in its turn, and half its way pass."""
        costs, now_s = self._costs, self._clock.now_s
        if side == "in":
            self._let_in()
        self._free_at_s = max(now_s, self._free_at_s) + costs.call_s
        way_s = max(0.0, costs.edge_s / 2 - costs.call_s)
        self._clock.after(self._free_at_s + way_s - now_s, then)

    def compute(self, seconds: float, then: Act) -> None:
        """Have the seconds pass, and those that calls take from it."""
        self._is_computing = True
        self._ends_s, self._owed_s = self._clock.now_s + seconds + self._owed_s, 0.0
        self._go_on(then)

    def hand_over(self, calls: int, then: Act) -> None:
        """Have the event loop turn to each of the calls first, before others that came in."""
        self._clock.after(self._costs.handoff_s + self._costs.call_s * calls, then)

    def _let_in(self) -> None:
        costs, now_s = self._costs, self._clock.now_s
        if now_s - self._came_at_s <= APART_S:
            if self._is_computing:
                self._ends_s += costs.together_s
            else:
                self._owed_s += costs.together_s
        elif self._is_computing:
            self._ends_s += min(costs.alone_s, self._ends_s - now_s)
        self._came_at_s = now_s

    def _go_on(self, then: Act) -> None:
        left_s = self._ends_s - self._clock.now_s
        if left_s > _NOTHING_S:
            self._clock.after(left_s, lambda: self._go_on(then))
        else:
            self._is_computing = False
            then()
