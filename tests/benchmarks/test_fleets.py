import math
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from random import Random

import pytest

from upt_benchmarks import asking
from upt_benchmarks.costing import Spent, busy, routed
from upt_benchmarks.fleets.against import compare, predict_closed, predict_open
from upt_benchmarks.fleets.fleet import Fleet, Scaling
from upt_benchmarks.fleets.routing import LeastLoadedRouter, RandomRouter, Routing
from upt_benchmarks.fleets.runs import Seen, Setting, run
from upt_benchmarks.fleets.shared import Cores, Loop
from upt_benchmarks.fleets.traffic import Burst, Bursty, Steady
from upt_server.affinity import AffinityRouter
from upt_server.capacity.clock import Act, Clock
from upt_server.capacity.costs import BatchCosts, Costs, RouterCosts
from upt_server.capacity.demand import cut, popularity
from upt_server.capacity.machine import OwnMachine, Side
from upt_server.capacity.planning import most_per_s
from upt_server.capacity.replica import Call, Limits, Replica
from upt_server.capacity.trial import Waits
from upt_server.results import BatchFacts
from upt_zoo.errors import InvalidInput

BATCH = BatchCosts(fixed_s=0.001, row_s=1e-4, token_s=5e-5, adapter_s=1e-4)
COSTS = Costs(
    machine="paper",
    cores=1,
    date="2026-01-01",
    backbone="none",
    runner="none",
    batch=BATCH,
    alone_s=0.0,
    together_s=0.0,
    call_s=5e-4,
    edge_s=2e-3,
    load_s=6e-3,
    load_work_s=2e-3,
    handoff_s=1e-3,
    jitter_root_s=(-0.01, 0.0, 0.01),
    prompt_tokens=10,
    adapter_bytes=1_000_000,
    stored_bytes=500_000,
    server_bytes=10_000_000,
    start_s=3.0,
)


@dataclass
class Idle:
    name: str
    calls: int = 0


def places(count: int) -> list[Idle]:
    return [Idle(f"server-{index}") for index in range(count)]


# routing


def test_random_routing_takes_any_and_least_loaded_the_idlest() -> None:
    up = [Idle("a", 3), Idle("b", 1), Idle("c", 1)]
    any_router, idlest = RandomRouter(Random(0)), LeastLoadedRouter(Random(0))
    assert {any_router.choose("x", up) for _ in range(50)} == {0, 1, 2}
    taken = Counter(idlest.choose("x", up) for _ in range(200))
    assert taken.keys() == {1, 2}
    assert min(taken.values()) > 70


def test_affinity_keeps_an_adapter_in_one_place_and_shares_adapters_evenly() -> None:
    up, router = places(8), AffinityRouter(1000)
    homes = {str(adapter): router.choose(str(adapter), up) for adapter in range(4000)}
    assert all(router.choose(adapter, up) == home for adapter, home in homes.items())
    assert AffinityRouter(1000).choose("77", up) == homes["77"]  # any router agrees
    counts = Counter(homes.values())
    assert min(counts.values()) > 400
    assert max(counts.values()) < 600


def test_a_router_remembers_no_more_than_servers_hold() -> None:
    up, router = places(2), AffinityRouter(10)
    tracemalloc.start()
    try:
        for number in range(10_000):
            router.choose(f"nobody has {number}", up)
        assert tracemalloc.get_traced_memory()[0] < 100_000
    finally:
        tracemalloc.stop()


def test_a_server_that_goes_moves_its_own_adapters_only() -> None:
    up, router = places(8), AffinityRouter(1000)
    adapters = [str(adapter) for adapter in range(1000)]
    before = {adapter: up[router.choose(adapter, up)].name for adapter in adapters}
    left = up[:3] + up[4:]
    for adapter in adapters:
        after = left[router.choose(adapter, left)].name
        assert after == before[adapter] or before[adapter] == up[3].name
    assert {adapter: up[router.choose(adapter, up)].name for adapter in adapters} == before


def test_a_busy_server_gives_away_what_others_have_and_a_very_busy_one_anything() -> None:
    up, router = places(4), AffinityRouter(1000)
    home = router.choose("hot", up)
    up[home].calls = 20
    assert router.choose("hot", up) == home  # nobody else has it
    up[home].calls = 100
    second = router.choose("hot", up)
    assert second != home
    up[home].calls = 20
    assert router.choose("hot", up) == second
    up[home].calls = 0
    assert router.choose("hot", up) == home


def test_what_a_server_was_long_not_asked_for_counts_as_gone() -> None:
    up, router = places(2), AffinityRouter(1)
    home = router.choose("hot", up)
    up[home].calls = 100
    second = router.choose("hot", up)
    up[home].calls = 20
    others = (str(index) for index in range(99))
    next(other for other in others if router.choose(other, up) == second)
    assert router.choose("hot", up) == home


# traffic


