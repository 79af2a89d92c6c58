"""Asks for many rows at once and hands their lines on in the rows' order.

It knows neither files nor the server: ``ask`` answers one row, ``write`` takes the next line.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from upt_server.results import Output
from upt_server.scoring.lines import answer_line, failure_line
from upt_server.scoring.rows import ScoredRow
from upt_zoo.errors import (
    InvalidInput,
    InvalidReference,
    InvalidSpec,
    Overflowed,
    Overloaded,
    Unavailable,
    UptError,
    WrongBackbone,
)

Ask = Callable[[tuple[str, ...]], Awaitable[Output]]
_AHEAD = 4  # rows for each one at work that may be answered before the first unwritten one
_ATTEMPTS = 10  # without any row's answer in between: more than a minute
_PAUSES_S = (0.5, 15.0)  # the first and the longest
_OF_A_ROW = (InvalidInput, Overflowed)
_OF_THE_JOB = (InvalidReference, InvalidSpec, WrongBackbone)  # no other row would fare better


class Scorer:
    """Scores rows, each by a line.

    A row that is refused, or at which the adapter's numbers overflow, gets a line that says why. A
    server that is overloaded, away or late is asked again until no row at all was answered in ten
    attempts.
    """

    def __init__(
        self,
        ask: Ask,
        write: Callable[[str], None],
        *,
        at_once: int,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._ask, self._write, self._sleep = ask, write, sleep
        self._at_once = at_once
        self._places = asyncio.Semaphore(at_once * _AHEAD)
        self._lines: dict[int, str] = {}  # by number, of rows behind one that is at work
        self._answered = 0

    async def score(self, rows: Iterable[ScoredRow], first: int) -> None:
        """Score rows, the first of which has the number ``first``.

        Raises:
            UptError: the server went on refusing, or has another fault than with a row.
        """
        self._rows, self._next = enumerate(rows, first), first
        workers = [asyncio.create_task(self._work()) for _ in range(self._at_once)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    async def _work(self) -> None:
        while True:
            await self._places.acquire()
            taken = next(self._rows, None)
            if taken is None:
                self._places.release()
                return
            number, row = taken
            self._lines[number] = await self._line(number, row)
            while self._next in self._lines:
                self._write(self._lines.pop(self._next))
                self._next += 1
                self._places.release()

    async def _line(self, number: int, row: ScoredRow) -> str:
        if isinstance(row, InvalidInput):
            return failure_line(number, row)
        try:
            return answer_line(number, await self._persist(row))
        except UptError as error:
            is_of_row = isinstance(error, _OF_A_ROW) and not isinstance(error, _OF_THE_JOB)
            if is_of_row or type(error) is UptError:  # the latter: the server failed at this row
                return failure_line(number, error)
            raise

    async def _persist(self, texts: tuple[str, ...]) -> Output:
        attempt, answered = 0, self._answered
        pause_s, longest_s = _PAUSES_S
        while True:
            try:
                output = await self._ask(texts)
            except (Overloaded, Unavailable, TimeoutError) as error:
                if self._answered != answered:
                    attempt, answered, pause_s = 0, self._answered, _PAUSES_S[0]
                attempt += 1
                if attempt == _ATTEMPTS:
                    raise
                await self._sleep(max(pause_s, getattr(error, "retry_after_s", 0.0)))
                pause_s = min(2 * pause_s, longest_s)
            else:
                self._answered += 1
                return output
