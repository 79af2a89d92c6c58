import math
from collections.abc import Sequence
from itertools import pairwise, product
from random import Random

import pytest

from upt_benchmarks import asking
from upt_benchmarks.costing import Spent, busy, routed
from upt_server.capacity.clock import Act, Clock
from upt_server.capacity.costs import Costs
from upt_server.capacity.machine import OwnMachine, Side
from upt_server.capacity.replica import Call, Limits, Replica
from upt_server.results import BatchFacts
from upt_testing.capacity import BATCH, COSTS

ALONE_S, TOGETHER_S = 7e-4, 1e-4


def seen_of(
    batches: Sequence[tuple[int, int, int, float]], *, gap_s: float, calls: int
) -> asking.Seen:
    """Batches of rows, tokens, adapters and seconds, so long after each other.

    So many calls come at once while each is computed, and it takes that much longer.
    """
    seen, now_s = asking.Seen(), 0.0
    for rows, tokens, adapters, seconds in batches:
        now_s += gap_s
        took_s = seconds + 1e-9 * now_s  # no two alike
        if calls:
            took_s += ALONE_S + TOGETHER_S * (calls - 1)
        facts = BatchFacts(
            rows=rows, tokens=tokens, distinct_adapters=adapters, forward_ms=1000 * took_s
        )
        seen.batches[facts] = now_s
        seen.waited_s += [took_s] * rows
        seen.sent_at_s += [now_s + took_s / 5] * calls
        now_s += took_s
    seen.elapsed_s = now_s
    return seen


def closed_loads(*, off: Sequence[float] = (0.0,), slow: float = 1.0) -> list[asking.Seen]:
    """Busy servers that take what ``COSTS`` says: few and many callers, short and long texts.

    Batches are ``off`` by so many roots of their seconds; the last load is ``slow`` as a whole.
    """
    loads = []
    kinds = list(product((1, 4, 16), (22, 106), (1, 16)))
    for rows, tokens, adapters in kinds:
        distinct = min(rows, adapters)
        seconds = BATCH.seconds(rows=rows, tokens=rows * tokens, adapters=distinct)
        if (rows, tokens, adapters) == kinds[-1]:
            seconds *= slow
        sizes = (rows, rows * tokens, distinct)
        batches = [(*sizes, seconds + each * math.sqrt(seconds)) for each in off]
        gap_s = COSTS.handoff_s + rows * COSTS.call_s
        loads.append(seen_of(batches, gap_s=gap_s, calls=rows))
    return loads


def random_loads() -> list[asking.Seen]:
    """Texts of two lengths, a call beside every other batch."""
    loads = []
    for tokens in (22, 106):
        sizes = [(rows, rows * tokens, rows, seconds_of(rows, tokens)) for rows in (1, 2, 3)]
        quiet, asked = (seen_of(sizes, gap_s=0.005, calls=calls) for calls in (0, 1))
        late_s = quiet.elapsed_s + 1.0
        quiet.batches |= {facts: at_s + late_s for facts, at_s in asked.batches.items()}
        quiet.sent_at_s += [at_s + late_s for at_s in asked.sent_at_s]
        loads.append(quiet)
    return loads


def seconds_of(rows: int, tokens: int) -> float:
    return BATCH.seconds(rows=rows, tokens=rows * tokens, adapters=rows)


def test_the_fit_finds_the_costs_that_loads_were_made_of() -> None:
    found = busy(closed_loads(), random_loads())
    assert found.batch.model_dump() == pytest.approx(BATCH.model_dump(), rel=1e-3)
    assert found.alone_s == pytest.approx(ALONE_S, rel=1e-3)
    assert found.together_s == pytest.approx(TOGETHER_S, rel=1e-3)
    assert found.handoff_s == pytest.approx(COSTS.handoff_s, rel=1e-3)
    assert found.call_s == pytest.approx(COSTS.call_s, rel=1e-3)
    assert found.jitter_root_s == pytest.approx([0.0] * len(found.jitter_root_s), abs=1e-6)


def test_what_batches_of_one_load_differ_by_is_jitter() -> None:
    found = busy(closed_loads(off=(-0.01, -0.01, 0.0, 0.02)), random_loads())
    least, *_, most = found.jitter_root_s
    assert most - least == pytest.approx(0.03, rel=0.02)
    drawn = [(one + next_one) / 2 for one, next_one in pairwise(found.jitter_root_s)]
    assert sum(drawn) == pytest.approx(0.0, abs=1e-3)


def test_a_batch_that_the_machine_held_up_is_no_jitter() -> None:
    off = [0.0] * 400
    off[200] = 1.0
    assert max(map(abs, busy(closed_loads(off=off), random_loads()).jitter_root_s)) < 0.01


def test_a_load_that_is_slow_as_a_whole_is_no_jitter() -> None:
    found = busy(closed_loads(slow=1.3), random_loads())
    assert max(map(abs, found.jitter_root_s)) < 1e-6


def test_a_batch_of_many_calls_counts_as_many_times() -> None:
    few, many = closed_loads(off=(-0.01, 0.01))[0], closed_loads()[-1]
    spread = busy([few, many], random_loads()).jitter_root_s
    # two calls of 18; were all batches alike, half of the quantiles
    assert sum(abs(each) > 0.005 for each in spread) < 10


