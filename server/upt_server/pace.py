"""How fast the runner is, and how long so many tokens will take it. Pure: the clock comes in."""

from typing import NamedTuple

# of what is known, what is older than so many batches counts little
_BATCHES = 8
# before anything was measured: MiniLM on two slow cores
_FIRST_TOKENS_PER_S = 2000.0
# what fewer took says little: a short text that was held up once would turn a burst away
_FEW_TOKENS = 64
# batches vary, the answer has yet to travel, and one that comes too late was computed for nothing
_CAUTION = 1.25


class Reach(NamedTuple):
    """Tokens that are computed by a time: by a cautious estimate, and by the estimate itself."""

    sure: float
    possible: float


class Pace:
    """Tokens a second over the last batches, large ones counting more, and the batch at work."""

    def __init__(self) -> None:
        self._tokens = self._seconds = 0.0
        self._started_at_s = 0.0
        self.running_tokens = 0

    def start(self, tokens: int, now_s: float) -> None:
        """A batch goes to the runner."""
        self.running_tokens, self._started_at_s = tokens, now_s

    def finish(self, now_s: float) -> None:
        """The batch is computed, and its callers can be told."""
        kept = 1 - 1 / _BATCHES
        self._tokens = self._tokens * kept + self.running_tokens
        self._seconds = self._seconds * kept + now_s - self._started_at_s
        self.running_tokens = 0

    def seconds(self, tokens: float, now_s: float) -> float:
        """Estimate cautiously when so many tokens are computed, those at work among them.

        A batch that takes longer than it should counts as done: how long it will go on is unknown.
        """
        per_s = self._tokens_per_s
        at_work = self.running_tokens / per_s
        done_s = min(now_s - self._started_at_s, at_work) if self.running_tokens else 0.0
        return _CAUTION * (tokens / per_s - done_s)

    def reach(self, seconds: float) -> Reach:
        """Estimate how many tokens a batch may have that takes so long at most."""
        possible = seconds * self._tokens_per_s
        return Reach(sure=possible / _CAUTION, possible=possible)

    @property
    def _tokens_per_s(self) -> float:
        measured = self._tokens / self._seconds if self._seconds else 0.0
        return measured if self._tokens >= _FEW_TOKENS else max(measured, _FIRST_TOKENS_PER_S)
