"""Places in large pages: apart from each other, used again, given back."""

from weakref import ref

import numpy as np
import pytest

from upt_server.native.pages import LINE, LargePages

SIZES = [1, 63, 64, 65, 4_000, 640_000, 2**20 + 1]


@pytest.mark.parametrize("size", [0, *SIZES])
def test_a_place_begins_with_a_line_and_is_as_large_as_asked_for(size: int) -> None:
    place = LargePages().take(size)
    assert place.nbytes == size
    assert place.ctypes.data % LINE == 0


def test_places_do_not_overlap() -> None:
    pages = LargePages()
    places = [pages.take(size) for size in SIZES for _ in range(40)]
    for number, place in enumerate(places):
        place[:] = number % 251
    assert all((place == number % 251).all() for number, place in enumerate(places))


def test_a_copy_has_the_bytes_of_what_it_was_made_from() -> None:
    array = np.arange(24, dtype=np.float32).reshape(4, 6).T
    assert np.array_equal(LargePages().copy(array).view(np.float32).reshape(6, 4), array)


def test_what_nobody_has_any_more_is_given_out_again() -> None:
    pages = LargePages()
    kept, gone = pages.take(640_000), pages.take(640_000)
    address = gone.ctypes.data
    del gone
    assert pages.take(640_000 - LINE).ctypes.data == address
    assert kept.nbytes


def test_memory_that_nobody_uses_goes_back_when_other_places_are_asked_for() -> None:
    pages = LargePages()
    place = pages.take(2**20)
    assert isinstance(place.base, np.ndarray)
    memory = ref(place.base)
    other = pages.take(2**21)
    assert memory() is not None
    del place
    assert memory() is not None  # for whoever asks for as much
    del other
    pages.take(2**22)
    assert memory() is None
