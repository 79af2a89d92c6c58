"""Memory in pages of 2 MiB, where the system has them: numpy asks it to for large arrays.

In pages of 4 KiB a core waits longer for addresses than for the numbers that stand there, on a
virtual machine above all, and what it fetches ahead by itself ends with each page.
"""

import threading
from weakref import finalize

import numpy as np
from numpy.typing import NDArray

Place = NDArray[np.uint8]
LINE = 64  # bytes of a cache line; every place begins with one
_CHUNK = 32 * 2**20


class LargePages:
    """Gives out places for bytes; a place is free again once its array is gone. Thread-safe.

    Places of like sizes stand side by side in one chunk of memory, an eighth or a line larger than
    asked for at most. Chunks in which nobody has a place go back to the system when a place of
    another size is asked for next.
    """

    def __init__(self) -> None:
        self._chunks: dict[int, list[_Chunk]] = {}  # by the size of their places
        self._lock = threading.Lock()

    def take(self, size: int) -> Place:
        """Return a place of that many bytes, which is the caller's as long as it keeps it."""
        rounded = _rounded(size)
        with self._lock:
            self._drop_unused(rounded)
            chunks = self._chunks.setdefault(rounded, [])
            chunk = next((each for each in chunks if each.free), None)
            if chunk is None:
                chunk = _Chunk(rounded)
                chunks.append(chunk)
            start = chunk.free.pop()
        place = chunk.memory[start : start + size]
        finalize(place, chunk.free.append, start).atexit = False
        return place

    def copy(self, array: NDArray[np.generic]) -> Place:
        """Return the array's bytes at a place of their own."""
        place = self.take(array.nbytes)
        place[:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        return place

    def _drop_unused(self, kept: int) -> None:
        for size, chunks in list(self._chunks.items()):
            used = [chunk for chunk in chunks if len(chunk.free) < chunk.places]
            if used:
                self._chunks[size] = used
            elif size != kept:
                del self._chunks[size]


class _Chunk:
    """``free`` are the starts of the places that nobody has."""

    def __init__(self, size: int) -> None:
        memory = np.empty(max(size, _CHUNK) + LINE, np.uint8)
        self.memory = memory[-memory.ctypes.data % LINE :]
        self.places = len(self.memory) // size
        self.free = list(range(0, self.places * size, size))[::-1]


def _rounded(size: int) -> int:
    step = max(LINE, 1 << max(size.bit_length() - 4, 0))
    return max(step, -(-size // step) * step)
