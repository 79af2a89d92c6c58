"""From a call's beginning to its line in the log and the end of its span; knows no protocol."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter

from upt_server.telemetry.choices import LoggedCalls
from upt_server.telemetry.log_lines import FACTS
from upt_server.telemetry.records import Record, at_hand, take_in_hand
from upt_server.telemetry.request_ids import REQUEST_ID, choose_request_id
from upt_server.telemetry.tracing import Tracer

Headers = Sequence[tuple[str, str]]
LOGGER = logging.getLogger("upt_server.calls")
TRACE_RESPONSE = "traceresponse"
_OK = "OK"
# where the server did not do what it should; what else is not OK is the caller's business
_FAULTS = ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS")
_GRAVE = ("UNKNOWN", "INTERNAL", "DATA_LOSS")


class Recorder:
    """Begins and ends the records of calls. ``logged`` says which of them leave a line."""

    def __init__(
        self,
        *,
        tracer: Tracer | None = None,
        logged: LoggedCalls = "none",
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self.tracer, self._logged, self._clock = tracer, logged, clock

    def begin(self, call: str, headers: Headers) -> Record:
        """Begin the record of a call and take it in hand; the names of headers are in lower case.

        ``call`` is a method or a route of the server.
        """
        record = Record(
            request_id=choose_request_id([value for key, value in headers if key == REQUEST_ID]),
            call=call,
            started_s=self._clock(),
            span=self.tracer.begin_call(headers) if self.tracer else None,
        )
        take_in_hand(record)
        return record

    @contextmanager
    def recording_part(self) -> Iterator[None]:
        """Record a request of the stream at hand; it must be served by a task of its own."""
        whole = at_hand()
        if whole is None:
            yield
            return
        record = self._begin_part(whole)
        try:
            yield
        finally:
            self.end(record, _OK)

    def _begin_part(self, whole: Record) -> Record:
        whole.parts += 1
        record = Record(
            request_id=f"{whole.request_id}#{whole.parts}",
            call=whole.call,
            started_s=self._clock(),
            span=whole.span.begin_part() if whole.span else None,
            caller=whole.caller,
        )
        take_in_hand(record)
        return record

    def end(self, record: Record, status: str) -> None:
        """End a call; ``status`` is what the edge saw, and counts where none was noted."""
        record.status = record.status or status
        if record.span is not None:
            record.span.end(record.call, record.attributes(), is_fault=record.status in _FAULTS)
        if self._logged == "all" or (self._logged == "failed" and record.status != _OK):
            milliseconds = round((self._clock() - record.started_s) * 1000, 3)
            facts = record.facts() | {"milliseconds": milliseconds}
            LOGGER.log(_level_of(record.status), "call", extra={FACTS: facts})


def response_headers(record: Record) -> list[tuple[str, str]]:
    """Return what a response tells of its call: the request's id, and its span if there is one."""
    headers = [(REQUEST_ID, record.request_id)]
    if record.span is not None:
        headers.append((TRACE_RESPONSE, record.span.parent_line))
    return headers


def _level_of(status: str) -> int:
    if status == _OK:
        return logging.INFO
    return logging.ERROR if status in _GRAVE else logging.WARNING
