import numpy as np
import pytest

from upt_training.bootstrap import Interval, resampled


def test_an_interval_is_that_of_the_statistics_own_distribution() -> None:
    """Of a mean it is about the normal one: mean ± 1.96 deviations of the mean."""
    values = np.random.default_rng(1).normal(50, 10, 400)
    interval = Interval.of(resampled(lambda rows: float(values[rows].mean()), 400))
    half = 1.96 * values.std() / 20
    assert interval.low == pytest.approx(values.mean() - half, abs=0.15)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.15)
    assert str(interval) == f"[{interval.low:.1f}, {interval.high:.1f}]"


def test_equal_seeds_draw_equal_rows() -> None:
    first, again, other = (
        resampled(lambda rows: float(rows.sum()), 30, 20, seed=seed) for seed in (0, 0, 1)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
