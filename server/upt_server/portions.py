"""Cuts any number of inputs into calls of a bounded size. Pure."""

from collections.abc import Iterable, Iterator, Sequence

from upt_zoo.errors import InvalidInput

INPUTS_A_CALL = 64  # of 32 tokens each they fill a batch of the server
# one input may have 101,000; a call of as many is far from the bounds of bytes, rows and the queue
_CHARS_A_CALL = 100_000


def portions(
    inputs: Iterable[tuple[str, Sequence[str]]], most: int
) -> Iterator[list[tuple[str, Sequence[str]]]]:
    """Yield the inputs in their order, at most ``most`` and 100,000 characters of them at once.

    One that is longer goes alone. ``inputs`` are read no further than the portion and one more.

    Raises:
        InvalidInput: ``most`` is less than one.
    """
    if most < 1:
        raise InvalidInput(f"expected at least one input a call, got {most}")
    portion: list[tuple[str, Sequence[str]]] = []
    chars = 0
    for each in inputs:
        size = sum(map(len, each[1]))
        if portion and (len(portion) == most or chars + size > _CHARS_A_CALL):
            yield portion
            portion, chars = [], 0
        portion.append(each)
        chars += size
    if portion:
        yield portion
