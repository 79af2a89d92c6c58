import json
import math
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
import pytest
from typer.testing import CliRunner

from upt_server.capacity.clock import Clock
from upt_server.capacity.costs import BatchCosts, Costs, read_costs
from upt_server.capacity.demand import Draws, Popularity, cut, lru_hit_rate, popularity
from upt_server.capacity.machine import OwnMachine
from upt_server.capacity.planning import Load, assumptions, most_per_s, plan, slots_of
from upt_server.capacity.replica import Call, Limits, Replica
from upt_server.capacity.slots import Slots
from upt_server.capacity.trial import Waits, try_server
from upt_server.cli import app
from upt_server.scheduling import Budget
from upt_testing.capacity import COSTS
from upt_zoo.errors import DataNotFound, InvalidInput, Overloaded, Unavailable

ONE_BY_ONE = Limits(slots=100, budget=Budget(tokens=2048, rows=1))
SERVICE_S = 0.01


def costs_of(*, call_s: float = 0.0, load_s: float = 0.0, load_work_s: float = 0.0) -> Costs:
    return Costs(
        machine="paper",
        cores=1,
        date="2026-01-01",
        backbone="none",
        runner="none",
        batch=BatchCosts(fixed_s=SERVICE_S, row_s=0.0, token_s=1e-12, adapter_s=0.0),
        alone_s=0.0,
        together_s=0.0,
        call_s=call_s,
        handoff_s=0.0,
        edge_s=0.0,
        load_s=load_s,
        load_work_s=load_work_s,
        jitter_root_s=(0.0, 0.0),
        prompt_tokens=0,
        adapter_bytes=1_000_000,
        stored_bytes=500_000,
        server_bytes=10_000_000,
        start_s=5.0,
    )


REAL = COSTS.model_copy(update={"alone_s": 7e-4, "together_s": 1e-4})


def load(**changes: float) -> Load:
    asked = {"adapters": 1000, "per_s": 1000.0, "p99_s": 0.25, "tokens": 40} | changes
    return Load(popularity="zipf", **asked)  # type: ignore[arg-type]  # numbers by name


# the clock


def test_what_is_due_is_done_in_its_order_and_what_comes_up_meanwhile_too() -> None:
    clock, done = Clock(), list[str]()
    clock.after(2.0, lambda: done.append("second"))
    clock.after(1.0, lambda: clock.after(1.0, lambda: done.append("third")))
    clock.after(1.0, lambda: done.append("first"))
    clock.after(5.0, lambda: done.append("never"))
    clock.run(3.0)
    assert done == ["first", "second", "third"]
    assert clock.now_s == 3.0


# the machine


@pytest.mark.parametrize(
    ("come_at_s", "ends_s"),
    [
        ((), 0.1),
        ((0.05,), 0.11),
        ((0.02, 0.05), 0.12),
        ((0.05, 0.0505), 0.113),  # let in together
        ((0.0999, 0.1005), 0.1001),  # no more than was left; the second is the next batch's
        ((0.05, 0.102), 0.118),  # the second while the batch takes longer for the first
        ((0.2,), 0.1),
    ],
)
def test_calls_that_come_alone_make_a_running_batch_longer(
    come_at_s: tuple[float, ...], ends_s: float
) -> None:
    clock, ended = Clock(), list[float]()
    machine = OwnMachine(
        clock, costs_of().model_copy(update={"alone_s": 0.01, "together_s": 0.003})
    )
    for at_s in come_at_s:
        clock.after(at_s, lambda: machine.carry("in", lambda: None))
    machine.compute(0.1, lambda: ended.append(clock.now_s))
    clock.run(1.0)
    assert ended == [pytest.approx(ends_s)]


def test_calls_that_come_together_before_a_batch_make_it_longer_and_the_first_does_not() -> None:
    clock, ended = Clock(), list[float]()
    machine = OwnMachine(clock, costs_of().model_copy(update={"alone_s": 1.0, "together_s": 0.003}))
    for _ in range(3):
        machine.carry("in", lambda: None)
    machine.compute(0.1, lambda: ended.append(clock.now_s))
    clock.run(1.0)
    assert ended == [pytest.approx(0.106)]


