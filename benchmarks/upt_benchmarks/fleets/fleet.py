"""Many simulated servers behind a router, with retries, failures and scaling."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from upt_benchmarks.fleets.routing import Router
from upt_server.capacity.clock import Clock
from upt_server.capacity.costs import Costs
from upt_server.capacity.replica import Call, Counts, Limits, Replica
from upt_server.capacity.trial import Waits
from upt_server.retries import Retries
from upt_zoo.errors import Overloaded, Unavailable

_NOTHING = Counts(hits=0, loads=0, batches=0, rows=0, busy_s=0.0)


@dataclass(slots=True, eq=False)
class Server:
    """A place in the fleet and the server in it."""

    name: str
    replica: Replica
    seen: Counts = _NOTHING

    @property
    def calls(self) -> int:
        """Calls inside."""
        return self.replica.calls


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """As Kubernetes' HPA: servers in proportion to how busy they are.

    Every ``every_s`` there shall be up · busy / ``target`` servers, between ``fewest`` and
    ``most``; fewer only after ``patience_s`` in which fewer were wanted.
    """

    target: float = 0.7
    every_s: float = 15.0
    patience_s: float = 300.0
    fewest: int = 1
    most: int = 10_000


class Fleet:
    """Servers that are up, those that start, and calls that try again; see ``warm`` too."""

    def __init__(
        self, clock: Clock, costs: Costs, limits: Limits, router: Router, *, source: Random
    ) -> None:
        self._clock, self._costs, self._limits = clock, costs, limits
        self._router, self._random = router, source
        self.up: list[Server] = []
        self.starting = 0
        self._named = 0
        self._gone: list[Counts] = []
        self.retried = 0
        self.server_s = 0.0
        self._charged_at_s = 0.0

    def open(self, servers: int) -> None:
        """Have so many servers up at once, with nothing in memory."""
        for _ in range(servers):
            self._come_up()

    def warm(self, adapters: Sequence[str]) -> None:
        """Put adapters where an idle fleet's router would look for them, the most popular last."""
        for adapter in adapters:
            self.up[self._router.choose(adapter, self.up)].replica.slots.fill([adapter])

    def start(self) -> None:
        """Start one more server; it is up after the time that a server needs."""
        self._charge()
        self.starting += 1
        self._clock.after(self._costs.start_s, self._started)

    def kill(self, at: int) -> None:
        """Kill one that is up, as ``kill -9`` would, and start another in its place."""
        self._charge()
        server = self.up.pop(at)
        self._gone.append(server.replica.counts())
        self.start()
        server.replica.kill()

    def retire(self) -> None:
        """Give the newest server no more calls; it ends when it has answered those it has."""
        self._charge()
        self._gone.append(self.up.pop().replica.counts())

    def ask(self, adapter: str, tokens: int, waits: Waits, *, retry_for_s: float) -> None:
        """Ask, and again as clients with ``retry_for_s`` do; ``waits`` is told how it ended."""
        began_s = self._clock.now_s
        retries = Retries(retry_for_s, clock=lambda: self._clock.now_s, draw=self._random.random)

        def attempt() -> None:
            if not self.up:
                ended(None, Unavailable("no server is up", retry_after_s=0.0))
                return
            call = Call(adapter=adapter, tokens=tokens + self._costs.prompt_tokens, ended=ended)
            self.up[self._router.choose(adapter, self.up)].replica.submit(call)

        def ended(_: Call | None, error: Overloaded | Unavailable | None) -> None:
            if error is None:
                waits.note(began_s, self._clock.now_s, None)
                return
            try:
                pause_s = retries.pause_s(error)
            except (Overloaded, Unavailable):
                waits.note(began_s, self._clock.now_s, error)
            else:
                self.retried += 1
                self._clock.after(pause_s, attempt)

        attempt()

    def counts(self) -> Counts:
        """Return what all servers did so far."""
        return total([*self._gone, *(server.replica.counts() for server in self.up)])

    def scale(self, scaling: Scaling) -> None:
        """Keep the number of servers in proportion to how busy they are, from here on."""
        low_since_s = math.inf

        def look() -> None:
            nonlocal low_since_s
            now_s = self._clock.now_s
            busy = self._busy_since_last() / (scaling.every_s * max(1, len(self.up)))
            wanted = math.ceil(len(self.up) * busy / scaling.target)
            wanted = min(max(wanted, scaling.fewest), scaling.most)
            there = len(self.up) + self.starting
            for _ in range(wanted - there):
                self.start()
            low_since_s = min(low_since_s, now_s) if wanted < there else math.inf
            if now_s - low_since_s >= scaling.patience_s and len(self.up) > 1:
                self.retire()
            self._clock.after(scaling.every_s, look)

        self._clock.after(scaling.every_s, look)

    def paid_server_s(self) -> float:
        """Return the seconds that servers were up or starting, all together."""
        self._charge()
        return self.server_s

    def _busy_since_last(self) -> float:
        busy_s = 0.0
        for server in self.up:
            counts = server.replica.counts()
            busy_s += counts.busy_s - server.seen.busy_s
            server.seen = counts
        return busy_s

    def _charge(self) -> None:
        now_s = self._clock.now_s
        self.server_s += (len(self.up) + self.starting) * (now_s - self._charged_at_s)
        self._charged_at_s = now_s

    def _started(self) -> None:
        self._charge()
        self.starting -= 1
        self._come_up()

    def _come_up(self) -> None:
        replica = Replica(self._clock, self._costs, self._limits, self._random)
        self.up.append(Server(f"server-{self._named}", replica))
        self._named += 1


def total(counts: Sequence[Counts]) -> Counts:
    """Add up."""
    return Counts(
        hits=sum(each.hits for each in counts),
        loads=sum(each.loads for each in counts),
        batches=sum(each.batches for each in counts),
        rows=sum(each.rows for each in counts),
        busy_s=sum(each.busy_s for each in counts),
    )
