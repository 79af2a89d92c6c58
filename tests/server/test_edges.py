"""What operators and tools see: HTTP, health, reflection, ports."""

import asyncio
import socket
from collections.abc import AsyncIterator
from urllib.error import HTTPError
from urllib.request import urlopen

import grpc
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from upt_server.app import SERVICE, Server, build_engine
from upt_server.client import AsyncClient
from upt_server.metrics import Metrics
from upt_testing.predictions import make_prediction
from upt_testing.serving import FakeRunner, Publisher, Served, make_settings, serving, until
from upt_zoo.backbone import Backbone
from upt_zoo.errors import Overloaded
from upt_zoo.local.store import Store
from upt_zoo.nn.adapter import prepare

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
async def served(store: Store, backbone: Backbone, fake: FakeRunner) -> AsyncIterator[Served]:
    settings = make_settings(store.root)
    async with serving(settings, backbone, fake, is_open=False) as served:
        yield served
        fake.release()


async def get(served: Served, path: str) -> tuple[int, str]:
    def fetch() -> tuple[int, str]:
        try:
            with urlopen(f"http://{served.http}{path}") as response:
                return response.status, response.read().decode()
        except HTTPError as error:
            with error:
                return error.code, error.read().decode()

    return await asyncio.to_thread(fetch)


async def health_of(served: Served, service: str) -> int:
    async with grpc.aio.insecure_channel(served.target) as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        response = await health_pb2_grpc.HealthStub(channel).Check(request)
        return int(response.status)


@pytest.mark.parametrize("service", ["", SERVICE])
async def test_health_follows_the_servers_life(served: Served, service: str) -> None:
    assert await health_of(served, service) == NOT_SERVING
    await served.server.open()
    assert await health_of(served, service) == SERVING


async def test_a_health_check_does_not_wait_behind_the_calls_that_came_before(
    served: Served,
) -> None:
    await served.server.open()
    flood = 400
    request = health_pb2.HealthCheckRequest(service="")
    async with (
        grpc.aio.insecure_channel(served.target) as channel,
        AsyncClient(served.target, timeout_s=60) as client,
    ):
        check = health_pb2_grpc.HealthStub(channel).Check
        await check(request)  # to connect is not what is looked at
        calls = [asyncio.create_task(client.predict("sst2", "a film")) for _ in range(flood)]
        await asyncio.sleep(0)  # all of them are on their way
        assert (await check(request)).status == SERVING
        assert sum(call.done() for call in calls) < flood / 2
        await asyncio.gather(*calls, return_exceptions=True)  # a busy machine may refuse some


async def test_readiness_follows_the_servers_life_and_liveness_does_not(
    served: Served, fake: FakeRunner
) -> None:
    assert await get(served, "/readyz") == (503, "starting\n")
    assert await get(served, "/healthz") == (200, "ok\n")
    await served.server.open()
    assert await get(served, "/readyz") == (200, "ok\n")
    fake.hold()
    async with AsyncClient(served.target) as client:
        inside = asyncio.create_task(client.predict("sst2", "a film"))
        await fake.entered()
        draining = asyncio.create_task(served.server.drain())
        await until(lambda: not served.engine.gate.is_open)
        assert await get(served, "/readyz") == (503, "draining\n")
        assert await get(served, "/healthz") == (200, "ok\n")
        fake.release()
        await inside
    await draining


async def test_reflection_tells_tools_what_can_be_called(served: Served) -> None:
    async with grpc.aio.insecure_channel(served.target) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        requests = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol="upt.v1.Inference"),
        ]
        names, file = [reply async for reply in stub.ServerReflectionInfo(iter(requests))]
    services = {service.name for service in names.list_services_response.service}
    assert {SERVICE, "grpc.health.v1.Health"} <= services
    assert b"PredictRequest" in file.file_descriptor_response.file_descriptor_proto[0]


