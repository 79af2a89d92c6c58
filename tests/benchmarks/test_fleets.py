import tracemalloc
from collections import Counter
from dataclasses import dataclass
from random import Random

import pytest

from upt_benchmarks.fleets.fleet import Fleet, Scaling
from upt_benchmarks.fleets.routing import LeastLoadedRouter, RandomRouter, Routing
from upt_benchmarks.fleets.runs import Seen, Setting, run
from upt_benchmarks.fleets.traffic import Burst, Bursty, Steady
from upt_server.affinity import AffinityRouter
from upt_server.capacity.clock import Clock
from upt_server.capacity.demand import cut, popularity
from upt_server.capacity.planning import most_per_s
from upt_server.capacity.replica import Limits
from upt_server.capacity.trial import Waits
from upt_testing.capacity import COSTS


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
