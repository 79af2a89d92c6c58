"""Who may come in: nobody while the server starts or drains, and how many are inside."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from upt_zoo.errors import Unavailable


class Gate:
    """Admits calls between ``open`` and ``drain``; owned by the event loop."""

    def __init__(self) -> None:
        self._state: Literal["starting", "open", "draining"] = "starting"
        self._inside = 0
        self._is_empty = asyncio.Event()
        self._is_empty.set()

    @property
    def state(self) -> Literal["starting", "open", "draining"]:
        """What the gate does."""
        return self._state

    @property
    def inside(self) -> int:
        """How many calls are inside."""
        return self._inside

    @property
    def is_open(self) -> bool:
        """Whether calls are admitted."""
        return self._state == "open"

    def open(self) -> None:
        """Admit calls from here on."""
        self._state = "open"

    async def drain(self) -> None:
        """Admit nobody from here on and wait until the last call has left."""
        self._state = "draining"
        await self._is_empty.wait()

    @contextmanager
    def passage(self) -> Iterator[None]:
        """Hold the place of one call.

        Raises:
            Unavailable: the gate is not open.
        """
        if not self.is_open:
            raise Unavailable(f"the server is {self._state}; try again, or try another one")
        self._inside += 1
        self._is_empty.clear()
        try:
            yield
        finally:
            self._inside -= 1
            if not self._inside:
                self._is_empty.set()
