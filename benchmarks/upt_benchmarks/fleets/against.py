"""The simulator against real servers: the workloads of ``benchmarks/predictions.py`` again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from statistics import mean
from typing import Literal

from upt_benchmarks.fleets.fleet import Server
from upt_benchmarks.fleets.shared import SharedMachine
from upt_benchmarks.workloads import row_lengths
from upt_server.affinity import AffinityRouter
from upt_server.capacity.clock import Clock
from upt_server.capacity.costs import Costs
from upt_server.capacity.replica import Call, Limits, Replica
from upt_server.capacity.trial import Waits
from upt_zoo.errors import InvalidInput

Predicted = Literal["one", "ray"]
Figures = Mapping[str, float]

ADAPTERS, CALLERS, SMALL = 32, 64, 8
FIGURES = ("per_s", "p50_ms", "p99_ms", "batch_rows")
_REPLICAS = 2
_SLOTS = 1000  # that the router of deploy/ray/serve.yaml is told
_WARM_S = 2.0
_SECONDS = 600.0  # a stall in a hundred batches decides p99; in a minute there are few


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """What was predicted, and what each round measured."""

    workload: str
    figure: str
    predicted: float
    measured: tuple[float, ...]

    @property
    def off(self) -> tuple[float, ...]:
        """By which share of each measured figure the prediction misses it."""
        return tuple(self.predicted / each - 1 for each in self.measured)


def compare(
    costs: Costs,
    measured: Mapping[str, Sequence[Figures]],
    *,
    way: Predicted = "one",
    seconds: float = _SECONDS,
) -> list[Pair]:
    """Predict what callers see of each workload, and pair it with what was measured.

    Raises:
        InvalidInput: the costs hold none of a router, and the way leads through one.
    """
    mixed, half_per_s = row_lengths("mix", 32), mean(each["per_s"] for each in measured["half"])
    predicted = {
        "closed": predict_closed(costs, mixed, way=way, seconds=seconds),
        "small": predict_closed(costs, [SMALL], way=way, seconds=seconds),
        "half": predict_open(costs, mixed, half_per_s, way=way, seconds=seconds),
    }
    return [
        Pair(
            workload=name,
            figure=figure,
            predicted=figures[figure],
            measured=tuple(each[figure] for each in measured[name]),
        )
        for name, figures in predicted.items()
        for figure in FIGURES
        if all(figure in each for each in measured[name])
    ]


def predict_closed(
    costs: Costs,
    lengths: Sequence[int],
    *,
    way: Predicted = "one",
    callers: int = CALLERS,
    seconds: float,
) -> dict[str, float]:
    """Simulate callers who ask again as soon as they are answered."""
    bench = _Bench(costs, lengths, way)
    for _ in range(callers):
        bench.ask(is_repeated=True)
    return bench.figures(seconds)


def predict_open(
    costs: Costs, lengths: Sequence[int], per_s: float, *, way: Predicted = "one", seconds: float
) -> dict[str, float]:
    """Simulate calls at random times (Poisson)."""
    bench = _Bench(costs, lengths, way)

    def arrive() -> None:
        bench.ask(is_repeated=False)
        bench.clock.after(bench.source.expovariate(per_s), arrive)

    arrive()
    return bench.figures(seconds)


class _Bench:
    """One server, or replicas behind Ray, with all adapters in memory, and what callers see."""

    def __init__(self, costs: Costs, lengths: Sequence[int], way: Predicted) -> None:
        self.clock, self.source, self._lengths = Clock(), Random(0), lengths
        self._prompt = costs.prompt_tokens
        self._names = [str(index) for index in range(ADAPTERS)]
        limits = Limits(slots=ADAPTERS)
        if way == "one":
            replicas = [Replica(self.clock, costs, limits, self.source)]
        else:
            replicas = _behind_ray(self.clock, costs, limits, self.source)
        for replica in replicas:
            replica.slots.fill(self._names)
        self._up = [Server(str(at), replica) for at, replica in enumerate(replicas)]
        self._router = AffinityRouter(_SLOTS)
        self._waits = Waits(counts_from_s=_WARM_S)

    def ask(self, *, is_repeated: bool) -> None:
        began_s = self.clock.now_s

        def ended(_: Call, error: Exception | None) -> None:
            assert error is None, error
            self._waits.note(began_s, self.clock.now_s, None)
            if is_repeated:
                self.ask(is_repeated=True)

        adapter = self.source.choice(self._names)
        call = Call(
            adapter=adapter,
            tokens=self.source.choice(self._lengths) + self._prompt,
            ended=ended,
        )
        self._up[self._router.choose(adapter, self._up)].replica.submit(call)

    def figures(self, seconds: float) -> dict[str, float]:
        self.clock.run(_WARM_S + seconds)
        counts = [server.replica.counts() for server in self._up]
        rows, batches = sum(each.rows for each in counts), sum(each.batches for each in counts)
        return {
            "per_s": round(len(self._waits.answered_s) / seconds, 1),
            "p50_ms": round(1000 * self._waits.percentile_s(50), 1),
            "p99_ms": round(1000 * self._waits.percentile_s(99), 1),
            "batch_rows": round(rows / batches, 2),
        }


def _behind_ray(clock: Clock, costs: Costs, limits: Limits, source: Random) -> list[Replica]:
    router = costs.router
    if router is None:
        raise InvalidInput(
            "expected costs of a router, got none; measure them by benchmarks/costs.py --ray"
        )
    own = costs.model_copy(update={"batch": router.batch})
    machine = SharedMachine(clock, router, costs.cores)
    return [Replica(clock, own, limits, source, machine=machine.place()) for _ in range(_REPLICAS)]
