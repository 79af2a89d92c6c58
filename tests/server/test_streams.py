"""Many requests of one stream: order, bounds, cancellation, errors."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from upt_server.streams import Streams


class Desk:
    """Answers a number with its double once it is told to.

    ``at_work`` are the numbers begun, ``begun`` counts them over all streams.
    """

    def __init__(self) -> None:
        self.at_work: dict[int, asyncio.Event] = {}
        self.cancelled: list[int] = []
        self.read = self.begun = 0

    async def requests(self, count: int) -> AsyncIterator[int]:
        for number in range(count):
            self.read += 1
            yield number

    async def answer(self, number: int) -> int:
        self.begun += 1
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
    answers = Streams(most=8).answer(desk.requests(3), desk.answer)
    async with aclosing(answers):
        first = asyncio.ensure_future(anext(answers))
        await desk.settle()
        for number in (2, 0, 1):
            desk.at_work[number].set()
            await desk.settle()
        assert [await first, await anext(answers), await anext(answers)] == [4, 0, 2]
        with pytest.raises(StopAsyncIteration):
            await anext(answers)


async def test_or_in_the_order_of_their_requests(desk: Desk) -> None:
    answers = Streams(most=8).answer(desk.requests(3), desk.answer, in_order=True)
    async with aclosing(answers):
        first = asyncio.ensure_future(anext(answers))
        await desk.settle()
        for number in (2, 1):
            desk.at_work[number].set()
            await desk.settle()
        assert not first.done()
        desk.at_work[0].set()
        assert [await first, await anext(answers), await anext(answers)] == [0, 2, 4]
        with pytest.raises(StopAsyncIteration):
            await anext(answers)


async def test_an_answer_that_nobody_takes_keeps_its_place(desk: Desk) -> None:
    answers = Streams(most=2).answer(desk.requests(9), desk.answer)
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


@pytest.mark.parametrize("in_order", [False, True])
async def test_all_streams_share_their_places(desk: Desk, in_order: bool) -> None:
    streams = Streams(most=2, most_of_all=3)

    def begin() -> asyncio.Future[int]:
        answers = streams.answer(desk.requests(4), desk.answer, in_order=in_order)
        return asyncio.ensure_future(anext(answers))

    begun = [begin() for _ in range(2)]
    await desk.settle()
    assert desk.begun == 3
    for task in begun:
        task.cancel()
    await asyncio.gather(*begun, return_exceptions=True)
    begin()
    begin()
    await desk.settle()
    assert desk.begun == 6


@pytest.mark.parametrize("in_order", [False, True])
async def test_leaving_early_cancels_what_is_at_work_and_frees_all_places(
    desk: Desk, in_order: bool
) -> None:
    streams = Streams(most=4, most_of_all=4)
    requests = desk.requests(9)
    async with aclosing(streams.answer(requests, desk.answer, in_order=in_order)) as answers:
        first = asyncio.ensure_future(anext(answers))
        await desk.settle()
        desk.at_work[0].set()
        assert await first == 0
    assert sorted(desk.cancelled) == [1, 2, 3]
    again = asyncio.ensure_future(anext(streams.answer(desk.requests(4), desk.answer)))
    await desk.settle()
    assert desk.begun == 8
    again.cancel()


@pytest.mark.parametrize("in_order", [False, True])
async def test_what_came_before_a_stream_broke_is_answered(desk: Desk, in_order: bool) -> None:
    async def broken() -> AsyncIterator[int]:
        yield 1
        raise OSError("broken")

    answers = Streams().answer(broken(), desk.answer, in_order=in_order)
    first = asyncio.ensure_future(anext(answers))
    await desk.settle()
    desk.at_work[1].set()
    assert await first == 2
    with pytest.raises(OSError, match="broken"):
        await anext(answers)


@pytest.mark.parametrize("in_order", [False, True])
async def test_an_answer_that_cannot_be_given_ends_the_stream(desk: Desk, in_order: bool) -> None:
    async def answer(number: int) -> int:
        if number == 0:
            raise OSError("broken")
        return await desk.answer(number)

    answers = Streams().answer(desk.requests(3), answer, in_order=in_order)
    with pytest.raises(OSError, match="broken"):
        await anext(answers)
    assert sorted(desk.cancelled) == sorted(desk.at_work)
