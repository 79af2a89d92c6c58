"""What a simulated server runs on: who does its work, and how long that takes."""

from typing import Literal, Protocol

from upt_server.capacity.clock import Act, Clock
from upt_server.capacity.costs import Costs

Side = Literal["in", "out"]


class Machine(Protocol):
    """Does the work of one server."""

    def carry(self, side: Side, then: Act) -> None:
        """Bring a call in, or its answer out; then call ``then``."""
        ...

    def compute(self, seconds: float, then: Act) -> None:
        """Compute a batch that takes so long by itself; call ``then`` when the server knows."""
        ...


class OwnMachine:
    """A machine of its own. What calls keep from the runner is a part of each batch's seconds."""

    def __init__(self, clock: Clock, costs: Costs) -> None:
        self._clock, self._costs = clock, costs
        self._free_at_s: dict[Side, float] = {"in": 0.0, "out": 0.0}  # who reads, and who answers

    def carry(self, side: Side, then: Act) -> None:
        """Have half of a call's work done by one core, in turn, and half of its way pass."""
        costs, now_s = self._costs, self._clock.now_s
        work_s = costs.call_s * costs.cores / 2  # what keeps all cores for so long
        self._free_at_s[side] = max(now_s, self._free_at_s[side]) + work_s
        way_s = max(0.0, (costs.edge_s - costs.handoff_s) / 2 - work_s)
        self._clock.after(self._free_at_s[side] + way_s - now_s, then)

    def compute(self, seconds: float, then: Act) -> None:
        """Have the seconds pass, and those until the event loop has noticed."""
        self._clock.after(seconds + self._costs.handoff_s, then)
