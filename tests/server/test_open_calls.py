"""Which task made which, and that remembering it keeps none alive."""

import asyncio
import gc
from weakref import ref

from upt_server.access.open_calls import OpenCall, TaskMakers, remember_makers


async def test_a_task_is_known_with_the_one_that_made_it() -> None:
    remember_makers()
    makers = asyncio.get_running_loop().get_task_factory()
    assert isinstance(makers, TaskMakers)
    made = asyncio.create_task(asyncio.sleep(0))
    assert makers.maker_of(made) is asyncio.current_task()
    await made


async def test_tasks_that_make_each_other_in_turn_are_forgotten() -> None:
    remember_makers()
    first: list[ref[asyncio.Task[None]]] = []
    is_over = asyncio.Event()

    async def make_another(left: int) -> None:
        if not first:
            task = asyncio.current_task()
            assert task is not None
            first.append(ref(task))
        if left:
            later.append(asyncio.create_task(make_another(left - 1)))
            later.pop(0)
        else:
            is_over.set()
            await asyncio.Event().wait()

    later = [asyncio.create_task(make_another(3))]
    await is_over.wait()
    gc.collect()
    assert not later[0].done()
    assert first[0]() is None
    later[0].cancel()


async def test_a_call_that_is_over_is_forgotten_without_the_collector() -> None:
    calls: list[ref[OpenCall]] = []

    async def answer() -> None:
        call = OpenCall()
        call.end_after(60)
        calls.append(ref(call))

    gc.disable()
    try:
        await asyncio.create_task(answer())
        await asyncio.sleep(0)  # its callbacks
        assert calls[0]() is None
    finally:
        gc.enable()
