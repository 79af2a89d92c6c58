"""Figures as JSON and as a table."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from upt_benchmarks.cells import Cell
from upt_benchmarks.machine import Machine
from upt_benchmarks.timing import Pairs, median_interval, middle

_HEADER = ("cell", "x HF", "95 %", "ms", "HF ms", "x sorted", "x same", "rows/s", "pairs")
_STEADY = 0.25  # of the ratio: on idle cores intervals are 2 to 20 % wide


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measured cell: ``ratio`` is reference time / variant time, medians of pairs."""

    cell: Cell
    ratio: float
    ci95: tuple[float, float]
    variant_ms: float
    reference_ms: float
    pairs: int
    made_by: str

    @property
    def is_steady(self) -> bool:
        """Tell whether the interval is narrow; where not, something else had the processor."""
        return self.ci95[1] - self.ci95[0] <= _STEADY * self.ratio


def figure_of(cell: Cell, pairs: Pairs, made_by: str) -> Figure:
    """Sum up the pairs of a cell."""
    return Figure(
        cell=cell,
        ratio=middle(pairs.ratios),
        ci95=median_interval(pairs.ratios),
        variant_ms=middle(pairs.variant_ms),
        reference_ms=middle(pairs.reference_ms),
        pairs=len(pairs.ratios),
        made_by=made_by,
    )


def as_json(
    figures: Sequence[Figure],
    skipped: Mapping[str, str],
    machine: Machine,
    settings: Mapping[str, object],
) -> dict[str, object]:
    """Lay out a result: ``cells`` are ratios to HF, ``direct`` are ratios to other variants."""
    ratios = {figure.cell.name: round(figure.ratio, 3) for figure in figures}
    return {
        "machine": asdict(machine),
        "settings": dict(settings),
        "cells": {name: ratio for name, ratio in ratios.items() if "/" not in name},
        "direct": {name: ratio for name, ratio in ratios.items() if "/" in name},
        "details": {figure.cell.name: _details(figure, figures) for figure in figures},
        "skipped": dict(skipped),
    }


def as_table(figures: Sequence[Figure], skipped: Mapping[str, str], machine: Machine) -> str:
    """Draw a table for people; ``a/b`` is the ratio to variant b, whose time stands for HF's."""
    rows = [_HEADER, *(_table_row(figure, figures) for figure in figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
    lines = [
        "  ".join(
            text.ljust(width) if column == 0 else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    about = (
        f"{machine.cpu}, {machine.cores} cores ({' '.join(machine.flags)}), "
        f"torch {machine.versions['torch']}, transformers {machine.versions['transformers']}, "
        f"commit {machine.commit}, {machine.date}"
    )
    missing = [f"skipped {name}: {reason}" for name, reason in skipped.items()]
    unsteady = [figure.cell.name for figure in figures if not figure.is_steady]
    again = [f"measure again on idle cores: {', '.join(unsteady)}"] if unsteady else []
    return "\n".join([about, "", *lines, *missing, *again])


def sorted_ratio(figure: Figure, figures: Sequence[Figure]) -> float | None:
    """Return the ratio to HF that runs like lengths together; equal lengths need no sorting."""
    if figure.cell.reference != "hf":
        return None
    if figure.cell.lengths != "mix" or figure.cell.rows == 1:
        return figure.ratio
    return _over(figure, _found(figures, figure.cell, "hf_sorted", "exact"))


def same_precision_ratio(figure: Figure, figures: Sequence[Figure]) -> float | None:
    """Return the ratio to padded HF in bf16 where the cell is ``fast``."""
    if figure.cell.reference != "hf":
        return None
    if figure.cell.precision == "exact":
        return figure.ratio
    return _over(figure, _found(figures, figure.cell, "hf_bf16", "fast"))


def _found(figures: Sequence[Figure], cell: Cell, variant: str, precision: str) -> Figure | None:
    wanted = f"{cell.backbone}.{precision}.b{cell.rows}.{cell.lengths}.{variant}"
    return next((figure for figure in figures if figure.cell.name == wanted), None)


def _over(figure: Figure, other: Figure | None) -> float | None:
    return figure.ratio / other.ratio if other else None


def _details(figure: Figure, figures: Sequence[Figure]) -> dict[str, object]:
    reference = "hf_ms" if figure.cell.reference == "hf" else "reference_ms"
    return {
        "ratio": round(figure.ratio, 3),
        "ci95": [round(bound, 3) for bound in figure.ci95],
        "ours_ms": round(figure.variant_ms, 3),
        reference: round(figure.reference_ms, 3),
        "hf_sorted_ratio": _rounded(sorted_ratio(figure, figures)),
        "hf_same_precision_ratio": _rounded(same_precision_ratio(figure, figures)),
        "rows_per_s": round(_rows_per_s(figure), 1),
        "pairs": figure.pairs,
        "steady": figure.is_steady,
        "made_by": figure.made_by,
    }


def _table_row(figure: Figure, figures: Sequence[Figure]) -> tuple[str, ...]:
    beside = (sorted_ratio(figure, figures), same_precision_ratio(figure, figures))
    return (
        figure.cell.name,
        f"{figure.ratio:.2f}",
        f"{figure.ci95[0]:.2f} to {figure.ci95[1]:.2f}",
        f"{figure.variant_ms:.1f}",
        f"{figure.reference_ms:.1f}",
        *("" if ratio is None else f"{ratio:.2f}" for ratio in beside),
        f"{_rows_per_s(figure):.0f}",
        str(figure.pairs),
    )


def _rows_per_s(figure: Figure) -> float:
    return 1000 * figure.cell.rows / figure.variant_ms


def _rounded(ratio: float | None) -> float | None:
    return None if ratio is None else round(ratio, 3)
