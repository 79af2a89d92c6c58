"""One engine as a replica of Ray Serve, which calls it by the names of the services' methods."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import cast

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from ray import serve
from ray.serve.grpc_util import RayServegRPCContext, gRPCInputStream
from starlette.applications import Starlette
from starlette.types import ASGIApp, Receive, Scope, Send

from upt_protos.oip import open_inference_pb2
from upt_protos.v1 import inference_pb2
from upt_server.app import Server, load_engine
from upt_server.metrics import Metrics
from upt_server.ray.calls import Calls, Handlers
from upt_server.ray.options import ReplicaOptions
from upt_server.telemetry.recorder import Recorder

_SERVICES = (
    inference_pb2.DESCRIPTOR.services_by_name["Inference"],
    open_inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"],
    health_pb2.DESCRIPTOR.services_by_name["Health"],
)


class Unprefixed:
    """Takes Ray's ``route_prefix`` off the paths, which say what a call may do."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand a request on."""
        if scope["type"] == "http":
            path = scope["path"].removeprefix(scope["root_path"])
            scope = {**scope, "path": path or "/", "root_path": ""}
        await self._app(scope, receive, send)


@serve.ingress()
class Replica:
    """A server that listens nowhere: Ray's proxies bring it the calls."""

    async def __init__(self, options: ReplicaOptions) -> None:  # type: ignore[misc]  # Ray awaits it
        settings, metrics = options.settings(), Metrics()
        engine = load_engine(settings, metrics)
        self._server = Server(engine, metrics, settings, Recorder(logged=settings.logged_calls))
        handlers = Handlers()
        self._server.add_services(cast("grpc.aio.Server", handlers))
        self.calls = Calls(handlers, self._server.interceptors)
        await engine.warn_of_missing()
        await engine.preload(settings.preload)
        engine.check_servable()
        await self._server.open()

    def __serve_build_asgi_app__(self) -> Starlette:
        """Return what answers over HTTP."""
        self._server.application.add_middleware(Unprefixed)
        return self._server.application


def _answering(path: str) -> Callable[..., Awaitable[Message]]:
    async def answer(self: Replica, request: Message, grpc_context: RayServegRPCContext) -> Message:
        return await self.calls.answer(path, request, grpc_context)

    return answer


def _streaming(path: str) -> Callable[..., AsyncIterator[Message]]:
    async def stream(
        self: Replica, requests: gRPCInputStream[Message], grpc_context: RayServegRPCContext
    ) -> AsyncIterator[Message]:
        async for response in self.calls.answer_stream(path, requests, grpc_context):
            yield response

    return stream


for _service in _SERVICES:
    for _each in _service.methods:
        _path = f"/{_service.full_name}/{_each.name}"
        if _each.client_streaming:
            setattr(Replica, _each.name, _streaming(_path))
        elif not _each.server_streaming:  # left out: health's Watch, which never ends
            setattr(Replica, _each.name, _answering(_path))
