"""What the plots show, and that equal figures give equal bytes."""

from pathlib import Path

import numpy as np

from upt_training.bootstrap import Interval
from upt_training.calibration import calibration_of
from upt_training.differences import Difference, Published
from upt_training.drawing import (
    draw_calibration,
    draw_confusion,
    draw_differences,
    draw_gates,
    draw_learning,
    draw_scores,
    save,
)
from upt_training.recipe import Recipe
from upt_training.records import Machine, Record
from upt_training.table import Cell

CELLS = [
    Cell(
        task=task,
        method=method,
        metric="accuracy",
        split="dev",
        values=values,
        served_parameters=parameters,
        trained_parameters=parameters + 2,
        head_parameters=2,
    )
    for task in ("sst2", "rte")
    for method, values, parameters in (
        ("unipelt_prompt", (90.0, 92.0), 245_928),
        ("head", (80.0,), 0),
        ("full", (91.0,), 22_000_000),
    )
]
RECORD = Record(
    recipe=Recipe(task="sst2", holdout_rows=8),
    train_rows=1,
    files=(),
    metrics={"dev/accuracy": 90.0},
    holdout=(50.0, 75.0),
    best_epoch=2,
    steps=1,
    seconds=1.0,
    max_minutes=None,
    trained_parameters=1,
    served_parameters=1,
    head_parameters=1,
    adapter=None,
    machine=Machine(processor="p", threads=1, torch="2", python="3"),
    losses=(0.7, 0.4),
)


def test_scores_have_a_panel_a_task_and_a_point_a_method() -> None:
    panels = draw_scores(CELLS).axes
    assert [panel.get_title() for panel in panels] == ["sst2", "rte"]
    assert [len(panel.containers) for panel in panels] == [3, 3]
    places = [container.lines[0].get_xdata()[0] for container in panels[0].containers]  # type: ignore[attr-defined]  # of error bars
    assert places == [245_928, 1, 22_000_000]


def test_panels_without_a_task_are_empty() -> None:
    cells = [
        Cell(
            task="sst2",
            method="full",
            metric="accuracy",
            split="dev",
            values=(1.0,),
            served_parameters=1,
            trained_parameters=3,
            head_parameters=2,
            train_rows=rows,
        )
        for rows in range(100, 600, 100)
    ]
    panels = draw_scores(cells).axes
    assert [panel.axison for panel in panels] == [True] * 5 + [False] * 3


def difference(task: str, method: str, points: float) -> Difference:
    return Difference(
        task=task,
        train_rows=100,
        metric="accuracy",
        method=method,
        against="full",
        points=points,
        interval=Interval(low=points - 2, high=points + 1),
    )


def test_differences_stand_by_row_with_their_intervals_and_published_ones_beside_them() -> None:
    ours = [difference("rte", "unipelt", 1.0), difference("rte", "lora", -1.0)]
    ours.append(difference("average", "unipelt", 3.0))
    theirs = [
        Published(row="average (100 rows)", method="unipelt", points=0.8, source="a paper"),
        Published(row="average (100 rows)", method="full-on-tapt", points=9.0, source="a paper"),
        Published(row="average (500 rows)", method="unipelt", points=9.0, source="a paper"),
        Published(row="average", method="prefix", points=9.0, source="a paper"),
    ]
    figure = draw_differences(ours, theirs)
    (axis,) = figure.axes
    assert [label.get_text() for label in axis.get_yticklabels()] == [
        *("rte (100 rows)", "average (100 rows)")
    ]
    assert axis.get_ylim() == (1.5, -0.5)  # the first row on top, room for all of the last
    assert axis.get_xlabel() == "points above full, 95 %"
    (legend,) = figure.legends
    assert {text.get_text() for text in legend.get_texts()} == {
        *("unipelt", "lora", "unipelt, a paper", "full-on-tapt, a paper")
    }
    unipelt, lora = (container.lines for container in axis.containers)  # type: ignore[attr-defined]  # of error bars
    assert list(unipelt[0].get_xdata()) == [1.0, 3.0]
    assert list(lora[0].get_xdata()) == [-1.0]
    ((low, _), (high, _)) = unipelt[2][0].get_segments()[0]
    assert (low, high) == (-1.0, 2.0)
    (published,) = (line for line in axis.lines if line.get_label() == "unipelt, a paper")
    assert np.array_equal(published.get_xdata(), [0.8])
    assert np.array_equal(published.get_ydata(), [unipelt[0].get_ydata()[1]])
    (not_run,) = (line for line in axis.lines if line.get_label() == "full-on-tapt, a paper")
    assert np.array_equal(not_run.get_xdata(), [9.0])
    assert not_run.get_color() not in {line[0].get_color() for line in (unipelt, lora)}


def test_a_confusion_shows_its_counts() -> None:
    axis, _ = draw_confusion(("no", "yes"), ((3, 1), (0, 4))).axes
    assert [text.get_text() for text in axis.texts] == ["3", "1", "0", "4"]
    many = ("a",) * 21
    assert not draw_confusion(many, ((1,) * 21,) * 21).axes[0].texts


def test_labels_are_drawn_as_they_are_written_in_any_language(tmp_path: Path) -> None:
    labels = ("$\\frac{$", "$5-$10", "不好", "😀")
    counts = ((1,) * 4,) * 4
    drawn = save(draw_confusion(labels, counts), tmp_path / "a.svg").read_text(encoding="utf-8")
    assert all(f">{label}</text>" in drawn for label in labels)


def test_gates_stand_by_layer_with_the_last_on_top() -> None:
    axis, _ = draw_gates([{"lora.q": 0.1, "prefix": 0.2}, {"lora.q": 0.3, "prefix": 0.4}]).axes
    assert [text.get_text() for text in axis.texts] == ["0.30", "0.40", "0.10", "0.20"]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["1", "0"]


def test_a_calibration_names_its_error() -> None:
    (axis,) = draw_calibration(calibration_of([0.9, 0.8], [True, False])).axes
    assert axis.get_title() == "expected calibration error 45.0 %"


def test_learning_curves_are_of_what_the_record_has() -> None:
    loss, holdout = draw_learning(RECORD).axes
    assert np.array_equal(loss.lines[0].get_ydata(), [0.7, 0.4])
    assert np.array_equal(holdout.lines[0].get_ydata(), [50.0, 75.0])
    bare = RECORD.model_copy(update={"losses": (), "holdout": ()})
    (axis,) = draw_learning(bare).axes
    assert not axis.lines


def test_equal_figures_give_equal_bytes(tmp_path: Path) -> None:
    files = [save(draw_scores(CELLS), tmp_path / "plots" / f"{index}.svg") for index in range(2)]
    first, second = (file.read_bytes() for file in files)
    assert first == second
    assert first.startswith(b"<?xml")
