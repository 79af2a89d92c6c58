"""Plots of runs and adapters, as SVG; equal figures give equal bytes."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from upt_training.calibration import Calibration
from upt_training.differences import Difference, Published
from upt_training.recipe import task_of
from upt_training.records import Record
from upt_training.table import Cell, place_of

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
_MARKERS = ("o", "s", "^")
_HOLLOW = ("s", "^", "D")
_PANELS_A_ROW = 4
_MOST_CELLS_WITH_NUMBERS = 400


def save(figure: Figure, file: Path) -> Path:
    """Write a figure as SVG, making its folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with (
        mpl.rc_context({"svg.hashsalt": "upt", "svg.fonttype": "none", "font.size": 10}),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "Glyph .* missing")  # who shows the SVG has the fonts
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file


def draw_scores(cells: Sequence[Cell]) -> Figure:
    """Draw the deciding metric against the parameters, a panel a row of the table.

    Bars are a standard deviation over seeds up and down. Parameters are on a logarithmic axis; a
    method that serves none stands at 1.
    """
    names = list(dict.fromkeys(cell.row for cell in cells))
    methods = sorted({cell.method for cell in cells}, key=place_of)
    columns = min(_PANELS_A_ROW, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(3.4 * columns + 1.6, 3.0 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, name in zip(panels, names, strict=False):
        for cell in (each for each in cells if each.row == name):
            place = methods.index(cell.method)
            axis.errorbar(
                max(1, cell.served_parameters),
                cell.mean,
                yerr=cell.deviation or 0,
                color=_COLOURS[place % len(_COLOURS)],
                marker=_MARKERS[place // len(_COLOURS) % len(_MARKERS)],
                linestyle="none",
                label=cell.method,
            )
        axis.set_xscale("log")
        axis.set_title(name)
        axis.set_ylabel(next(cell.metric for cell in cells if cell.row == name), fontsize=8)
        _finish(axis)
    for axis in panels[len(names) :]:
        axis.set_axis_off()
    labelled = {
        label: handle
        for axis in panels[: len(names)]
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        [labelled[method] for method in methods], methods, loc="outside right upper", fontsize=8
    )
    figure.supxlabel("parameters, without the head", fontsize=9)
    return figure


def draw_differences(
    differences: Sequence[Difference], published: Sequence[Published] = ()
) -> Figure:
    """Draw each method's points above another, a line a row of the table, with their intervals.

    Published ones are hollow, in their method's colour, whether it was run or not; those of other
    rows are left out.
    """
    names = list(dict.fromkeys(each.row for each in differences))
    run = sorted({each.method for each in differences}, key=place_of)
    shown = [each for each in published if each.row in names]
    methods = list(dict.fromkeys([*run, *(each.method for each in shown)]))
    colours = {method: _COLOURS[i % len(_COLOURS)] for i, method in enumerate(methods)}
    figure = Figure(
        figsize=(7.2, 1.8 + 0.22 * len(names) * (1 + len(methods))), layout="constrained"
    )
    axis = figure.subplots()

    def heights(rows: Sequence[str], method: str) -> list[float]:
        lane = 0.8 * ((methods.index(method) + 0.5) / len(methods) - 0.5)
        return [names.index(row) + lane for row in rows]

    for method in run:
        own = [each for each in differences if each.method == method]
        below = [max(0, each.points - each.interval.low) for each in own]
        above = [max(0, each.interval.high - each.points) for each in own]
        axis.errorbar(
            [each.points for each in own],
            heights([each.row for each in own], method),
            xerr=[below, above],
            color=colours[method],
            marker=_MARKERS[0],
            linestyle="none",
            label=method,
        )
    sources = list(dict.fromkeys(each.source for each in shown))
    for method, source in dict.fromkeys((each.method, each.source) for each in shown):
        theirs = [each for each in shown if (each.method, each.source) == (method, source)]
        axis.plot(
            [each.points for each in theirs],
            heights([each.row for each in theirs], method),
            color=colours[method],
            marker=_HOLLOW[sources.index(source) % len(_HOLLOW)],
            markerfacecolor="white",
            markersize=8,
            linestyle="none",
            label=f"{method}, {source}",
        )
    axis.axvline(0, color="0.4", linewidth=1)
    axis.set_yticks(range(len(names)), names, parse_math=False)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.set_xlabel(f"points above {differences[0].against}, 95 %")
    _finish(axis, across=True)
    figure.legend(loc="outside lower center", fontsize=8, frameon=False)
    return figure


def draw_confusion(labels: Sequence[str], confusion: Sequence[Sequence[int]]) -> Figure:
    """Draw counts by gold (down) and given label (across), shaded by their share of the gold."""
    shares = [[count / max(1, sum(row)) for count in row] for row in confusion]
    return _heat_map(shares, confusion, labels, labels, x_label="given", y_label="gold")


def draw_calibration(calibration: Calibration) -> Figure:
    """Draw accuracy against confidence; the dashed line is where both are the same."""
    figure, axis = _panel()
    for each in calibration.bins:
        axis.bar(each.low, each.accuracy, each.high - each.low, align="edge", color=_COLOURS[0])
    sure = [each.confidence for each in calibration.bins]
    right = [each.accuracy for each in calibration.bins]
    axis.plot(sure, right, marker="o", color=_COLOURS[1], linestyle="none", label="mean of a bin")
    axis.plot([0, 1], [0, 1], linestyle="--", color="0.4", linewidth=1)
    axis.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy")
    axis.set_title(f"expected calibration error {calibration.error:.1f} %")
    axis.legend(fontsize=8, frameon=False, loc="upper left")
    _finish(axis)
    return figure


def draw_gates(gates: Sequence[Mapping[str, float]]) -> Figure:
    """Draw each layer's mean gates, the last layer on top."""
    names = list(gates[0])
    values = [[layer[name] for name in names] for layer in reversed(gates)]
    layers = [str(index) for index in reversed(range(len(gates)))]
    return _heat_map(values, values, names, layers, x_label="gate", y_label="layer")


def draw_learning(record: Record) -> Figure:
    """Draw the mean loss and the deciding metric on the holdout after each epoch."""
    figure, axis = _panel()
    metric = task_of(record.recipe).metrics[0]
    axis.set_xlabel("epoch")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    if record.losses:
        epochs = range(1, len(record.losses) + 1)
        axis.plot(epochs, record.losses, marker="o", color=_COLOURS[0], label="loss")
        axis.set_ylabel("mean loss")
        axis.set_ylim(bottom=0)
    if record.holdout:
        other = axis.twinx()
        epochs = range(1, len(record.holdout) + 1)
        other.plot(epochs, record.holdout, marker="s", color=_COLOURS[1], label="holdout")
        other.axvline(record.best_epoch, color="0.4", linestyle=":", linewidth=1)
        other.set_ylabel(f"{metric} on the holdout")
        other.spines["top"].set_visible(False)
    axis.set_title(f"{record.recipe.task_name}, {record.recipe.variant}, seed {record.recipe.seed}")
    _finish(axis)
    return figure


def _heat_map(
    shades: Sequence[Sequence[float]],
    numbers: Sequence[Sequence[float]],
    across: Sequence[str],
    down: Sequence[str],
    *,
    x_label: str,
    y_label: str,
) -> Figure:
    """Draw cells shaded between 0 and 1 with their numbers, where they can be read."""
    figure = Figure(figsize=(1.8 + 0.8 * len(across), 1.4 + 0.45 * len(down)), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(shades, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    figure.colorbar(image, ax=axis)
    # a label with two dollars is no formula
    axis.set_xticks(range(len(across)), across, rotation=45, ha="right", parse_math=False)
    axis.set_yticks(range(len(down)), down, parse_math=False)
    axis.set(xlabel=x_label, ylabel=y_label)
    if len(across) * len(down) <= _MOST_CELLS_WITH_NUMBERS:
        for y, row in enumerate(numbers):
            for x, number in enumerate(row):
                shown = f"{number:,}" if isinstance(number, int) else f"{number:.2f}"
                colour = "white" if shades[y][x] > 0.5 else "black"
                axis.text(x, y, shown, ha="center", va="center", fontsize=8, color=colour)
    return figure


def _panel() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    return figure, figure.subplots()


def _finish(axis: Axes, *, across: bool = False) -> None:
    axis.grid(axis="x" if across else "y", color="0.9")
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
