"""When to ask a server again that was away or overloaded, and when to give up. Pure."""

import random
from collections.abc import Callable
from time import monotonic

from upt_zoo.errors import Overloaded, Unavailable

_FIRST_S, _LONGEST_S = 0.1, 5.0


class Retries:
    """The pauses between the attempts of one call, for ``for_s`` seconds from here on.

    A pause is what the server asked for (RetryInfo) or one that doubles from 0.1 s to 5 s,
    whichever is longer, and up to half as much again, drawn: those who were refused together shall
    not come back together.
    """

    def __init__(
        self,
        for_s: float,
        *,
        clock: Callable[[], float] = monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._clock, self._draw = clock, draw
        self._ends_at_s = clock() + for_s
        self._own_s = _FIRST_S

    def pause_s(self, error: Overloaded | Unavailable) -> float:
        """Return the seconds until the next attempt.

        Raises:
            Overloaded: ``error``, where there would be no time left for another attempt.
            Unavailable: the same.
        """
        pause_s = max(self._own_s, error.retry_after_s) * (1 + self._draw() / 2)
        self._own_s = min(2 * self._own_s, _LONGEST_S)
        if self._clock() + pause_s > self._ends_at_s:
            raise error
        return pause_s
