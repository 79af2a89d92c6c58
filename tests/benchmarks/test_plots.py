import pytest
from matplotlib.figure import Figure

import plots

RESULT = plots.read_result(
    {
        "machine": {"cpu": "a processor", "date": "2026-01-01", "commit": "abc"},
        "settings": {"threads": 2},
        "cells": {
            "minilm.exact.b32.f32.distinct1": 2.0,
            "minilm.exact.b32.f32.distinct8": 1.5,
            "minilm.exact.b32.f32.distinct32": 1.0,
            "minilm.exact.b32.mix.resident32": 5.0,
            "minilm.exact.b32.mix.resident1000": 4.0,
            "component.minilm.exact.b32.f32.nothing": 2.5,
            "component.minilm.exact.b32.f32.prompt": 2.0,
            "component.minilm.exact.b32.f32.lora": 1.8,
            "component.minilm.exact.b32.f32.prefix": 1.7,
            "component.minilm.exact.b32.f32.bottleneck": 1.6,
        },
        "details": {
            "minilm.exact.b32.f32.distinct1": {"hf_ms": 100.0},
            "minilm.exact.b32.f32.distinct8": {"hf_ms": 100.0},
            "component.minilm.exact.b32.f32.prompt": {"hf_ms": 140.0},
            "minilm.exact.b32.mix.resident32": {"hf_ms": 400.0},
            "minilm.exact.b32.mix.resident32/other": {"reference_ms": 1.0},
        },
    }
)


def _figure(figure: Figure | None) -> Figure:
    assert figure is not None
    return figure


def test_a_point_is_the_ratio_times_the_speed_of_transformers() -> None:
    points = RESULT.points("minilm.exact.b32.f32", r"distinct(\d+)")
    assert points == [(1, 640.0), (8, 480.0), (32, 320.0)]


def test_a_result_with_all_cells_gives_all_plots() -> None:
    (panel,) = _figure(plots.draw_by_distinct(RESULT)).axes
    assert panel.get_xlabel() == "distinct adapters in the batch"
    (panel,) = _figure(plots.draw_by_registered(RESULT)).axes
    assert panel.get_ylabel() == "rows a second"
    (panel,) = _figure(plots.draw_by_component(RESULT)).axes
    (first, *_) = panel.containers
    assert [bar.get_height() for bar in first] == pytest.approx(
        [40.0, 50.0, 55.6, 58.8, 62.5], abs=0.1
    )


def test_a_result_without_the_cells_gives_no_plot() -> None:
    empty = plots.Result(ratios={}, hf_ms={}, about="")
    assert plots.draw_by_distinct(empty) is None
    assert plots.draw_by_registered(empty) is None
    assert plots.draw_by_component(empty) is None
