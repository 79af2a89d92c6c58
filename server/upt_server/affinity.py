"""Which of several servers a call goes to, so that it finds its adapter in memory. Pure.

Rendezvous hashing: each adapter has an order of its own over all servers, and a call goes to the
first that is up. So an adapter stays where it is in memory, and a server that comes or goes moves
its own adapters only. Where the first is busy the call spills over: at a few calls inside to the
next of the order that lately had the adapter, and so has it in memory; at many calls inside to the
next at all, which loads it. Thus adapters hotter than a server live on several, and rare ones are
loaded in one place.

Sources: Thaler and Ravishankar 1998, Using name-based mappings to increase hit rates; the bound on
the load: Mirrokni, Thorup and Zadimoghaddam 2018, Consistent hashing with bounded loads.
"""

from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b
from typing import Protocol

# calls inside that make a server busy, where they are a quarter more than the mean of all
_BOUND = 1.25
_BUSY, _VERY_BUSY = 4, 32


class Place(Protocol):
    """A server as a router knows it: its name, and how many calls are inside."""

    @property
    def name(self) -> str:
        """Names are never used again."""
        ...

    @property
    def calls(self) -> int:
        """Calls inside."""
        ...


class AffinityRouter:
    """Takes the first of the adapter's own order, with two bounds to spill over.

    ``slots`` is how many adapters a server has in memory: the last so many that it was asked for.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._asked: dict[str, OrderedDict[str, None]] = {}  # by server, last asked last

    def choose(self, adapter: str, up: Sequence[Place]) -> int:
        """Return the first that is not busy and has the adapter, else that is not very busy."""
        names = [place.name for place in up]
        if names != list(self._asked):
            self._asked = {name: self._asked.get(name, OrderedDict()) for name in names}
        order = sorted(range(len(names)), key=lambda at: _weight(adapter, names[at]))
        chosen = self._among(adapter, up, order)
        self._note(adapter, names[chosen])
        return chosen

    def _among(self, adapter: str, up: Sequence[Place], order: Sequence[int]) -> int:
        mean = sum(place.calls for place in up) / len(up)
        first = order[0]
        if up[first].calls <= max(_BUSY, _BOUND * mean):
            return first
        for at in order:
            if adapter in self._asked[up[at].name] and up[at].calls <= max(_BUSY, _BOUND * mean):
                return at
        # there is one: not all have more than the mean
        return next(at for at in order if up[at].calls <= max(_VERY_BUSY, _BOUND * mean))

    def _note(self, adapter: str, name: str) -> None:
        asked = self._asked[name]
        asked[adapter] = None
        asked.move_to_end(adapter)
        if len(asked) > self._slots:
            asked.popitem(last=False)


def _weight(adapter: str, name: str) -> bytes:
    return blake2b(f"{adapter}\n{name}".encode(), digest_size=8).digest()
