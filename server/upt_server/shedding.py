"""Load shedding: a part of the calls is turned away at once while the event loop has no time left.

What an overloaded loop has not taken up waits inside gRPC, in order and unseen, until its deadline
has nearly passed, and whatever is answered then comes too late. To turn a call away unread costs
less than half of what it costs to judge it, so that the loop has time for those that it lets in.
"""

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from upt_zoo.errors import Overloaded

_EVERY_S = 0.05
_SATURATED = 0.95  # of the time; a server whose batches are full is at a half
_AT_WORK = 0.3  # of the time: a loop that others keep from running has little to gain
_PATIENCE_S = 0.25  # a burst is not an overload
_UP_PER_S, _DOWN_PER_S, _MOST = 2.0, 1.0, 0.98
_LONG_S = 10.0  # who has so much time may as well wait
_SCHEDSTAT = Path("/proc/thread-self/schedstat")
TURNED_AWAY = Overloaded("there are more calls than the server can take up", retry_after_s=1.0)


class Shedding:
    """Which ``share`` of the calls with little time is turned away, by how busy the loop is."""

    def __init__(self, *, chance: Callable[[], float] = random.random) -> None:
        self.share = 0.0
        self._chance = chance
        self._saturated_s = 0.0

    def observe(self, ran_s: float, waited_s: float, took_s: float) -> None:
        """Take in how long of the last moment the loop has run, and has been kept from running.

        A moment that took twice as long as it should counts as one of all work, too: beside
        another thread of Python the loop waits for the interpreter, which no system counts.
        """
        is_busy = ran_s + waited_s > _SATURATED * took_s or took_s > 2 * _EVERY_S
        is_saturated = is_busy and ran_s > _AT_WORK * took_s
        self._saturated_s = self._saturated_s + took_s if is_saturated else 0.0
        counted_s = min(took_s, 2 * _EVERY_S)
        if not is_saturated:
            self.share = max(0.0, self.share - _DOWN_PER_S * counted_s)
        elif self.share or self._saturated_s > _PATIENCE_S:
            self.share = min(_MOST, self.share + _UP_PER_S * counted_s)

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
            (ran_s, waited_s), at_s = _read(statistics), clock()
            try:
                while True:
                    await asyncio.sleep(_EVERY_S)
                    before = ran_s, waited_s, at_s
                    (ran_s, waited_s), at_s = _read(statistics), clock()
                    self.observe(ran_s - before[0], waited_s - before[1], at_s - before[2])
            finally:
                self.share = 0.0


def _open_statistics() -> TextIO | None:
    """Open those of this thread, whoever reads them."""
    try:
        return _SCHEDSTAT.open(encoding="ascii")
    except OSError:
        return None


def _read(statistics: TextIO) -> tuple[float, float]:
    """Return how long the thread has run, and how long it was kept from running.

    Source: Linux, Documentation/scheduler/sched-stats.rst, "/proc/<pid>/schedstat".
    """
    statistics.seek(0)
    ran_ns, waited_ns, _ = statistics.read().split()
    return int(ran_ns) / 1e9, int(waited_ns) / 1e9
