"""The protocol over HTTP: ``/v2``.

Source: kserve/open-inference-protocol, specification/protocol/inference_rest.md; Triton's
extensions for configuration, statistics and the repository.
"""

import asyncio
from collections.abc import Awaitable, Callable
from http import HTTPStatus

from google.protobuf.message import Message
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from upt_protos.oip import open_inference_pb2 as pb
from upt_server.http_calls import ending_with_a_response, read_body
from upt_server.off_loop import SHORT_BYTES, off_loop
from upt_server.open_inference import bodies
from upt_server.open_inference.answers import OpenInferenceAnswers

_MODEL = "/v2/models/{model}"
_VERSION = "/v2/models/{model}/versions/{version}"


def build_routes(answers: OpenInferenceAnswers) -> list[Route]:
    """Route every question of the protocol."""
    return [
        *_routes_of_the_server(answers),
        *_routes_of_the_repository(answers),
        *_routes_of_models(answers),
    ]


def _routes_of_the_server(answers: OpenInferenceAnswers) -> list[Route]:
    async def live(_: Request) -> Response:
        return JSONResponse({"live": True})

    async def ready(_: Request) -> Response:
        return _readiness({"ready": answers.is_ready()})

    async def metadata(_: Request) -> Response:
        return await _write(answers.server_metadata())

    async def statistics(_: Request) -> Response:
        return await _write(await answers.statistics("", ""))

    return [
        _route("/v2/health/live", live),
        _route("/v2/health/ready", ready),
        _route("/v2", metadata),
        _route("/v2/models/stats", statistics),
    ]


def _routes_of_the_repository(answers: OpenInferenceAnswers) -> list[Route]:
    async def index(_: Request) -> Response:
        message = await answers.index()
        return await asyncio.to_thread(lambda: JSONResponse(bodies.plain(message)["models"]))

    async def load(request: Request) -> Response:
        message = pb.RepositoryModelLoadRequest(model_name=request.path_params["model"])
        for name in bodies.parse_load(await read_body(request)).parameters:
            message.parameters[name].SetInParent()  # what it says does not matter: none is taken
        await answers.load(message)
        return JSONResponse({})

    async def unload(request: Request) -> Response:
        bodies.parse_load(await read_body(request))
        await answers.unload(
            pb.RepositoryModelUnloadRequest(model_name=request.path_params["model"])
        )
        return JSONResponse({})

    return [
        _route("/v2/repository/index", index, "POST"),
        _route("/v2/repository/models/{model}/load", load, "POST"),
        _route("/v2/repository/models/{model}/unload", unload, "POST"),
    ]


def _routes_of_models(answers: OpenInferenceAnswers) -> list[Route]:
    async def ready(request: Request) -> Response:
        name, version = _model(request)
        is_ready = await answers.is_model_ready(name, version)
        return _readiness({"name": name, "ready": is_ready})

    async def infer(request: Request) -> Response:
        return await _infer(answers, request)

    def asking(ask: Callable[[str, str], Awaitable[Message]]) -> Callable[..., Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            return await _write(await ask(*_model(request)))

        return answer

    return [
        route
        for model in (_MODEL, _VERSION)
        for route in (
            _route(model, asking(answers.metadata)),
            _route(f"{model}/ready", ready),
            _route(f"{model}/config", asking(answers.config)),
            _route(f"{model}/stats", asking(answers.statistics)),
            _route(f"{model}/infer", infer, "POST"),
        )
    ]


async def _infer(answers: OpenInferenceAnswers, request: Request) -> Response:
    name, version = _model(request)
    data = await read_body(request)
    header_length = request.headers.get(bodies.HEADER_LENGTH)

    def read() -> tuple[bodies.InferBody, pb.ModelInferRequest]:
        body, binary = bodies.parse_infer(data, header_length)
        return body, bodies.make_request(name, version, body, binary)

    # parsing is slow for what a body can hold: not on the event loop
    body, message = await asyncio.to_thread(read)
    inferred = await answers.infer(message, None)
    content, length = bodies.write_inferred(name, body, inferred)
    if length is None:
        return Response(content, media_type="application/json")
    headers = {bodies.HEADER_LENGTH: str(length)}
    return Response(content, media_type="application/octet-stream", headers=headers)


async def _write(message: Message) -> Response:
    is_short = message.ByteSize() <= SHORT_BYTES
    return await off_loop(lambda: JSONResponse(bodies.plain(message)), is_short=is_short)


def _route(
    path: str, endpoint: Callable[[Request], Awaitable[Response]], method: str = "GET"
) -> Route:
    return Route(path, ending_with_a_response(endpoint), methods=[method])


def _model(request: Request) -> tuple[str, str]:
    return request.path_params["model"], request.path_params.get("version", "")


def _readiness(answer: dict[str, object]) -> Response:
    code = HTTPStatus.OK if answer["ready"] else HTTPStatus.SERVICE_UNAVAILABLE
    return JSONResponse(answer, status_code=code)
