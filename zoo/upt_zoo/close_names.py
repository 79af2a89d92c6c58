"""Guesses which name was meant by one that is unknown. Pure."""

import difflib
from bisect import bisect_left
from collections.abc import Collection, Sequence

_NEIGHBOURS = 64  # names of 128 letters: 0.1 s with these, 4 s with all of 10,000


def close_names(name: str, known: Collection[str]) -> Sequence[str]:
    """Return at most three names that are spelt nearly alike, the closest first.

    A slip leaves the beginning of a name or its end as it was, so of many names only those are
    compared that stand beside it in the order of their letters, read forwards or backwards.
    """
    forwards = _beside(name, sorted(known))
    backwards = _beside(name[::-1], sorted(each[::-1] for each in known))
    candidates = dict.fromkeys([*forwards, *(each[::-1] for each in backwards)])
    return difflib.get_close_matches(name, candidates)


def did_you_mean(name: str, known: Collection[str]) -> str:
    """Return the end of a message about an unknown name: what may be meant, or nothing."""
    close = close_names(name, known)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def _beside(name: str, ordered: Sequence[str]) -> Sequence[str]:
    place = bisect_left(ordered, name)
    return ordered[max(0, place - _NEIGHBOURS) : place + _NEIGHBOURS]
