"""The wiring, by hand: from settings to a running server, and from there to nothing."""

import asyncio
import gc
import importlib.metadata
import logging
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import cast

import grpc
import torch
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from pydantic import JsonValue
from starlette.routing import Route

from upt_protos.oip import open_inference_pb2, open_inference_pb2_grpc
from upt_protos.v1 import admin_pb2, admin_pb2_grpc, inference_pb2, inference_pb2_grpc
from upt_server import openapi, page
from upt_server.access.callers import Access
from upt_server.access.grpc_guard import GrpcGuard
from upt_server.access.open_calls import remember_makers
from upt_server.access.tokens import TokenFile
from upt_server.admin import AdminService
from upt_server.batcher import Batcher
from upt_server.engine import Engine
from upt_server.gates import GateReader
from upt_server.http import HttpServer, build_application
from upt_server.metrics import Metrics
from upt_server.open_inference import rest
from upt_server.open_inference.answers import OpenInferenceAnswers
from upt_server.open_inference.service import OpenInferenceService
from upt_server.residency import Residency
from upt_server.routes import Routes
from upt_server.runner import Runner
from upt_server.runner_choice import load_runner
from upt_server.self_check import SelfCheck
from upt_server.service import Answers, InferenceService
from upt_server.settings import Settings
from upt_server.shedding import Shedding
from upt_server.streams import Streams
from upt_server.telemetry.grpc_recorder import GrpcRecorder
from upt_server.telemetry.recorder import Recorder
from upt_server.telemetry.traces import open_tracer
from upt_server.telemetry.tracing import Tracer
from upt_server.tls import is_loopback
from upt_server.working_set import read_working_set, remembering
from upt_zoo.backbone import Backbone, resolve_backbone
from upt_zoo.catalogue import home_store
from upt_zoo.errors import InvalidInput
from upt_zoo.tokenization import Tokenizer

logger = logging.getLogger(__name__)

SERVICE = inference_pb2.DESCRIPTOR.services_by_name["Inference"].full_name
OPEN_INFERENCE_SERVICE = open_inference_pb2.DESCRIPTOR.services_by_name[
    "GRPCInferenceService"
].full_name
ADMIN_SERVICE = admin_pb2.DESCRIPTOR.services_by_name["Admin"].full_name
_GRPC_OPTIONS = (
    ("grpc.so_reuseport", 0),  # a second server on the port shall fail
    # who is gone without a word is found out, and silent connections are closed
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.server_handshake_timeout_ms", 20_000),
    ("grpc.max_connection_idle_ms", 300_000),
)
_OTHER_PORT = "stop what listens there, or take another port; 0 takes a free one"
_LAST_WORDS_S = 1.0  # for answers on their way out, and for streams that never end by themselves


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """Where the server listens."""

    grpc: int
    http: int
    admin: int | None = None


async def serve(settings: Settings, on_ready: Callable[[Ports], None]) -> None:
    """Serve until SIGTERM or SIGINT, then finish the calls inside and return.

    Raises:
        OSError: a port is taken.
        UptError: the backbone or an adapter to preload is missing, damaged or of another kind.
        WrongAnswer: of the adapters to load first, none answers as it should.
    """
    metrics = Metrics(max_adapter_labels=settings.max_adapter_labels)
    tracer = open_tracer(settings.traces, _version())
    recorder = Recorder(tracer=tracer, logged=settings.logged_calls)
    engine = await asyncio.to_thread(load_engine, settings, metrics, tracer)
    server = Server(engine, metrics, settings, recorder)
    try:
        ports = await server.start()
        await engine.warn_of_missing()
        if settings.warm_start is not None:
            await engine.warm(read_working_set(settings.warm_start))
        await engine.preload(settings.preload)
        engine.check_servable()
        # until here a signal ends the process at once: there is nothing to finish
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, server.stop.set)
        _forget_garbage()
        await server.open()
        on_ready(ports)
        file = settings.warm_start
        async with remembering(file, engine.resident) if file else nullcontext():
            await server.stop.wait()
    finally:
        await server.drain()
        if tracer is not None:
            await asyncio.to_thread(tracer.close)


