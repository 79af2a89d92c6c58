"""Traces by OpenTelemetry: W3C's context in and out, spans to a collector by OTLP.

The only module that imports the SDK, which is optional; it is imported where traces are wanted.

Source: W3C Trace Context; of its second level, ``traceresponse``; OpenTelemetry's semantic
conventions for servers of RPC and HTTP.
"""

import re
from collections.abc import Iterable, Sequence
from time import time_ns

from opentelemetry.context import Context
from opentelemetry.sdk.resources import (
    SERVICE_NAME,
    SERVICE_VERSION,
    OTELResourceDetector,
    Resource,
)
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import (
    Link,
    Span,
    SpanKind,
    Status,
    StatusCode,
    format_span_id,
    format_trace_id,
    set_span_in_context,
)
from opentelemetry.trace import Tracer as SdkTracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from upt_server.results import BatchFacts
from upt_server.telemetry.traces import Traces
from upt_server.telemetry.tracing import Attributes, BatchSpan, CallSpan, Phase

_NAME, _SCOPE = "upt-server", "upt_server"
_PATH = "/v1/traces"
_FLUSH_MS = 2000  # a collector that is away does not hold the server back for longer
_PROPAGATOR = TraceContextTextMapPropagator()
_MAX_CHARS = 512  # of a header, as in the standard
_NAME_CHARS = r"[_0-9a-z*/-]"
_MEMBER = re.compile(
    rf"([a-z]{_NAME_CHARS}{{0,255}}|[a-z0-9]{_NAME_CHARS}{{0,240}}@[a-z]{_NAME_CHARS}{{0,13}})"
    r"=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
)


class OtelTracer:
    """Begins the spans of calls and of batches.

    A span of a batch begins a trace of its own, since it belongs to many calls. It is linked to the
    spans of these calls, and each of them has a child ``forward`` that is linked to the batch.
    """

    def __init__(self, provider: TracerProvider, version: str) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer(_SCOPE, version)

    def begin_call(self, headers: Iterable[tuple[str, str]]) -> CallSpan:
        """Begin a call, as a child of the caller's span if the headers name one."""
        parent = _PROPAGATOR.extract(_carrier(headers), Context())
        return _OtelCall(self._tracer, self._tracer.start_span("call", parent, SpanKind.SERVER))

    def begin_batch(self, calls: Sequence[CallSpan]) -> BatchSpan | None:
        """Begin a forward pass with rows of these calls; None if none of them is recorded."""
        recorded = [call for call in calls if isinstance(call, _OtelCall) and call.is_recorded]
        return _OtelBatch(self._tracer, recorded) if recorded else None

    def close(self) -> None:
        """End; it blocks for seconds at most."""
        self._provider.force_flush(_FLUSH_MS)
        self._provider.shutdown()


class _OtelCall:
    def __init__(self, tracer: SdkTracer, span: Span) -> None:
        self._tracer, self._span = tracer, span
        self.context = set_span_in_context(span, Context())
        self.is_recorded = span.is_recording()

    @property
    def trace_id(self) -> str:
        return format_trace_id(self._span.get_span_context().trace_id)

    @property
    def parent_line(self) -> str:
        context = self._span.get_span_context()
        return f"00-{self.trace_id}-{format_span_id(context.span_id)}-{context.trace_flags:02x}"

    @property
    def link(self) -> Link:
        return Link(self._span.get_span_context())

    def begin(self, phase: str) -> Phase:
        return self._tracer.start_span(phase, self.context)

    def begin_part(self) -> CallSpan:
        return _OtelCall(self._tracer, self._tracer.start_span("call", self.context))

    def end(self, name: str, attributes: Attributes, *, is_fault: bool) -> None:
        self._span.update_name(name)
        self._span.set_attributes(attributes)
        if is_fault:
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()


class _OtelBatch:
    def __init__(self, tracer: SdkTracer, calls: Sequence[_OtelCall]) -> None:
        self._tracer, self._calls, self._started_ns = tracer, calls, time_ns()
        links = [call.link for call in calls]
        self._span = tracer.start_span("batch", Context(), links=links)

    def end(self, facts: BatchFacts, fill: float) -> None:
        attributes: Attributes = {
            "upt.batch.rows": facts.rows,
            "upt.batch.tokens": facts.tokens,
            "upt.batch.distinct_adapters": facts.distinct_adapters,
            "upt.batch.fill": fill,
        }
        ended_ns = time_ns()
        links = [Link(self._span.get_span_context())] if self._span.is_recording() else []
        for call in self._calls:
            self._tracer.start_span(
                "forward",
                call.context,
                links=links,
                attributes=attributes,
                start_time=self._started_ns,
            ).end(ended_ns)
        self._span.set_attributes(attributes)
        self._span.end(ended_ns)


def connect(traces: Traces, version: str) -> OtelTracer:
    """Send spans to a collector, in the background; one that is away loses them and is logged."""
    provider = TracerProvider(
        resource=Resource.create({SERVICE_NAME: _NAME, SERVICE_VERSION: version}).merge(
            OTELResourceDetector().detect()  # what the environment says counts
        )
    )
    provider.add_span_processor(BatchSpanProcessor(_exporter(traces)))
    return OtelTracer(provider, version)


def _exporter(traces: Traces) -> SpanExporter:
    if traces.protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc import trace_exporter as grpc_exporter

        return grpc_exporter.OTLPSpanExporter(endpoint=traces.endpoint)
    from opentelemetry.exporter.otlp.proto.http import trace_exporter as http_exporter

    return http_exporter.OTLPSpanExporter(endpoint=_http_url(traces.endpoint))


def _http_url(endpoint: str | None) -> str | None:
    """Return the URL that spans are posted to, of that of the collector."""
    return None if endpoint is None else f"{endpoint.rstrip('/').removesuffix(_PATH)}{_PATH}"


def _carrier(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the headers that say whose child a call is; of two parents, neither counts.

    What is malformed is left out here: the propagator would write the caller's words into the log.
    """
    given = list(headers)
    parents = [value for key, value in given if key == "traceparent"]
    state = ",".join(value for key, value in given if key == "tracestate")
    if len(parents) != 1 or len(parents[0]) > _MAX_CHARS:
        return {}
    return {"traceparent": parents[0]} | ({"tracestate": state} if _is_state(state) else {})


def _is_state(text: str) -> bool:
    members = (member.strip(" \t") for member in text.split(","))
    return len(text) <= _MAX_CHARS and all(map(_MEMBER.fullmatch, filter(None, members)))
