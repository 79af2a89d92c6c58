"""The one table between errors and gRPC statuses, read in both directions.

Details travel as ``google.rpc``: ErrorInfo (its reason names the class, so that a client raises the
same one), BadRequest for INVALID_ARGUMENT, RetryInfo where trying again helps.

Source: google/rpc/error_details.proto; AIP-193.
"""

import asyncio
import re
from collections.abc import Iterator
from functools import cache

from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]  # no py.typed
from grpc import StatusCode

from upt_zoo.errors import (
    Conflict,
    Corrupt,
    Forbidden,
    InvalidInput,
    InvalidSpec,
    NotFound,
    Overflowed,
    Overloaded,
    Unauthenticated,
    Unavailable,
    UptError,
    WrongAnswer,
    WrongBackbone,
)

CODES: dict[type[BaseException], StatusCode] = {
    InvalidInput: StatusCode.INVALID_ARGUMENT,
    WrongBackbone: StatusCode.FAILED_PRECONDITION,
    InvalidSpec: StatusCode.FAILED_PRECONDITION,  # a caller names adapters and never sends specs
    NotFound: StatusCode.NOT_FOUND,
    Conflict: StatusCode.ALREADY_EXISTS,
    Corrupt: StatusCode.DATA_LOSS,
    WrongAnswer: StatusCode.FAILED_PRECONDITION,  # its bytes are whole, but of no use here
    Overflowed: StatusCode.DATA_LOSS,
    Unauthenticated: StatusCode.UNAUTHENTICATED,
    Forbidden: StatusCode.PERMISSION_DENIED,
    Overloaded: StatusCode.RESOURCE_EXHAUSTED,
    Unavailable: StatusCode.UNAVAILABLE,
    TimeoutError: StatusCode.DEADLINE_EXCEEDED,
    asyncio.CancelledError: StatusCode.CANCELLED,
}
CANCELLED = ("The caller left before the answer.", "none is needed: the place in the queue is free")
# of the classes that share a code, the one that a client can make most of
_KINDS: dict[StatusCode, type[Exception]] = {
    code: kind for kind, code in reversed(CODES.items()) if issubclass(kind, Exception)
}
DETAILS_KEY = "grpc-status-details-bin"
_DOMAIN = "upt"
_TOO_LARGE = "larger than max"  # in gRPC's own words
FAULT = "a fault of the server; its log says more"
# clients refuse trailers of more than 8 KiB; the message is in them three times, once escaped
_MAX_MESSAGE_BYTES = 1000


def code_of(error: BaseException) -> StatusCode:
    """Return the code of the nearest class in the table; INTERNAL is our fault."""
    codes = (CODES[kind] for kind in type(error).__mro__ if kind in CODES)
    return next(codes, StatusCode.INTERNAL)


def reason_of(kind: type[BaseException]) -> str:
    """Spell an error's class as ``google.rpc.ErrorInfo`` wants reasons: ``ADAPTER_NOT_FOUND``."""
    return _spell_out(kind.__name__)


def message_of(error: BaseException) -> str:
    """Say what a caller may read: nothing of the inside where the fault is ours."""
    if code_of(error) is StatusCode.INTERNAL:
        return FAULT
    return _cut(": ".join([*_notes(error), _told(error)]))


def details_of(error: BaseException) -> bytes:
    """Serialise ``google.rpc.Status`` for the trailer ``DETAILS_KEY``."""
    code = code_of(error)
    is_fault = code is StatusCode.INTERNAL
    info = error_details_pb2.ErrorInfo(
        reason="INTERNAL" if is_fault else reason_of(type(error)), domain=_DOMAIN
    )
    status = status_pb2.Status(code=code.value[0], message=message_of(error))
    status.details.add().Pack(info)
    if code is StatusCode.INVALID_ARGUMENT:
        request = error_details_pb2.BadRequest()
        request.field_violations.add(field=".".join(_notes(error)), description=_cut(_told(error)))
        status.details.add().Pack(request)
    if isinstance(error, Overloaded | Unavailable):
        delay = Duration()
        delay.FromNanoseconds(int(error.retry_after_s * 1e9))
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return bytes(status.SerializeToString())


def error_of(code: StatusCode, message: str, details: bytes) -> Exception:
    """Turn a status back into the error that the server raised, else the nearest one.

    ``details`` may be empty: statuses that gRPC itself gives have none. It refuses a message that
    is too large with the code of a full queue, but trying again does not help there.
    """
    if code is StatusCode.RESOURCE_EXHAUSTED and not details and _TOO_LARGE in message:
        return InvalidInput(f"{message}; send fewer inputs a call")
    status = status_pb2.Status.FromString(details)
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    for detail in status.details:
        for known in (info, retry):
            detail.Unpack(known)
    retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
    return error_named(info.reason, code, message, retry_after_s=retry_after_s)


def error_named(
    reason: str, code: StatusCode, message: str, *, retry_after_s: float = 0.0
) -> Exception:
    """Return the error whose class a reason names, else the nearest one to a code."""
    kind = _kinds_by_reason().get(reason) or _KINDS.get(code, UptError)
    if issubclass(kind, Overloaded | Unavailable):
        return kind(message, retry_after_s=retry_after_s or 1.0)
    return kind(message)


@cache
def _spell_out(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).upper()


@cache
def _kinds_by_reason() -> dict[str, type[Exception]]:
    return {reason_of(kind): kind for kind in _subclasses(UptError)}


def _notes(error: BaseException) -> list[str]:
    return list(getattr(error, "__notes__", ()))


def _told(error: BaseException) -> str:
    return error.what if isinstance(error, UptError) else str(error)


def _cut(text: str) -> str:
    return text.encode()[:_MAX_MESSAGE_BYTES].decode(errors="ignore")


def _subclasses(kind: type[UptError]) -> Iterator[type[UptError]]:
    for child in kind.__subclasses__():
        yield child
        yield from _subclasses(child)
