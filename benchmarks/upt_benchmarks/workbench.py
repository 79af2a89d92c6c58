"""Turns a variant's name into something that can be timed; holds one backbone in memory."""

import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from upt_benchmarks.baselines import HuggingFace, full_models
from upt_benchmarks.cells import Cell
from upt_benchmarks.machine import available_bytes
from upt_benchmarks.ours import Engine, runner_of
from upt_benchmarks.peers import PEERS, Peer, PeerSetup
from upt_benchmarks.timing import Timed, clocked
from upt_benchmarks.workloads import (
    PARTS,
    PROMPT_LENGTH,
    UNION,
    Popularity,
    drawn_adapters,
    row_lengths,
    token_rows,
)
from upt_server.precision import Precision, RunnerChoice
from upt_zoo.backbone import Backbone

_DISTINCT = re.compile(r"distinct(\d+)")
_RESIDENT = re.compile(r"resident(\d+)(?:_(uniform|zipf))?")
_POPULARITIES: dict[str | None, Popularity] = {
    None: "distinct",
    "uniform": "uniform",
    "zipf": "zipf",
}
_MODELS = 8  # of the variant full_models
_MOST_BATCHES = 64
_MEMORY_SHARE = 0.8  # of the available, that adapters may take


class Skipped(Exception):
    """This cell cannot be measured here; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How everything is measured."""

    runners: dict[Precision, RunnerChoice]
    threads: int
    device: str
    peers_folder: Path


class Workbench:
    """The models of one backbone, each loaded when first needed."""

    def __init__(self, backbone: Backbone, settings: Settings) -> None:
        self._backbone, self._settings = backbone, settings
        self._engines: dict[Precision, Engine] = {}
        self._rows: dict[tuple[str, int, int], list[list[int]]] = {}

    def runner_name(self, cell: Cell) -> str:
        """Name who computes our variants of this precision."""
        return self._engine(cell.precision).runner.name

    def timed(self, cell: Cell, variant: str, stack: ExitStack) -> Timed:
        """Prepare a variant on the cell's workload; ``stack`` ends what has to end.

        Raises:
            Skipped: it would not fit into memory.
            PeerFailed: the other library could not be installed or started.
        """
        if variant in PEERS:
            return self._peer(cell, variant, stack)
        if variant.startswith("hf") or variant == "full_models":
            return clocked(self._baseline(cell, variant))
        return clocked(self._ours(cell, variant))

    @cached_property
    def _exact_model(self) -> HuggingFace:
        return self._hugging_face(torch.float32)

    @cached_property
    def _bf16_model(self) -> HuggingFace:
        return self._hugging_face(torch.bfloat16)

    def _hugging_face(self, dtype: torch.dtype) -> HuggingFace:
        return HuggingFace(self._backbone.directory, dtype, self._settings.device)

    def _baseline(self, cell: Cell, variant: str) -> Callable[[], object]:
        rows = self._token_rows(cell)
        if variant == "full_models":
            return full_models(self._backbone.directory, rows, _MODELS, self._settings.device)
        if variant == "hf_bf16":
            return self._bf16_model.padded(rows)
        if variant == "hf_sorted":
            return self._exact_model.length_sorted(rows, lambda run: clocked(run)())
        return self._exact_model.padded(rows)

    def _ours(self, cell: Cell, variant: str) -> Callable[[], object]:
        engine, rows = self._engine(cell.precision), self._token_rows(cell)
        if found := _DISTINCT.fullmatch(variant):
            return engine.mixed(rows, UNION, int(found[1]))
        if found := _RESIDENT.fullmatch(variant):
            popularity = _POPULARITIES[found[2]]
            return self._resident(cell, engine, int(found[1]), popularity)
        if variant == "bare_plus_prompt":
            return engine.mixed(self._token_rows(cell, longer=PROMPT_LENGTH), "nothing", cell.rows)
        if variant == "bare":
            return engine.mixed(rows, "nothing", cell.rows)
        if variant == "lora_only":
            return engine.mixed(rows, "lora_only", cell.rows)
        for part in PARTS:
            if variant == f"component_{part}":
                return engine.mixed(rows, part, cell.rows)
        raise ValueError(f"{cell.name}: there is no variant {variant}")

    def _resident(
        self, cell: Cell, engine: Engine, registered: int, popularity: Popularity
    ) -> Callable[[], object]:
        (first,) = engine.adapters(UNION, 1)
        needed = first.size_bytes() * (registered - engine.count(UNION))
        available = available_bytes()
        if available is not None and needed > _MEMORY_SHARE * available:
            raise Skipped(f"{needed / 2**30:.1f} GiB of adapters do not fit into memory")
        batches = max(1, min(_MOST_BATCHES, registered // cell.rows))
        drawn = drawn_adapters(popularity, registered=registered, rows=cell.rows, batches=batches)
        return engine.resident(self._token_rows(cell), drawn, registered)

    def _peer(self, cell: Cell, variant: str, stack: ExitStack) -> Timed:
        setup = PeerSetup(
            checkpoint=self._backbone.directory,
            rows=self._token_rows(cell),
            adapters=cell.rows,
            threads=self._settings.threads,
        )
        return stack.enter_context(Peer(PEERS[variant], self._settings.peers_folder, setup))

    def _engine(self, precision: Precision) -> Engine:
        if precision not in self._engines:
            runner = runner_of(
                self._backbone,
                precision,
                wanted=self._settings.runners[precision],
                threads=self._settings.threads,
                device=self._settings.device,
            )
            self._engines[precision] = Engine(runner, self._backbone)
        return self._engines[precision]

    def _token_rows(self, cell: Cell, *, longer: int = 0) -> list[list[int]]:
        key = (cell.lengths, cell.rows, longer)
        if key not in self._rows:
            lengths = [each + longer for each in row_lengths(cell.lengths, cell.rows)]
            self._rows[key] = token_rows(lengths, self._backbone.config.vocab_size)
        return self._rows[key]
