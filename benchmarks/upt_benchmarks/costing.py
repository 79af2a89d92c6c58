"""The costs of a batch from measured ones: which batches to measure, and the fit. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from upt_server.capacity.costs import BatchCosts

_MOST_TOKENS = 2400  # little more than a full batch
_LENGTHS, _ROWS = (8, 32, 96), (1, 2, 4, 8, 16, 32, 64)
_QUANTILES = 101


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A batch to measure: ``length`` is each row's tokens, prompt vectors not among them."""

    rows: int
    length: int
    adapters: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A batch that was measured; ``tokens`` holds prompt vectors too."""

    rows: int
    tokens: int
    adapters: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """The costs, and the standard deviation of measured by modelled times."""

    costs: BatchCosts
    deviation: float


def shapes(prompt: int) -> list[Shape]:
    """Return batches of all sizes up to a full one, with one adapter and with one for each row."""
    return [
        Shape(rows=rows, length=length, adapters=adapters)
        for length in _LENGTHS
        for rows in _ROWS
        if rows * (length + prompt) <= _MOST_TOKENS
        for adapters in sorted({1, min(rows, 32)})
    ]


def fit(samples: Sequence[Sample]) -> Fit:
    """Fit costs, none below zero, by least squares of the relative errors."""
    seconds = np.array([sample.seconds for sample in samples])
    parts = np.array([(1, each.rows, each.tokens, each.adapters) for each in samples], dtype=float)
    (fixed, row, token, adapter), _ = nnls(parts / seconds[:, None], np.ones(len(samples)))
    costs = BatchCosts(
        fixed_s=float(fixed), row_s=float(row), token_s=float(token), adapter_s=float(adapter)
    )
    return Fit(costs=costs, deviation=float(np.std(seconds / modelled(costs, samples))))


def modelled(costs: BatchCosts, samples: Sequence[Sample]) -> NDArray[np.float64]:
    """Return the seconds that each batch should have taken."""
    return np.array(
        [
            costs.seconds(rows=each.rows, tokens=each.tokens, adapters=each.adapters)
            for each in samples
        ]
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Beyond:
    """What a busy server takes beyond its batches; see ``upt_server.capacity.costs.Costs``."""

    call_s: float
    handoff_s: float
    jitter: tuple[float, ...]


def beyond(costs: BatchCosts, samples: Sequence[Sample], elapsed_s: float) -> Beyond:
    """Say what all batches of ``elapsed_s`` seconds leave unexplained, one row being one call.

    What the batches took longer than they should is the calls', what passed between them the
    handoffs'; the rest is jitter.
    """
    seconds = np.array([sample.seconds for sample in samples])
    calls = sum(sample.rows for sample in samples)
    call_s = max(0.0, float(seconds.sum() - modelled(costs, samples).sum()) / calls)
    stretched = costs.model_copy(update={"row_s": costs.row_s + call_s})
    ratios = np.quantile(seconds / modelled(stretched, samples), np.linspace(0, 1, _QUANTILES))
    return Beyond(
        call_s=call_s,
        handoff_s=max(0.0, (elapsed_s - float(seconds.sum())) / len(samples)),
        jitter=tuple(float(round(ratio, 4)) for ratio in ratios / ratios.mean()),
    )
