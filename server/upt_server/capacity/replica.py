"""One server in simulated time: real admission, fair queue and pace, costs in place of work.

A call has one input of one row. It passes the event loops of caller and server, leases its adapter,
waits in the queue, is computed in a batch and passes the loops again. What is left out: calls that
leave, deadlines that pass in the queue (admission refuses what would), and inputs of several rows.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from math import inf, sqrt
from random import Random

from upt_server.admission import Admission
from upt_server.capacity.clock import Clock
from upt_server.capacity.costs import Costs
from upt_server.capacity.machine import Machine, OwnMachine
from upt_server.capacity.slots import Slots
from upt_server.pace import Pace
from upt_server.scheduling import Budget, FairQueue, Priority
from upt_zoo.errors import Overloaded, Unavailable


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the options of ``upt-server run`` set; ``slots`` is how many adapters fit in memory."""

    slots: int
    budget: Budget = field(default_factory=lambda: Budget(tokens=2048))
    max_queue_tokens: int = 65_536
    timeout_s: float = 30.0


@dataclass(slots=True, kw_only=True, eq=False)
class Call:
    """One input; ``tokens`` holds prompt vectors too. ``ended`` is told the error, or None."""

    adapter: str
    tokens: int
    ended: Callable[["Call", Overloaded | Unavailable | None], None]
    weight: int = 1
    priority: Priority = "normal"
    ends_at_s: float = inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What a server did since it was up; ``busy_s`` is the time in which it computed."""

    hits: int
    loads: int
    batches: int
    rows: int
    busy_s: float


class Replica:
    """A server that is up until ``kill``; ``machine`` None is one of its own."""

    def __init__(
        self,
        clock: Clock,
        costs: Costs,
        limits: Limits,
        source: Random,
        *,
        machine: Machine | None = None,
    ) -> None:
        self._clock, self._costs, self._limits, self._random = clock, costs, limits, source
        self._machine = machine or OwnMachine(clock, costs)
        self.slots = Slots(clock, limits.slots, costs.load_s)
        self._queue = FairQueue[Call](limits.max_queue_tokens)
        self._pace = Pace()
        self._admission = Admission(self._queue, self._pace)
        self._inside: dict[Call, bool] = {}  # whether it holds a lease
        self._running: list[Call] = []
        self._loads_paid = 0
        self._busy_s = 0.0  # before the running batch
        self._started_s: float | None = None  # that one, while it is computed
        self._batches = self._rows = 0

    @property
    def calls(self) -> int:
        """Calls inside: what a router knows as the load."""
        return len(self._inside)

    def counts(self) -> Counts:
        """Return what it did so far; a batch counts from its start."""
        running_s = 0.0 if self._started_s is None else self._clock.now_s - self._started_s
        return Counts(
            hits=self.slots.hits,
            loads=self.slots.loads,
            batches=self._batches,
            rows=self._rows,
            busy_s=self._busy_s + running_s,
        )

    def submit(self, call: Call) -> None:
        """Take a call in; it ends in simulated time."""
        self._inside[call] = False
        self._machine.carry("in", lambda: self._lease(call))

    def kill(self) -> None:
        """Be gone at once: all calls inside end as unavailable."""
        inside, self._inside = self._inside, {}
        for call in inside:
            call.ended(call, Unavailable("the server is gone"))

    def _lease(self, call: Call) -> None:
        if call in self._inside:
            self.slots.lease(call.adapter, lambda has_room: self._enqueue(call, has_room))

    def _enqueue(self, call: Call, has_room: bool) -> None:
        if call not in self._inside:
            return
        if not has_room:
            self._end(call, Overloaded("all adapters in memory are in use"))
            return
        self._inside[call] = True
        try:
            self._admission.check([call], self._limits.timeout_s, self._clock.now_s)
        except Overloaded as error:
            self._end(call, error)
            return
        call.ends_at_s = self._clock.now_s + self._limits.timeout_s
        self._queue.add([call])
        # calls that become ready meanwhile share the batch
        self._machine.hand_over(0, self._start_batch)

    def _start_batch(self) -> None:
        if self._running or not self._queue or not self._inside:
            return
        now_s = self._clock.now_s
        self._running = batch = self._queue.take(
            self._limits.budget, lambda end_s: self._pace.reach(end_s - now_s)
        )
        tokens = sum(call.tokens for call in batch)
        self._pace.start(tokens, self._clock.now_s)
        self._started_s = self._clock.now_s
        self._batches += 1
        self._rows += len(batch)
        self._machine.compute(self._batch_s(batch, tokens), lambda: self._finish_batch(batch))

    def _batch_s(self, batch: list[Call], tokens: int) -> float:
        distinct = len({call.adapter for call in batch})
        seconds = self._costs.batch.seconds(rows=len(batch), tokens=tokens, adapters=distinct)
        # by its least quantile a very short batch would end before it began
        seconds = max(seconds / 2, seconds + self._draw_jitter() * sqrt(seconds))
        loads, self._loads_paid = self.slots.loads - self._loads_paid, self.slots.loads
        return seconds + self._costs.load_work_s * loads

    def _draw_jitter(self) -> float:
        """Draw from the distribution with these quantiles, linear between them."""
        quantiles = self._costs.jitter_root_s
        at = self._random.random() * (len(quantiles) - 1)
        below = int(at)
        part = at - below
        return quantiles[below] * (1 - part) + quantiles[below + 1] * part

    def _finish_batch(self, batch: list[Call]) -> None:
        assert self._started_s is not None
        self._busy_s += self._clock.now_s - self._started_s
        self._started_s = None
        self._machine.hand_over(len(batch), self._be_ready)
        for call in batch:
            self._machine.carry("out", partial(self._end, call, None))

    def _be_ready(self) -> None:
        self._running = []
        self._pace.finish(self._clock.now_s)
        self._start_batch()

    def _end(self, call: Call, error: Overloaded | None) -> None:
        if call not in self._inside:
            return
        if self._inside.pop(call):
            self.slots.give_back(call.adapter)
        call.ended(call, error)
