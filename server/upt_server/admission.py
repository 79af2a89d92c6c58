"""What is taken into the queue: what there is room and time for. Pure: the clock comes in."""

from collections.abc import Sequence
from typing import Generic

from upt_server.pace import Pace
from upt_server.scheduling import FairQueue, QueuedT, Waiting
from upt_zoo.errors import InvalidInput, Overloaded

_RETRY_BOUNDS_S = (0.05, 30.0)


class Admission(Generic[QueuedT]):
    """Judges by what waits in a queue and by the pace at which it is worked off."""

    def __init__(self, queue: FairQueue[QueuedT], pace: Pace) -> None:
        self._queue, self._pace = queue, pace

    def check_room(self, tokens: int, now_s: float) -> None:
        """Check whether the queue would take so many tokens.

        Raises:
            InvalidInput: they are more than the whole queue.
            Overloaded: the queue is full.
        """
        if tokens > self._queue.max_tokens:
            raise InvalidInput(
                f"the call has {tokens} tokens, the server takes {self._queue.max_tokens} at most; "
                f"split it"
            )
        if self._queue.tokens + tokens > self._queue.max_tokens:
            raise self._full("the queue is full", now_s)

    def check(self, rows: Sequence[Waiting], time_left_s: float, now_s: float) -> None:
        """Check whether rows would be taken, and answered within ``time_left_s``.

        Raises:
            InvalidInput: they are more than the whole queue.
            Overloaded: the queue is full, or no answer would come in time.
        """
        tokens = sum(row.tokens for row in rows)
        self.check_room(tokens, now_s)
        if not self._queue.has_room(rows):
            raise self._full("the queue has no more room for this adapter", now_s)
        # who is first of all goes in: only so is a pace measured anew that was slow for a while
        if not self._queue and not self._pace.running_tokens:
            return
        # the second estimate is never higher, but dearer
        if self._wait_s(2 * (self._queue.tokens + tokens), now_s) <= time_left_s:
            return
        wait_s = self._wait_s(self._queue.tokens_before(rows), now_s)
        if wait_s > time_left_s:
            raise Overloaded(
                f"the answer would take {wait_s:.3f} s, and is wanted in {time_left_s:.3f} s",
                retry_after_s=_bounded(wait_s - time_left_s),
            )

    def _full(self, what: str, now_s: float) -> Overloaded:
        return Overloaded(
            f"{what}: {self._queue.tokens} of {self._queue.max_tokens} tokens wait",
            retry_after_s=_bounded(self._wait_s(self._queue.tokens, now_s)),
        )

    def _wait_s(self, tokens: int, now_s: float) -> float:
        """Estimate when so many tokens of the queue are computed, after the batch at work.

        What joins a row's batch behind it seldom makes it late: see ``FairQueue.take``.
        """
        return self._pace.seconds(tokens + self._pace.running_tokens, now_s)


def _bounded(retry_after_s: float) -> float:
    low, high = _RETRY_BOUNDS_S
    return min(max(retry_after_s, low), high)
