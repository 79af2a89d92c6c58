import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upt_server.admission import Admission
from upt_server.pace import Pace, Reach
from upt_server.scheduling import Budget, FairQueue, Priority
from upt_zoo.errors import InvalidInput, Overloaded

SECONDS = 20.0
BUDGET = Budget(tokens=2048)


@dataclass(frozen=True, eq=False)
class Item:
    adapter: str
    tokens: int
    call: "Call | None" = None
    weight: int = 1
    priority: Priority = "normal"

    @property
    def ends_at_s(self) -> float:
        return self.call.ends_at_s if self.call else inf


@dataclass(eq=False)
class Call:
    ends_at_s: float
    rows: list[Item] = field(default_factory=list)
    left: int = 0


class Simulation:
    """Calls that come at random times, and a runner that wobbles; the clock is only counted."""

    def __init__(
        self,
        *,
        times: float,
        inputs: int,
        deadline_s: float,
        tokens_per_s: float = 15_000.0,
        batch_s: float = 0.0,
    ) -> None:
        self.random, self.inputs, self.deadline_s = random.Random(inputs), inputs, deadline_s
        self.tokens_per_s, self.batch_s = tokens_per_s, batch_s
        self.capacity = BUDGET.tokens / (batch_s + BUDGET.tokens / tokens_per_s)  # in full batches
        self.calls_per_s = times * self.capacity / (60 * inputs)
        self.queue, self.pace = FairQueue[Item](65_536), Pace()
        self.admission = Admission(self.queue, self.pace)
        self.batch: list[Item] = []
        self.waiting: deque[Call] = deque()
        self.refused = self.late = self.answered_tokens = 0

    def run(self) -> None:
        done_at_s, comes_at_s = inf, 0.0
        while comes_at_s < SECONDS:
            now_s = min(done_at_s, comes_at_s)
            if now_s == done_at_s:
                done_at_s = inf
                self.finish(now_s)
            else:
                comes_at_s += self.random.expovariate(self.calls_per_s)
                self.come(now_s)
            self.leave(now_s)
            if done_at_s == inf and self.queue:
                self.batch = self.queue.take(BUDGET, self.reach_from(now_s))
                tokens = sum(item.tokens for item in self.batch)
                self.pace.start(tokens, now_s)
                took_s = self.batch_s + tokens / self.tokens_per_s
                done_at_s = now_s + took_s * self.random.uniform(0.85, 1.15)

    def reach_from(self, now_s: float) -> Callable[[float], Reach]:
        return lambda end_s: self.pace.reach(end_s - now_s)

    def come(self, now_s: float) -> None:
        call = Call(now_s + self.deadline_s, left=self.inputs)
        for _ in range(self.inputs):
            adapter, tokens = str(self.random.randrange(32)), self.random.randint(20, 100)
            call.rows.append(Item(adapter, tokens, call))
        try:
            self.admission.check(call.rows, self.deadline_s, now_s)
        except Overloaded:
            self.refused += 1
        else:
            self.waiting.append(call)
            self.queue.add(call.rows)

    def leave(self, now_s: float) -> None:
        while self.waiting and self.waiting[0].ends_at_s < now_s:
            call = self.waiting.popleft()
            self.late += bool(call.left)
            self.queue.discard(call.rows)

    def finish(self, now_s: float) -> None:
        self.pace.finish(now_s)
        for item in self.batch:
            call = item.call
            assert call is not None
            call.left -= 1
            if not call.left and now_s <= call.ends_at_s:
                self.answered_tokens += sum(row.tokens for row in call.rows)


# at 4,000 tokens a second a full batch takes half a second
@pytest.mark.parametrize("tokens_per_s", [15_000.0, 4_000.0])
@pytest.mark.parametrize("deadline_s", [0.5, 1.0, 5.0])
@pytest.mark.parametrize("inputs", [1, 8])
def test_at_four_times_the_load_nearly_all_that_is_computed_is_in_time(
    inputs: int, deadline_s: float, tokens_per_s: float
) -> None:
    simulation = Simulation(
        times=4, inputs=inputs, deadline_s=deadline_s, tokens_per_s=tokens_per_s
    )
    simulation.run()
    assert simulation.answered_tokens / SECONDS >= 0.9 * simulation.capacity
    assert simulation.refused > 0


@pytest.mark.parametrize("deadline_s", [1.0, 3.0])
def test_batches_that_deadlines_made_small_are_still_worth_what_each_costs(
    deadline_s: float,
) -> None:
    simulation = Simulation(
        times=4, inputs=1, deadline_s=deadline_s, tokens_per_s=4_000.0, batch_s=0.02
    )
    simulation.run()
    assert simulation.answered_tokens / SECONDS >= 0.85 * simulation.capacity


@pytest.mark.parametrize("inputs", [1, 8])
def test_at_half_the_load_nobody_is_refused(inputs: int) -> None:
    simulation = Simulation(times=0.5, inputs=inputs, deadline_s=2.0)
    simulation.run()
    assert (simulation.refused, simulation.late) == (0, 0)


def admission_of(*waiting: Item, max_tokens: int = 1000, running: int = 0) -> Admission[Item]:
    queue, pace = FairQueue[Item](max_tokens), Pace()
    pace.start(1000, 0.0)
    pace.finish(1.0)
    queue.add(waiting)
    if running:
        pace.start(running, 1.0)
    return Admission(queue, pace)


def test_nobody_waits_so_whoever_comes_is_tried() -> None:
    admission_of().check([Item("a", 1000)], 0.0, 1.0)


def test_what_is_at_work_counts() -> None:
    admission = admission_of(running=500)
    with pytest.raises(Overloaded, match=r"would take 0\.637 s, and is wanted in 0\.500 s"):
        admission.check([Item("a", 10)], 0.5, 1.0)
    admission.check([Item("a", 10)], 0.7, 1.0)


def test_more_than_the_queue_holds_is_a_mistake_and_not_an_overload() -> None:
    with pytest.raises(InvalidInput, match="split it"):
        admission_of().check([Item("a", 1001)], 60.0, 1.0)


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 300), max_size=30),
    st.lists(st.integers(1, 300), min_size=1, max_size=5),
    st.floats(0.0, 10.0),
)
def test_whoever_is_admitted_with_less_time_is_admitted_with_more(
    waiting: list[int], asked: list[int], time_left_s: float
) -> None:
    def is_admitted(seconds: float) -> bool:
        items = [Item("abc"[index % 3], tokens) for index, tokens in enumerate(waiting)]
        admission = admission_of(*items, max_tokens=100_000)
        try:
            admission.check([Item("abcd"[len(asked) % 4], each) for each in asked], seconds, 2.0)
        except Overloaded:
            return False
        return True

    assert is_admitted(time_left_s) <= is_admitted(time_left_s + 1.0)
