"""Examples a second of several ways to train, and what they say about ours."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from upt_benchmarks.machine import Machine
from upt_benchmarks.timing import Rounds, median_interval, middle

OURS = "ours"
# the least ratio that is asked for, by the other's name and task
BOUNDS: Mapping[str, Mapping[str, float]] = {
    "adapters": {"sst2": 1.5, "rte": 1.5},
    "full": {"sst2": 1.0, "rte": 1.4},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """One way to train on a task, in examples a second; ratios are to the time of ``ours``."""

    task: str
    mean_tokens: float
    precision: str
    way: str
    rows_per_s: float
    ratio: float
    ci95: tuple[float, float]
    rounds: int
    bound: float | None

    @property
    def verdict(self) -> str:
        """Say whether the bound is met, if there is one."""
        if self.bound is None:
            return ""
        return f"{'met' if self.ratio >= self.bound else 'missed'} ({self.bound:g})"


def speeds_of(task: str, rounds: Rounds, *, rows: int, mean_tokens: float) -> Iterator[Speed]:
    """Sum up the rounds of a task, one speed a way; a way is named ``precision/who``.

    ``rows`` were learnt from in a round.
    """
    for way in rounds.times:
        precision, _, who = way.partition("/")
        pairs = rounds.pairs(way, f"{precision}/{OURS}")
        yield Speed(
            task=task,
            mean_tokens=round(mean_tokens, 1),
            precision=precision,
            way=who,
            rows_per_s=round(1000 * rows / middle(pairs.reference_ms), 1),
            ratio=round(middle(pairs.ratios), 3),
            ci95=median_interval(pairs.ratios),
            rounds=len(pairs.ratios),
            bound=BOUNDS.get(who, {}).get(task),
        )


def as_table(speeds: Sequence[Speed], machine: Machine, versions: Mapping[str, str]) -> str:
    """Draw a table for people."""
    header = ("task", "tokens", "precision", "trained by", "rows/s", "ours is", "95 %", "bound")
    rows = [header, *(_row(speed) for speed in speeds)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    beside = ", ".join(f"{name} {version}" for name, version in versions.items())
    about = (
        f"{machine.cpu}, {machine.cores} cores ({' '.join(machine.flags)}), "
        f"torch {machine.versions['torch']}, commit {machine.commit}, {machine.date}"
    )
    return "\n".join([about, *([f"beside {beside}"] if beside else []), "", *lines])


def _row(speed: Speed) -> tuple[str, ...]:
    is_ours = speed.way == OURS
    return (
        speed.task,
        f"{speed.mean_tokens:.0f}",
        speed.precision,
        speed.way,
        f"{speed.rows_per_s:.1f}",
        "" if is_ours else f"{speed.ratio:.2f} x",
        "" if is_ours else f"{speed.ci95[0]:.2f} to {speed.ci95[1]:.2f}",
        speed.verdict,
    )
