"""Many requests of one stream at work at once, each answered as soon as it is ready.

It knows no protocol; see ``upt_server.service``.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import TypeVar

Request = TypeVar("Request")
Response = TypeVar("Response")


async def answer_as_ready(
    requests: AsyncIterator[Request],
    answer: Callable[[Request], Awaitable[Response]],
    most: int,
    places: asyncio.Semaphore,
) -> AsyncGenerator[Response, None]:
    """Yield the answers to a stream of requests in the order in which they become ready.

    At most ``most`` requests are at work or wait to be taken; beyond that the stream is read no
    further, so that who takes slowly is served slowly. ``places`` bounds what is at work in all
    streams together. Closing the generator cancels what is at work; so does an error of ``answer``
    or of the stream, which is raised once.
    """
    ready: asyncio.Queue[Response | None] = asyncio.Queue()  # bounded by ``own``; None: the end
    own = asyncio.Semaphore(most)

    async def work(request: Request) -> None:
        ready.put_nowait(await answer(request))

    async def read() -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                async for request in requests:
                    await own.acquire()
                    await places.acquire()
                    task = tasks.create_task(work(request))
                    # by the task's end, since one that is cancelled early never runs a line
                    task.add_done_callback(lambda _: places.release())
        finally:
            ready.put_nowait(None)

    reading = asyncio.create_task(read())
    try:
        while (response := await ready.get()) is not None:
            yield response
            own.release()
        await reading
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