def test_steady_traffic_comes_at_its_rate() -> None:
    steady = Steady(50.0, Random(0))
    assert sum(steady.pause_s() for _ in range(20_000)) == pytest.approx(400, rel=0.03)


def test_bursts_come_as_often_and_as_high_as_they_say() -> None:
    burst = Burst(times=3.0, calm_s=10.0, burst_s=10.0)
    bursty = Bursty(20.0, burst, Random(0), is_regular=True)
    now_s, in_calm, in_burst = 0.0, 0, 0
    while (now_s := now_s + bursty.pause_s()) < 2000:
        if now_s % 20 < 10:
            in_calm += 1
        else:
            in_burst += 1
    assert in_calm == pytest.approx(20 * 1000, rel=0.03)
    assert in_burst == pytest.approx(60 * 1000, rel=0.03)


def test_irregular_bursts_give_the_mean_of_both_rates() -> None:
    bursty = Bursty(20.0, Burst(times=3.0, calm_s=3.0, burst_s=1.0), Random(0))
    took_s = sum(bursty.pause_s() for _ in range(60_000))
    assert 60_000 / took_s == pytest.approx(20 * 0.75 + 60 * 0.25, rel=0.05)


# fleets


def simulated(routing: Routing, servers: int, slots: int = 200, used: float = 0.6) -> Seen:
    limits = Limits(slots=slots)
    per_s = used * servers * most_per_s(40, COSTS, limits)
    asked = cut(popularity("zipf", 1000), per_s, servers=servers, kept=servers)
    setting = Setting(
        costs=COSTS,
        limits=limits,
        asked=asked,
        servers=servers,
        routing=routing,
        warm_s=8.0,
        seconds=12.0,
    )
    return run(setting)


def test_affinity_finds_adapters_in_memory_nearly_as_often_as_the_best_fixed_assignment() -> None:
    shares = popularity("zipf", 1000)
    for servers in (2, 4):
        best = float(shares[: 200 * servers].sum())
        assert simulated("affinity", servers).hit_rate >= 0.95 * best
        assert simulated("random", servers).hit_rate < 0.9 * best


def test_a_fleet_answers_all_that_it_is_asked_and_little_load_waits_little() -> None:
    seen = simulated("least_loaded", 2, used=0.3)
    assert seen.per_s == pytest.approx(0.6 * most_per_s(40, COSTS, Limits(slots=200)), rel=0.05)
    assert (seen.lost, seen.retried, seen.servers) == (0, 0, 2.0)
    assert COSTS.edge_s < seen.p50_s < seen.p99_s < 0.1


def fleet_of(servers: int, routing: str = "affinity") -> tuple[Clock, Fleet]:
    clock, source = Clock(), Random(0)
    router = AffinityRouter(50) if routing == "affinity" else RandomRouter(source)
    fleet = Fleet(clock, COSTS, Limits(slots=50), router, source=source)
    fleet.open(servers)
    return clock, fleet


def test_no_call_is_lost_when_a_server_is_killed_and_another_takes_its_place() -> None:
    clock, fleet = fleet_of(2)
    waits = Waits()
    for index in range(400):
        fleet.ask(str(index % 20), 30, waits, retry_for_s=30.0)
    clock.run(0.2)
    inside = fleet.up[0].calls
    assert inside > 10
    fleet.kill(0)
    assert (len(fleet.up), fleet.starting) == (1, 1)
    clock.run(60.0)
    assert len(waits.answered_s) == 400
    assert fleet.retried >= inside
    assert [server.name for server in fleet.up] == ["server-1", "server-2"]
    assert fleet.counts().rows >= 400  # what the dead one had computed counts


def test_callers_wait_for_a_server_as_long_as_they_said_and_no_longer() -> None:
    clock, fleet = fleet_of(1)
    patient, hasty = Waits(), Waits()
    fleet.kill(0)
    fleet.ask("a", 30, patient, retry_for_s=30.0)
    fleet.ask("a", 30, hasty, retry_for_s=1.0)
    clock.run(60.0)
    assert len(patient.answered_s) == 1
    assert patient.answered_s[0] > COSTS.start_s
    assert hasty.errors == {"Unavailable": 1}


def test_a_fleet_grows_under_load_and_shrinks_again_after_it() -> None:
    clock, fleet = fleet_of(1, "random")
    fleet.scale(Scaling(target=0.5, every_s=1.0, patience_s=3.0))
    waits, steady = Waits(), Steady(1.5 * most_per_s(30, COSTS, Limits(slots=50)), Random(1))

    def arrive() -> None:
        if clock.now_s < 30.0:
            fleet.ask("a", 30, waits, retry_for_s=30.0)
            clock.after(steady.pause_s(), arrive)

    arrive()
    clock.run(30.0)
    assert 3 <= len(fleet.up) <= 6
    clock.run(60.0)
    assert len(fleet.up) == 1
    assert not waits.errors
    assert 30 + 30 < fleet.paid_server_s() < 60 * 6


