"""From many calls' rows to batches: one runner at work, a bounded queue before it.

There is no delay timer: while the runner computes a batch, the next one gathers in the queue. Owned
by the event loop; only ``Runner.run`` leaves it, on a thread of its own. It knows neither texts nor
adapters beyond their digest.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter

from upt_server.results import BatchFacts
from upt_server.runner import Runner
from upt_server.scheduling import Budget, select_batch
from upt_zoo.answers import Logits
from upt_zoo.errors import InvalidInput, Overloaded
from upt_zoo.nn.packing import Row

_RETRY_BOUNDS_S = (0.05, 30.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One row to compute; ``adapter`` is the digest by which fairness is kept."""

    row: Row
    adapter: str

    @property
    def tokens(self) -> int:
        """Tokens that the row adds to a batch, prompt vectors included."""
        return len(self.row.ids) + self.row.adapter.prompt_length


@dataclass(frozen=True, slots=True, kw_only=True)
class Computed:
    """Logits in the jobs' order, and the batches they came from.

    ``queue_s`` is the time in which none of these batches ran.
    """

    logits: tuple[Logits, ...]
    batches: tuple[BatchFacts, ...]
    queue_s: float
    forward_s: float


class _Call:
    """The jobs of one caller; ``done`` is its reply channel."""

    def __init__(self, done: asyncio.Future[None], size: int) -> None:
        self.done = done
        self.logits: dict[int, Logits] = {}
        self.batches: list[BatchFacts] = []
        self._size = size

    def finish(self, facts: BatchFacts, logits: dict[int, Logits]) -> None:
        self.batches.append(facts)
        self.logits |= logits
        if len(self.logits) == self._size and not self.done.done():
            self.done.set_result(None)

    def fail(self, error: BaseException) -> None:
        if not self.done.done():
            self.done.set_exception(error)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Entry:
    """A job in the queue; compared by identity."""

    job: Job
    adapter: str
    tokens: int
    call: _Call
    index: int


class Batcher:
    """Gathers rows into batches and hands each caller its own logits.

    ``observe`` is told of every batch that was computed.
    """

    def __init__(
        self,
        runner: Runner,
        *,
        budget: Budget,
        max_queue_tokens: int,
        observe: Callable[[BatchFacts], None],
    ) -> None:
        self._runner, self._budget, self._observe = runner, budget, observe
        self._max_queue_tokens = max_queue_tokens
        self._queue: dict[_Entry, None] = {}  # ordered, with removal from anywhere
        self._queue_tokens = 0
        self._running: asyncio.Future[tuple[list[Logits], float]] | None = None
        self._tokens_per_s = float(budget.tokens)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="upt-runner")

    @property
    def queue_rows(self) -> int:
        """Rows that wait; those being computed are not among them."""
        return len(self._queue)

    async def compute(self, jobs: Sequence[Job]) -> Computed:
        """Compute a call's jobs, in one batch where they fit the budget and nobody else waits.

        A caller that is cancelled leaves the queue at once.

        Raises:
            InvalidInput: the call alone is larger than the whole queue.
            Overloaded: the queue is full.
        """
        tokens = sum(job.tokens for job in jobs)
        self.check_room(tokens)
        loop = asyncio.get_running_loop()
        call = _Call(loop.create_future(), len(jobs))
        entries = [
            _Entry(job=job, adapter=job.adapter, tokens=job.tokens, call=call, index=index)
            for index, job in enumerate(jobs)
        ]
        started = perf_counter()
        self._queue.update(dict.fromkeys(entries))
        self._queue_tokens += tokens
        # not at once: calls that became ready together share a batch
        loop.call_soon(self._start_batch)
        try:
            await call.done
        finally:
            self._withdraw(entries)
        forward_s = sum(facts.forward_ms for facts in call.batches) / 1000
        return Computed(
            logits=tuple(call.logits[index] for index in range(len(jobs))),
            batches=tuple(call.batches),
            queue_s=max(0.0, perf_counter() - started - forward_s),
            forward_s=forward_s,
        )

    def check_room(self, tokens: int) -> None:
        """Check whether the queue would take so many tokens now.

        Raises:
            InvalidInput: they are more than the whole queue.
            Overloaded: the queue is full.
        """
        if tokens > self._max_queue_tokens:
            raise InvalidInput(
                f"the call has {tokens} tokens, the server takes {self._max_queue_tokens} at most; "
                f"split it"
            )
        if self._queue_tokens + tokens > self._max_queue_tokens:
            low, high = _RETRY_BOUNDS_S
            raise Overloaded(
                f"the queue is full: {self._queue_tokens} of {self._max_queue_tokens} tokens wait",
                retry_after_s=min(max(self._queue_tokens / self._tokens_per_s, low), high),
            )

    async def close(self) -> None:
        """Wait for the batch at work and end the thread; nobody may be waiting any more."""
        if self._running is not None:
            await asyncio.wait([self._running])
        self._thread.shutdown()

    def _withdraw(self, entries: Sequence[_Entry]) -> None:
        for entry in entries:
            if entry in self._queue:
                del self._queue[entry]
                self._queue_tokens -= entry.tokens

    def _start_batch(self) -> None:
        if self._running is not None or not self._queue:
            return
        entries = select_batch(self._queue, self._budget)
        self._withdraw(entries)
        self._running = asyncio.get_running_loop().run_in_executor(
            self._thread, self._run, [entry.job.row for entry in entries]
        )
        self._running.add_done_callback(lambda ran: self._finish_batch(entries, ran))

    def _run(self, rows: list[Row]) -> tuple[list[Logits], float]:
        """Compute on the runner's thread; return the logits and the seconds it took."""
        started = perf_counter()
        logits = self._runner.run(rows)
        return logits, perf_counter() - started

    def _finish_batch(
        self, entries: list[_Entry], ran: asyncio.Future[tuple[list[Logits], float]]
    ) -> None:
        self._running = None
        self._start_batch()
        if error := ran.exception():
            for entry in entries:
                entry.call.fail(error)
            return
        logits, forward_s = ran.result()
        facts = BatchFacts(
            rows=len(entries),
            tokens=sum(entry.tokens for entry in entries),
            distinct_adapters=len({entry.adapter for entry in entries}),
            forward_ms=forward_s * 1000,
        )
        self._tokens_per_s = facts.tokens / max(forward_s, 1e-6)
        self._observe(facts)
        by_call: dict[_Call, dict[int, Logits]] = {}
        for entry, values in zip(entries, logits, strict=True):
            by_call.setdefault(entry.call, {})[entry.index] = values
        for call, values_of_call in by_call.items():
            call.finish(facts, values_of_call)
