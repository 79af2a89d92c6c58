"""Many requests of one stream: order, bounds, cancellation, errors."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from upt_server.streams import answer_as_ready


class Desk:
    """Answers a number with its double once it is told to; ``at_work`` are those begun."""

    def __init__(self) -> None:
        self.at_work: dict[int, asyncio.Event] = {}
        self.cancelled: list[int] = []
        self.read = 0

    async def requests(self, count: int) -> AsyncIterator[int]:
        for number in range(count):
            self.read += 1
            yield number

    async def answer(self, number: int) -> int:
        self.at_work[number] = asyncio.Event()
        try:
            await self.at_work[number].wait()
        except asyncio.CancelledError:
            self.cancelled.append(number)
            raise
        return 2 * number

    async def settle(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0)


@pytest.fixture
def desk() -> Desk:
    return Desk()


async def test_answers_come_as_they_become_ready(desk: Desk) -> None:
    answers = answer_as_ready(desk.requests(3), desk.answer, 8, asyncio.Semaphore(8))
    async with aclosing(answers):
        first = asyncio.ensure_future(anext(answers))
        await desk.settle()
        for number in (2, 0, 1):
            desk.at_work[number].set()
            await desk.settle()
        assert [await first, await anext(answers), await anext(answers)] == [4, 0, 2]
        with pytest.raises(StopAsyncIteration):
            await anext(answers)


async def test_an_answer_that_nobody_takes_keeps_its_place(desk: Desk) -> None:
    places = asyncio.Semaphore(8)
    answers = answer_as_ready(desk.requests(9), desk.answer, 2, places)
    async with aclosing(answers):
        first = asyncio.ensure_future(anext(answers))
        await desk.settle()
        assert list(desk.at_work) == [0, 1]
        assert desk.read == 3  # the third waits for its place
        desk.at_work[0].set()
        desk.at_work[1].set()
        assert await first == 0
        await desk.settle()
        assert list(desk.at_work) == [0, 1]  # both answers are there, the caller is still at one
        await anext(answers)
        await desk.settle()
        assert list(desk.at_work) == [0, 1, 2]


async def test_all_streams_share_their_places(desk: Desk) -> None:
    places = asyncio.Semaphore(3)
    streams = [answer_as_ready(desk.requests(4), desk.answer, 2, places) for _ in range(2)]
    waiting = [asyncio.ensure_future(anext(stream)) for stream in streams]
    await desk.settle()
    assert places.locked()
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert [await places.acquire() for _ in range(3)] == [True] * 3


async def test_leaving_early_cancels_what_is_at_work_and_frees_all_places(desk: Desk) -> None:
    places = asyncio.Semaphore(4)
    async with aclosing(answer_as_ready(desk.requests(9), desk.answer, 4, places)) as answers:
        first = asyncio.ensure_future(anext(answers))
        await desk.settle()
        desk.at_work[0].set()
        assert await first == 0
    assert sorted(desk.cancelled) == [1, 2, 3]
    assert [await places.acquire() for _ in range(4)] == [True] * 4


async def test_a_stream_that_breaks_is_an_error(desk: Desk) -> None:
    async def broken() -> AsyncIterator[int]:
        yield 1
        await desk.settle()
        raise OSError("broken")

    answers = answer_as_ready(broken(), desk.answer, 4, asyncio.Semaphore(4))
    with pytest.raises(ExceptionGroup) as caught:
        await anext(answers)
    assert caught.group_contains(OSError, match="broken")
    assert desk.cancelled == [1]
