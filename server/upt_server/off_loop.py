"""What could keep the event loop from other calls is done in a thread, what is short at once."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

_Result = TypeVar("_Result")

SHORT_INPUTS = 8  # of a call: a millisecond or less
SHORT_BYTES = 8192  # of an answer: a millisecond or two, even as JSON


async def off_loop(
    work: Callable[[], _Result], *, is_short: bool, threads: Executor | None = None
) -> _Result:
    """Do what is short here, since to ask a thread takes longer, and the rest in a thread.

    Raises:
        Exception: what ``work`` raises.
    """
    if is_short:
        return work()
    return await asyncio.get_running_loop().run_in_executor(threads, work)
