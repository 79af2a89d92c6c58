"""Simulated time: what is due is done in its order, and nobody waits."""

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count

Act = Callable[[], None]


class Clock:
    """Calls what is due; of two at the same time, the one that was asked for first."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._due: list[tuple[float, int, Act]] = []
        self._order = count()

    def after(self, delay_s: float, act: Act) -> None:
        """Have ``act`` called in so many seconds from now."""
        heappush(self._due, (self.now_s + delay_s, next(self._order), act))

    def run(self, until_s: float) -> None:
        """Do all that is due up to a time, what comes up meanwhile too."""
        while self._due and self._due[0][0] <= until_s:
            self.now_s, _, act = heappop(self._due)
            act()
        self.now_s = until_s
