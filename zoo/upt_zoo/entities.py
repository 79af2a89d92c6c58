"""Entities: neighbouring words with tags that belong together. Pure.

Tags are in IOB2 (``B-X`` begins an entity X, ``I-X`` goes on, ``O`` is outside) or plain (``X`` and
``O``), told apart by all labels of a head: in IOB2 each is ``O`` or begins with ``B-`` or ``I-``.

Source: the IOB2 scheme of Tjong Kim Sang and Veenstra 1999; conlleval for tags out of order.
"""

from collections.abc import Sequence
from dataclasses import dataclass

OUTSIDE = "O"
_BEGINS, _GOES_ON = "B-", "I-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entity:
    """A stretch [start, end) of the text, in characters (code points).

    ``score`` is the mean probability of the tags that its words were given.
    """

    label: str
    text: str
    start: int
    end: int
    score: float


def is_iob2(labels: Sequence[str]) -> bool:
    """Say whether a head's labels are tags in IOB2."""
    inside = [label for label in labels if label != OUTSIDE]
    return bool(inside) and all(label.startswith((_BEGINS, _GOES_ON)) for label in inside)


def entity_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """Return what entities a head can find, in the order of its labels."""
    cut = 2 if is_iob2(labels) else 0
    return tuple(dict.fromkeys(label[cut:] for label in labels if label != OUTSIDE))


def inner_tag(tag: str, labels: Sequence[str]) -> str:
    """Return the tag of what goes on where ``tag`` began: I-X behind B-X, if there is one."""
    inner = _GOES_ON + tag.removeprefix(_BEGINS)
    return inner if is_iob2(labels) and tag.startswith(_BEGINS) and inner in labels else tag


def find_runs(tags: Sequence[str], labels: Sequence[str]) -> list[tuple[str, int, int]]:
    """Return the entities of words with these tags: label, first word, word behind the last.

    An ``I-X`` behind anything but an X begins an entity. Plain tags that are equal and neighbours
    are one entity.
    """
    has_marks = is_iob2(labels)
    runs: list[tuple[str, int, int]] = []
    for place, tag in enumerate(tags):
        if tag == OUTSIDE:
            continue
        label = tag[2:] if has_marks else tag
        begins = has_marks and tag.startswith(_BEGINS)
        if runs and runs[-1][0] == label and runs[-1][2] == place and not begins:
            runs[-1] = (label, runs[-1][1], place + 1)
        else:
            runs.append((label, place, place + 1))
    return runs