class Watch:
    """A machine that notes its batches; every call has ``tokens`` and asks for the next adapter."""

    def __init__(self, clock: Clock, costs: Costs, *, tokens: int, adapters: int) -> None:
        self.seen = asking.Seen()
        self._clock, self._tokens, self._adapters = clock, tokens, adapters
        self._machine = OwnMachine(clock, costs)
        self._replica = Replica(clock, costs, Limits(slots=64), Random(1), machine=self)
        self._replica.slots.fill([str(each) for each in range(64)])

    def ask(self, *, until_s: float = 0.0) -> None:
        """Ask, and again as soon as it is answered until then."""
        sent_s = self._clock.now_s
        self.seen.sent_at_s.append(sent_s)

        def ended(*_: object) -> None:
            self.seen.waited_s.append(self._clock.now_s - sent_s)
            if self._clock.now_s < until_s:
                self.ask(until_s=until_s)

        adapter = str(len(self.seen.sent_at_s) % self._adapters)
        self._replica.submit(Call(adapter=adapter, tokens=self._tokens, ended=ended))

    def carry(self, side: Side, then: Act) -> None:
        self._machine.carry(side, then)

    def hand_over(self, calls: int, then: Act) -> None:
        self._machine.hand_over(calls, then)

    def compute(self, seconds: float, then: Act) -> None:
        began_s = self._clock.now_s
        rows = self._replica.counts().rows - sum(each.rows for each in self.seen.batches)

        def done() -> None:
            facts = BatchFacts(
                rows=rows,
                tokens=rows * self._tokens,
                distinct_adapters=min(rows, self._adapters),
                forward_ms=1000 * (self._clock.now_s - began_s),
            )
            self.seen.batches[facts] = began_s
            then()

        self._machine.compute(seconds, done)


def watch(
    costs: Costs, *, tokens: int, adapters: int = 64, callers: int = 0, per_s: float = 0.0
) -> asking.Seen:
    """Let callers ask a simulated server in a closed loop, or at random times, for 40 s."""
    clock, source, until_s = Clock(), Random(2), 40.0
    server = Watch(clock, costs, tokens=tokens, adapters=adapters)
    for _ in range(callers):
        server.ask(until_s=until_s)
    due_s = 0.0
    while per_s and (due_s := due_s + source.expovariate(per_s)) < until_s:
        clock.after(due_s, server.ask)
    clock.run(until_s + 1.0)
    server.seen.elapsed_s = until_s
    return server.seen


def test_the_fit_finds_the_costs_that_servers_were_simulated_by() -> None:
    costs = COSTS.model_copy(update={"alone_s": ALONE_S, "together_s": TOGETHER_S})
    found = busy(
        [
            watch(costs, tokens=tokens, adapters=adapters, callers=callers)
            for callers in (8, 32)
            for tokens in (22, 106)
            for adapters in (1, 64)
        ],
        [watch(costs, tokens=22, per_s=250.0), watch(costs, tokens=106, per_s=80.0)],
    )
    assert found.alone_s == pytest.approx(ALONE_S, rel=0.1)
    assert found.together_s == pytest.approx(TOGETHER_S, rel=0.1)
    assert found.batch.token_s == pytest.approx(BATCH.token_s, rel=0.03)
    rows = (found.batch.seconds(rows=each, tokens=0, adapters=each) for each in (1, 32))
    assert list(rows) == pytest.approx(
        [BATCH.seconds(rows=each, tokens=0, adapters=each) for each in (1, 32)], rel=0.1
    )
    assert found.call_s == pytest.approx(COSTS.call_s, rel=0.1)


def test_calls_that_come_while_a_batch_is_held_up_did_not_hold_it_up() -> None:
    source, seen, now_s = Random(1), asking.Seen(), 0.0
    for _ in range(10_000):
        tokens = source.choice((22, 106))
        seconds = BATCH.seconds(rows=1, tokens=tokens, adapters=1) * source.uniform(0.5, 1.5)
        facts = BatchFacts(rows=1, tokens=tokens, distinct_adapters=1, forward_ms=1000 * seconds)
        seen.batches[facts] = now_s
        now_s += seconds
    at_s = 0.0
    while (at_s := at_s + source.expovariate(200.0)) < now_s:
        seen.sent_at_s.append(at_s)
    assert busy(closed_loads(), [seen]).alone_s < 1e-4


def test_the_costs_behind_a_router_are_found_in_what_its_processes_used() -> None:
    spent = []
    for calls, batches, length in ((800, 100, 42), (400, 60, 106), (600, 400, 42), (200, 200, 42)):
        tokens = calls * length
        spent.append(
            Spent(
                elapsed_s=5.0,
                calls=calls,
                batches=batches,
                tokens=tokens,
                callers_s=calls * 4e-4,
                router_s=calls * 2e-3 + 5.0 * 0.1,
                replicas_s=calls * 2.4e-3 + batches * 2e-3 + 5.0 * 0.05,
                runners_s=batches * 0.001 + tokens * 9e-5,
            )
        )
    idle = Spent(
        elapsed_s=3.0,
        calls=0,
        batches=0,
        tokens=0,
        callers_s=0.0,
        router_s=0.3,
        replicas_s=0.15,
        runners_s=0.0,
    )
    found = routed(spent, idle, beyond_s=0.01)
    assert found.batch.model_dump() == pytest.approx(
        {"fixed_s": 0.001, "row_s": 0.0, "token_s": 9e-5, "adapter_s": 0.0}, abs=1e-7
    )
    assert found.model_dump(exclude={"batch"}) == pytest.approx(
        {
            "round_s": 2e-3,
            "caller_s": 4e-4,
            "proxy_s": 2e-3,
            "replica_s": 2.4e-3,
            "way_s": 0.01 - 6.8e-3,
            "idle_cores": 0.15,
        },
        abs=1e-7,
    )
