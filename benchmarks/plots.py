"""Draw what ``engine.py`` measured: three plots as SVG.

    python benchmarks/plots.py RESULT.json --out docs/images

A plot needs its cells in the result: ``distinct*``, ``resident*`` and ``component.*``. Times of
one workload come from different minutes, so each is the ratio to transformers, which was measured
in the same minute, times the median speed of transformers on that workload.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from upt_benchmarks.workloads import PARTS

_NAME = re.compile(
    r"(?:component\.)?(?P<backbone>\w+)\.(?P<precision>\w+)\.b(?P<rows>\d+)\.(?P<lengths>\w+)\.\w+"
)
_LABELS = {"f32": "32 tokens", "f128": "128 tokens", "mix": "mixed lengths"}
_BACKBONES = {"minilm": "MiniLM-L6", "roberta_base": "roberta-base shape"}
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
_PART_LABELS = ("nothing", "+ prompt", "+ LoRA", "+ prefix", "+ bottleneck")


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What the plots need of a result: ratios and milliseconds of transformers by cell."""

    ratios: Mapping[str, float]
    hf_ms: Mapping[str, float]
    about: str

    def workloads(self, variant: str) -> list[str]:
        """Return the workloads that have such a variant, a pattern, in the order measured."""
        found = [name.rsplit(".", 1) for name in self.ratios]
        return list(dict.fromkeys(work for work, last in found if re.fullmatch(variant, last)))

    def hf_of(self, workload: str) -> float:
        """Return the median milliseconds of transformers on a workload."""
        key = _key(workload)
        return median(ms for name, ms in self.hf_ms.items() if _key(name) == key)

    def points(self, workload: str, variant: str) -> list[tuple[int, float]]:
        """Return (number in the variant's name, rows a second), the smallest number first."""
        per_s = 1000 * _rows(workload) / self.hf_of(workload)
        found = (
            (re.fullmatch(variant, name.rsplit(".", 1)[1]), ratio)
            for name, ratio in self.ratios.items()
            if name.rsplit(".", 1)[0] == workload
        )
        return sorted((int(match[1]), per_s * ratio) for match, ratio in found if match)


def main() -> int:
    """Draw every plot that the result has cells for; name those that it does not."""
    parser = argparse.ArgumentParser(description="Draw what engine.py measured.")
    parser.add_argument("result", type=Path, metavar="RESULT.json")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    arguments = parser.parse_args()
    result = read_result(json.loads(arguments.result.read_text()))
    arguments.out.mkdir(parents=True, exist_ok=True)
    # the same result gives the same bytes
    mpl.rcParams.update({"svg.hashsalt": "upt", "svg.fonttype": "none", "font.size": 10})
    plots = {
        "throughput-by-distinct": draw_by_distinct(result),
        "throughput-by-registered": draw_by_registered(result),
        "cost-by-component": draw_by_component(result),
    }
    for name, figure in plots.items():
        if figure is None:
            print(f"{name}: the result has no cells for it", file=sys.stderr)
            continue
        figure.savefig(arguments.out / f"{name}.svg", metadata={"Date": None})
        print(arguments.out / f"{name}.svg")
    return 0


def read_result(result: Mapping[str, Mapping[str, object]]) -> Result:
    """Take what is needed out of the JSON object that ``engine.py`` prints."""
    machine, details = result["machine"], result["details"]
    return Result(
        ratios={name: float(str(ratio)) for name, ratio in result["cells"].items()},
        hf_ms={
            name: float(str(detail["hf_ms"]))
            for name, detail in details.items()
            if isinstance(detail, Mapping) and "hf_ms" in detail
        },
        about=f"{machine['cpu']}, {result['settings']['threads']} threads, "
        f"{machine['date']}, commit {machine['commit']}",
    )


def draw_by_distinct(result: Result) -> Figure | None:
    """Draw rows a second against the number of distinct adapters in the batch."""
    workloads = [work for work in result.workloads(r"distinct\d+") if _rows(work) == 32]
    lines = {work: result.points(work, r"distinct(\d+)") for work in workloads}
    return _draw_lines(
        result,
        {work: points for work, points in lines.items() if len(points) > 2},
        title="32 rows a batch, UniPELT+Prompt",
        x_label="distinct adapters in the batch",
    )


