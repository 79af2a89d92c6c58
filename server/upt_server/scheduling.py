"""Whose rows come next: a queue that is fair over adapters. Pure: no clock, no tensors.

Deficit round-robin: the adapters that have rows waiting stand in a circle. Who is first gives rows
while its credit in tokens lasts, gets new credit by its weight, and goes to the end. So each gets
tokens in proportion to its weight however many rows it has waiting, a credit too small for a long
row grows from turn to turn, and who comes in waits for one round at most.

A batch is only as long as the deadlines of its rows allow, where they can be kept at all.

Source: Shreedhar and Varghese 1996, Efficient fair queuing using deficit round-robin. A queue that
many share: Choudhury and Hahne 1998, Dynamic queue length thresholds.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import inf
from typing import Generic, Literal, Protocol, TypeVar, get_args

from upt_server.pace import Reach
from upt_zoo.errors import InvalidReference, InvalidSpec
from upt_zoo.references import Reference

Priority = Literal["normal", "bulk"]
PRIORITIES: tuple[Priority, ...] = get_args(Priority)

# a row of typical length: a round over all adapters is short, and few turns pass without a row
_QUANTUM_TOKENS = 64.0
_SHARES: dict[Priority, float] = {"normal": 1.0, "bulk": 1 / 8}
# one adapter alone may fill four fifths of the queue, two may fill four ninths each
_OF_THE_FREE_ROOM = 4
# deadlines make a batch no smaller than that: what a batch costs beside its tokens, all pay for
_PARTS_OF_A_BATCH = 4
_UNBOUNDED = Reach(inf, inf)


class Waiting(Protocol):
    """One row in the queue: whose it is and what it costs; compared by identity."""

    @property
    def adapter(self) -> str:
        """Digest of the adapter."""
        ...

    @property
    def priority(self) -> Priority:
        """Rows of one adapter and priority keep their order."""
        ...

    @property
    def weight(self) -> int:
        """How much of the machine the adapter gets beside others, 1 or more."""
        ...

    @property
    def tokens(self) -> int:
        """Tokens that the row adds to a batch, prompt vectors included."""
        ...


class Queued(Waiting, Protocol):
    """A row that was taken in, and when its answer is of no use any more."""

    @property
    def ends_at_s(self) -> float:
        """By the clock that ``FairQueue.take`` is asked by; infinite for who waits for ever."""
        ...


QueuedT = TypeVar("QueuedT", bound=Queued)
_Key = tuple[str, Priority]


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How large a batch may be; a row larger than ``tokens`` goes alone."""

    tokens: int
    rows: int = 256


class _Flow(Generic[QueuedT]):
    """The rows of one adapter and priority; ``credit`` is what its turn may still cost."""

    def __init__(self, first: QueuedT) -> None:
        # ordered, with removal from anywhere; a dict would walk over all that was taken before
        self.rows: OrderedDict[QueuedT, None] = OrderedDict()
        self.tokens = 0
        self.quantum = self.credit = _quantum(first)

    def add(self, row: QueuedT) -> None:
        self.rows[row] = None
        self.tokens += row.tokens

    def remove(self, row: QueuedT) -> None:
        del self.rows[row]
        self.tokens -= row.tokens


class _Batch(Generic[QueuedT]):
    """Rows of the next batch; it may become ``_limit`` tokens large."""

    def __init__(self, budget: Budget, reach_by: Callable[[float], Reach]) -> None:
        self.rows: list[QueuedT] = []
        self._most_rows, self._reach_by = budget.rows, reach_by
        self._tokens, self._limit = 0, float(budget.tokens)
        self._least = budget.tokens / _PARTS_OF_A_BATCH

    @property
    def is_full(self) -> bool:
        return len(self.rows) >= self._most_rows

    def has_room(self, row: QueuedT) -> bool:
        return not self.rows or self._tokens + row.tokens <= self._limit

    def add(self, row: QueuedT) -> None:
        self.rows.append(row)
        self._tokens += row.tokens
        reach = self._reach_by(row.ends_at_s)
        if row.priority == "normal" and reach.possible >= self._tokens:  # else it is late anyway
            self._limit = min(self._limit, max(reach.sure, self._least))


