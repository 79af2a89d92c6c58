"""Bootstrap intervals: what a figure would be on other rows of the same kind.

Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13 (percentiles).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from upt_training.outcomes import Rows

RESAMPLES = 1000
_PERCENTILES = (2.5, 97.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """The middle 95 % of a figure's resampled values."""

    low: float
    high: float

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> "Interval":
        """Take the percentiles of resampled values."""
        low, high = np.percentile(values, _PERCENTILES)
        return cls(low=round(float(low), 4), high=round(float(high), 4))

    def __str__(self) -> str:
        return f"[{self.low:.1f}, {self.high:.1f}]"


def resampled(
    statistic: Callable[[Rows], float], rows: int, resamples: int = RESAMPLES, *, seed: int = 0
) -> NDArray[np.float64]:
    """Return the statistic of ``resamples`` draws of as many rows, with replacement.

    Figures of one draw share their rows, which is what makes a comparison paired.
    """
    source = np.random.default_rng(seed)
    return np.array([statistic(source.integers(rows, size=rows)) for _ in range(resamples)])
