"""Children that are killed at a moment that is counted out: before their nth step of a kind.

Whoever forks must have no threads.
"""

import os
import select
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType


@dataclass(frozen=True)
class Steps:
    """What counts: audit events by how their names begin, functions in C by how theirs end."""

    events: tuple[str, ...] = ()
    calls: tuple[str, ...] = ()


# what is opened, renamed, deleted and locked; bytes written and synced, of which no audit tells
FILES = Steps(events=("open", "os.", "fcntl."), calls=("write", "flush", "fsync"))
# each piece of a request; each piece of an answer that has come and is not read yet
SENT, ANSWERED = Steps(calls=("socket.send",)), Steps(calls=("socket.recv",))


def is_killed(action: Callable[[], object], steps: Steps, point: int) -> bool:
    """Run it in a child that dies before its nth step; False if it is over before that."""

    def armed() -> None:
        bomb = _Bomb(steps, point)
        sys.addaudithook(bomb.audit)
        threading.setprofile(bomb.profile)
        sys.setprofile(bomb.profile)
        action()

    code = run_in_child(armed)
    assert code in (0, -signal.SIGKILL), code
    return code != 0


def run_in_child(action: Callable[[], object]) -> int:
    """Return the exit code: 0, 1 after an error, or a signal's number below zero."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        action()
        code = 0
    finally:
        if code:
            traceback.print_exc()
            sys.stderr.flush()
        os._exit(code)


class _Bomb:
    """Kills the process before the nth step."""

    def __init__(self, steps: Steps, point: int) -> None:
        self._steps = steps
        self._left = point

    def audit(self, event: str, arguments: object) -> None:
        """See what Python tells of itself."""
        if event.startswith(self._steps.events):
            self._step()

    def profile(self, frame: FrameType, event: str, function: object) -> None:
        """See functions in C called."""
        name = getattr(function, "__qualname__", "") if event == "c_call" else ""
        if name.endswith(self._steps.calls):
            self._step(awaited=getattr(function, "__self__", None) if "recv" in name else None)

    def _step(self, awaited: object = None) -> None:
        self._left -= 1
        if self._left == 0:
            if isinstance(awaited, socket.socket):  # the other side is done, whoever is faster
                select.select([awaited], [], [])
            os.kill(os.getpid(), signal.SIGKILL)
