"""The seam to tracing: what the server tells of calls and batches. Knows no library for it.

Where no tracer is, calls have no span and nothing here is called.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from upt_server.results import BatchFacts

Attributes = Mapping[str, str | int | float | Sequence[str]]


class Phase(Protocol):
    """A part of a call that has begun."""

    def end(self) -> None:
        """End it."""
        ...


class CallSpan(Protocol):
    """One call, or one request of a stream."""

    @property
    def trace_id(self) -> str:
        """Return the trace's id as W3C spells it, in 32 hexadecimal digits."""
        ...

    @property
    def parent_line(self) -> str:
        """Return the span as W3C's ``traceparent`` spells it."""
        ...

    def begin(self, phase: str) -> Phase:
        """Begin a part of the call."""
        ...

    def begin_part(self) -> "CallSpan":
        """Begin a request of a stream."""
        ...

    def end(self, name: str, attributes: Attributes, *, is_fault: bool) -> None:
        """End the call; ``is_fault``: the server could not do what it should."""
        ...


class BatchSpan(Protocol):
    """One forward pass that is at work."""

    def end(self, facts: BatchFacts, fill: float) -> None:
        """End it; ``fill`` is the share of the tokens that a batch may have."""
        ...


class Tracer(Protocol):
    """Begins spans; ``close`` sends what has not been sent yet, or gives up soon."""

    def begin_call(self, headers: Iterable[tuple[str, str]]) -> CallSpan:
        """Begin a call, as a child of the caller's span if the headers name one."""
        ...

    def begin_batch(self, calls: Sequence[CallSpan]) -> BatchSpan | None:
        """Begin a forward pass with rows of these calls; None if none of them is recorded."""
        ...

    def close(self) -> None:
        """End; it blocks for seconds at most."""
        ...
