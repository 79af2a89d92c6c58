import math
from itertools import pairwise

import pytest

from upt_benchmarks.timing import Pairs, Timed, measure_rounds, median_interval


@pytest.mark.parametrize(
    ("count", "skipped"),
    # from tables of the sign test: the j-th smallest and largest of n, j = skipped + 1
    [(1, 0), (5, 0), (6, 0), (8, 0), (9, 1), (12, 2), (20, 5), (30, 9), (100, 39)],
)
def test_the_interval_of_the_median_leaves_out_as_many_as_the_sign_test(
    count: int, skipped: int
) -> None:
    values = [float(value) for value in reversed(range(count))]
    assert median_interval(values) == (skipped, count - 1 - skipped)


@pytest.mark.parametrize("count", range(6, 64))
def test_the_interval_covers_the_median_95_times_in_100_and_hardly_more(count: int) -> None:
    first, _ = median_interval([float(value) for value in range(count)])

    def coverage(skipped: int) -> float:
        return 1 - 2 * sum(math.comb(count, k) for k in range(skipped + 1)) / 2.0**count

    assert coverage(int(first)) >= 0.95 > coverage(int(first) + 1)


def test_a_ratio_is_the_references_time_over_the_variants_of_the_same_pair() -> None:
    assert Pairs(reference_ms=(6.0, 8.0), variant_ms=(3.0, 8.0)).ratios == (2.0, 1.0)


def test_all_ways_of_a_round_run_before_the_next_in_an_order_that_changes() -> None:
    order: list[str] = []

    def way(name: str, milliseconds: float) -> Timed:
        def run() -> float:
            order.append(name)
            return milliseconds

        return run

    ways = {name: way(name, cost) for name, cost in (("hf", 4.0), ("ours", 2.0), ("bare", 1.0))}
    rounds = measure_rounds(ways, ways, rounds=12, budget_s=0, warm_ups=1)
    turns = [tuple(order[at : at + 3]) for at in range(3, len(order), 3)]
    assert len(turns) == 12
    assert all(set(turn) == {"hf", "ours", "bare"} for turn in turns)
    assert len(set(turns)) > 1
    assert rounds.pairs("hf", "ours").ratios == (2.0,) * 12


@pytest.mark.parametrize(("budget_s", "shared"), [(0.0, 6), (0.03, 10), (100.0, 30)])
def test_the_budget_decides_in_how_many_of_the_rounds_the_others_take_part(
    budget_s: float, shared: int
) -> None:
    ways = {"hf": lambda: 9.0, "ours": lambda: 3.0, "a": lambda: 2.0, "b": lambda: 1.0}
    rounds = measure_rounds(ways, {"hf", "ours"}, rounds=30, budget_s=budget_s)
    assert len(rounds.pairs("hf", "ours").ratios) == 30
    assert len(rounds.pairs("hf", "a").ratios) == shared
    assert rounds.pairs("a", "b").ratios == (2.0,) * shared
    spread = sorted(rounds.times["a"])
    assert max(after - before for before, after in pairwise(spread)) <= -(-30 // shared)


@pytest.mark.parametrize(("budget_s", "count"), [(0.0, 6), (0.03, 10), (100.0, 60)])
def test_without_headlines_the_budget_decides_alone(budget_s: float, count: int) -> None:
    rounds = measure_rounds(
        {"hf": lambda: 2.0, "ours": lambda: 1.0}, (), rounds=30, budget_s=budget_s
    )
    assert len(rounds.pairs("hf", "ours").ratios) == count