def test_answers_on_their_way_out_make_no_batch_longer() -> None:
    clock, ended = Clock(), list[float]()
    machine = OwnMachine(
        clock, costs_of().model_copy(update={"alone_s": 0.01, "together_s": 0.003})
    )
    machine.compute(0.1, lambda: ended.append(clock.now_s))
    machine.carry("out", lambda: None)
    clock.run(1.0)
    assert ended == [pytest.approx(0.1)]


def test_a_batch_is_busy_for_as_long_as_calls_make_it() -> None:
    clock, costs = Clock(), costs_of().model_copy(update={"alone_s": 0.004})
    replica = Replica(clock, costs, Limits(slots=2), Random(0))
    replica.slots.fill(["a"])

    def ask() -> None:
        replica.submit(Call(adapter="a", tokens=10, ended=lambda *_: None))

    ask()
    clock.after(0.005, ask)
    clock.run(0.012)
    assert replica.counts().busy_s == pytest.approx(0.012)
    clock.run(1.0)
    assert replica.counts().busy_s == pytest.approx(2 * SERVICE_S + 0.004)


# queueing against closed forms


@pytest.mark.parametrize("used", [0.3, 0.7, 0.85])
def test_one_row_at_a_time_waits_as_long_as_in_m_d_1(used: float) -> None:
    asked = cut(popularity("uniform", 20), used / SERVICE_S, servers=1, kept=1)
    seen = try_server(costs_of(), ONE_BY_ONE, asked, tokens=40, calls=30_000)
    expected_s = SERVICE_S + used * SERVICE_S / (2 * (1 - used))  # Pollaczek and Khinchine
    assert seen.mean_s == pytest.approx(expected_s, rel=0.06)
    assert seen.busy == pytest.approx(used, rel=0.03)


def test_a_lone_call_waits_for_its_batch_and_its_way_only() -> None:
    costs = costs_of(call_s=0.002).model_copy(update={"edge_s": 0.006, "handoff_s": 0.001})
    asked = cut(popularity("uniform", 1), 0.01, servers=1, kept=1)
    seen = try_server(costs, ONE_BY_ONE, asked, tokens=40, calls=50)
    assert seen.p50_s == pytest.approx(SERVICE_S + 0.006 + 0.001)


def test_rows_that_wait_share_a_batch_so_that_any_number_is_answered_in_two() -> None:
    asked = cut(popularity("uniform", 20), 3000.0, servers=1, kept=1)
    limits = Limits(slots=100, budget=Budget(tokens=10**6))
    seen = try_server(costs_of(), limits, asked, tokens=40, calls=20_000)
    assert seen.rows_a_batch == pytest.approx(3000 * SERVICE_S, rel=0.05)
    assert SERVICE_S < seen.mean_s < 2 * SERVICE_S


def test_more_than_full_batches_can_do_is_refused_and_as_much_as_they_can_is_answered() -> None:
    limits = Limits(slots=100)
    most = most_per_s(40, REAL, limits)
    asked = cut(popularity("uniform", 100), 2 * most, servers=1, kept=1)
    seen = try_server(REAL, limits, asked, tokens=40, calls=20_000)
    assert seen.refused > 4000
    # texts vary and batches are not quite full
    assert seen.per_s == pytest.approx(most, rel=0.15)
    assert seen.p99_s == math.inf


@pytest.mark.parametrize("kind", ["zipf", "uniform"])
def test_memory_for_adapters_is_hit_as_often_as_che_says(kind: Popularity) -> None:
    shares = popularity(kind, 1000)
    asked = cut(shares, 20.0, servers=1, kept=1)
    seen = try_server(costs_of(), Limits(slots=200), asked, tokens=40, calls=30_000)
    assert seen.hit_rate == pytest.approx(lru_hit_rate(shares, 200), abs=0.01)
    assert seen.loads_per_s == pytest.approx((1 - seen.hit_rate) * 20, rel=0.05)


def test_memory_for_all_adapters_is_always_hit() -> None:
    assert lru_hit_rate(popularity("zipf", 10), 10) == 1.0


# demand


def test_popularities_are_shares_and_zipf_falls_as_its_exponent_says() -> None:
    zipf = popularity("zipf", 1000)
    assert zipf.sum() == pytest.approx(1.0)
    assert zipf[9] / zipf[0] == pytest.approx(10**-1.1)
    assert set(popularity("uniform", 4).tolist()) == {0.25}


