"""What a process holds: memory, descriptors, threads and tasks, before and after (Linux)."""

import asyncio
import os
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

_GROWTH, _GROWTH_MB = 0.05, 16.0
_SLACK = 4  # descriptors and threads that libraries open when they first need them


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Counts at one moment."""

    descriptors: int
    threads: int
    tasks: int

    @classmethod
    def now(cls) -> "Held":
        """Count; in the event loop's thread."""
        return cls(
            descriptors=len(os.listdir("/proc/self/fd")),  # noqa: PTH208 - opens one itself
            threads=threading.active_count(),
            tasks=len(asyncio.all_tasks()),
        )


def resident_mb() -> float:
    """Return this process's resident memory in MiB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1024**2


def growth_mb(samples: Sequence[float]) -> float:
    """Return how much the last third of the samples lies above the first third of what is warm.

    The first fifth is warming up.
    """
    warm = samples[len(samples) // 5 :]
    third = max(1, len(warm) // 3)
    return median(warm[-third:]) - median(warm[:third])


def leaks(before: Held, after: Held) -> list[str]:
    """Say what is held after that was not held before."""
    return [
        f"{name}: {earlier} before, {asdict(after)[name]} after"
        for name, earlier in asdict(before).items()
        if asdict(after)[name] > earlier + _SLACK
    ]


def memory_leaks(samples: Sequence[float]) -> list[str]:
    """Say by how much memory has grown, where that is more than wobbling."""
    grown = growth_mb(samples)
    if grown <= max(_GROWTH_MB, _GROWTH * samples[-1]):
        return []
    return [f"memory: {grown:.1f} MiB more at the end than when warm"]
