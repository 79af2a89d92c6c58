from collections.abc import Iterator

import pytest
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]  # no py.typed
from grpc import StatusCode

from upt_server.inputs import at_input
from upt_server.statuses import (
    CODES,
    code_of,
    details_of,
    error_of,
    message_of,
    reason_of,
)
from upt_testing.serving import Publisher
from upt_zoo.errors import (
    AdapterNotFound,
    Corrupt,
    InvalidText,
    NotFound,
    Overloaded,
    Unavailable,
    UptError,
)
from upt_zoo.references import Reference


def walk(kind: type[UptError]) -> Iterator[type[UptError]]:
    for child in kind.__subclasses__():
        yield child
        yield from walk(child)


KINDS = [kind for kind in walk(UptError) if kind.__module__ == "upt_zoo.errors"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_has_a_status_and_comes_back_as_itself(kind: type[UptError]) -> None:
    error = kind("what was expected")
    code = code_of(error)
    assert code is not StatusCode.INTERNAL
    back = error_of(code, message_of(error), details_of(error))
    assert type(back) is kind
    assert str(back) == "what was expected"


@pytest.mark.parametrize("kind", [kind for kind in CODES if issubclass(kind, Exception)])
def test_a_status_without_details_becomes_an_error_of_its_code(kind: type[Exception]) -> None:
    back = error_of(code_of(kind("x")), "refused", b"")
    assert code_of(back) is code_of(kind("x"))
    assert str(back) == "refused"


@pytest.mark.parametrize(
    "error", [Overloaded("x", retry_after_s=0.25), Unavailable("x", retry_after_s=9)]
)
def test_when_to_try_again_travels(error: Overloaded | Unavailable) -> None:
    back = error_of(code_of(error), "x", details_of(error))
    assert isinstance(back, Overloaded | Unavailable)
    assert back.retry_after_s == error.retry_after_s


def test_our_fault_says_nothing_of_the_inside() -> None:
    for error in (ValueError("secret path"), UptError("secret path"), KeyError("secret path")):
        assert code_of(error) is StatusCode.INTERNAL
        assert "secret" not in message_of(error)
        assert b"secret" not in details_of(error)
        assert error.__class__.__name__.encode() not in details_of(error)


def test_a_bad_request_names_the_input() -> None:
    with pytest.raises(InvalidText) as caught, at_input(3):
        raise InvalidText("the field is empty")
    assert message_of(caught.value) == "inputs[3]: the field is empty"
    request = error_details_pb2.BadRequest()
    status = status_pb2.Status.FromString(details_of(caught.value))
    assert any(detail.Unpack(request) for detail in status.details)
    (violation,) = request.field_violations
    assert (violation.field, violation.description) == ("inputs[3]", "the field is empty")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("sst3", "no adapter sst3; did you mean sst2?"),
        ("nobody", "no adapter nobody"),
        ("sst2:2.0.0", "no sst2:2.0.0; it has 1.0.0"),
    ],
)
def test_callers_are_told_of_no_store(publish: Publisher, name: str, said: str) -> None:
    publish("sst2")
    with pytest.raises(AdapterNotFound) as caught, at_input(3):
        publish.store.resolve(Reference.parse(name))
    assert message_of(caught.value) == f"inputs[3]: {said}"
    assert str(publish.store.root).encode() not in details_of(caught.value)


def test_reasons_are_spelt_as_google_wants_them() -> None:
    assert reason_of(AdapterNotFound) == "ADAPTER_NOT_FOUND"


def test_a_class_that_the_client_does_not_know_becomes_its_nearest_one() -> None:
    class Later(NotFound):
        """An error of a later server."""

    details = details_of(Later("x")).replace(b"LATER", b"NEWER")
    assert type(error_of(StatusCode.NOT_FOUND, "x", details)) is NotFound


def test_long_messages_are_cut_between_characters() -> None:
    message = message_of(Corrupt("é" * 5000))
    assert set(message) == {"é"}
    assert len(message.encode()) <= 1000
    assert len(details_of(Corrupt("é" * 5000))) < 4096
