"""Calls that wait until the models are free: the queue of a plain server; it computes nothing."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn

Label = Callable[[int, Sequence[str]], Sequence[int]]  # a model's labels of texts, in one batch


class WaitingCalls:
    """All calls that wait are taken together and answered model by model, in one thread.

    Task t belongs to model t modulo ``models``.
    """

    def __init__(self, label: Label, models: int) -> None:
        self._label, self._models = label, models
        self._calls: asyncio.Queue[tuple[int, str, asyncio.Future[int]]] = asyncio.Queue()

    async def ask(self, task: int, text: str) -> int:
        """Wait for the label of a text."""
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._calls.put_nowait((task % self._models, text, answer))
        return await answer

    async def answer(self) -> NoReturn:
        """Answer until cancelled; what the models raise ends it."""
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(max_workers=1) as thread:
            while True:
                for model, calls in (await self._taken()).items():
                    texts = [text for text, _ in calls]
                    labels = await loop.run_in_executor(thread, self._label, model, texts)
                    for (_, future), label in zip(calls, labels, strict=True):
                        if not future.done():  # a caller may have left
                            future.set_result(label)

    async def _taken(self) -> dict[int, list[tuple[str, asyncio.Future[int]]]]:
        """Take all that wait, by model; wait for the first."""
        taken = [await self._calls.get()]
        while not self._calls.empty():
            taken.append(self._calls.get_nowait())
        groups: dict[int, list[tuple[str, asyncio.Future[int]]]] = {}
        for model, text, answer in taken:
            groups.setdefault(model, []).append((text, answer))
        return groups
