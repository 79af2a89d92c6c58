"""The simulator against real servers: the workloads of ``benchmarks/predictions.py`` again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from upt_benchmarks.workloads import row_lengths
from upt_server.capacity.clock import Clock
from upt_server.capacity.costs import Costs
from upt_server.capacity.replica import Call, Limits, Replica
from upt_server.capacity.trial import Waits

Workload = Literal["closed", "half", "small"]

ADAPTERS, CALLERS, SMALL = 32, 64, 8
_WARM_S = 2.0
_SECONDS = 600.0  # a stall in a hundred batches decides p99; in a minute there are few


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """What was predicted and what was measured."""

    workload: str
    figure: str
    predicted: float
    measured: float

    @property
    def off(self) -> float:
        """By which share of the measured figure the prediction misses it."""
        return self.predicted / self.measured - 1


def compare(
    costs: Costs, measured: Mapping[str, Mapping[str, float]], *, seconds: float = _SECONDS
) -> list[Pair]:
    """Predict what callers see of each workload, and pair it with what was measured."""
    mixed = row_lengths("mix", 32)
    predicted = {
        "closed": predict_closed(costs, mixed, seconds=seconds),
        "small": predict_closed(costs, [SMALL], seconds=seconds),
        "half": predict_open(costs, mixed, measured["half"]["per_s"], seconds=seconds),
    }
    return [
        Pair(workload=name, figure=figure, predicted=value, measured=measured[name][figure])
        for name, figures in predicted.items()
        for figure, value in figures.items()
        if figure in measured[name]
    ]


def predict_closed(
    costs: Costs, lengths: Sequence[int], *, callers: int = CALLERS, seconds: float
) -> dict[str, float]:
    """Simulate callers who ask again as soon as they are answered."""
    bench = _Bench(costs, lengths)
    for _ in range(callers):
        bench.ask(is_repeated=True)
    return bench.figures(seconds)


def predict_open(
    costs: Costs, lengths: Sequence[int], per_s: float, *, seconds: float
) -> dict[str, float]:
    """Simulate calls at random times (Poisson)."""
    bench = _Bench(costs, lengths)

    def arrive() -> None:
        bench.ask(is_repeated=False)
        bench.clock.after(bench.source.expovariate(per_s), arrive)

    arrive()
    return bench.figures(seconds)


class _Bench:
    """One server with all adapters in memory, and what its callers see."""

    def __init__(self, costs: Costs, lengths: Sequence[int]) -> None:
        self.clock, self.source, self._lengths = Clock(), Random(0), lengths
        self._prompt = costs.prompt_tokens
        self._names = [str(index) for index in range(ADAPTERS)]
        self._replica = Replica(self.clock, costs, Limits(slots=ADAPTERS), self.source)
        self._replica.slots.fill(self._names)
        self._waits = Waits(counts_from_s=_WARM_S)

    def ask(self, *, is_repeated: bool) -> None:
        began_s = self.clock.now_s

        def ended(_: Call, error: Exception | None) -> None:
            assert error is None, error
            self._waits.note(began_s, self.clock.now_s, None)
            if is_repeated:
                self.ask(is_repeated=True)

        self._replica.submit(
            Call(
                adapter=self.source.choice(self._names),
                tokens=self.source.choice(self._lengths) + self._prompt,
                ended=ended,
            )
        )

    def figures(self, seconds: float) -> dict[str, float]:
        self.clock.run(_WARM_S + seconds)
        counts = self._replica.counts()
        return {
            "per_s": round(len(self._waits.answered_s) / seconds, 1),
            "p50_ms": round(1000 * self._waits.percentile_s(50), 1),
            "p99_ms": round(1000 * self._waits.percentile_s(99), 1),
            "batch_rows": round(counts.rows / counts.batches, 2),
            "batch_ms": round(1000 * counts.busy_s / counts.batches, 2),
        }
