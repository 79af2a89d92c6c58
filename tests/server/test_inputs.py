import pytest

from upt_server.inputs import Input, Limits, at_input, check_sizes, order_texts
from upt_zoo.errors import InvalidInput, InvalidText, Overloaded
from upt_zoo.references import Reference
from upt_zoo.spec import TaskInput

PAIR = TaskInput(name="mrpc", fields=("first", "second"), max_tokens=32, metric="f1")


def make_input(*texts: str, **fields: str) -> Input:
    return Input(adapter=Reference(name="mrpc"), texts=texts, fields=fields)


@pytest.mark.parametrize(
    "given",
    [make_input("a", "b"), make_input(first="a", second="b"), make_input(second="b", first="a")],
)
def test_texts_stand_in_the_order_of_the_fields(given: Input) -> None:
    assert order_texts(PAIR, given) == ("a", "b")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (make_input(), "either texts or fields"),
        (make_input("a", "b", first="a", second="b"), "either texts or fields"),
        (make_input("a"), "got 1 texts"),
        (make_input("a", "b", "c"), "got 3 texts"),
        (make_input(first="a"), "takes first and second, got first"),
        (make_input(first="a", second="b", third="c"), "got first, second, third"),
        (make_input(first="a", secnd="b"), "got first, secnd"),
        (make_input("a", ""), "second is empty"),
        (make_input(" \n", "\t"), "first and second is empty"),
    ],
)
def test_anything_else_is_refused_with_what_was_expected(given: Input, message: str) -> None:
    with pytest.raises(InvalidText, match=message):
        order_texts(PAIR, given)


@pytest.mark.parametrize("count", [0, 3])
def test_a_call_has_one_to_the_most_inputs(count: int) -> None:
    with pytest.raises(InvalidInput, match="1 to 2 inputs"):
        check_sizes([make_input("a", "b")] * count, Limits(max_inputs=2))


def test_characters_are_counted_over_all_texts_of_an_input() -> None:
    limits = Limits(max_input_chars=4)
    check_sizes([make_input("äö", "üß"), make_input(first="abcd")], limits)
    with pytest.raises(InvalidText, match="at most 4 characters, got 5") as caught:
        check_sizes([make_input("ok"), make_input(first="ab", second="cde")], limits)
    assert caught.value.__notes__ == ["inputs[1]"]


def test_an_error_shared_by_callers_is_located_for_each_of_them() -> None:
    shared = Overloaded("full", retry_after_s=7)
    located = []
    for index in (3, 4):
        with pytest.raises(Overloaded, match="full") as caught, at_input(index):
            raise shared
        located.append(caught.value)
    assert [error.__notes__ for error in located] == [["inputs[3]"], ["inputs[4]"]]
    assert [error.retry_after_s for error in located] == [7, 7]
    assert not hasattr(shared, "__notes__")
