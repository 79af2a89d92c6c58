"""Shares of one name's calls for several tags, such as nine in ten for stable. Pure.

    sst2:stable=90,canary=10

Routes concern the bare name only: who asks ``sst2:canary`` gets that.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from random import random
from typing import Self

from upt_server.inputs import Input
from upt_zoo.errors import InvalidSpec
from upt_zoo.references import Reference


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Where calls for a bare name go; of shares that sum to 50, 5 are a tenth."""

    name: str
    shares: tuple[tuple[Reference, int], ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``name:tag=share,tag=share``.

        Raises:
            InvalidReference: a name or tag is none.
            InvalidSpec: the text is not of this form, a share is none, or a tag comes twice.
        """
        name, _, rest = text.partition(":")
        shares: dict[Reference, int] = {}
        for part in rest.split(","):
            tag, _, share = part.partition("=")
            if not (share.isascii() and share.isdigit() and len(share) < 10 and int(share)):
                raise InvalidSpec(
                    f"route {text!r}: expected NAME:TAG=SHARE,TAG=SHARE with whole shares from 1 on"
                )
            reference = Reference.parse(f"{name}:{tag}")
            if reference in shares:
                raise InvalidSpec(f"route {text!r}: expected every tag once, got {tag} again")
            shares[reference] = int(share)
        return cls(name=name, shares=tuple(shares.items()))

    def choose(self, place: float) -> Reference:
        """Return what stands at a place from 0 to 1, the shares lying one after the other.

        So a share that grows at its neighbour's cost moves no other caller.
        """
        left = place * sum(share for _, share in self.shares)
        for reference, share in self.shares:
            left -= share
            if left < 0:
                return reference
        return self.shares[-1][0]


class Routes:
    """All routes of a server; ``draw`` gives a place to calls without a key."""

    def __init__(self, routes: Iterable[Route] = (), *, draw: Callable[[], float] = random) -> None:
        self._draw = draw
        self._routes: dict[str, Route] = {}
        for route in routes:
            if route.name in self._routes:
                raise InvalidSpec(f"expected one route for {route.name}, got two")
            self._routes[route.name] = route

    def references(self) -> tuple[Reference, ...]:
        """Return where calls may be sent."""
        return tuple(reference for route in self._routes.values() for reference, _ in route.shares)

    def apply(self, inputs: Sequence[Input], key: str | None) -> Sequence[Input]:
        """Send a call's bare names where their routes lead: equal keys to equal places."""
        if not self._routes:
            return inputs
        names = {item.adapter.name for item in inputs if _is_bare(item.adapter)}
        chosen = {
            name: route.choose(self._draw() if key is None else _place(name, key))
            for name, route in self._routes.items()
            if name in names
        }
        return [
            replace(item, adapter=chosen[item.adapter.name])
            if _is_bare(item.adapter) and item.adapter.name in chosen
            else item
            for item in inputs
        ]


def _is_bare(reference: Reference) -> bool:
    return reference == Reference(name=reference.name)


def _place(name: str, key: str) -> float:
    """Spread keys evenly from 0 to 1; of different names independently of each other."""
    digest = hashlib.sha256(f"{name}\0{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
