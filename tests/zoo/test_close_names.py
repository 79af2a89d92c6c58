import difflib
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upt_zoo.close_names import close_names, did_you_mean

TEAMS = [f"{team}-{number:04d}" for team in ("alpha", "omega") for number in range(5000)]


@pytest.mark.parametrize(
    ("name", "meant"),
    [("tinny", "tiny"), ("mini", "tini"), ("sst3", "sst2"), ("quroa-pairs", "quora-pairs")],
)
def test_a_slip_is_understood_among_ten_thousand_names(name: str, meant: str) -> None:
    assert close_names(name, [*TEAMS, meant])[0] == meant


def test_nothing_is_guessed_where_nothing_is_alike() -> None:
    assert close_names("zebra", TEAMS) == []
    assert close_names("zebra", []) == []


def test_a_message_ends_with_what_may_be_meant_or_as_it_was() -> None:
    assert did_you_mean("tinny", ["tiny", "tinny2"]) == "; did you mean tinny2 or tiny?"
    assert did_you_mean("zebra", TEAMS) == ""


def test_no_more_than_a_few_names_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[int] = []

    def count(_: str, names: dict[str, None]) -> list[str]:
        compared.append(len(names))
        return []

    monkeypatch.setattr(difflib, "get_close_matches", count)
    close_names("alpha-2500", TEAMS)
    assert 0 < compared[0] <= 4 * 64


@given(st.text(string.ascii_lowercase, min_size=4, max_size=20), st.data())
def test_a_name_with_one_letter_changed_finds_itself(name: str, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(name) - 1))
    slip = name[:place] + "0" + name[place + 1 :]
    assert name in close_names(slip, [*TEAMS[::100], name])
