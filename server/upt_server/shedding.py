"""Load shedding: a part of the calls is turned away at once while the event loop has no time left.

What an overloaded loop has not taken up waits inside gRPC, in order and unseen, until its deadline
has nearly passed, and whatever is answered then comes too late. To turn a call away unread costs
less than half of what it costs to judge it, so that the loop has time for those that it lets in.
"""

import asyncio
import random
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from upt_zoo.errors import Overloaded

_EVERY_S = 0.05
_SATURATED = 0.95  # of the time; a server whose batches are full is at a half
_PATIENCE = 5  # looks in a row: a burst is not an overload
_UP, _DOWN, _MOST = 0.1, 0.05, 0.98  # additive, so that many servers do not swing together
_LONG_S = 10.0  # who has so much time may as well wait
_SCHEDSTAT = Path("/proc/thread-self/schedstat")
TURNED_AWAY = Overloaded("there are more calls than the server can take up", retry_after_s=1.0)


class Shedding:
    """Which ``share`` of the calls with little time is turned away, by how busy the loop is."""

    def __init__(self, *, chance: Callable[[], float] = random.random) -> None:
        self.share = 0.0
        self._chance = chance
        self._looks: deque[bool] = deque(maxlen=_PATIENCE)

    def observe(self, busy: float) -> None:
        """Take in for which share of the last moment the loop had work, or waited for a core."""
        is_saturated = busy > _SATURATED
        self._looks.append(is_saturated)
        if not is_saturated:
            self.share = max(0.0, self.share - _DOWN)
        elif self.share or self._looks.count(True) == _PATIENCE:
            self.share = min(_MOST, self.share + _UP)

    def turns_away(self, time_left_s: float | None) -> bool:
        """Decide on a call; with None for its time it waits as long as it takes."""
        is_short = time_left_s is not None and time_left_s < _LONG_S
        return self.share > 0 and is_short and self._chance() < self.share

    async def watch(self) -> None:
        """Look at the running loop for ever; where the system does not tell, never shed."""
        statistics = _open_statistics()
        if statistics is None:
            return
        clock = asyncio.get_running_loop().time
        with statistics:
            wanted_s, at_s = _wanted_s(statistics), clock()
            while True:
                await asyncio.sleep(_EVERY_S)
                before_s, since_s = wanted_s, at_s
                wanted_s, at_s = _wanted_s(statistics), clock()
                self.observe((wanted_s - before_s) / (at_s - since_s))


def _open_statistics() -> TextIO | None:
    """Open those of this thread, whoever reads them."""
    try:
        return _SCHEDSTAT.open(encoding="ascii")
    except OSError:
        return None


def _wanted_s(statistics: TextIO) -> float:
    """Return how long the thread has run and been kept from running.

    Source: Linux, Documentation/scheduler/sched-stats.rst, "/proc/<pid>/schedstat".
    """
    statistics.seek(0)
    ran_ns, waited_ns, _ = statistics.read().split()
    return (int(ran_ns) + int(waited_ns)) / 1e9
