"""Whether traces are wanted, and where they go. It needs no package of OpenTelemetry itself.

Source: the OpenTelemetry specification, OTLP exporter and SDK environment variables.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from upt_server.telemetry.tracing import Tracer
from upt_zoo.errors import InvalidInput

Protocol = Literal["grpc", "http/protobuf"]
_PROTOCOLS: tuple[Protocol, ...] = ("grpc", "http/protobuf")
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Traces:
    """Where spans are sent; ``endpoint`` None: where the variables ``OTEL_*`` say."""

    endpoint: str | None
    protocol: Protocol = "grpc"


def choose_traces(endpoint: str | None, environment: Mapping[str, str]) -> Traces | None:
    """Return where spans are to be sent; None where neither an endpoint nor a variable asks for it.

    Raises:
        InvalidInput: the endpoint is no URL, or a variable names another protocol or exporter.
    """
    if endpoint is not None and not endpoint.startswith(("http://", "https://")):
        raise InvalidInput(f"expected http://HOST:PORT or https://HOST:PORT, got {endpoint!r}")
    exporter = environment.get("OTEL_TRACES_EXPORTER", "")
    is_off = environment.get("OTEL_SDK_DISABLED", "").lower() == "true" or exporter == "none"
    is_asked = exporter == "otlp" or any(
        environment.get(f"OTEL_EXPORTER_OTLP_{part}ENDPOINT") for part in ("TRACES_", "")
    )
    if endpoint is None and (is_off or not is_asked):
        return None
    name = environment.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environment.get(
        "OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"
    )
    for protocol in _PROTOCOLS:
        if name == protocol:
            return Traces(endpoint=endpoint, protocol=protocol)
    raise InvalidInput(
        f"expected the protocol of OTLP to be {' or '.join(_PROTOCOLS)}, got {name!r}; "
        f"set OTEL_EXPORTER_OTLP_PROTOCOL"
    )


def open_tracer(traces: Traces | None, version: str) -> Tracer | None:
    """Begin to send spans; None where none are wanted.

    Raises:
        InvalidInput: an endpoint was given and the optional packages are not installed. Where only
            the environment asks, which may be the same for many programs, that is a warning.
    """
    if traces is None:
        return None
    try:
        from upt_server.telemetry.otel import connect
    except ModuleNotFoundError as error:
        message = f"traces need `pip install upt-zoo[otel]`: there is no module {error.name}"
        if traces.endpoint is not None:
            raise InvalidInput(message) from error
        _LOGGER.warning("%s", message)
        return None
    return connect(traces, version)
