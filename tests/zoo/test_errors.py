import re
from collections.abc import Iterator

import pytest

from upt_zoo import terminal
from upt_zoo.errors import Overloaded, Unavailable, UptError


def _subclasses(kind: type[UptError]) -> Iterator[type[UptError]]:
    for subclass in kind.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


@pytest.mark.parametrize("kind", sorted(_subclasses(UptError), key=str))
def test_every_error_has_an_exit_code_of_its_own_kind(kind: type[UptError]) -> None:
    assert terminal.exit_code(kind("why")) not in (0, 1, 2, terminal.UNEXPECTED)


def test_a_fault_of_ours_has_the_code_for_faults() -> None:
    assert terminal.exit_code(KeyError("x")) == terminal.UNEXPECTED


def test_the_documented_exit_codes_are_those_of_the_table() -> None:
    documented = {
        name: int(code) for code, name in re.findall(r"(\d\d)  (\w+)", terminal.__doc__ or "")
    }
    documented["OSError"] = documented.pop("the")
    assert documented.pop("anything") == terminal.UNEXPECTED
    assert documented == {kind.__name__: code for kind, code in terminal.EXIT_CODES.items()}


def test_what_is_printed_cannot_drive_the_terminal() -> None:
    assert terminal.printable("a\x1b]0;title\x07b\tc\nd") == "a]0;titlebc\nd"


@pytest.mark.parametrize("kind", [Overloaded, Unavailable])
def test_a_passing_error_says_when_to_try_again(kind: type[Overloaded | Unavailable]) -> None:
    assert kind("busy", retry_after_s=3.5).retry_after_s == 3.5
