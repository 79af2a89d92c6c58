"""Tags of words, in IOB2 or plain."""

import pytest

from upt_testing.adapters import TAGS
from upt_zoo.entities import entity_labels, find_runs, inner_tag, is_iob2

PLAIN = ("PER", "O", "ORG")


@pytest.mark.parametrize(
    ("labels", "is_marked", "names"),
    [
        (TAGS, True, ("PER", "LOC")),
        (("B-X", "I-X"), True, ("X",)),
        (PLAIN, False, ("PER", "ORG")),
        (("O",), False, ()),
        (("O", "B-X", "Y"), False, ("B-X", "Y")),
    ],
)
def test_the_scheme_is_told_by_all_labels(
    labels: tuple[str, ...], names: tuple[str, ...], *, is_marked: bool
) -> None:
    assert is_iob2(labels) == is_marked
    assert entity_labels(labels) == names


def test_an_entity_goes_on_with_its_inner_tag() -> None:
    assert [inner_tag(tag, TAGS) for tag in ("B-PER", "I-PER", "O")] == ["I-PER", "I-PER", "O"]
    assert inner_tag("B-PER", ("O", "B-PER")) == "B-PER"  # a head that cannot go on
    assert [inner_tag(tag, PLAIN) for tag in PLAIN] == list(PLAIN)


def test_runs_are_counted_in_words() -> None:
    tags = ("O", "B-PER", "I-PER", "B-PER", "I-LOC", "O", "I-LOC")
    assert find_runs(tags, TAGS) == [
        ("PER", 1, 3),
        ("PER", 3, 4),
        ("LOC", 4, 5),
        ("LOC", 6, 7),
    ]
    assert find_runs(("PER", "PER", "O", "PER", "ORG"), PLAIN) == [
        ("PER", 0, 2),
        ("PER", 3, 4),
        ("ORG", 4, 5),
    ]