def build_engine(
    settings: Settings,
    backbone: Backbone,
    runner: Runner,
    metrics: Metrics,
    tracer: Tracer | None = None,
) -> Engine:
    """Put an engine together around a runner."""
    metrics.server_built(
        version=_version(),
        backbone_digest=backbone.identity.digest,
        precision=settings.precision,
        runner=runner.name,
    )
    batcher = Batcher(
        runner,
        budget=settings.budget,
        max_queue_tokens=settings.max_queue_tokens,
        observe=metrics.batch_computed,
        tracer=tracer,
    )
    metrics.queue_built(lambda: batcher.queue_rows)
    metrics.limits_set(
        batch_tokens=settings.budget.tokens,
        queue_tokens=settings.max_queue_tokens,
        adapter_bytes=settings.max_adapter_bytes,
    )
    store, tokenizer = home_store(settings.home), Tokenizer(backbone.tokenizer_file)
    checks = SelfCheck(tokenizer, batcher, settings.precision)
    engine = Engine(
        backbone_digest=backbone.identity.digest,
        precision=settings.precision,
        tokenizer=tokenizer,
        residency=Residency(
            store,
            backbone,
            runner,
            limit_bytes=settings.max_adapter_bytes,
            observer=metrics,
            check=None if settings.self_check == "off" else checks.check,
            are_all_checked=settings.self_check == "all",
        ),
        batcher=batcher,
        gates=GateReader(backbone, store),
        limits=settings.limits,
        access=_build_access(settings),
        routes=Routes(settings.routes),
        weights=settings.weights,
    )
    metrics.memory_built(lambda: engine.status().adapter_bytes)
    return engine


class Server:
    """The edges around one engine: gRPC and HTTP for callers, and a port for operators.

    ``stop`` is set where an operator wants the server to stop.

    Raises:
        InvalidInput: a port for operators without tokens.
    """

    def __init__(
        self,
        engine: Engine,
        metrics: Metrics,
        settings: Settings,
        recorder: Recorder | None = None,
    ) -> None:
        self._engine, self._settings = engine, settings
        recorder = recorder or Recorder()
        self._recorder = GrpcRecorder(recorder, engine.access)
        self.stop = asyncio.Event()
        self._health = health.aio.HealthServicer()
        refused = partial(metrics.call_failed, ())
        self._shedding = Shedding()
        self._watching: asyncio.Task[None] | None = None
        metrics.shedding_built(lambda: self._shedding.share)
        guard = GrpcGuard(engine.access, refused, shedding=self._shedding)
        self.interceptors = (self._recorder, guard)
        self._grpc = _grpc_server(settings, self.interceptors)
        answers, streams = Answers(engine, metrics), Streams()
        open_inference = OpenInferenceAnswers(
            engine, metrics, _version(), has_model_control=settings.has_model_control
        )
        self._inference = InferenceService(answers, recorder, streams)
        self._open_inference = OpenInferenceService(open_inference, recorder, streams)
        self.add_services(cast("grpc.aio.Server", _ByService(self._grpc)))
        names = (
            SERVICE,
            OPEN_INFERENCE_SERVICE,
            health.SERVICE_NAME,
            reflection.SERVICE_NAME,
        )
        if settings.has_reflection:
            reflection.enable_server_reflection(names, self._grpc)
        self._admin = self._build_admin(refused) if settings.admin else None
        self._page_setup: dict[str, JsonValue] = {
            "grpc_port": settings.grpc_port,
            "has_metrics": settings.has_metrics,
            "needs_token": settings.tokens is not None,
        }
        self.application = build_application(
            answers,
            engine.gate,
            metrics,
            engine.access,
            recorder,
            more_routes=[
                *rest.build_routes(open_inference),
                *openapi.build_routes(_version()),
                *(self._routes_of_the_page() if settings.has_page else ()),
            ],
            max_calls=settings.max_concurrent_calls,
            has_metrics=settings.has_metrics,
        )
        self._http = HttpServer(self.application, settings.tls)
        self._http_task: asyncio.Task[None] | None = None

    def add_services(self, server: grpc.aio.Server) -> None:
        """Let a gRPC server answer callers; ``interceptors`` are to stand before them."""
        inference_pb2_grpc.add_InferenceServicer_to_server(self._inference, server)
        open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(
            self._open_inference, server
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)

    async def start(self) -> Ports:
        """Listen, and answer that the server is not ready.

        Raises:
            OSError: a port is taken.
        """
        remember_makers()
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        http_socket = _listen(self._settings.host, self._settings.http_port)
        self._http_task = asyncio.create_task(self._http.serve(sockets=[http_socket]))
        grpc_port = self._add_port(self._grpc, self._settings.host, self._settings.grpc_port)
        self._page_setup["grpc_port"] = grpc_port  # 0 took a free one
        await self._grpc.start()
        self._watching = asyncio.create_task(self._shedding.watch())
        admin_port = None
        if self._admin is not None and self._settings.admin is not None:
            admin = self._settings.admin
            admin_port = self._add_port(self._admin, admin.host, admin.port)
            await self._admin.start()
        return Ports(grpc=grpc_port, http=http_socket.getsockname()[1], admin=admin_port)

    def _routes_of_the_page(self) -> list[Route]:
        store, backbone = home_store(self._settings.home), self._engine.status().backbone_digest
        return page.build_routes(store, self._engine.access, backbone, self._page_setup)

    def _build_admin(self, refused: Callable[[grpc.StatusCode], None]) -> grpc.aio.Server:
        if self._settings.tokens is None:
            raise InvalidInput(
                "the port for operators needs --tokens: `upt-server token create` makes one"
            )
        # whatever is asked there, reflection too, needs the scope
        guard = GrpcGuard(self._engine.access, refused, need_of=lambda _: "admin")
        server = _grpc_server(self._settings, (self._recorder, guard))
        admin_pb2_grpc.add_AdminServicer_to_server(
            AdminService(self._engine, _version(), self.stop), server
        )
        if self._settings.has_reflection:
            reflection.enable_server_reflection((ADMIN_SERVICE, reflection.SERVICE_NAME), server)
        return server

    def _add_port(self, server: grpc.aio.Server, host: str, port: int) -> int:
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            if self._settings.tls is None:
                return server.add_insecure_port(address)
            return server.add_secure_port(address, self._settings.tls.grpc_credentials())
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address}: {error}; {_OTHER_PORT}") from error

    async def open(self) -> None:
        """Admit calls."""
        self._engine.gate.open()
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)

    async def drain(self) -> None:
        """Admit nobody, finish the calls inside or cut them off in the end, close everything."""
        await self._health.enter_graceful_shutdown()
        try:
            async with asyncio.timeout(self._settings.drain_timeout_s):
                await self._engine.gate.drain()
        except TimeoutError:
            logger.warning("calls were cut off after %s s", self._settings.drain_timeout_s)
        await self._grpc.stop(_LAST_WORDS_S)
        if self._watching is not None:
            self._watching.cancel()
        if self._admin is not None:
            await self._admin.stop(_LAST_WORDS_S)
        if self._http_task is not None:
            self._http.should_exit = True
            await self._http_task
        await self._engine.close()

    async def _set_health(self, status: "health_pb2.HealthCheckResponse.ServingStatus") -> None:
        for name in ("", SERVICE):
            await self._health.set(name, status)