@pytest.mark.parametrize(("servers", "kept"), [(1, 1), (10, 1), (10, 4), (1000, 8), (10, 10)])
def test_a_slice_is_asked_for_its_servers_share(servers: int, kept: int) -> None:
    shares = popularity("zipf", 2000)
    asked = cut(shares, 5000.0, servers=servers, kept=kept)
    assert asked.per_s == pytest.approx(5000 * kept / servers)


def test_an_adapter_is_in_as_many_slices_as_it_fills_servers_and_in_one_at_least() -> None:
    shares, servers = popularity("zipf", 2000), 20
    slices = [cut(shares, 100.0, servers=servers, kept=1, seed=seed) for seed in range(400)]
    held = [set(each.adapters.tolist()) for each in slices]
    for adapter in (0, 1999):
        expected = 400 * max(float(shares[adapter]), 1 / servers)
        assert sum(adapter in each for each in held) == pytest.approx(expected, abs=18)


def test_no_slice_is_without_adapters() -> None:
    for seed in range(50):
        asked = cut(popularity("uniform", 50), 1.0, servers=50, kept=1, seed=seed)
        assert asked.per_s == pytest.approx(0.02)


def test_draws_follow_the_rates_and_the_mean_length() -> None:
    asked = cut(np.array([0.75, 0.25]), 8.0, servers=1, kept=1)
    draws = Draws(asked, 40, seed=0)
    drawn = [draws.next() for _ in range(20_000)]
    assert sum(adapter == "0" for adapter, _ in drawn) / 20_000 == pytest.approx(0.75, abs=0.01)
    lengths = [tokens for _, tokens in drawn]
    assert sum(lengths) / len(lengths) == pytest.approx(40, rel=0.03)
    assert 3 <= min(lengths) < max(lengths) <= 256


# memory for adapters


def test_callers_share_a_load_and_the_least_recently_used_goes_first() -> None:
    clock, told = Clock(), list[bool]()
    slots = Slots(clock, 2, load_s=1.0)
    for adapter in ("a", "a", "b"):
        slots.lease(adapter, told.append)
    clock.run(1.0)
    assert (told, slots.loads, slots.hits) == ([True] * 3, 2, 1)
    for adapter in ("a", "a", "b"):
        slots.give_back(adapter)
    slots.lease("a", told.append)
    slots.give_back("a")
    slots.lease("c", told.append)  # b goes
    clock.run(2.0)
    slots.lease("a", told.append)
    assert slots.loads == 3
    slots.lease("b", told.append)
    assert slots.loads == 4


def test_what_is_leased_is_never_evicted_and_the_load_is_in_vain() -> None:
    clock, told = Clock(), list[bool]()
    slots = Slots(clock, 1, load_s=1.0)
    slots.fill(["a", "b"])  # b stays
    slots.lease("b", told.append)
    slots.lease("c", told.append)
    clock.run(1.0)
    assert told == [True, False]


def test_two_adapters_are_read_at_once_and_a_third_one_waits() -> None:
    clock, at_s = Clock(), list[float]()
    slots = Slots(clock, 9, load_s=1.0)
    for adapter in "abc":
        slots.lease(adapter, lambda _: at_s.append(clock.now_s))
    clock.run(9.0)
    assert at_s == [1.0, 1.0, 2.0]


# a server


def test_a_killed_server_ends_all_calls_inside_and_does_nothing_more() -> None:
    clock, ended = Clock(), list[object]()
    replica = Replica(clock, costs_of(), Limits(slots=2), Random(0))
    for adapter in "aab":
        replica.submit(Call(adapter=adapter, tokens=9, ended=lambda _, e: ended.append(e)))
    clock.run(SERVICE_S / 2)
    assert replica.calls == 3
    replica.kill()
    assert replica.calls == 0
    assert [type(each) for each in ended] == [Unavailable] * 3
    clock.run(9.0)
    assert len(ended) == 3


def test_a_server_killed_while_a_call_is_on_its_way_takes_no_lease_for_it() -> None:
    clock, ended = Clock(), list[object]()
    replica = Replica(clock, costs_of(call_s=1.0), Limits(slots=2), Random(0))
    replica.submit(Call(adapter="a", tokens=9, ended=lambda _, e: ended.append(e)))
    replica.kill()
    clock.run(9.0)
    assert (len(ended), replica.counts().loads) == (1, 0)