class FairQueue(Generic[QueuedT]):
    """Rows that wait, at most ``max_tokens``; the same calls always give the same batches."""

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self._flows: OrderedDict[_Key, _Flow[QueuedT]] = OrderedDict()
        self._rows = self._tokens = 0

    def __len__(self) -> int:
        return self._rows

    @property
    def tokens(self) -> int:
        """Tokens of all rows that wait."""
        return self._tokens

    def has_room(self, rows: Iterable[Waiting]) -> bool:
        """Tell whether rows can be added so that room is left for other adapters.

        An adapter that has rows waiting may take four times what it leaves free: one that is hot
        never fills the queue. Who has none waiting comes in while there is room at all.
        """
        wanted: dict[_Key, int] = {}
        for row in rows:
            key = _key(row)
            wanted[key] = wanted.get(key, 0) + row.tokens
        free = self.max_tokens - self._tokens - sum(wanted.values())
        return free >= 0 and all(
            flow.tokens + tokens <= _OF_THE_FREE_ROOM * free
            for key, tokens in wanted.items()
            if (flow := self._flows.get(key))
        )

    def tokens_before(self, rows: Iterable[Waiting]) -> int:
        """Estimate how many tokens will have been taken when the last of these rows is.

        Theirs are among them, and so is what may still come in: every other adapter that has rows
        waiting is taken to have enough for all turns that these rows need. But no more than twice
        of what waits already, since a queue that grows by more is soon full.
        """
        own: dict[_Key, float] = {}
        quanta: dict[_Key, float] = {}
        for row in rows:
            key = _key(row)
            flow = self._flows.get(key)
            own[key] = own.get(key, flow.tokens if flow else 0.0) + row.tokens
            quanta[key] = _quantum(row)
        turns = max((tokens / quanta[key] for key, tokens in own.items()), default=0.0)
        others = [flow for key, flow in self._flows.items() if key not in own]
        in_turn = turns * (sum(quanta.values()) + sum(flow.quantum for flow in others))
        waiting = sum(own.values()) + sum(flow.tokens for flow in others)
        return int(min(in_turn, 2 * waiting))

    def add(self, rows: Iterable[QueuedT]) -> None:
        """Add rows behind those of their adapter and priority."""
        for row in rows:
            key = _key(row)
            flow = self._flows.get(key)
            if flow is None:
                flow = self._flows[key] = _Flow(row)
            flow.add(row)
            self._rows += 1
            self._tokens += row.tokens

    def discard(self, rows: Iterable[QueuedT]) -> None:
        """Remove those of the rows that still wait."""
        for row in rows:
            flow = self._flows.get(_key(row))
            if flow is not None and row in flow.rows:
                self._remove(flow, row)

    def take(
        self, budget: Budget, reach_by: Callable[[float], Reach] = lambda _: _UNBOUNDED
    ) -> list[QueuedT]:
        """Remove the next batch and return it; the first row is in it, however large.

        ``reach_by`` says how many tokens of a batch that starts now are computed by a time. A batch
        of a quarter of the budget or more ends where one more row would make one of its rows late,
        unless that one is late already, or bulk. A row that does not fit ends the turns: its
        adapter is the first of the next batch. What room is left goes to others' smaller rows, on
        credit that they have yet to get.
        """
        batch: _Batch[QueuedT] = _Batch(budget, reach_by)
        while self._flows and not batch.is_full:
            key, flow = next(iter(self._flows.items()))
            row = next(iter(flow.rows))
            if row.tokens > flow.credit:
                flow.credit += flow.quantum
                self._flows.move_to_end(key)
                continue
            if not batch.has_room(row):
                self._fill(batch)
                break
            self._move(flow, row, batch)
        return batch.rows

    def _fill(self, batch: "_Batch[QueuedT]") -> None:
        """Move rows that fit, in the order of turns; no row overtakes one of its own kind."""
        for flow in list(self._flows.values()):
            while flow.rows and not batch.is_full:
                row = next(iter(flow.rows))
                if not batch.has_room(row):
                    break
                self._move(flow, row, batch)

    def _move(self, flow: _Flow[QueuedT], row: QueuedT, batch: "_Batch[QueuedT]") -> None:
        self._remove(flow, row)
        flow.credit -= row.tokens
        batch.add(row)

    def _remove(self, flow: _Flow[QueuedT], row: QueuedT) -> None:
        flow.remove(row)
        if not flow.rows:
            del self._flows[_key(row)]
        self._rows -= 1
        self._tokens -= row.tokens


def parse_weight(text: str) -> tuple[str, int]:
    """Read an adapter's name and its weight from ``NAME=WEIGHT``.

    Raises:
        InvalidReference: the name is none.
        InvalidSpec: the weight is none.
    """
    name, _, weight = text.partition("=")
    if not (weight.isascii() and weight.isdigit() and len(weight) < 4 and int(weight)):
        raise InvalidSpec(f"weight {text!r}: expected NAME=WEIGHT with a whole weight of 1 to 999")
    if Reference.parse(name) != Reference(name=name):
        raise InvalidReference(f"weight {text!r}: expected a bare name, without tag or digest")
    return name, int(weight)


def _key(row: Waiting) -> _Key:
    return row.adapter, row.priority


def _quantum(row: Waiting) -> float:
    return _QUANTUM_TOKENS * row.weight * _SHARES[row.priority]
