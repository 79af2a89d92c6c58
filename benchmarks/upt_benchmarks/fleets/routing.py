"""How the calls of a simulated fleet are routed: as real ones are, or for comparison. Pure."""

from collections.abc import Sequence
from random import Random
from typing import Literal, Protocol

from upt_server.affinity import AffinityRouter, Place

Routing = Literal["random", "least_loaded", "affinity"]


class Router(Protocol):
    """Chooses where a call goes."""

    def choose(self, adapter: str, up: Sequence[Place]) -> int:
        """Return which of the servers that are up, one at least."""
        ...


class RandomRouter:
    """Takes any."""

    def __init__(self, source: Random) -> None:
        self._random = source

    def choose(self, adapter: str, up: Sequence[Place]) -> int:
        """Return any."""
        return self._random.randrange(len(up))


class LeastLoadedRouter:
    """Takes the one with the fewest calls inside, any of several such."""

    def __init__(self, source: Random) -> None:
        self._random = source

    def choose(self, adapter: str, up: Sequence[Place]) -> int:
        """Return the least loaded."""
        fewest = min(place.calls for place in up)
        return self._random.choice([at for at, place in enumerate(up) if place.calls == fewest])


def router_of(routing: Routing, slots: int, source: Random) -> Router:
    """Return a router by its name, for servers with so many adapters in memory."""
    if routing == "affinity":
        return AffinityRouter(slots)
    return RandomRouter(source) if routing == "random" else LeastLoadedRouter(source)
