from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upt_server.portions import portions
from upt_zoo.errors import InvalidInput

LENGTHS = st.lists(st.sampled_from([0, 1, 40_000, 60_000, 99_999, 100_000, 101_000]), max_size=30)


@given(LENGTHS, st.integers(1, 10))
def test_every_input_goes_once_and_in_order_in_calls_of_bounded_size(
    lengths: list[int], most: int
) -> None:
    inputs = [(f"adapter-{place}", ["x" * length]) for place, length in enumerate(lengths)]
    cut = list(portions(inputs, most))
    assert [each for portion in cut for each in portion] == inputs
    for portion in cut:
        assert 1 <= len(portion) <= most
        assert len(portion) == 1 or sum(len(texts[0]) for _, texts in portion) <= 100_000


@given(LENGTHS, st.integers(1, 10))
def test_no_more_calls_are_made_than_the_bounds_ask_for(lengths: list[int], most: int) -> None:
    cut = list(portions([("sst2", ["x" * length]) for length in lengths], most))
    for portion, following in pairwise(cut):
        chars = sum(len(texts[0]) for _, texts in (*portion, following[0]))
        assert len(portion) == most or chars > 100_000


def test_inputs_are_read_as_the_calls_are_made() -> None:
    read: list[int] = []

    def endless() -> Iterator[tuple[str, list[str]]]:
        while True:
            read.append(1)
            yield "sst2", ["a film"]

    assert len(next(portions(endless(), 8))) == 8
    assert len(read) == 9


def test_a_call_takes_at_least_one_input() -> None:
    with pytest.raises(InvalidInput, match="at least one input a call, got 0"):
        next(portions([], 0))
