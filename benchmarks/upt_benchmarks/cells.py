"""Which cells there are: a cell is one variant on one workload, against one reference."""

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from upt_benchmarks.peers import PEERS
from upt_benchmarks.workloads import BACKBONES, LENGTHS, PARTS, BackboneName, Lengths
from upt_server.precision import Precision

_BATCHES = (1, 8, 32)
_PRECISIONS: tuple[Precision, ...] = ("exact", "fast")
_DISTINCT = (1, 2, 4, 8, 16, 32)
_POPULARITIES = ("", "_uniform", "_zipf")
_REGISTERED = (32, 1000, 10_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One figure: time of ``reference`` / time of ``variant``; ``hf`` is transformers in fp32."""

    backbone: BackboneName
    precision: Precision
    rows: int
    lengths: Lengths
    variant: str
    reference: str = "hf"

    @property
    def workload(self) -> str:
        """Backbone, batch and lengths, as in the name."""
        return f"{self.backbone}.{self.precision}.b{self.rows}.{self.lengths}"

    @property
    def name(self) -> str:
        """Such as ``minilm.exact.b32.f32.distinct32``; ``a/b`` is against the variant b."""
        family, _, part = self.variant.rpartition("_")
        name = f"{self.workload}.{self.variant}"
        if family == "component":
            name = f"component.{self.workload}.{part}"
        return name if self.reference == "hf" else f"{name}/{self.reference}"

    @property
    def group(self) -> tuple[str, int, str, str]:
        """What is measured in the same rounds: a workload in all precisions, heavy ways apart."""
        heavy = (way for way in (self.variant, self.reference) if way in PEERS)
        apart = next(heavy, "")
        if self.variant.startswith(("resident", "full")):
            apart = self.variant.partition("_")[0]
        return self.backbone, self.rows, self.lengths, apart

    def way(self, variant: str) -> str:
        """Name a variant within the group: others' libraries have no precision of ours."""
        is_foreign = variant in PEERS or variant.startswith(("hf", "full"))
        return variant if is_foreign else f"{self.precision}.{variant}"

    @property
    def is_headline(self) -> bool:
        """Tell whether it is one of those the project is judged by."""
        is_price = self.reference == "bare_plus_prompt"
        return self.variant == "distinct32" and (self.reference == "hf" or is_price)


def planned(*, quick: bool, with_peers: bool, only: str) -> list[Cell]:
    """Return the cells to measure, those of one group together, the headlines' groups first."""
    cells = [*_quick("minilm")] if quick else [cell for name in BACKBONES for cell in _full(name)]
    cells += [cell for name in BACKBONES for cell in _peers(name, quick=quick) if with_peers]
    cells = [cell for cell in dict.fromkeys(cells) if fnmatchcase(cell.name, only)]
    groups = list(dict.fromkeys(cell.group for cell in cells))
    return sorted(
        cells, key=lambda cell: (BACKBONES.index(cell.backbone), groups.index(cell.group))
    )


def _headlines(backbone: BackboneName) -> Iterator[Cell]:
    for lengths in LENGTHS:
        for precision in _PRECISIONS:
            yield _cell(backbone, precision, 32, lengths, "distinct32")
            yield _cell(backbone, precision, 32, lengths, "distinct32", "bare_plus_prompt")
            yield _cell(backbone, precision, 32, lengths, "bare_plus_prompt")
        yield _cell(backbone, "fast", 32, lengths, "hf_bf16")
    yield _cell(backbone, "exact", 32, "mix", "hf_sorted")


def _quick(backbone: BackboneName) -> Iterator[Cell]:
    yield from _headlines(backbone)
    for precision in _PRECISIONS:
        yield _cell(backbone, precision, 1, "f32", "distinct1")
        yield _cell(backbone, precision, 8, "f32", "distinct8")
    yield _cell(backbone, "exact", 32, "f32", "distinct32", "distinct1")
    yield _cell(backbone, "exact", 32, "f32", "lora_only", "bare")
    yield from _cost_by_component(backbone, "exact", "f32")
    yield from _by_distinct(backbone, "exact", "f32")
    yield _cell(backbone, "exact", 32, "mix", "resident1000", "resident32")


def _full(backbone: BackboneName) -> Iterator[Cell]:
    yield from _headlines(backbone)
    for rows in _BATCHES:
        for lengths in LENGTHS:
            if lengths == "mix" and rows > 1:
                yield _cell(backbone, "exact", rows, lengths, "hf_sorted")
            yield _cell(backbone, "fast", rows, lengths, "hf_bf16")
            for precision in _PRECISIONS:
                yield from _every_batch(backbone, precision, rows, lengths)
    for precision in _PRECISIONS:
        for lengths in ("f32", "mix"):
            yield from _cost_by_component(backbone, precision, lengths)
            yield from _by_distinct(backbone, precision, lengths)
    yield from _by_registered(backbone)
    yield _cell(backbone, "exact", 32, "f32", "full_models")
    yield _cell(backbone, "exact", 32, "mix", "full_models")


def _every_batch(
    backbone: BackboneName, precision: Precision, rows: int, lengths: Lengths
) -> Iterator[Cell]:
    for distinct in _BATCHES:
        if distinct <= rows:
            yield _cell(backbone, precision, rows, lengths, f"distinct{distinct}")
    for variant in ("bare", "bare_plus_prompt", "lora_only"):
        yield _cell(backbone, precision, rows, lengths, variant)
    yield _cell(backbone, precision, rows, lengths, "lora_only", "bare")
    if rows > 1:
        yield _cell(backbone, precision, rows, lengths, f"distinct{rows}", "distinct1")


def _cost_by_component(
    backbone: BackboneName, precision: Precision, lengths: Lengths
) -> Iterator[Cell]:
    for part in PARTS:
        yield _cell(backbone, precision, 32, lengths, f"component_{part}")


def _by_distinct(backbone: BackboneName, precision: Precision, lengths: Lengths) -> Iterator[Cell]:
    for distinct in _DISTINCT:
        yield _cell(backbone, precision, 32, lengths, f"distinct{distinct}")


def _by_registered(backbone: BackboneName) -> Iterator[Cell]:
    """The largest last: their adapters stay in memory until the backbone is done."""
    for registered in _REGISTERED:
        for popularity in _POPULARITIES:
            variant = f"resident{registered}{popularity}"
            yield _cell(backbone, "exact", 32, "mix", variant)
            if registered > 32:
                yield _cell(backbone, "exact", 32, "mix", variant, "resident32")


def _peers(backbone: BackboneName, *, quick: bool) -> Iterator[Cell]:
    if quick and backbone != "minilm":
        return
    for lengths in LENGTHS:
        for rows in (32,) if quick else _BATCHES:
            for variant in PEERS:
                yield _cell(backbone, "exact", rows, lengths, variant)
            yield _cell(backbone, "exact", rows, lengths, "lora_only", "peft_mixed")
            yield _cell(backbone, "exact", rows, lengths, f"distinct{rows}", "adapters_grouped")


def _cell(
    backbone: BackboneName,
    precision: Precision,
    rows: int,
    lengths: Lengths,
    variant: str,
    reference: str = "hf",
) -> Cell:
    return Cell(
        backbone=backbone,
        precision=precision,
        rows=rows,
        lengths=lengths,
        variant=variant,
        reference=reference,
    )
