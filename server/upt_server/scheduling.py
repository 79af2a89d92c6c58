"""Which waiting rows go into the next batch. Pure: no clock, no tensors, no state."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import Protocol, TypeVar


class Waiting(Protocol):
    """One row in the queue: whose it is and what it costs."""

    @property
    def adapter(self) -> str:
        """Digest of the adapter; rows of one adapter keep their order."""
        ...

    @property
    def tokens(self) -> int:
        """Tokens that the row adds to a batch, prompt vectors included."""
        ...


WaitingT = TypeVar("WaitingT", bound=Waiting)


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How large a batch may be; a row larger than ``tokens`` goes alone."""

    tokens: int
    rows: int = 256


def select_batch(queue: Iterable[WaitingT], budget: Budget) -> list[WaitingT]:
    """Select rows, fairly over adapters, from a queue in order of arrival.

    The next row is always that of the adapter with the fewest tokens in the batch so far, among
    equals of the one whose row has waited longest. A row that does not fit ends its adapter's part,
    so that no smaller row overtakes it. The row that has waited longest is always selected: however
    hot another adapter is, everybody's turn comes.
    """
    rows: dict[str, deque[tuple[int, WaitingT]]] = {}
    for place, row in enumerate(queue):
        rows.setdefault(row.adapter, deque()).append((place, row))
    turns = [(0, waiting[0][0], adapter) for adapter, waiting in rows.items()]
    heapify(turns)
    selected: list[WaitingT] = []
    room = budget.tokens
    while turns and len(selected) < budget.rows:
        taken, _, adapter = heappop(turns)
        waiting = rows[adapter]
        _, row = waiting.popleft()
        if selected and row.tokens > room:
            continue
        selected.append(row)
        room -= row.tokens
        if waiting:
            heappush(turns, (taken + row.tokens, waiting[0][0], adapter))
    return selected
