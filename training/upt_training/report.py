"""A review as a page that needs nothing but itself, with its plots and the same facts as JSON."""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from upt_training.data import Example
from upt_training.drawing import draw_calibration, draw_confusion, draw_gates, draw_learning, save
from upt_training.records import Record
from upt_training.review import Review
from upt_training.verdict import Verdict

_TEMPLATE = "report.html.jinja"


def write_report(
    folder: Path,
    review: Review,
    *,
    record: Record | None = None,
    examples: Sequence[Example] | None = None,
) -> list[Path]:
    """Write ``report.html``, ``report.json`` and the plots that there is something for.

    ``record`` adds the learning curves. Texts of the worst rows are written, into the page alone,
    if ``examples``, those of the whole file, are handed over.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plots = _plots(folder, review, record)
    page, data = folder / "report.html", folder / "report.json"
    page.write_text(_page(review, plots, examples), encoding="utf-8")
    data.write_text(json.dumps(_facts(review), indent=2, ensure_ascii=False) + "\n", "utf-8")
    return [page, data, *plots.values()]


def _facts(review: Review) -> dict[str, object]:
    inspection = review.inspection
    return {
        "adapter": review.adapter,
        "file": review.file.model_dump(),
        "verdict": _facts_of_verdict(review.verdict),
        "metrics": inspection.metrics,
        "intervals": {name: asdict(each) for name, each in inspection.intervals.items()},
        "labels": inspection.task.labels,
        "confusion": inspection.confusion,
        "calibration": asdict(inspection.calibration) if inspection.calibration else None,
        "mistakes": [asdict(each) for each in inspection.mistakes],
        "gates": review.gates,
    }


def _facts_of_verdict(verdict: Verdict) -> dict[str, object]:
    return {
        "decision": verdict.decision,
        "adapter": str(verdict.adapter),
        "rival": verdict.rival,
        "metric": verdict.metric,
        "figure": verdict.figure,
        "rival_figure": verdict.rival_figure,
        "points": verdict.points,
        "interval": asdict(verdict.interval),
        "command": verdict.command,
    }


def _plots(folder: Path, review: Review, record: Record | None) -> dict[str, Path]:
    inspection, figures = review.inspection, {}
    if inspection.confusion is not None:
        figures["Confusion"] = draw_confusion(inspection.task.labels or (), inspection.confusion)
    if inspection.calibration is not None:
        figures["Calibration"] = draw_calibration(inspection.calibration)
    if review.gates:
        figures["Gates"] = draw_gates(review.gates)
    if record is not None:
        figures["Learning"] = draw_learning(record)
    return {
        title: save(figure, folder / f"{title.lower()}.svg") for title, figure in figures.items()
    }


def _page(review: Review, plots: Mapping[str, Path], examples: Sequence[Example] | None) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    name, _, digest = review.adapter.partition("@")
    inspection = review.inspection
    return environment.get_template(_TEMPLATE).render(
        name=name,
        digest=digest,
        file=review.file,
        verdict=review.verdict,
        metrics=inspection.metrics,
        intervals=inspection.intervals,
        plots={title: _inlined(plot) for title, plot in plots.items()},
        mistakes=inspection.mistakes,
        texts=None
        if examples is None
        else {each.row: examples[each.row - 1].texts for each in inspection.mistakes},
    )


def _inlined(plot: Path) -> str:
    """Return a plot as the address of an image that holds it."""
    return f"data:image/svg+xml;base64,{base64.b64encode(plot.read_bytes()).decode()}"
