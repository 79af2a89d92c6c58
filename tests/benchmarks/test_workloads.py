import pytest

from upt_benchmarks.workloads import (
    PARTS,
    Popularity,
    adapter_spec,
    drawn_adapters,
    row_lengths,
    token_rows,
)
from upt_testing.adapters import BACKBONE

WIDE = BACKBONE.model_copy(update={"hidden": 32})


def test_fixed_lengths_are_those_of_the_name() -> None:
    assert row_lengths("f32", 3) == [32, 32, 32]
    assert row_lengths("f128", 1) == [128]


def test_the_mix_is_as_long_and_as_uneven_as_it_says() -> None:
    lengths = row_lengths("mix", 32)
    assert 38 < sum(lengths) / 32 < 42
    assert 8 <= min(lengths) < max(lengths) <= 256
    assert 0.50 < 1 - sum(lengths) / (32 * max(lengths)) < 0.74


def test_smaller_batches_are_the_first_rows_of_larger_ones() -> None:
    assert row_lengths("mix", 8) == row_lengths("mix", 32)[:8]


def test_rows_have_their_lengths_and_no_special_tokens() -> None:
    rows = token_rows([3, 5], vocabulary=1100)
    assert [len(row) for row in rows] == [3, 5]
    assert all(1000 <= word < 1100 for row in rows for word in row)
    assert rows == token_rows([3, 5], vocabulary=1100)


def test_distinct_popularity_repeats_no_adapter_in_a_batch_and_misses_none() -> None:
    batches = drawn_adapters("distinct", registered=64, rows=32, batches=2)
    assert [len(set(batch)) for batch in batches] == [32, 32]
    assert {adapter for batch in batches for adapter in batch} == set(range(64))


@pytest.mark.parametrize("popularity", ["uniform", "zipf"])
def test_other_popularities_draw_registered_adapters(popularity: Popularity) -> None:
    batches = drawn_adapters(popularity, registered=10, rows=4, batches=50)
    assert {len(batch) for batch in batches} == {4}
    assert {adapter for batch in batches for adapter in batch} <= set(range(10))


def test_zipf_asks_most_often_for_the_first() -> None:
    drawn = [
        adapter
        for batch in drawn_adapters("zipf", registered=1000, rows=32, batches=64)
        for adapter in batch
    ]
    assert drawn.count(0) > drawn.count(1) > drawn.count(10) > drawn.count(500)


def test_each_part_adds_one_component_up_to_the_whole_union() -> None:
    present = [
        {name for name in PARTS[1:] if getattr(adapter_spec(part, WIDE), name) is not None}
        for part in PARTS
    ]
    assert present == [set(PARTS[1 : index + 1]) for index in range(len(PARTS))]


def test_lora_alone_has_no_gate() -> None:
    spec = adapter_spec("lora_only", WIDE)
    assert spec.lora is not None
    assert not spec.lora.gated
    assert (spec.prompt, spec.prefix, spec.bottleneck) == (None, None, None)
