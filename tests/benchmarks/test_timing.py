import math

import pytest

from upt_benchmarks.timing import Pairs, measure_pairs, median_interval


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


def test_the_two_ways_take_turns_at_being_first() -> None:
    order: list[str] = []

    def way(name: str, milliseconds: float) -> float:
        order.append(name)
        return milliseconds

    pairs = measure_pairs(
        lambda: way("hf", 2.0), lambda: way("ours", 1.0), pairs=3, budget_s=0, warm_ups=1
    )
    assert order == ["hf", "ours", "hf", "ours", "ours", "hf", "hf", "ours"]
    assert pairs == Pairs(reference_ms=(2.0,) * 3, variant_ms=(1.0,) * 3)


@pytest.mark.parametrize(("budget_s", "pairs"), [(0.0, 6), (0.04, 10), (100.0, 30)])
def test_without_a_number_of_pairs_the_budget_decides(budget_s: float, pairs: int) -> None:
    measured = measure_pairs(lambda: 3.0, lambda: 1.0, pairs=None, budget_s=budget_s)
    assert len(measured.ratios) == pairs
