"""How many calls a second one caller may make. Pure: the clock comes in."""


class RateLimit:
    """Lets through so many calls a second, and as many at once after a second of rest.

    A token bucket: it fills at ``per_second`` up to one second's worth, one call at least.
    """

    def __init__(self, per_second: float, now_s: float) -> None:
        self.per_second = per_second
        self._room = self._most = max(per_second, 1.0)
        self._at_s = now_s

    def take(self, now_s: float) -> float:
        """Take one call and return 0.0; if there is none, return the seconds until there is."""
        self._room = min(self._most, self._room + (now_s - self._at_s) * self.per_second)
        self._at_s = now_s
        if self._room < 1.0:
            return (1.0 - self._room) / self.per_second
        self._room -= 1.0
        return 0.0
