"""W3C's trace context on the way out: a client's call is a child of its program's span at hand."""

import sys


def outgoing_context() -> tuple[tuple[str, str], ...]:
    """Return the metadata that say so; none where the program does not trace by OpenTelemetry."""
    if "opentelemetry.trace" not in sys.modules:  # who has a span has imported it
        return ()
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return tuple(carrier.items())
