import json

from upt_benchmarks.cells import Cell, planned
from upt_benchmarks.machine import Machine
from upt_benchmarks.report import Figure, as_json, as_table, figure_of
from upt_benchmarks.timing import Pairs
from upt_server.precision import Precision

MACHINE = Machine(
    cpu="a processor",
    cores=2,
    flags=("avx2",),
    memory_gib=24.0,
    system="a system",
    versions={"torch": "1", "transformers": "2"},
    commit="abc",
    date="2026-01-01",
)


def cell(precision: Precision, variant: str, reference: str = "hf") -> Cell:
    return Cell(
        backbone="minilm",
        precision=precision,
        rows=32,
        lengths="mix",
        variant=variant,
        reference=reference,
    )


def figure(cell: Cell, ratio: float) -> Figure:
    pairs = Pairs(reference_ms=(100.0 * ratio,) * 3, variant_ms=(100.0,) * 3)
    return figure_of(cell, pairs, "somebody")


FIGURES = [
    figure(cell("fast", "distinct32"), 8.0),
    figure(cell("exact", "hf_sorted"), 2.0),
    figure(cell("fast", "hf_bf16"), 3.2),
    figure(cell("fast", "distinct32", "bare_plus_prompt"), 0.9),
]


def test_a_cell_is_the_ratio_to_the_bare_backbone_and_a_direct_one_to_another_variant() -> None:
    result = as_json(FIGURES, {}, MACHINE, {"threads": 2})
    assert result["cells"] == {
        "minilm.fast.b32.mix.distinct32": 8.0,
        "minilm.exact.b32.mix.hf_sorted": 2.0,
        "minilm.fast.b32.mix.hf_bf16": 3.2,
    }
    assert result["direct"] == {"minilm.fast.b32.mix.distinct32/bare_plus_prompt": 0.9}
    json.dumps(result)


def test_details_have_the_ratios_without_the_gain_of_sorting_and_of_the_precision() -> None:
    details = as_json(FIGURES, {}, MACHINE, {})["details"]
    assert isinstance(details, dict)
    assert details["minilm.fast.b32.mix.distinct32"] == {
        "ratio": 8.0,
        "ci95": [8.0, 8.0],
        "ours_ms": 100.0,
        "hf_ms": 800.0,
        "hf_sorted_ratio": 4.0,
        "hf_same_precision_ratio": 2.5,
        "rows_per_s": 320.0,
        "pairs": 3,
        "steady": True,
        "made_by": "somebody",
    }


def test_a_ratio_to_what_was_not_measured_is_null() -> None:
    details = as_json(FIGURES[:1], {}, MACHINE, {})["details"]
    assert isinstance(details, dict)
    assert details["minilm.fast.b32.mix.distinct32"]["hf_sorted_ratio"] is None


def test_the_table_has_a_line_a_cell_and_says_what_is_missing() -> None:
    lines = as_table(FIGURES, {"minilm.exact.b1.f32.x": "no memory"}, MACHINE).splitlines()
    assert "a processor" in lines[0]
    assert [line.split()[0] for line in lines[3:7]] == [each.cell.name for each in FIGURES]
    assert lines[-1] == "skipped minilm.exact.b1.f32.x: no memory"
    assert len({len(line) for line in lines[2:7]}) == 1


def test_a_figure_that_something_else_disturbed_is_named_below_the_table() -> None:
    pairs = Pairs(reference_ms=(100.0, 200.0, 400.0), variant_ms=(100.0,) * 3)
    disturbed = figure_of(cell("exact", "bare"), pairs, "somebody")
    assert not disturbed.is_steady
    assert "again" in as_table([disturbed], {}, MACHINE).splitlines()[-1]


def test_every_planned_name_is_there_once() -> None:
    names = [each.name for each in planned(quick=False, with_peers=True, only="*")]
    assert len(set(names)) == len(names)


def test_the_quick_run_has_the_headlines_of_one_backbone() -> None:
    cells = planned(quick=True, with_peers=False, only="*")
    assert {each.backbone for each in cells} == {"minilm"}
    assert {each.name for each in cells} >= {
        f"minilm.{precision}.b32.{lengths}.{variant}"
        for precision in ("exact", "fast")
        for lengths in ("f32", "f128", "mix")
        for variant in ("distinct32", "bare_plus_prompt")
    }
    assert sum(each.is_headline and each.reference == "hf" for each in cells) == 6


def test_a_pattern_selects_cells_by_name() -> None:
    cells = planned(quick=False, with_peers=False, only="component.roberta_base.*.bottleneck")
    assert [each.name for each in cells] == [
        f"component.roberta_base.{precision}.b32.{lengths}.bottleneck"
        for lengths in ("f32", "mix")
        for precision in ("exact", "fast")
    ]