async def test_metrics_tell_what_happened(served: Served, backbone: Backbone) -> None:
    await served.server.open()
    async with AsyncClient(served.target) as client:
        await client.predict_many([("sst2", ["a film"]), ("cola", ["a film"])])
    status, text = await get(served, "/metrics")
    assert status == 200
    for line in (
        'upt_requests_total{adapter="sst2",code="OK",task="sst2"} 1.0',
        'upt_requests_total{adapter="cola",code="OK",task="cola"} 1.0',
        "upt_request_duration_seconds_count 1.0",
        "upt_queue_duration_seconds_count 1.0",
        "upt_tokenize_duration_seconds_count 1.0",
        "upt_forward_duration_seconds_count 1.0",
        "upt_batch_rows_sum 2.0",
        "upt_batch_tokens_sum 12.0",  # two rows of 4 tokens and 2 prompt vectors
        "upt_batch_distinct_adapters_sum 2.0",
        "upt_queue_depth 0.0",
        'upt_adapter_resident{tier="host"} 2.0',
        'upt_adapter_load_duration_seconds_count{source="store"} 2.0',
        "upt_adapter_evictions_total 0.0",
        'upt_tokens_total{adapter="sst2"} 4.0',
        'upt_adapter_request_duration_seconds_count{adapter="cola"} 1.0',
        'upt_limit{of="batch_tokens"} 4096.0',
        'upt_limit{of="queue_tokens"} 65536.0',
        'upt_limit{of="adapter_bytes"} 1.073741824e+09',
        f"upt_adapter_bytes {served.engine.status().adapter_bytes}.0",
    ):
        assert line in text
    assert f'upt_build_info{{backbone="{backbone.identity.digest}",precision="exact"' in text


async def test_metrics_tell_of_evictions_and_turned_away_calls(
    publish: Publisher, backbone: Backbone, fake: FakeRunner
) -> None:
    stored = publish("first")
    publish("second", seed=1)
    spec, arrays = publish.store.load(stored)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    room = prepare(spec, tensors, dtype=torch.float32).size_bytes()
    settings = make_settings(publish.store.root, max_adapter_bytes=room)
    async with (
        serving(settings, backbone, fake) as served,
        AsyncClient(served.target) as client,
    ):
        await client.predict("first", "a film")
        await client.predict("second", "a film")
        with pytest.raises(Overloaded, match="no room"):
            await client.predict_many([("first", ["a film"]), ("second", ["a film"])])
        _, text = await get(served, "/metrics")
    assert "upt_adapter_evictions_total 2.0" in text
    assert 'upt_adapter_resident{tier="host"} 1.0' in text
    assert 'upt_rejected_total{reason="overloaded"} 1.0' in text


def test_no_caller_can_grow_the_metrics() -> None:
    metrics = Metrics(max_adapter_labels=2)
    for name in ("a", "b", "c", "d"):
        metrics.call_answered(make_prediction(name))
    metrics.call_failed([f"made-up-{n}" for n in range(50)], grpc.StatusCode.NOT_FOUND)
    metrics.call_failed(["a"], grpc.StatusCode.DATA_LOSS)
    text = metrics.text().decode()
    lines = {line for line in text.splitlines() if line.startswith("upt_requests_total{")}
    assert lines == {
        'upt_requests_total{adapter="a",code="OK",task="a"} 1.0',
        'upt_requests_total{adapter="b",code="OK",task="b"} 1.0',
        'upt_requests_total{adapter="other",code="OK",task="other"} 2.0',
        'upt_requests_total{adapter="other",code="NOT_FOUND",task="other"} 50.0',
        'upt_requests_total{adapter="a",code="DATA_LOSS",task="a"} 1.0',
    }
    for name in ("upt_tokens_total", "upt_adapter_request_duration_seconds_count"):
        labels = {line.partition(" ")[0] for line in text.splitlines() if line.startswith(name)}
        assert labels == {f'{name}{{adapter="{adapter}"}}' for adapter in ("a", "b", "other")}


@pytest.mark.parametrize("port", ["grpc_port", "http_port"])
async def test_a_port_that_is_taken_is_an_error_that_names_it(
    store: Store, backbone: Backbone, fake: FakeRunner, port: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        settings = make_settings(store.root, **{port: number})
        metrics = Metrics()
        server = Server(build_engine(settings, backbone, fake, metrics), metrics, settings)
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{number}"):
            await server.start()
        await server.drain()
