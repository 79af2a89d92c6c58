"""Whether an adapter is as sure as it is right.

Source: Guo et al. 2017 (On Calibration of Modern Neural Networks, arXiv 1706.04599), section 2.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_BINS = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """The rows whose confidence is in (low, high]: their mean confidence and accuracy."""

    low: float
    high: float
    rows: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """``error`` is the expected calibration error in percent, ``bins`` are those with rows."""

    error: float
    bins: tuple[Bin, ...]


def calibration_of(confidences: Sequence[float], is_right: Sequence[bool]) -> Calibration:
    """Bin rows by confidence; the error is Σ rows / all · |accuracy - confidence| over 15 bins."""
    sure, right = np.array(confidences), np.array(is_right, dtype=np.float64)
    places = np.clip(np.ceil(sure * _BINS).astype(int) - 1, 0, _BINS - 1)
    bins = tuple(
        Bin(
            low=place / _BINS,
            high=(place + 1) / _BINS,
            rows=int((places == place).sum()),
            confidence=float(sure[places == place].mean()),
            accuracy=float(right[places == place].mean()),
        )
        for place in np.unique(places).tolist()
    )
    gaps = [each.rows * abs(each.accuracy - each.confidence) for each in bins]
    return Calibration(error=round(100 * sum(gaps) / len(sure), 4), bins=bins)
