"""What long readers still need, so that nobody collects it under their hands.

    leases/<16 hex digits>    one digest a line; its reader holds the exclusive lock of the file

A lease ends with its process, however that ends: who collects takes for dead every lease whose lock
is free, and removes it. A lease is written and locked beside its place and then renamed, so one
that can be seen is locked already. What was resolved a moment ago and is not leased yet is kept by
the grace of ``upt_zoo.local.upkeep.collect``.
"""

import errno
import fcntl
import os
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

_FOLDER = "leases"
_NOT_OURS_TO_WRITE = (errno.EACCES, errno.EPERM, errno.EROFS)
_UNSEEN_S = 3600.0  # a lease that was not renamed for so long has no living writer


@contextmanager
def leased(root: Path, digests: Iterable[str]) -> Iterator[None]:
    """Keep blobs of the store at ``root`` until the end of the ``with``.

    Where this user cannot write there is no lease, and the grace must do.
    """
    path = root / _FOLDER / secrets.token_hex(8)
    try:
        file = _take(path, digests)
    except OSError as error:
        if error.errno not in _NOT_OURS_TO_WRITE:
            raise
        yield
        return
    with file:  # closing the file releases the lock
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _take(path: Path, digests: Iterable[str]) -> TextIO:
    path.parent.mkdir(exist_ok=True)
    unseen = path.with_name(f".{path.name}.tmp")
    file = unseen.open("x", encoding="ascii")
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.writelines(f"{digest}\n" for digest in digests)
        file.flush()
        unseen.rename(path)
    except BaseException:
        file.close()
        raise
    return file


def read_leases(root: Path) -> frozenset[str]:
    """Return the digests that living readers hold; leases of dead ones are removed."""
    held: set[str] = set()
    for unseen in (root / _FOLDER).glob(".*.tmp"):
        with suppress(FileNotFoundError):
            if unseen.stat().st_mtime < time.time() - _UNSEEN_S:
                unseen.unlink()
    for path in (root / _FOLDER).glob("[!.]*"):
        held |= _read_lease(path)
    return frozenset(held)


def _read_lease(path: Path) -> set[str]:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:  # its reader has just finished
        return set()
    with os.fdopen(descriptor, encoding="ascii", errors="replace") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return set(file.read().split())
        path.unlink(missing_ok=True)
        return set()
