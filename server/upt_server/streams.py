"""Many requests of one stream at work at once, and a bound on those of all streams together.

It knows no protocol; see ``upt_server.service`` and ``upt_server.open_inference.service``.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from typing import Any, Generic, TypeVar

Request = TypeVar("Request")
Response = TypeVar("Response")


class Streams:
    """Answers the requests of any number of streams.

    ``most`` requests of one stream are at work or wait to be taken; beyond that it is read no
    further, so that who takes slowly is served slowly. ``most_of_all`` are at work in all streams
    together, by default as many as there may be calls.
    """

    def __init__(self, *, most: int = 64, most_of_all: int = 1024) -> None:
        self._most = most
        self._places = asyncio.Semaphore(most_of_all)

    async def answer(
        self,
        requests: AsyncIterator[Request],
        answer: Callable[[Request], Coroutine[object, object, Response]],
        *,
        in_order: bool = False,
    ) -> AsyncGenerator[Response, None]:
        """Yield the answers to a stream of requests as they become ready, or in their order.

        Closing the generator cancels what is at work; so does an error of ``answer``, which is
        raised. One of the stream is raised when what came before it has been answered.
        """
        work = _Work[Response](self._most, self._places, in_order=in_order)
        reading = asyncio.create_task(work.begin_all(requests, answer))
        try:
            while (task := await work.answers.get()) is not None:
                yield await task
                work.own.release()
            await reading
        finally:
            await _cancel(reading, *work.tasks)


class _Work(Generic[Response]):
    """What one stream has at work; ``answers`` end with None."""

    def __init__(self, most: int, places: asyncio.Semaphore, *, in_order: bool) -> None:
        self.own, self._places, self._in_order = asyncio.Semaphore(most), places, in_order
        # bounded by ``own``
        self.answers: asyncio.Queue[asyncio.Task[Response] | None] = asyncio.Queue()
        self.tasks: set[asyncio.Task[Response]] = set()

    async def begin_all(
        self,
        requests: AsyncIterator[Request],
        answer: Callable[[Request], Coroutine[object, object, Response]],
    ) -> None:
        try:
            async for request in requests:
                await self.own.acquire()
                await self._places.acquire()
                self._begin(answer(request))
        finally:
            while self.tasks:
                await asyncio.wait(self.tasks)
            self.answers.put_nowait(None)

    def _begin(self, answering: Coroutine[object, object, Response]) -> None:
        task = asyncio.create_task(answering)
        self.tasks.add(task)
        if self._in_order:
            self.answers.put_nowait(task)
        # by the task's end, since one that is cancelled early never runs a line
        task.add_done_callback(self._finish)

    def _finish(self, task: asyncio.Task[Response]) -> None:
        self._places.release()
        self.tasks.discard(task)
        if not self._in_order:
            self.answers.put_nowait(task)


async def _cancel(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
