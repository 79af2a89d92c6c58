"""From many calls' rows to batches: one runner at work, a bounded queue before it.

There is no delay timer: while the runner computes a batch, the next one gathers in the queue. Owned
by the event loop; only ``Runner.run`` leaves it, on a thread of its own. It knows neither texts nor
adapters beyond their digest. What comes in is said in ``admission``, whose rows come next in
``scheduling``, which ones fail in ``isolation``.
"""

import asyncio
import os
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import inf
from time import perf_counter

from upt_server.admission import Admission
from upt_server.isolation import run_isolated
from upt_server.pace import Pace
from upt_server.results import BatchFacts
from upt_server.runner import Runner
from upt_server.scheduling import Budget, FairQueue, Priority, Waiting
from upt_server.telemetry.records import at_hand
from upt_server.telemetry.tracing import BatchSpan, CallSpan, Phase, Tracer
from upt_zoo.answers import Logits
from upt_zoo.nn.packing import Row

_NICENESS = 5  # a third of the loop's weight; measured in docs/decisions/log.md


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One row to compute; ``adapter`` is the digest by which fairness is kept."""

    row: Row
    adapter: str
    weight: int = 1
    priority: Priority = "normal"

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

    def __init__(self, done: asyncio.Future[None], size: int, span: CallSpan | None) -> None:
        self.done, self.span = done, span
        self._waiting: Phase | None = None
        self.logits: dict[int, Logits] = {}
        self.batches: list[BatchFacts] = []
        self._size = size

    def enter_queue(self) -> None:
        if self.span is not None:
            self._waiting = self.span.begin("queue")

    def leave_queue(self) -> None:
        if self._waiting is not None:
            self._waiting.end()
            self._waiting = None

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

    row: Row
    adapter: str
    weight: int
    priority: Priority
    tokens: int
    ends_at_s: float
    call: _Call
    index: int


class Batcher:
    """Gathers rows into batches and hands each caller its own logits.

    ``observe`` is told of every batch that was computed, ``tracer`` of those of traced calls.
    """

    def __init__(
        self,
        runner: Runner,
        *,
        budget: Budget,
        max_queue_tokens: int,
        observe: Callable[[BatchFacts], None],
        tracer: Tracer | None = None,
    ) -> None:
        self._runner, self._budget, self._observe = runner, budget, observe
        self._tracer = tracer
        self._queue = FairQueue[_Entry](max_queue_tokens)
        self._pace = Pace()
        self._admission = Admission(self._queue, self._pace)
        self._running: asyncio.Future[tuple[list[Logits | Exception], float]] | None = None
        self._is_starting = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="upt-runner", initializer=_give_way)

    @property
    def queue_rows(self) -> int:
        """Rows that wait; those being computed are not among them."""
        return len(self._queue)

    async def compute(self, jobs: Sequence[Job], *, time_left_s: float = inf) -> Computed:
        """Compute a call's jobs, in one batch where they fit the budget and nobody else waits.

        A caller that is cancelled leaves the queue at once.

        Raises:
            InvalidInput: the call alone is larger than the whole queue.
            Overloaded: the queue is full, or so full that no answer would come in ``time_left_s``.
        """
        loop = asyncio.get_running_loop()
        record = at_hand()
        call = _Call(loop.create_future(), len(jobs), record.span if record else None)
        started = perf_counter()
        entries = [
            _Entry(
                row=job.row,
                adapter=job.adapter,
                weight=job.weight,
                priority=job.priority,
                tokens=job.tokens,
                ends_at_s=started + time_left_s,
                call=call,
                index=index,
            )
            for index, job in enumerate(jobs)
        ]
        self.check_admission(entries, time_left_s)
        self._queue.add(entries)
        call.enter_queue()
        if self._running is None and not self._is_starting:
            # not at once: calls that became ready together share a batch
            self._is_starting = True
            loop.call_soon(self._start_batch)
        try:
            await call.done
        finally:
            self._queue.discard(entries)
            call.leave_queue()
        forward_s = sum(facts.forward_ms for facts in call.batches) / 1000
        return Computed(
            logits=tuple(call.logits[index] for index in range(len(jobs))),
            batches=tuple(call.batches),
            queue_s=max(0.0, perf_counter() - started - forward_s),
            forward_s=forward_s,
        )

    def check_room(self, tokens: int) -> None:
        """Check whether the queue would take so many tokens now; see ``Admission.check_room``."""
        self._admission.check_room(tokens, perf_counter())

    def check_admission(self, rows: Sequence[Waiting], time_left_s: float) -> None:
        """Check whether rows would be taken in now; see ``Admission.check``.

        Rows that know only a part of their tokens may be asked for: what is refused even so is
        refused early.
        """
        self._admission.check(rows, time_left_s, perf_counter())

    async def close(self) -> None:
        """Wait for the batch at work and end the thread; nobody may be waiting any more."""
        if self._running is not None:
            await asyncio.wait([self._running])
        self._thread.shutdown()

    def _start_batch(self) -> None:
        self._is_starting = False
        if self._running is not None or not self._queue:
            return
        now_s = perf_counter()
        entries = self._queue.take(self._budget, lambda end_s: self._pace.reach(end_s - now_s))
        self._pace.start(sum(entry.tokens for entry in entries), now_s)
        self._running = asyncio.get_running_loop().run_in_executor(
            self._thread, self._run, [entry.row for entry in entries]
        )
        span = self._trace_batch(entries)
        self._running.add_done_callback(lambda ran: self._finish_batch(entries, ran, span))

    def _trace_batch(self, entries: list[_Entry]) -> BatchSpan | None:
        if self._tracer is None:
            return None
        calls = list(dict.fromkeys(entry.call for entry in entries))
        for call in calls:
            call.leave_queue()
        return self._tracer.begin_batch([call.span for call in calls if call.span])

    def _run(self, rows: list[Row]) -> tuple[list[Logits | Exception], float]:
        """Compute on the runner's thread; return logits or errors, and the seconds it took."""
        started = perf_counter()
        computed = run_isolated(self._runner, rows)
        return computed, perf_counter() - started

    def _finish_batch(
        self,
        entries: list[_Entry],
        ran: asyncio.Future[tuple[list[Logits | Exception], float]],
        span: BatchSpan | None,
    ) -> None:
        self._running = None
        computed, forward_s = ran.result()
        self._pace.finish(perf_counter())
        self._start_batch()
        facts = BatchFacts(
            rows=len(entries),
            tokens=sum(entry.tokens for entry in entries),
            distinct_adapters=len({entry.adapter for entry in entries}),
            forward_ms=forward_s * 1000,
        )
        self._observe(facts)
        if span is not None:
            span.end(facts, facts.tokens / self._budget.tokens)
        by_call: dict[_Call, dict[int, Logits]] = {}
        for entry, outcome in zip(entries, computed, strict=True):
            if isinstance(outcome, Exception):
                entry.call.fail(outcome)
            else:
                by_call.setdefault(entry.call, {})[entry.index] = outcome
        for call, logits in by_call.items():
            call.finish(facts, logits)


def _give_way() -> None:
    """Let this thread, and those that it starts, compute when the event loop has nothing to do.

    Else a loop that has many calls to refuse gets no more of the cores than any computing thread.
    """
    if sys.platform == "linux":  # elsewhere it is the whole process that would give way
        thread = threading.get_native_id()
        niceness = os.getpriority(os.PRIO_PROCESS, thread)
        os.setpriority(os.PRIO_PROCESS, thread, min(niceness + _NICENESS, 19))
