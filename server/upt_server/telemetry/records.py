"""What is known of the call at hand, for its line in the log and its span; never a text.

A recorder of the edge begins a record; whoever learns something of the call notes it. In between
the record travels in the call's own context, as the caller does (``upt_server.access.callers``).
"""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass

from grpc import StatusCode

from upt_server.results import AdapterIdentity, Prediction
from upt_server.telemetry.tracing import Attributes, CallSpan
from upt_zoo.errors import InvalidReference
from upt_zoo.references import Reference

_MAX_ADAPTERS = 16  # of one call that are named; the rest is counted


@dataclass(slots=True, kw_only=True)
class Record:
    """One call. ``call`` is a method or a route of the server, never what a caller wrote.

    ``started_s`` is of the recorder's clock. ``adapters`` are ``name:version`` where they answered,
    else the names that were asked for. ``rows`` counts windows too. ``parts`` counts the requests
    of a stream that have begun.
    """

    request_id: str
    call: str
    started_s: float
    span: CallSpan | None = None
    caller: str | None = None
    status: str = ""
    adapters: tuple[str, ...] = ()
    digests: tuple[str, ...] = ()
    precision: str | None = None
    inputs: int | None = None
    rows: int | None = None
    tokens: int | None = None
    parts: int = 0

    def answered(self, prediction: Prediction) -> None:
        """Note what answered."""
        outputs = prediction.outputs
        identities: dict[AdapterIdentity, None] = dict.fromkeys(each.adapter for each in outputs)
        self.adapters = tuple(f"{each.name}:{each.version}" for each in identities)
        self.digests = tuple(each.digest for each in identities)
        self.precision = prediction.precision
        self.inputs = len(outputs)
        self.rows = sum(output.windows for output in outputs)
        self.tokens = sum(output.tokens for output in outputs)

    def failed(self, names: Iterable[str], code: StatusCode) -> None:
        """Note the names that were asked for, as far as they are names at all, and the status."""
        self.adapters = tuple(name for name in dict.fromkeys(names) if _is_name(name))
        self.status = code.name

    def facts(self) -> dict[str, str | int | list[str]]:
        """Return what is known, by the names that logs give it."""
        known: dict[str, str | int | list[str] | None] = {
            "request_id": self.request_id,
            "call": self.call,
            "caller": self.caller,
            "adapters": [*self.adapters[:_MAX_ADAPTERS]],
            "more_adapters": max(0, len(self.adapters) - _MAX_ADAPTERS) or None,
            "status": self.status,
            "inputs": self.inputs,
            "tokens": self.tokens,
            "trace_id": self.span.trace_id if self.span else None,
        }
        return {name: value for name, value in known.items() if value is not None}

    def attributes(self) -> Attributes:
        """Return what is known, by the names that spans give it."""
        known: dict[str, str | int | list[str] | None] = {
            "upt.request_id": self.request_id,
            "upt.caller": self.caller,
            "upt.adapters": [*self.adapters[:_MAX_ADAPTERS]],
            "upt.digests": [*self.digests[:_MAX_ADAPTERS]],
            "upt.precision": self.precision,
            "upt.status": self.status,
            "upt.inputs": self.inputs,
            "upt.rows": self.rows,
            "upt.tokens": self.tokens,
        }
        return {name: value for name, value in known.items() if value is not None}


_UNTRACED = nullcontext()
_AT_HAND: ContextVar[Record | None] = ContextVar("record", default=None)


def at_hand() -> Record | None:
    """Return the record of the call at hand; None where no edge has begun one."""
    return _AT_HAND.get()


def take_in_hand(record: Record) -> None:
    """Make a record that of the call at hand, for the rest of the task that serves it."""
    _AT_HAND.set(record)


def note_answered(prediction: Prediction) -> None:
    """Note what answered the call at hand."""
    record = at_hand()
    if record is not None:
        record.answered(prediction)


def note_failed(names: Iterable[str], code: StatusCode) -> None:
    """Note that the call at hand failed, and which adapters it asked for."""
    record = at_hand()
    if record is not None:
        record.failed(names, code)


def note_status(code: StatusCode) -> None:
    """Note how the call at hand ends, where its edge cannot say it so well."""
    record = at_hand()
    if record is not None:
        record.status = code.name


def phase(name: str) -> AbstractContextManager[None]:
    """Trace a part of the call at hand."""
    record = at_hand()
    return _UNTRACED if record is None or record.span is None else _traced(record.span, name)


@contextmanager
def _traced(span: CallSpan, name: str) -> Iterator[None]:
    begun = span.begin(name)
    try:
        yield
    finally:
        begun.end()


def _is_name(text: str) -> bool:
    try:
        return Reference.parse(text).name == text
    except InvalidReference:
        return False
