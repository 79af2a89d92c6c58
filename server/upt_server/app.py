"""The wiring, by hand: from settings to a running server, and from there to nothing."""

import asyncio
import importlib.metadata
import logging
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass

import grpc
import torch
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from upt_protos.oip import open_inference_pb2, open_inference_pb2_grpc
from upt_protos.v1 import inference_pb2, inference_pb2_grpc
from upt_server.batcher import Batcher
from upt_server.engine import Engine
from upt_server.http import HttpServer, build_application
from upt_server.metrics import Metrics
from upt_server.open_inference import OpenInferenceService
from upt_server.residency import Residency
from upt_server.runner import Runner
from upt_server.runner_choice import load_runner
from upt_server.service import Answers, InferenceService
from upt_server.settings import Settings
from upt_zoo.backbone import Backbone, resolve_backbone
from upt_zoo.catalogue import home_store
from upt_zoo.tokenization import Tokenizer

logger = logging.getLogger(__name__)

SERVICE = inference_pb2.DESCRIPTOR.services_by_name["Inference"].full_name
OPEN_INFERENCE_SERVICE = open_inference_pb2.DESCRIPTOR.services_by_name[
    "GRPCInferenceService"
].full_name
_LAST_WORDS_S = 1.0  # for answers on their way out, and for streams that never end by themselves


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """Where the server listens."""

    grpc: int
    http: int


async def serve(settings: Settings, on_ready: Callable[[Ports], None]) -> None:
    """Serve until SIGTERM or SIGINT, then finish the calls inside and return.

    Raises:
        OSError: a port is taken.
        UptError: the backbone or an adapter to preload is missing, damaged or of another kind.
    """
    metrics = Metrics()
    engine = await asyncio.to_thread(_load_engine, settings, metrics)
    server = Server(engine, metrics, settings)
    try:
        ports = await server.start()
        await engine.preload(settings.preload)
        # until here a signal ends the process at once: there is nothing to finish
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await server.open()
        on_ready(ports)
        await stop.wait()
    finally:
        await server.drain()


def build_engine(
    settings: Settings, backbone: Backbone, runner: Runner, metrics: Metrics
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
    )
    metrics.queue_built(lambda: batcher.queue_rows)
    return Engine(
        backbone_digest=backbone.identity.digest,
        precision=settings.precision,
        tokenizer=Tokenizer(backbone.tokenizer_file),
        residency=Residency(
            home_store(settings.home),
            backbone,
            runner,
            limit_bytes=settings.max_adapter_bytes,
            observer=metrics,
        ),
        batcher=batcher,
        limits=settings.limits,
    )


class Server:
    """Both edges around one engine: gRPC for callers, HTTP for operators."""

    def __init__(self, engine: Engine, metrics: Metrics, settings: Settings) -> None:
        self._engine, self._settings = engine, settings
        self._health = health.aio.HealthServicer()
        self._grpc = grpc.aio.server(
            maximum_concurrent_rpcs=settings.max_concurrent_calls,
            options=(("grpc.so_reuseport", 0),),  # a second server on the port shall fail
        )
        answers = Answers(engine, metrics)
        inference_pb2_grpc.add_InferenceServicer_to_server(InferenceService(answers), self._grpc)
        open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(
            OpenInferenceService(engine, metrics, _version()), self._grpc
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        names = (
            SERVICE,
            OPEN_INFERENCE_SERVICE,
            health.SERVICE_NAME,
            reflection.SERVICE_NAME,
        )
        reflection.enable_server_reflection(names, self._grpc)
        self._http = HttpServer(build_application(answers, engine.gate, metrics), settings.tls)
        self._http_task: asyncio.Task[None] | None = None

    async def start(self) -> Ports:
        """Listen, and answer that the server is not ready.

        Raises:
            OSError: a port is taken.
        """
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        http_socket = _listen(self._settings.host, self._settings.http_port)
        self._http_task = asyncio.create_task(self._http.serve(sockets=[http_socket]))
        host = self._settings.host
        address = f"[{host}]" if ":" in host else host
        address = f"{address}:{self._settings.grpc_port}"
        try:
            grpc_port = self._add_port(address)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address}: {error}") from error
        await self._grpc.start()
        return Ports(grpc=grpc_port, http=http_socket.getsockname()[1])

    def _add_port(self, address: str) -> int:
        if self._settings.tls is None:
            return self._grpc.add_insecure_port(address)
        return self._grpc.add_secure_port(address, self._settings.tls.grpc_credentials())

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
        if self._http_task is not None:
            self._http.should_exit = True
            await self._http_task
        await self._engine.close()

    async def _set_health(self, status: "health_pb2.HealthCheckResponse.ServingStatus") -> None:
        for name in ("", SERVICE):
            await self._health.set(name, status)


def _load_engine(settings: Settings, metrics: Metrics) -> Engine:
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
    return build_engine(settings, backbone, runner, metrics)


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
        raise OSError(f"cannot listen on {host}:{port}: {error}") from error
