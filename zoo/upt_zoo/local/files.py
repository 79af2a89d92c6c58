"""How files are read, replaced and locked, so that a killed process leaves nothing half-done.

It knows paths and bytes and nothing of adapters; see ``upt_zoo.local.store``.
"""

import fcntl
import os
import stat
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from upt_zoo.errors import Corrupt, Unavailable

_ANY_MODE = 0o666  # less the umask
_LOCK_POLL_S = 0.02
_SYNC_THREADS = 16  # a disk joins syncs: 0.2 ms a file where one after the other took 4 ms
_MAX_PENDING = 256  # files in memory at once


def read_file(path: Path, max_bytes: int) -> bytes:
    """Read at most one byte more than ``max_bytes`` of a regular file, whatever it says it is.

    The directory may be somebody else's: a pipe would hang and a device would never end.

    Raises:
        Corrupt: it is no regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Corrupt("expected a regular file", f"({path})")
    with os.fdopen(descriptor, "rb") as file:
        return file.read(max_bytes + 1)


def replace_file(path: Path, data: bytes, mode: int | None = None) -> None:
    """Put a whole file in its place, durably: a reader sees the old bytes or the new ones.

    ``mode`` holds from before the first byte; None leaves it to the process.
    """
    put_file(path, data, mode)
    sync_directory(path.parent)


def put_file(path: Path, data: bytes, mode: int | None = None) -> None:
    """Put a whole file in its place; its name is durable after ``sync_directory``."""

    def create(name: str, flags: int) -> int:
        return os.open(name, flags, _ANY_MODE if mode is None else mode)

    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb", opener=create) as file:
            if mode is not None:  # the umask may have taken some of it
                os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def holds(path: Path, data: bytes) -> bool:
    """Tell whether a file has exactly these bytes."""
    is_there = path.is_file() and path.stat().st_size == len(data)
    return is_there and path.read_bytes() == data


class FileBatch:
    """Puts many files at once, in threads; all are in their places at the end of the ``with``.

    Their names are durable after ``sync_directory``. Equal paths must mean equal bytes.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_SYNC_THREADS)
        self._paths: set[Path] = set()
        self._pending: list[Future[None]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._threads.shutdown(cancel_futures=kind is not None)
        if kind is None:
            self._wait()

    def put(self, path: Path, data: bytes) -> None:
        """Write a file unless it is there.

        Raises:
            OSError: one of the files before could not be written.
        """
        if path in self._paths:
            return
        if len(self._pending) >= _MAX_PENDING:
            self._wait()
        self._paths.add(path)
        self._pending.append(self._threads.submit(_put_missing, path, data))

    def _wait(self) -> None:
        pending, self._pending = self._pending, []
        for future in pending:
            future.result()


def _put_missing(path: Path, data: bytes) -> None:
    if not holds(path, data):
        put_file(path, data)


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(directory: Path) -> None:
    """Make a directory and all above it that are missing, durably."""
    if directory.is_dir():
        return
    make_directory(directory.parent)
    directory.mkdir(exist_ok=True)
    sync_directory(directory.parent)


@contextmanager
def locked(path: Path, *, timeout_s: float) -> Iterator[bool]:
    """Hold the exclusive lock of a file; True if the last holder was killed.

    The file is empty unless it is held: who is killed leaves a byte, so that nobody else has to
    search the directory for what was left behind.

    Raises:
        Unavailable: somebody else has held it for ``timeout_s``.
    """
    with path.open("ab") as file:  # closing the file releases the lock
        descriptor = file.fileno()
        _acquire(descriptor, path.parent, timeout_s)
        was_killed = os.fstat(descriptor).st_size > 0
        os.ftruncate(descriptor, 1)
        try:
            yield was_killed
        finally:
            os.ftruncate(descriptor, 0)


def _acquire(lock: int, root: Path, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"another process has been writing to {root} for {timeout_s:.0f} s"
                ) from None
            time.sleep(_LOCK_POLL_S)
        else:
            return