# costs and predictions


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


def test_callers_in_a_closed_loop_obey_littles_law() -> None:
    figures = predict_closed(COSTS, [30], callers=16, seconds=20.0)
    assert figures["per_s"] * figures["p50_ms"] / 1000 == pytest.approx(16, rel=0.1)
    assert figures["per_s"] <= most_per_s(30, COSTS, Limits(slots=32))


def test_an_open_loop_is_answered_as_often_as_it_asks() -> None:
    figures = predict_open(COSTS, [30], 100.0, seconds=30.0)
    assert figures["per_s"] == pytest.approx(100, rel=0.05)
    assert 1000 * COSTS.edge_s < figures["p50_ms"] < figures["p99_ms"]


def test_predictions_stand_beside_what_was_measured() -> None:
    rounds = [{"per_s": each, "p50_ms": 10.0, "p99_ms": 20.0} for each in (90.0, 110.0)]
    pairs = compare(COSTS, {"closed": rounds, "half": rounds, "small": rounds}, seconds=20.0)
    assert len(pairs) == 9
    rate = next(pair for pair in pairs if (pair.workload, pair.figure) == ("half", "per_s"))
    assert rate.predicted == pytest.approx(100, rel=0.05)
    assert rate.off == pytest.approx((rate.predicted / 90 - 1, rate.predicted / 110 - 1))


# cores that are shared

ROUTER = RouterCosts(
    batch=BATCH,
    round_s=2e-3,
    caller_s=4e-4,
    proxy_s=2e-3,
    replica_s=2.4e-3,
    way_s=1e-3,
    idle_cores=0.0,
)
SHARED = COSTS.model_copy(update={"cores": 2, "router": ROUTER, "jitter_root_s": (0.0, 0.0)})


def test_a_core_of_its_own_is_the_most_that_a_work_gets() -> None:
    clock, done = Clock(), list[float]()
    cores = Cores(clock, 2)
    for seconds in (1.0, 2.0):
        cores.run(seconds, lambda: done.append(clock.now_s))
    clock.run(10.0)
    assert done == pytest.approx([1.0, 2.0])


def test_works_share_the_cores_and_who_is_done_leaves_its_share_to_the_others() -> None:
    clock, done = Clock(), list[float]()
    cores = Cores(clock, 1)
    for seconds in (1.0, 2.0):
        cores.run(seconds, lambda: done.append(clock.now_s))
    clock.run(10.0)
    assert done == pytest.approx([2.0, 3.0])


def test_who_gives_way_gets_a_third_of_the_others_share() -> None:
    clock, done = Clock(), dict[str, float]()
    cores = Cores(clock, 1)
    cores.run(1.0, lambda: done.update(runner=clock.now_s), gives_way=True)
    cores.run(0.75, lambda: done.update(loop=clock.now_s))
    clock.run(10.0)
    assert done == pytest.approx({"loop": 1.0, "runner": 1.75})


def test_a_loop_does_one_work_after_the_other() -> None:
    clock, done = Clock(), list[float]()
    loop = Loop(Cores(clock, 2))
    for seconds in (1.0, 2.0):
        loop.run(seconds, lambda: done.append(clock.now_s))
    clock.run(10.0)
    assert done == pytest.approx([1.0, 3.0])


def test_a_lone_call_behind_a_router_waits_for_all_that_it_passes() -> None:
    seen = predict_closed(SHARED, [30], way="ray", callers=1, seconds=20.0)
    batch_s = BATCH.seconds(rows=1, tokens=40, adapters=1)
    beyond_s = ROUTER.round_s + ROUTER.caller_s + ROUTER.proxy_s + ROUTER.replica_s + ROUTER.way_s
    assert seen["p50_ms"] == pytest.approx(1000 * (batch_s + beyond_s), abs=0.1)


def test_many_calls_behind_a_router_take_all_cores_and_no_more() -> None:
    seen = predict_closed(SHARED, [30], way="ray", seconds=20.0)
    rows = seen["batch_rows"]
    batch_s = BATCH.seconds(rows=1, tokens=40, adapters=1) - BATCH.fixed_s
    call_s = (BATCH.fixed_s + ROUTER.round_s) / rows + batch_s
    call_s += ROUTER.caller_s + ROUTER.proxy_s + ROUTER.replica_s
    assert seen["per_s"] == pytest.approx(2 / call_s, rel=0.05)
    busy = ROUTER.model_copy(update={"idle_cores": 0.5})
    less = predict_closed(SHARED.model_copy(update={"router": busy}), [30], way="ray", seconds=20.0)
    assert less["per_s"] == pytest.approx(0.75 * seen["per_s"], rel=0.05)


def test_without_the_costs_of_a_router_nothing_is_predicted_behind_one() -> None:
    with pytest.raises(InvalidInput, match="--ray"):
        predict_closed(COSTS, [30], way="ray", seconds=1.0)


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
