"""The CPU time of processes, as Linux counts it."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
# fields after the name, of /proc/PID/stat
_USER, _SYSTEM, _NICENESS = 11, 12, 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Used:
    """CPU seconds of processes: ``runners_s`` of their threads that give way, and all others'."""

    runners_s: float
    others_s: float

    def since(self, before: "Used") -> "Used":
        """Return what was used from then on."""
        return Used(
            runners_s=self.runners_s - before.runners_s, others_s=self.others_s - before.others_s
        )


def used_by(pids: Iterable[int]) -> Used:
    """Add up what processes have used.

    A server's runner gives way to its event loop, so its threads are nicer than the process.
    """
    runners_s = others_s = 0.0
    for pid in pids:
        fields = _fields(Path(f"/proc/{pid}/stat"))
        if fields is None:
            continue
        runners_of_s = sum(
            _seconds(thread)
            for file in Path(f"/proc/{pid}/task").glob("*/stat")
            if (thread := _fields(file)) and int(thread[_NICENESS]) > int(fields[_NICENESS])
        )
        runners_s += runners_of_s
        others_s += _seconds(fields) - runners_of_s
    return Used(runners_s=runners_s, others_s=others_s)


def _seconds(fields: list[str]) -> float:
    return (int(fields[_USER]) + int(fields[_SYSTEM])) / _TICKS_A_SECOND


def _fields(file: Path) -> list[str] | None:
    """Return what stands after the name; None: the process or thread has ended."""
    try:
        return file.read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