def draw_by_registered(result: Result) -> Figure | None:
    """Draw rows a second against the number of adapters in memory."""
    lines = {}
    for suffix, label in (("", "all distinct"), ("_uniform", "uniform"), ("_zipf", "Zipf")):
        for work in result.workloads(rf"resident\d+{suffix}"):
            lines[f"{work}|{label}"] = result.points(work, rf"resident(\d+){suffix}")
    return _draw_lines(
        result,
        {name: points for name, points in lines.items() if len(points) > 1},
        title="32 rows a batch, adapters drawn anew",
        x_label="adapters in memory",
    )


def draw_by_component(result: Result) -> Figure | None:
    """Draw milliseconds a batch with no adapter, and with one component more at a time."""
    works = result.workloads("|".join(PARTS))
    works = [work for work in works if all(f"{work}.{part}" in result.ratios for part in PARTS)]
    if not works:
        return None
    panels = list(dict.fromkeys(_match(work)["backbone"] for work in works))
    figure = Figure(figsize=(6.4 * len(panels), 4.4), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, backbone in zip(axes, panels, strict=True):
        mine = [work for work in works if _match(work)["backbone"] == backbone]
        width = 0.8 / len(mine)
        for index, work in enumerate(mine):
            times = [result.hf_of(work) / result.ratios[f"{work}.{part}"] for part in PARTS]
            places = [place + (index - (len(mine) - 1) / 2) * width for place in range(len(PARTS))]
            bars = axis.bar(places, times, width * 0.95, label=_label(work), color=_COLOURS[index])
            axis.bar_label(bars, fmt="%.0f", fontsize=8)
        axis.set_xticks(range(len(PARTS)), _PART_LABELS)
        axis.set_title(f"{_BACKBONES[backbone]}: 32 rows, an adapter each")
        axis.set_ylabel("milliseconds a batch")
        _finish(axis)
    _sign(figure, result)
    return figure


def _draw_lines(
    result: Result, lines: Mapping[str, Sequence[tuple[int, float]]], *, title: str, x_label: str
) -> Figure | None:
    """Draw a panel a backbone; dashed lines are transformers on the same rows."""
    if not lines:
        return None
    panels = list(dict.fromkeys(_match(name)["backbone"] for name in lines))
    figure = Figure(figsize=(6.4 * len(panels), 4.4), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, backbone in zip(axes, panels, strict=True):
        mine = {name: line for name, line in lines.items() if _match(name)["backbone"] == backbone}
        for (name, points), colour in zip(mine.items(), _COLOURS, strict=False):
            axis.plot(*zip(*points, strict=True), marker="o", color=colour, label=_label(name))
        _baselines(axis, result, mine)
        ticks = sorted({x for points in mine.values() for x, _ in points})
        axis.set_xscale("log", base=2 if ticks[-1] <= 32 else 10)
        axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axis.minorticks_off()
        axis.set_title(f"{_BACKBONES[backbone]}: {title}", fontsize=10)
        axis.set_xlabel(x_label)
        axis.set_ylabel("rows a second")
        _finish(axis)
    _sign(figure, result)
    return figure


def _baselines(axis: Axes, result: Result, names: Iterable[str]) -> None:
    """Draw transformers once for each kind of lengths."""
    by_lengths = {_match(name)["lengths"]: name.partition("|")[0] for name in names}
    for (lengths, work), dashes in zip(by_lengths.items(), ("--", ":", "-."), strict=False):
        per_s = 1000 * _rows(work) / result.hf_of(work)
        label = f"bare backbone, transformers, {_LABELS[lengths]}"
        axis.axhline(per_s, color="0.4", linestyle=dashes, linewidth=1, label=label)


def _finish(axis: Axes) -> None:
    axis.set_ylim(bottom=0)
    axis.margins(y=0.15)
    axis.grid(axis="y", color="0.9")
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, frameon=False)


def _sign(figure: Figure, result: Result) -> None:
    figure.supxlabel(result.about, fontsize=7, color="0.4")


def _label(name: str) -> str:
    found, (_, _, popularity) = _match(name), name.partition("|")
    parts = [found["precision"], _LABELS[found["lengths"]], popularity]
    return ", ".join(part for part in parts if part)


def _key(name: str) -> tuple[str, str, str]:
    found = _match(name)
    return found["backbone"], found["rows"], found["lengths"]


def _rows(name: str) -> int:
    return int(_match(name)["rows"])


def _match(name: str) -> re.Match[str]:
    plain = name.partition("|")[0]
    found = _NAME.match(plain) or _NAME.match(f"{plain}.workload")
    if found is None:
        raise ValueError(f"{name} is not the name of a cell")
    return found


if __name__ == "__main__":
    sys.exit(main())
