"""Calls that come at random times, whether or not the earlier ones are answered (Poisson)."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine
from time import perf_counter

# is told when the call was due, by ``perf_counter``: waiting counts from there
Send = Callable[[float], Coroutine[object, object, None]]


async def send_at_random(send: Send, *, per_s: float, seconds: float, seed: int) -> None:
    """Send ``per_s`` calls a second for so many seconds, and wait until the last one has ended."""
    source, started, due_s = random.Random(seed), perf_counter(), 0.0
    async with asyncio.TaskGroup() as calls:
        while (due_s := due_s + source.expovariate(per_s)) < seconds:
            await asyncio.sleep(max(0.0, started + due_s - perf_counter()))
            calls.create_task(send(started + due_s))


async def answered_per_s(
    ask: Callable[[], Awaitable[None]], *, callers: int, seconds: float
) -> float:
    """Let callers ask again as soon as they are answered; return their calls a second."""
    answered, started = 0, perf_counter()

    async def ask_again() -> None:
        nonlocal answered
        while perf_counter() - started < seconds:
            await ask()
            answered += 1

    await asyncio.gather(*(ask_again() for _ in range(callers)))
    return answered / (perf_counter() - started)
