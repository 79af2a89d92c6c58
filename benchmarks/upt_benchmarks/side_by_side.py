"""The same callers at several servers in turn, and how their rates compare."""

import random
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter

from upt_benchmarks.arrivals import answered_per_s
from upt_benchmarks.served import percentiles
from upt_benchmarks.timing import middle

OURS = "ours"
# asks an adapter about a text
Predict = Callable[[str, str], Coroutine[object, object, object]]

_TURNS = 3
_WARM_UP_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What callers saw who ask again as soon as they are answered."""

    rows_per_s: float
    waited_s: Sequence[float]


class Asking:
    """Asks for random adapters and texts, and notes how long each answer took."""

    def __init__(
        self, predict: Predict, names: Sequence[str], texts: Sequence[str], seed: int
    ) -> None:
        self._predict, self._names, self._texts = predict, names, texts
        self._source = random.Random(seed)
        self.waited_s: list[float] = []

    async def ask(self, _: float = 0.0) -> None:
        """Ask once."""
        asked = perf_counter()
        await self._predict(self._source.choice(self._names), self._source.choice(self._texts))
        self.waited_s.append(perf_counter() - asked)


async def take_turns(
    ways: Mapping[str, Predict],
    names: Sequence[str],
    texts: Sequence[str],
    *,
    callers: int,
    seconds: float,
) -> dict[str, list[Turn]]:
    """Load one server after the other, several times, so that all meet the same minutes."""
    for predict in ways.values():
        asking = Asking(predict, names, texts, seed=0)
        await answered_per_s(asking.ask, callers=callers, seconds=_WARM_UP_S)
    turns: dict[str, list[Turn]] = {way: [] for way in ways}
    for seed in range(1, _TURNS + 1):
        for way, predict in ways.items():
            asking = Asking(predict, names, texts, seed)
            rate = await answered_per_s(asking.ask, callers=callers, seconds=seconds)
            turns[way].append(Turn(rows_per_s=rate, waited_s=asking.waited_s))
    return turns


def summed_up(turns: Mapping[str, Sequence[Turn]]) -> dict[str, dict[str, object]]:
    """Sum up each way; ``ours_is`` is our rate / the way's, the median of the turns' ratios."""
    ours = [turn.rows_per_s for turn in turns[OURS]]
    summary: dict[str, dict[str, object]] = {}
    for way, taken in turns.items():
        rates = [turn.rows_per_s for turn in taken]
        ratios = [our_rate / rate for our_rate, rate in zip(ours, rates, strict=True)]
        summary[way] = {
            "rows_per_s": round(middle(rates), 1),
            **percentiles([waited for turn in taken for waited in turn.waited_s]),
            "ours_is": round(middle(ratios), 2),
            "ours_is_by_turn": [round(ratio, 2) for ratio in ratios],
        }
    return summary
