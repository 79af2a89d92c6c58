"""A review on a terminal: tables of figures, and not a word of the texts."""

from pathlib import Path

import typer

from upt_training.calibration import Calibration
from upt_training.inspection import Inspection
from upt_training.review import Review
from upt_zoo.terminal import print_table

_MOST_LABELS = 10  # a wider table of confusions does not fit a terminal
_MOST_PAIRS = 10
_WORST_SHOWN = 5


def print_review(review: Review, page: Path, *, has_texts: bool) -> None:
    """Print metrics, confusions, calibration, gates, the worst errors by their rows, a verdict.

    ``page`` is where all of it stands, with the texts of the worst errors or not.
    """
    inspection = review.inspection
    name = review.adapter.partition("@")[0]
    typer.echo(f"{name} on {review.file.name}, {review.file.rows:,} rows")
    print_table(
        ("metric", "%", "95 %"),
        [
            (metric, f"{value:.2f}", f"{inspection.intervals[metric]}")
            for metric, value in inspection.metrics.items()
        ],
    )
    if inspection.confusion is not None:
        _print_confusion(inspection.task.labels or (), inspection.confusion)
    if inspection.calibration is not None:
        _print_calibration(inspection.calibration)
    if review.gates:
        _print_gates(review)
    if inspection.mistakes:
        _print_mistakes(inspection)
    with_texts = ", with the texts of the worst errors" if has_texts else ""
    typer.echo(f"\nreport: {page}{with_texts}")
    typer.echo(f"verdict: {review.verdict.sentence}")
    if review.verdict.command:
        typer.echo(f"  {review.verdict.command}")


def _print_confusion(labels: tuple[str, ...], confusion: tuple[tuple[int, ...], ...]) -> None:
    if len(labels) <= _MOST_LABELS:
        typer.echo("\nconfusion: gold label down, given label across")
        print_table(
            ("", *labels),
            [(label, *map(str, row)) for label, row in zip(labels, confusion, strict=True)],
        )
        return
    pairs = [
        (count, labels[gold], labels[given])
        for gold, row in enumerate(confusion)
        for given, count in enumerate(row)
        if count and gold != given
    ]
    typer.echo("\nlabels most often taken for another")
    shown = sorted(pairs, reverse=True)[:_MOST_PAIRS]
    print_table(("gold", "given", "rows"), [(gold, given, f"{n:,}") for n, gold, given in shown])


def _print_calibration(calibration: Calibration) -> None:
    typer.echo(f"\ncalibration: {calibration.error:.1f} % expected error")
    print_table(
        ("confidence", "rows", "mean", "accuracy"),
        [
            (
                f"{each.low:.2f} to {each.high:.2f}",
                f"{each.rows:,}",
                f"{each.confidence:.2f}",
                f"{each.accuracy:.2f}",
            )
            for each in calibration.bins
        ],
    )


def _print_gates(review: Review) -> None:
    typer.echo("\nmean gates by layer")
    names = tuple(review.gates[0])
    print_table(
        ("layer", *names),
        [
            (str(layer), *(f"{gates[name]:.2f}" for name in names))
            for layer, gates in enumerate(review.gates)
        ],
    )


def _print_mistakes(inspection: Inspection) -> None:
    typer.echo("\nworst errors")
    print_table(
        ("row", "gold", "given", "weight"),
        [
            (f"{each.row:,}", each.gold, each.given, f"{each.weight:.3f}")
            for each in inspection.mistakes[:_WORST_SHOWN]
        ],
    )
