import pytest

from upt_benchmarks.fleets.against import compare, predict_closed, predict_open
from upt_benchmarks.fleets.shared import Cores, Loop
from upt_server.capacity.clock import Clock
from upt_server.capacity.costs import RouterCosts
from upt_server.capacity.planning import most_per_s
from upt_server.capacity.replica import Limits
from upt_testing.capacity import BATCH, COSTS
from upt_zoo.errors import InvalidInput


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
