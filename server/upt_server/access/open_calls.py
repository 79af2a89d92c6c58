"""Calls of gRPC that the server can end, whatever their callers do.

grpc.aio serves a call in two tasks: one that holds the call, and one, made by it, that answers. A
handler knows only the latter, and to cancel that leaves the call open: its caller is told nothing,
and its place and the memory of its answer stay taken. Only when the former lets go does gRPC end
the call. So each task is remembered here with the one that made it.
"""

import asyncio
from collections.abc import Coroutine, Generator
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary, ref

_Task: TypeAlias = asyncio.Task[Any]
# as ``asyncio.AbstractEventLoop.create_task`` takes them
_Coroutine: TypeAlias = Coroutine[Any, Any, Any] | Generator[Any, None, Any]


class TaskMakers:
    """Which task made which, of one event loop; it is the loop's task factory.

    It keeps no task alive: tasks that make each other in turn would never be forgotten.
    """

    def __init__(self) -> None:
        self._makers: WeakKeyDictionary[_Task, ref[_Task]] = WeakKeyDictionary()

    def __call__(
        self, loop: asyncio.AbstractEventLoop, coroutine: _Coroutine, **options: Any
    ) -> _Task:
        """Make a task, as the loop would."""
        task: _Task = asyncio.Task(coroutine, loop=loop, **options)
        maker = asyncio.current_task(loop)
        if maker is not None:
            self._makers[task] = ref(maker)
        return task

    def maker_of(self, task: _Task) -> _Task | None:
        """Return the task that made a task; None where none did, or nobody remembers it."""
        maker = self._makers.get(task)
        return None if maker is None else maker()


def remember_makers() -> None:
    """Let the running event loop remember which task made which; to be done before it serves."""
    loop = asyncio.get_running_loop()
    if not isinstance(loop.get_task_factory(), TaskMakers):
        loop.set_task_factory(TaskMakers())


class OpenCall:
    """The call at hand, from before its message is read; made in the task that answers it.

    It can end where the loop remembers the makers of tasks; elsewhere only answering ends.
    """

    at_hand: ContextVar["OpenCall"] = ContextVar("open_call")

    def __init__(self) -> None:
        self._loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None  # gRPC runs interceptors in it
        makers = self._loop.get_task_factory()
        self._answering = task
        self._holding = makers.maker_of(task) if isinstance(makers, TaskMakers) else None
        self._timer: asyncio.TimerHandle | None = None
        self._place: AbstractContextManager[None] = nullcontext()
        task.add_done_callback(self._settle)
        self.at_hand.set(self)

    def end_after(self, seconds: float) -> None:
        """Let the call end so long from here on, whatever it waits for then; the last word counts.

        It may wait for its caller to take an answer.
        """
        self._stop_timer()
        self._timer = self._loop.call_later(seconds, self._end)

    def hold(self, place: AbstractContextManager[None]) -> None:
        """Enter a context that is left when the call has been answered, or has ended without."""
        place.__enter__()
        self._place = place

    def _settle(self, _: _Task) -> None:
        self._stop_timer()
        self._place.__exit__(None, None, None)
        # the task's context holds this call: nobody shall have to look for circles
        self._timer = self._holding = None
        del self._answering

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _end(self) -> None:
        self._answering.cancel()
        if self._holding is not None:
            self._holding.cancel()