class _ByService:
    """Adds services to a gRPC server as wholes, and the methods of the health service by name too.

    For each method that is added by name, ``grpc.aio`` waits for the next call anew whenever any
    call comes: of 22 methods that takes longer than all that a guard does. All others share one
    queue, in which a health check would wait behind every call that came before.
    """

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Add a service."""
        self._server.add_generic_rpc_handlers(tuple(handlers))

    def add_registered_method_handlers(
        self, service: str, handlers: dict[str, "grpc.RpcMethodHandler[object, object]"]
    ) -> None:
        """Add its methods by name, of the health service."""
        if service == health.SERVICE_NAME:
            self._server.add_registered_method_handlers(service, handlers)


def _grpc_server(
    settings: Settings, interceptors: Sequence[grpc.aio.ServerInterceptor]
) -> grpc.aio.Server:
    return grpc.aio.server(
        interceptors=interceptors,
        maximum_concurrent_rpcs=settings.max_concurrent_calls,
        options=_GRPC_OPTIONS,
    )


def _build_access(settings: Settings) -> Access:
    is_local = is_loopback(settings.host)
    if settings.tokens is None:
        return Access(is_local=is_local)
    tokens = TokenFile(settings.tokens)
    tokens.tokens()  # what cannot be read shall end the start
    return Access(tokens, is_local=is_local)


def load_engine(settings: Settings, metrics: Metrics, tracer: Tracer | None = None) -> Engine:
    """Load the backbone and put an engine together around the runner that is wanted.

    Raises:
        UptError: as ``resolve_backbone`` and ``load_runner`` say.
    """
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    backbone = resolve_backbone(settings.backbone)
    runner = load_runner(
        backbone,
        settings.precision,
        wanted=settings.runner,
        threads=torch.get_num_threads(),
        cache=settings.runner_cache,
        device=settings.device,
    )
    return build_engine(settings, backbone, runner, metrics, tracer)


def _forget_garbage() -> None:
    """Let the garbage collector never again look at what is there now, and stays.

    It would walk over all modules, an eighth of the event loop's time and 100 ms at once.
    """
    gc.collect()
    gc.freeze()


def _version() -> str:
    try:
        return importlib.metadata.version("upt-zoo")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"  # a source tree on the path, not installed


def _listen(host: str, port: int) -> socket.socket:
    try:
        # listening already here lets the first caller wait instead of being refused
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise OSError(f"cannot listen on {host}:{port}: {error}; {_OTHER_PORT}") from error