def test_a_server_killed_while_an_adapter_is_read_answers_nobody() -> None:
    clock, ended = Clock(), list[object]()
    replica = Replica(clock, costs_of(load_s=1.0), Limits(slots=2), Random(0))
    replica.submit(Call(adapter="a", tokens=9, ended=lambda _, e: ended.append(e)))
    clock.run(0.5)
    replica.kill()
    clock.run(9.0)
    assert len(ended) == 1
    assert replica.counts().rows == 0


def test_the_next_batch_starts_when_the_loop_has_turned_to_each_call_of_the_last_one() -> None:
    clock, ended_s = Clock(), list[float]()
    costs = costs_of(call_s=1e-4).model_copy(update={"handoff_s": 1e-3})
    replica = Replica(clock, costs, Limits(slots=1), Random(0))
    # one, then three that came meanwhile, then one
    for due_s in (0.0, SERVICE_S / 2, SERVICE_S / 2, SERVICE_S / 2, 1.5 * SERVICE_S):
        call = Call(adapter="a", tokens=9, ended=lambda *_: ended_s.append(clock.now_s))
        clock.after(due_s, partial(replica.submit, call))
    clock.run(9.0)
    assert replica.counts().batches == 3
    in_and_out_s, handoffs_s = 2 * 1e-4, 1e-3 + (1e-3 + 1e-4) + (1e-3 + 3e-4)
    assert ended_s[-1] == pytest.approx(3 * SERVICE_S + handoffs_s + in_and_out_s)


def test_a_call_for_whose_adapter_there_is_no_room_is_refused() -> None:
    clock, ended = Clock(), list[object]()
    replica = Replica(clock, costs_of(), Limits(slots=1), Random(0))
    for adapter in "ab":
        replica.submit(Call(adapter=adapter, tokens=9, ended=lambda _, e: ended.append(e)))
    clock.run(9.0)
    assert sorted(type(each).__name__ for each in ended) == ["NoneType", "Overloaded"]


def test_waits_count_what_began_in_time_and_lost_calls_as_never_answered() -> None:
    waits = Waits(counts_from_s=10.0)
    assert waits.percentile_s(50) == math.inf
    waits.note(9.0, 11.0, None)
    waits.note(10.0, 11.0, None)
    waits.note(10.0, 13.0, None)
    waits.note(10.0, 11.0, Overloaded("full"))
    assert (waits.percentile_s(0), waits.percentile_s(50)) == (1.0, 3.0)
    assert waits.percentile_s(99) == math.inf


# the plan


def test_a_plan_keeps_its_promise_and_one_server_fewer_would_not() -> None:
    asked, limits = load(per_s=1000.0, p99_s=0.05), Limits(slots=500)
    made = plan(asked, REAL, limits)
    assert made.busiest.p99_s <= 0.05
    assert made.busiest.refused == 0
    needed = made.replicas - made.spare
    shares = popularity("zipf", asked.adapters)
    fewer = cut(shares, 1.1 * asked.per_s, servers=needed - 1, kept=1)
    seen = try_server(REAL, limits, fewer, tokens=40, calls=12_000)
    used = fewer.per_s / most_per_s(40, REAL, limits, hit_rate=seen.hit_rate)
    assert seen.p99_s > 0.05 or used > 0.85


def test_more_calls_and_less_time_take_more_servers() -> None:
    limits = Limits(slots=1000)
    replicas = [
        plan(load(per_s=per_s, p99_s=p99_s), REAL, limits).replicas
        for per_s, p99_s in ((100.0, 0.25), (1000.0, 0.25), (1000.0, 0.02), (50_000.0, 0.25))
    ]
    assert replicas == sorted(set(replicas))


def test_adapters_that_do_not_fit_into_memory_take_more_servers() -> None:
    asked = load(adapters=100_000, per_s=2000.0)
    roomy, tight = (plan(asked, REAL, Limits(slots=slots)) for slots in (20_000, 200))
    assert roomy.busiest.hit_rate > tight.busiest.hit_rate
    assert roomy.replicas < tight.replicas


def test_memory_is_the_servers_and_that_of_the_adapters_it_holds() -> None:
    made = plan(load(adapters=50, per_s=1.0), REAL, Limits(slots=1000))
    assert (made.replicas, made.spare, made.held) == (2, 1, 50)
    assert made.memory_bytes == REAL.server_bytes + 50 * REAL.adapter_bytes
    assert made.store_bytes == 50 * REAL.stored_bytes
    assert made.cost_per_million(1.0, 0.36) == pytest.approx(2 * 0.36 / 3600 * 1e6)


