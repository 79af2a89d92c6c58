"""What ``doctor`` says: each check's finding, how bad it is, and what to do about it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from upt_zoo.errors import UptError

Level = Literal["ok", "warning", "damage", "failure"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a check found; ``remedy`` is empty where nothing is to be done."""

    check: str
    level: Level
    text: str
    remedy: str = ""


def run_checks(checks: Mapping[str, Callable[[], Finding]], *, worst: Level) -> tuple[Finding, ...]:
    """Run every check by its name; one that cannot be run is itself as bad as it gets."""
    return tuple(_run(name, check, worst) for name, check in checks.items())


def _run(name: str, check: Callable[[], Finding], worst: Level) -> Finding:
    try:
        return check()
    except (UptError, OSError) as error:
        return Finding(check=name, level=worst, text=str(error))
