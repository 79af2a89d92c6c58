"""The engine under test, through the seam ``Runner``."""

from collections.abc import Callable, Sequence
from itertools import cycle

from upt_benchmarks.workloads import Kind, adapter_spec, adapter_tensors
from upt_server.precision import Precision, RunnerChoice
from upt_server.runner import Runner
from upt_server.runner_choice import load_runner
from upt_zoo.backbone import Backbone
from upt_zoo.nn.adapter import PreparedAdapter
from upt_zoo.nn.packing import Row


def runner_of(
    backbone: Backbone, precision: Precision, *, wanted: RunnerChoice, threads: int, device: str
) -> Runner:
    """Load the runner that is measured: here alone it is decided which one that is."""
    return load_runner(
        backbone, precision, wanted=wanted, threads=threads, cache=None, device=device
    )


class Engine:
    """One runner and the adapters that were made for it."""

    def __init__(self, runner: Runner, backbone: Backbone) -> None:
        self.runner, self._backbone = runner, backbone
        self._adapters: dict[Kind, list[PreparedAdapter]] = {}

    def adapters(self, kind: Kind, count: int) -> list[PreparedAdapter]:
        """Return that many distinct adapters; those made before are used again."""
        made = self._adapters.setdefault(kind, [])
        spec = adapter_spec(kind, self._backbone.identity)
        for seed in range(len(made), count):
            made.append(self.runner.prepare(spec, adapter_tensors(spec, seed)))
        return made[:count]

    def count(self, kind: Kind) -> int:
        """Return how many adapters of a kind are in memory."""
        return len(self._adapters.get(kind, ()))

    def mixed(self, ids: Sequence[list[int]], kind: Kind, distinct: int) -> Callable[[], object]:
        """Answer row i by adapter i modulo ``distinct``."""
        adapters = self.adapters(kind, distinct)
        rows = [_row(each, adapters[index % distinct]) for index, each in enumerate(ids)]
        return lambda: self.runner.run(rows)

    def resident(
        self, ids: Sequence[list[int]], drawn: Sequence[Sequence[int]], registered: int
    ) -> Callable[[], object]:
        """Answer the same rows by other adapters each time, as drawn."""
        adapters = self.adapters("bottleneck", registered)
        batches = cycle(
            [
                [_row(each, adapters[index]) for each, index in zip(ids, chosen, strict=True)]
                for chosen in drawn
            ]
        )
        return lambda: self.runner.run(next(batches))


def _row(ids: Sequence[int], adapter: PreparedAdapter) -> Row:
    return Row(ids=ids, type_ids=[0] * len(ids), adapter=adapter)
