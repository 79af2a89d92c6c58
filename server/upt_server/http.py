"""The HTTP edge: ``upt.v1`` as JSON for callers; metrics, liveness, readiness for operators.

A message's JSON form is protobuf's own mapping (https://protobuf.dev/programming-guides/json),
an error's that of Google's APIs (AIP-193), with the status codes of google/rpc/code.proto.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from math import ceil

import uvicorn
from google.protobuf.json_format import MessageToDict, Parse, ParseError
from google.protobuf.message import Message
from grpc import StatusCode
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from upt_protos.v1 import inference_pb2 as pb
from upt_server import statuses
from upt_server.gate import Gate
from upt_server.metrics import Metrics
from upt_server.service import Answers
from upt_server.tls import ServerTls
from upt_zoo.errors import InvalidInput, Overloaded, Unavailable

_LOGGER = logging.getLogger(__name__)
_MAX_BODY_BYTES = 4 * 1024**2  # as gRPC's own bound on a message
_CLIENT_CLOSED_REQUEST = 499
_HTTP_CODES: dict[StatusCode, int] = {
    StatusCode.INVALID_ARGUMENT: HTTPStatus.BAD_REQUEST,
    StatusCode.FAILED_PRECONDITION: HTTPStatus.BAD_REQUEST,
    StatusCode.NOT_FOUND: HTTPStatus.NOT_FOUND,
    StatusCode.ALREADY_EXISTS: HTTPStatus.CONFLICT,
    StatusCode.RESOURCE_EXHAUSTED: HTTPStatus.TOO_MANY_REQUESTS,
    StatusCode.CANCELLED: _CLIENT_CLOSED_REQUEST,
    StatusCode.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    StatusCode.DEADLINE_EXCEEDED: HTTPStatus.GATEWAY_TIMEOUT,
}


def build_application(answers: Answers, gate: Gate, metrics: Metrics) -> Starlette:
    """Route the calls of ``upt.v1``, and what operators ask.

    ``/metrics``; ``/healthz``, the process lives; ``/readyz``, calls are admitted.
    """
    return Starlette(routes=[*_routes_of_callers(answers), *_routes_of_operators(gate, metrics)])


def _routes_of_callers(answers: Answers) -> list[Route]:
    async def predict(request: Request) -> Message:
        # parsing is slow for what a body can hold: not on the event loop
        message = await asyncio.to_thread(_parse, await _read_body(request))
        return await answers.predict(message, None)

    async def list_adapters(_: Request) -> Message:
        return await answers.list_adapters()

    async def get_adapter(request: Request) -> Message:
        return await answers.get_adapter(request.path_params["adapter"])

    return [
        Route("/v1/predict", _as_json(predict), methods=["POST"]),
        Route("/v1/adapters", _as_json(list_adapters)),
        Route("/v1/adapters/{adapter:path}", _as_json(get_adapter)),
    ]


def _routes_of_operators(gate: Gate, metrics: Metrics) -> list[Route]:
    async def show_metrics(_: Request) -> Response:
        return Response(metrics.text(), headers={"content-type": CONTENT_TYPE_LATEST})

    async def show_life(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def show_readiness(_: Request) -> Response:
        if gate.is_open:
            return PlainTextResponse("ok\n")
        return PlainTextResponse(f"{gate.state}\n", status_code=503)

    routes = {"/metrics": show_metrics, "/healthz": show_life, "/readyz": show_readiness}
    return [Route(path, endpoint) for path, endpoint in routes.items()]


def _as_json(
    answer: Callable[[Request], Awaitable[Message]],
) -> Callable[[Request], Awaitable[Response]]:
    """Write what an endpoint returns or raises as JSON."""

    async def respond(request: Request) -> Response:
        try:
            message = await answer(request)
        except ClientDisconnect:
            return Response(status_code=_CLIENT_CLOSED_REQUEST)
        except Exception as error:  # noqa: BLE001 - the edge: every error becomes a status
            return _error(error)
        return JSONResponse(MessageToDict(message, always_print_fields_with_no_presence=True))

    return respond


def _error(error: Exception) -> Response:
    code = statuses.code_of(error)
    http_code = _HTTP_CODES.get(code, HTTPStatus.INTERNAL_SERVER_ERROR)
    if code is StatusCode.INTERNAL:
        _LOGGER.error("a call failed", exc_info=error)
    headers = {}
    if isinstance(error, Overloaded | Unavailable):
        headers["retry-after"] = str(ceil(error.retry_after_s))
    body = {"code": int(http_code), "status": code.name, "message": statuses.message_of(error)}
    return JSONResponse({"error": body}, status_code=http_code, headers=headers)


def _parse(body: bytes) -> pb.PredictRequest:
    try:
        return Parse(body, pb.PredictRequest())
    except (ParseError, UnicodeDecodeError) as error:
        raise InvalidInput(f"expected a PredictRequest in JSON: {error}") from error


async def _read_body(request: Request) -> bytes:
    """Read the body, bounded before it is parsed."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_BODY_BYTES:
            raise InvalidInput(
                f"expected a body of at most {_MAX_BODY_BYTES} bytes; split the call"
            )
    return bytes(body)


class HttpServer(uvicorn.Server):
    """uvicorn inside an event loop that is not its own: signals are left to the loop's owner."""

    def __init__(self, application: Starlette, tls: ServerTls | None) -> None:
        options = tls.uvicorn_options() if tls else {}
        super().__init__(
            uvicorn.Config(
                application, lifespan="off", log_config=None, access_log=False, **options
            )
        )

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield
