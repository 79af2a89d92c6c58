"""How a run is watched: a live table on a terminal, JSON lines elsewhere."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from upt_training.loop import Progress as RunProgress
from upt_training.loop import Reporter

_EVERY_S = 10.0  # between two JSON lines of steps


class JsonReporter:
    """Writes one JSON object a line: each epoch, and a step now and then."""

    def __init__(self, stream: TextIO, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream, clock
        self._last = clock()

    def step(self, progress: RunProgress, *, steps: int, loss: float) -> None:
        """Write if the last line is some seconds ago."""
        if self._clock() - self._last >= _EVERY_S:
            self._last = self._clock()
            self._write(event="step", step=progress.step, steps=steps, loss=round(loss, 4))

    def epoch(self, progress: RunProgress, *, holdout: Mapping[str, float] | None) -> None:
        """Write always."""
        self._write(
            event="epoch",
            epoch=progress.epoch,
            step=progress.step,
            holdout=None if holdout is None else dict(holdout),
        )

    def end(self, progress: RunProgress, *, steps: int) -> None:
        """Write that the clock ended the run."""
        self._write(event="max_minutes", step=progress.step, steps=steps)

    def _write(self, **values: object) -> None:
        self._stream.write(json.dumps(values) + "\n")
        self._stream.flush()


class SilentReporter:
    """Says nothing: for a process whose team has one that reports."""

    def step(self, progress: RunProgress, *, steps: int, loss: float) -> None:
        """Hear of a finished step."""

    def epoch(self, progress: RunProgress, *, holdout: Mapping[str, float] | None) -> None:
        """Hear of a finished epoch."""


class CurveReporter:
    """Writes the curve as CSV beside another reporter: each step's loss, each epoch's metric.

    The columns are ``epoch``, ``step``, ``loss`` and ``holdout``, one of the last two empty. A run
    that goes on from a checkpoint keeps the lines up to there.
    """

    def __init__(self, file: Path, inner: Reporter) -> None:
        self._file, self._inner = file, inner
        self._is_open = False

    def step(self, progress: RunProgress, *, steps: int, loss: float) -> None:
        """Write the loss."""
        self._write(progress, progress.epoch + 1, f"{loss:.6g}", "")
        self._inner.step(progress, steps=steps, loss=loss)

    def epoch(self, progress: RunProgress, *, holdout: Mapping[str, float] | None) -> None:
        """Write the deciding metric on the holdout, if there is one."""
        if not self._is_open:  # the checkpoint was written behind the epoch's last step
            self._open(progress.step + 1)
        if holdout is not None:
            self._write(progress, progress.epoch, "", f"{next(iter(holdout.values())):.4f}")
        self._inner.epoch(progress, holdout=holdout)

    def _write(self, progress: RunProgress, epoch: int, loss: str, holdout: str) -> None:
        if not self._is_open:
            self._open(progress.step)
        with self._file.open("a", encoding="utf-8") as file:
            file.write(f"{epoch},{progress.step},{loss},{holdout}\n")

    def _open(self, step: int) -> None:
        self._is_open = True
        self._file.parent.mkdir(parents=True, exist_ok=True)
        lines = self._file.read_text(encoding="utf-8").splitlines() if self._file.exists() else []
        rows = [line for line in lines[1:] if line.count(",") == 3]  # the last may have been cut
        kept = [line for line in rows if int(line.split(",")[1]) < step]
        whole = "".join(f"{line}\n" for line in ("epoch,step,loss,holdout", *kept))
        self._file.write_text(whole, encoding="utf-8")


class TableReporter:
    """Shows a table with a row an epoch, and a bar below it that moves with each step.

    A run that goes on from a checkpoint shows its earlier epochs too. The best epoch so far, which
    is kept, is marked.
    """

    def __init__(self, live: Live) -> None:
        self._live = live
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[said]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._task = self._bar.add_task("training", total=None, said="")
        self._measured: dict[int, Mapping[str, float]] = {}
        live.update(self._bar)

    def step(self, progress: RunProgress, *, steps: int, loss: float) -> None:
        """Move the bar."""
        said = f"{progress.step}/{steps} steps, loss {loss:.3f}"
        self._bar.update(self._task, completed=progress.step, total=steps, said=said)

    def epoch(self, progress: RunProgress, *, holdout: Mapping[str, float] | None) -> None:
        """Add a row."""
        if holdout is not None:
            self._measured[progress.epoch] = holdout
        self._live.update(Group(self._table(progress, list(holdout or ())), self._bar))

    def _table(self, progress: RunProgress, metrics: list[str]) -> Table:
        table = Table(box=None, pad_edge=False)
        for title in ("epoch", "mean loss", *(f"holdout {name}" for name in metrics), ""):
            table.add_column(title, justify="right")
        for epoch, loss in enumerate(progress.losses, 1):
            table.add_row(
                str(epoch),
                f"{loss:.4f}",
                *self._figures(progress, epoch, metrics),
                "best" if epoch == progress.best_epoch else "",
            )
        return table

    def _figures(self, progress: RunProgress, epoch: int, metrics: list[str]) -> list[str]:
        """Return an epoch's metrics; a checkpoint has the deciding one alone."""
        known = self._measured.get(epoch)
        if known is None:
            known = dict(zip(metrics, progress.holdout[epoch - 1 : epoch], strict=False))
        return [f"{known[name]:.2f}" if name in known else "" for name in metrics]


def say_time_is_up(stream: TextIO, progress: RunProgress, *, steps: int, as_json: bool) -> None:
    """Say that the clock ended a run that had ``steps`` to do, as ``reporting`` says the rest."""
    if _is_json(stream, as_json=as_json):
        JsonReporter(stream).end(progress, steps=steps)
        return
    stream.write(
        f"--max-minutes ended the run after {progress.step:,} of {steps:,} steps; to do "
        f"them all, give it more minutes or leave the option out\n"
    )


@contextmanager
def reporting(stream: TextIO, *, as_json: bool, curve: Path | None = None) -> Iterator[Reporter]:
    """Report on ``stream``, by a live table if it is a terminal and JSON is not asked for.

    The curve goes into the CSV file ``curve``, too.
    """
    with _shown(stream, as_json=as_json) as reporter:
        yield reporter if curve is None else CurveReporter(curve, reporter)


@contextmanager
def _shown(stream: TextIO, *, as_json: bool) -> Iterator[Reporter]:
    if _is_json(stream, as_json=as_json):
        yield JsonReporter(stream)
        return
    with Live(console=Console(file=stream)) as live:
        yield TableReporter(live)


def _is_json(stream: TextIO, *, as_json: bool) -> bool:
    return as_json or not stream.isatty()
