"""``upt-server`` that measures the steps of its event loop, for the file that ``UPT_STEPS`` names.

On SIGUSR1 it says how many steps there have been since the last time and how long the longest took,
in milliseconds of the loop's thread: what else the machine does in the meantime is not in it.
"""

import asyncio
import json
import os
import signal
import threading
from pathlib import Path
from time import thread_time_ns
from types import FrameType

from upt_server.cli import main

_run = asyncio.Handle._run
_steps_ms: list[float] = []


def _measured(handle: asyncio.Handle) -> None:
    if threading.current_thread() is not threading.main_thread():
        _run(handle)
        return
    started = thread_time_ns()
    _run(handle)
    _steps_ms.append((thread_time_ns() - started) / 1e6)


def _write(_: int, __: FrameType | None) -> None:
    file = Path(os.environ["UPT_STEPS"])
    part = file.with_suffix(".part")
    part.write_text(json.dumps({"steps": len(_steps_ms), "longest_ms": max(_steps_ms, default=0)}))
    _steps_ms.clear()
    part.replace(file)


if __name__ == "__main__":
    asyncio.Handle._run = _measured  # type: ignore[method-assign, assignment]
    signal.signal(signal.SIGUSR1, _write)
    main()