def test_what_no_number_of_servers_can_do_is_said() -> None:
    with pytest.raises(InvalidInput, match="asked for were 1"):
        plan(load(p99_s=0.001), REAL, Limits(slots=1000))


def test_memory_too_small_for_one_adapter_is_said() -> None:
    assert slots_of(REAL, 2_500_000) == 2
    with pytest.raises(InvalidInput, match="give it more"):
        slots_of(REAL, 999_999)


# costs


def test_the_shipped_costs_are_those_of_a_measured_machine() -> None:
    costs = read_costs()
    assert costs.batch.seconds(rows=32, tokens=1600, adapters=32) > costs.batch.seconds(
        rows=1, tokens=50, adapters=1
    )
    assert costs.machine in assumptions(load(), costs)[0]


def test_costs_are_read_strictly(tmp_path: Path) -> None:
    with pytest.raises(DataNotFound, match=r"costs\.py"):
        read_costs(tmp_path / "none.json")
    file = tmp_path / "costs.json"
    file.write_text(REAL.model_dump_json())
    assert read_costs(file) == REAL
    given = json.loads(REAL.model_dump_json())
    file.write_text(json.dumps(given | {"more": 1}))
    with pytest.raises(InvalidInput, match="more"):
        read_costs(file)
    given["jitter"] = given.pop("jitter_root_s")  # of an earlier version, and a factor
    file.write_text(json.dumps(given))
    with pytest.raises(InvalidInput, match="measure them again"):
        read_costs(file)


@pytest.mark.parametrize("tokens", [100, 1600])
def test_batches_take_longer_or_shorter_by_the_root_of_their_time(tokens: int) -> None:
    waited_s = []
    for seed in range(200):
        clock = Clock()
        replica = Replica(clock, REAL, Limits(slots=1), Random(seed))

        def ended(*_: object, clock: Clock = clock) -> None:
            waited_s.append(clock.now_s)

        replica.submit(Call(adapter="a", tokens=tokens, ended=ended))
        clock.run(9.0)
    batch_s = REAL.batch.seconds(rows=1, tokens=tokens, adapters=1)
    least, most = np.quantile(waited_s, [0.0, 1.0]) - np.mean(waited_s)
    assert (least, most) == pytest.approx(
        [each * math.sqrt(batch_s) for each in (-0.01, 0.01)], rel=0.15
    )


def test_a_server_whose_batches_are_free_answers_what_its_loop_can() -> None:
    free = BatchCosts(fixed_s=0.0, row_s=0.0, token_s=1e-12, adapter_s=0.0)
    costs = REAL.model_copy(update={"batch": free, "handoff_s": 0.0})
    assert most_per_s(40, costs, Limits(slots=9)) == pytest.approx(1 / (2 * costs.call_s))


# the command


def run(*arguments: str) -> str:
    seen = CliRunner().invoke(app, ["plan", *arguments], env={"COLUMNS": "200"})
    assert seen.exit_code == 0, seen.output
    return seen.stdout


def test_the_command_prints_a_plan_with_its_assumptions() -> None:
    asked = ("--adapters", "1000", "--rps", "500", "--p99", "250")
    shown = run(*asked, "--cost-per-hour", "0.2")
    assert "replicas" in shown
    assert "a million answers" in shown
    assert "Assumed:" in shown
    assert "a million answers" not in run(*asked)


def test_the_command_gives_the_plan_as_json(tmp_path: Path) -> None:
    file = tmp_path / "costs.json"
    file.write_text(REAL.model_dump_json())
    asked = ("--adapters", "1000", "--rps", "500", "--p99", "250", "--costs", str(file))
    made = json.loads(run(*asked, "--json", "--cost-per-hour", "0.2"))
    expected = plan(load(per_s=500.0), REAL, Limits(slots=2048 * 2**20 // REAL.adapter_bytes))
    assert made["replicas"] == expected.replicas
    assert made["total_memory_bytes"] == expected.replicas * expected.memory_bytes
    assert made["cost_per_million"] == pytest.approx(expected.cost_per_million(500.0, 0.2))
    assert made["busiest"]["p99_ms"] <= 250
    assert len(made["assumptions"]) == len(assumptions(load(), REAL))
