"""When calls come, in simulated time: at random, and at random with bursts."""

from dataclasses import dataclass
from random import Random
from typing import Protocol


class Traffic(Protocol):
    """Says how long until the next call; asked once for each call, in the order of time."""

    def pause_s(self) -> float:
        """Draw the time from one call to the next."""
        ...


class Steady:
    """A Poisson process."""

    def __init__(self, per_s: float, source: Random) -> None:
        self._per_s, self._random = per_s, source

    def pause_s(self) -> float:
        """Draw the time from one call to the next."""
        return self._random.expovariate(self._per_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Burst:
    """The rate is ``times`` as high for ``burst_s``, after each ``calm_s``."""

    times: float
    calm_s: float
    burst_s: float


class Bursty:
    """A Poisson process whose rate rises and falls in turn (Markov-modulated, two states).

    ``per_s`` is the calm rate. With ``is_regular`` calm and burst last what they say, else that
    long on average (exponential).
    """

    def __init__(
        self, per_s: float, burst: Burst, source: Random, *, is_regular: bool = False
    ) -> None:
        self._per_s, self._burst, self._random = per_s, burst, source
        self._is_regular, self._is_burst = is_regular, False
        self._left_s = self._length_s()

    def pause_s(self) -> float:
        """Draw the time from one call to the next, over any changes of the rate."""
        passed_s = 0.0
        while True:
            rate = self._per_s * (self._burst.times if self._is_burst else 1.0)
            pause_s = self._random.expovariate(rate)
            if pause_s <= self._left_s:  # else it is drawn anew: the process has no memory
                self._left_s -= pause_s
                return passed_s + pause_s
            passed_s += self._left_s
            self._is_burst = not self._is_burst
            self._left_s = self._length_s()

    def _length_s(self) -> float:
        mean_s = self._burst.burst_s if self._is_burst else self._burst.calm_s
        return mean_s if self._is_regular else self._random.expovariate(1 / mean_s)
