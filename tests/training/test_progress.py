import io
import json
import re
from pathlib import Path

import pytest

from upt_training.loop import Progress
from upt_training.progress import (
    CurveReporter,
    JsonReporter,
    TableReporter,
    reporting,
    say_time_is_up,
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def events_of(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_an_epoch_is_a_line_of_json() -> None:
    stream = io.StringIO()
    reporter = JsonReporter(stream)
    reporter.epoch(Progress(epoch=1, step=7), holdout={"f1": 80.25, "accuracy": 70.0})
    reporter.epoch(Progress(epoch=2, step=14), holdout=None)
    assert events_of(stream) == [
        {"event": "epoch", "epoch": 1, "step": 7, "holdout": {"f1": 80.25, "accuracy": 70.0}},
        {"event": "epoch", "epoch": 2, "step": 14, "holdout": None},
    ]


def test_steps_are_lines_of_json_ten_seconds_apart() -> None:
    stream, clock = io.StringIO(), Clock()
    reporter = JsonReporter(stream, clock=clock)
    for step in range(1, 9):
        clock.now += 4.0
        reporter.step(Progress(step=step), steps=8, loss=1 / step)
    assert events_of(stream) == [
        {"event": "step", "step": 3, "steps": 8, "loss": 0.3333},
        {"event": "step", "step": 6, "steps": 8, "loss": 0.1667},
    ]


def test_a_line_is_out_as_soon_as_it_is_written() -> None:
    raw = io.BytesIO()
    with io.TextIOWrapper(raw) as stream:
        JsonReporter(stream).epoch(Progress(), holdout=None)
        assert raw.getvalue().endswith(b"}\n")


def shown(stream: io.StringIO) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())  # without its colours


def test_a_terminal_is_told_that_the_clock_ended_the_run() -> None:
    stream = Terminal()
    say_time_is_up(stream, Progress(step=21), steps=120, as_json=False)
    assert stream.getvalue().startswith("--max-minutes ended the run after 21 of 120 steps;")


def test_a_terminal_gets_a_live_table_and_a_bar() -> None:
    stream = Terminal()
    with reporting(stream, as_json=False) as reporter:
        assert isinstance(reporter, TableReporter)
        progress = Progress(step=3)
        reporter.step(progress, steps=12, loss=0.5)
        for epoch, metric in ((1, 81.234), (2, 79.0)):
            progress.epoch, progress.best_epoch = epoch, 1
            progress.losses.append(1 / epoch)
            progress.holdout.append(metric)
            reporter.epoch(progress, holdout={"f1": metric, "accuracy": 70.0})
    rows = [line.split() for line in shown(stream).splitlines()[-4:]]
    assert rows[0] == ["epoch", "mean", "loss", "holdout", "f1", "holdout", "accuracy"]
    assert rows[1:3] == [
        ["1", "1.0000", "81.23", "70.00", "best"],
        ["2", "0.5000", "79.00", "70.00"],
    ]
    assert "3/12 steps, loss 0.500" in " ".join(rows[3])


def test_nothing_is_said_of_steps_before_there_was_one() -> None:
    stream = Terminal()
    with reporting(stream, as_json=False):
        pass
    assert "training" in shown(stream)
    assert "step" not in shown(stream)


def test_a_run_that_goes_on_shows_its_earlier_epochs() -> None:
    stream = Terminal()
    progress = Progress(epoch=3, best_epoch=2, losses=[0.9, 0.4, 0.3], holdout=[50.0, 60.0, 55.0])
    with reporting(stream, as_json=False) as reporter:
        reporter.epoch(progress, holdout={"f1": 55.0, "accuracy": 58.0})
    rows = [line.split() for line in shown(stream).splitlines()]
    assert ["2", "0.4000", "60.00", "best"] in rows  # its accuracy is in no checkpoint
    assert ["3", "0.3000", "55.00", "58.00"] in rows


def test_without_a_holdout_the_table_has_losses_alone() -> None:
    stream = Terminal()
    with reporting(stream, as_json=False) as reporter:
        reporter.epoch(Progress(epoch=1, losses=[0.25]), holdout=None)
    rows = [line.split() for line in shown(stream).splitlines()]
    assert ["epoch", "mean", "loss"] in rows
    assert ["1", "0.2500"] in rows


@pytest.mark.parametrize(
    ("stream", "as_json"), [(io.StringIO(), False), (io.StringIO(), True), (Terminal(), True)]
)
def test_all_else_gets_json(stream: io.StringIO, as_json: bool) -> None:
    with reporting(stream, as_json=as_json) as reporter:
        assert isinstance(reporter, JsonReporter)
    assert stream.getvalue() == ""


def test_a_curve_goes_on_where_the_checkpoint_was(tmp_path: Path) -> None:
    file = tmp_path / "not" / "there.csv"

    def steps(first: int, last: int) -> None:
        reporter = CurveReporter(file, JsonReporter(io.StringIO()))
        for step in range(first, last + 1):
            reporter.step(Progress(step=step, epoch=(step - 1) // 2), steps=6, loss=1 / step)
            if step % 2 == 0:
                reporter.epoch(Progress(step=step, epoch=step // 2), holdout={"f1": 10.0 * step})

    steps(1, 3)
    steps(3, 4)  # the third step was not in the checkpoint
    assert file.read_text().splitlines() == [
        "epoch,step,loss,holdout",
        "1,1,1,",
        "1,2,0.5,",
        "1,2,,20.0000",
        "2,3,0.333333,",
        "2,4,0.25,",
        "2,4,,40.0000",
    ]
    steps(1, 1)
    assert file.read_text().splitlines()[1:] == ["1,1,1,"]


def test_a_curve_whose_last_line_was_cut_goes_on_without_it(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("epoch,step,loss,holdout\n1,9,0.5,\n1,1")
    CurveReporter(file, JsonReporter(io.StringIO())).step(Progress(step=10), steps=10, loss=2.0)
    assert file.read_text() == "epoch,step,loss,holdout\n1,9,0.5,\n1,10,2,\n"


def test_a_curve_without_a_holdout_has_losses_alone(tmp_path: Path) -> None:
    reporter = CurveReporter(tmp_path / "a.csv", JsonReporter(io.StringIO()))
    reporter.step(Progress(step=1), steps=1, loss=2.0)
    reporter.epoch(Progress(step=1, epoch=1), holdout=None)
    assert (tmp_path / "a.csv").read_text() == "epoch,step,loss,holdout\n1,1,2,\n"


def test_a_curve_that_goes_on_with_an_epochs_end_keeps_its_last_step(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    CurveReporter(file, JsonReporter(io.StringIO())).step(Progress(step=1), steps=1, loss=2.0)
    reporter = CurveReporter(file, JsonReporter(io.StringIO()))
    reporter.epoch(Progress(step=1, epoch=1), holdout={"f1": 5.0})
    assert file.read_text() == "epoch,step,loss,holdout\n1,1,2,\n1,1,,5.0000\n"
