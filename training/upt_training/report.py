"""An inspection as a page of Markdown, with its plots and the same facts as JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from upt_training.data import Example
from upt_training.drawing import draw_calibration, draw_confusion, draw_gates, draw_learning, save
from upt_training.inspection import Inspection, Mistake
from upt_training.records import Record
from upt_zoo.spec import DataFile

Gates = Sequence[Mapping[str, float]]  # a layer's mean gates by name, one each


def write_report(
    folder: Path,
    adapter: str,
    file: DataFile,
    inspection: Inspection,
    *,
    gates: Gates,
    record: Record | None = None,
    examples: Sequence[Example] | None = None,
) -> list[Path]:
    """Write ``report.md``, ``report.json`` and the plots that there is something for.

    Texts of the worst rows are written if ``examples``, those of the whole file, are handed over.
    """
    plots = _plots(folder, inspection, gates, record)
    facts = {
        "adapter": adapter,
        "file": file.model_dump(),
        "metrics": inspection.metrics,
        "intervals": {name: asdict(each) for name, each in inspection.intervals.items()},
        "labels": inspection.task.labels,
        "confusion": inspection.confusion,
        "calibration": asdict(inspection.calibration) if inspection.calibration else None,
        "mistakes": [_facts_of(each, examples) for each in inspection.mistakes],
        "gates": gates,
    }
    page, data = folder / "report.md", folder / "report.json"
    folder.mkdir(parents=True, exist_ok=True)
    page.write_text(_page(adapter, file, inspection, plots, examples), encoding="utf-8")
    data.write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return [page, data, *plots.values()]


def _plots(
    folder: Path, inspection: Inspection, gates: Gates, record: Record | None
) -> dict[str, Path]:
    figures = {}
    if inspection.confusion is not None:
        figures["Confusion"] = draw_confusion(inspection.task.labels or (), inspection.confusion)
    if inspection.calibration is not None:
        figures["Calibration"] = draw_calibration(inspection.calibration)
    if any(gates):
        figures["Gates"] = draw_gates(gates)
    if record is not None:
        figures["Learning"] = draw_learning(record)
    return {
        title: save(figure, folder / f"{title.lower()}.svg") for title, figure in figures.items()
    }


def _page(
    adapter: str,
    file: DataFile,
    inspection: Inspection,
    plots: Mapping[str, Path],
    examples: Sequence[Example] | None,
) -> str:
    metrics = [
        (name, f"{value:.2f}", f"{inspection.intervals[name]}")
        for name, value in inspection.metrics.items()
    ]
    columns = ("row", "gold", "given", "weight", *(() if examples is None else ("text",)))
    mistakes = [tuple(map(_shown, _facts_of(m, examples).values())) for m in inspection.mistakes]
    parts = [
        f"# {adapter}",
        f"On {file.name}, {inspection.rows:,} rows (`{file.digest}`).",
        _table(("metric", "%", "95 % of resampled rows"), metrics),
    ]
    for title, plot in plots.items():
        parts.append(f"## {title}\n\n![{title}]({plot.name})")
    parts += ["## Worst errors", _table(columns, mistakes) if mistakes else "None."]
    return "\n\n".join(parts) + "\n"


def _facts_of(mistake: Mistake, examples: Sequence[Example] | None) -> dict[str, object]:
    facts = asdict(mistake)
    if examples is not None:
        facts["texts"] = examples[mistake.row - 1].texts
    return facts


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    text = " / ".join(value) if isinstance(value, tuple) else str(value)
    return " ".join(text.split()).replace("|", "\\|")


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
