"""Outcomes: packed into a record and back, and measured as the answers were."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from upt_training.metrics import measure
from upt_training.outcomes import Numbers, Outcomes, PackedOutcomes
from upt_zoo.errors import Corrupt
from upt_zoo.tasks import find_task


def columns(values: list[float]) -> Numbers:
    return np.array(values, dtype=np.float64).reshape(-1, 1)


@given(st.lists(st.tuples(st.integers(0, 255), st.integers(0, 255)), min_size=1))
def test_labels_come_back_as_they_were(pairs: list[tuple[int, int]]) -> None:
    gold, got = (columns([float(pair[side]) for pair in pairs]) for side in (0, 1))
    packed = PackedOutcomes.of(Outcomes(gold=gold, got=got))
    found = PackedOutcomes.model_validate_json(packed.model_dump_json()).unpack()
    assert np.array_equal(found.gold, gold)
    assert np.array_equal(found.got, got)


def test_sets_of_labels_keep_their_columns() -> None:
    gold, got = np.eye(3), np.ones((3, 3))
    found = PackedOutcomes.of(Outcomes(gold=gold, got=got)).unpack()
    assert np.array_equal(found.gold, gold)
    assert np.array_equal(found.got, got)


@pytest.mark.parametrize("spread", [1.0, 1e-4])
def test_values_keep_their_metrics_however_close_they_are(spread: float) -> None:
    source = np.random.default_rng(0)
    gold = columns(source.uniform(0, 5, 200).tolist())
    got = 2.5 + spread * (gold + source.normal(0, 1, (200, 1)))
    found = PackedOutcomes.of(Outcomes(gold=gold, got=got)).unpack()
    np.testing.assert_allclose(found.got, got, rtol=0, atol=1e-4 * spread)
    task = find_task("stsb")
    wanted = measure(task, Outcomes(gold=gold, got=got))
    assert measure(task, found) == pytest.approx(wanted, abs=0.01)


def test_a_constant_comes_back() -> None:
    found = PackedOutcomes.of(Outcomes(gold=columns([0.5, 1.0]), got=columns([2.5, 2.5]))).unpack()
    assert found.got.tolist() == [[2.5], [2.5]]


def test_spans_are_their_own_scores() -> None:
    got = np.array([[1.0, 1.0], [0.5, 0.0], [0.0, 0.0], [0.5, 0.0]])
    outcomes = Outcomes(gold=np.empty((4, 0)), got=got)
    found = PackedOutcomes.of(outcomes).unpack()
    scores = measure(find_task("squad"), found)
    assert scores == pytest.approx({"f1": 50.0, "exact_match": 25.0}, abs=1e-3)


def test_ten_thousand_rows_of_two_labels_take_few_kilobytes() -> None:
    source = np.random.default_rng(0)
    gold, got = (columns(source.integers(0, 2, 10_000).tolist()) for _ in range(2))
    assert len(PackedOutcomes.of(Outcomes(gold=gold, got=got)).data) < 5_000


@pytest.mark.parametrize("changes", [{"rows": 3}, {"data": "ab"}, {"data": "=!"}, {"rows": 0}])
def test_damaged_outcomes_are_corrupt(changes: dict[str, object]) -> None:
    packed = PackedOutcomes.of(Outcomes(gold=columns([0, 1]), got=columns([0, 0])))
    with pytest.raises(Corrupt, match="are damaged"):
        packed.model_copy(update=changes).unpack()
