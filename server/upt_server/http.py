"""The HTTP edge: ``upt.v1`` as JSON for callers; metrics, liveness, readiness for operators.

A message's JSON form is protobuf's own mapping (https://protobuf.dev/programming-guides/json).
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import uvicorn
from google.protobuf.json_format import MessageToDict, Parse, ParseError
from google.protobuf.message import Message
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from upt_protos.v1 import inference_pb2 as pb
from upt_server import statuses
from upt_server.access.callers import Access
from upt_server.access.http_guard import HttpGuard
from upt_server.gate import Gate
from upt_server.http_calls import (
    CallBound,
    LeaverWatch,
    ending_with_a_response,
    read_body,
    respond_error,
    respond_unrouted,
)
from upt_server.http_connections import ImpatientProtocol
from upt_server.metrics import Metrics
from upt_server.off_loop import SHORT_BYTES, off_loop
from upt_server.service import Answers
from upt_server.telemetry.http_recorder import HttpRecorder
from upt_server.telemetry.recorder import Recorder
from upt_server.tls import ServerTls
from upt_zoo.errors import InvalidInput


def build_application(
    answers: Answers,
    gate: Gate,
    metrics: Metrics,
    access: Access,
    recorder: Recorder,
    *,
    more_routes: Iterable[Route] = (),
    max_calls: int,
    has_metrics: bool = True,
) -> Starlette:
    """Route the calls of ``upt.v1``, those of other protocols, and what operators ask.

    ``/metrics``, unless switched off; ``/healthz``, the process lives; ``/readyz``, calls are
    admitted. At most ``max_calls`` are answered at once.
    """

    def refuse(error: Exception, path: str) -> Response:
        metrics.call_failed((), statuses.code_of(error))
        return respond_error(error, path)

    routes = [*_routes_of_callers(answers), *more_routes, *_routes_of_operators(gate, metrics)]
    return Starlette(
        routes=[route for route in routes if has_metrics or route.path != "/metrics"],
        middleware=[
            Middleware(HttpRecorder, recorder=recorder, access=access),
            Middleware(HttpGuard, access=access, refuse=refuse),
            Middleware(CallBound, most=max_calls, refuse=refuse),
            Middleware(LeaverWatch),
        ],
        exception_handlers={HTTPException: respond_unrouted},
    )


def _routes_of_callers(answers: Answers) -> list[Route]:
    async def predict(request: Request) -> Message:
        # parsing is slow for what a body can hold: not on the event loop
        message = await asyncio.to_thread(_parse, await read_body(request))
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
        text = await asyncio.to_thread(metrics.text)
        return Response(text, headers={"content-type": CONTENT_TYPE_LATEST})

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
        message = await answer(request)
        is_short = message.ByteSize() <= SHORT_BYTES
        return await off_loop(partial(_write, message), is_short=is_short)

    return ending_with_a_response(respond)


def _write(message: Message) -> Response:
    return JSONResponse(MessageToDict(message, always_print_fields_with_no_presence=True))


def _parse(body: bytes) -> pb.PredictRequest:
    try:
        return Parse(body, pb.PredictRequest())
    except (ParseError, UnicodeDecodeError) as error:
        raise InvalidInput(f"expected a PredictRequest in JSON: {error}") from error


class HttpServer(uvicorn.Server):
    """uvicorn inside an event loop that is not its own: signals are left to the loop's owner.

    Raises:
        InvalidInput: the files of TLS cannot be read, or are not what they should be.
    """

    def __init__(self, application: Starlette, tls: ServerTls | None) -> None:
        options = tls.uvicorn_options() if tls else {}
        super().__init__(
            uvicorn.Config(
                application,
                http=ImpatientProtocol,
                lifespan="off",
                log_config=None,
                access_log=False,
                **options,
            )
        )
        try:
            self.config.load()  # TLS too, whose faults shall end the start
        except OSError as error:  # as OpenSSL's own errors are
            raise InvalidInput(f"cannot speak TLS with the files given: {error}") from error

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield
