"""Traces over the wire: a whole server, callers of every protocol, and a collector that listens."""

import asyncio
import json
import logging
import re
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from http.client import HTTPConnection
from typing import cast
from urllib.request import Request, urlopen

import grpc
import pytest
from opentelemetry.sdk.trace import TracerProvider

from upt_protos.oip import open_inference_pb2 as oip
from upt_protos.oip import open_inference_pb2_grpc
from upt_protos.v1 import inference_pb2 as pb
from upt_protos.v1 import inference_pb2_grpc
from upt_server.client import AsyncClient
from upt_server.scheduling import Budget
from upt_server.telemetry.recorder import Recorder
from upt_server.telemetry.traces import Protocol, Traces, choose_traces, open_tracer
from upt_testing.collectors import Collector, collecting, collecting_by_http, values
from upt_testing.serving import FakeRunner, Served, make_settings, serving, until
from upt_zoo.backbone import Backbone
from upt_zoo.errors import AdapterNotFound, InvalidInput
from upt_zoo.local.store import Store
from upt_zoo.references import Reference

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
UNSAMPLED = f"00-{TRACE}-{PARENT}-00"
SECRET = "a gripping film that nobody may read"
BODY = {"inputs": [{"adapter": "sst2", "texts": [SECRET]}]}


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@asynccontextmanager
async def traced(
    collector: Collector,
    store: Store,
    backbone: Backbone,
    fake: FakeRunner,
    *,
    protocol: Protocol = "grpc",
) -> AsyncIterator[Served]:
    """Run a server whose spans have all come in when the block is left."""
    tracer = open_tracer(Traces(endpoint=collector.url, protocol=protocol), "1.2.3")
    assert tracer is not None
    settings = make_settings(store.root, budget=Budget(tokens=100))
    recorder = Recorder(tracer=tracer)
    try:
        async with serving(settings, backbone, fake, recorder=recorder) as served:
            yield served
    finally:
        await asyncio.to_thread(tracer.close)


def async_stub(channel: grpc.aio.Channel) -> "inference_pb2_grpc.InferenceAsyncStub":
    # one class serves both kinds of channel; its types stand under two names
    stub = inference_pb2_grpc.InferenceStub(channel)
    return cast("inference_pb2_grpc.InferenceAsyncStub", stub)


async def ask_grpc(served: Served, *headers: tuple[str, str]) -> dict[str, str]:
    """Ask by ``upt.v1`` and return the trailing metadata."""
    async with grpc.aio.insecure_channel(served.target) as channel:
        stub = async_stub(channel)
        request = pb.PredictRequest(inputs=[pb.Input(adapter="sst2", texts=[SECRET])])
        call = stub.Predict(request, metadata=headers)
        await call
        return {key: str(value) for key, value in await call.trailing_metadata()}


async def ask_http(
    served: Served, path: str, body: object = None, *headers: tuple[str, str]
) -> dict[str, str]:
    """Ask over HTTP and return the response's headers, their names in lower case."""
    data = None if body is None else json.dumps(body).encode()
    request = Request(f"http://{served.http}{path}", data, dict(headers))

    def ask() -> dict[str, str]:
        with urlopen(request, timeout=30) as response:
            return {key.lower(): value for key, value in response.headers.items()}

    return await asyncio.to_thread(ask)


def check_call(collector: Collector, name: str, store: Store) -> None:
    """Check one call's spans: whose child it is, what is below it, and what it says."""
    call = collector.one(name)
    assert (call.trace_id.hex(), call.parent_span_id.hex()) == (TRACE, PARENT)
    assert call.trace_state == "vendor=value"
    assert collector.children(call) == ["load", "tokenize", "queue", "forward"]
    said = values(call.attributes)
    assert said["upt.adapters"] == ["sst2:1.0.0"]
    assert said["upt.digests"] == [store.resolve(Reference.parse("sst2")).digest]
    assert (said["upt.precision"], said["upt.status"]) == ("exact", "OK")
    assert (said["upt.inputs"], said["upt.rows"]) == (1, 1)
    assert isinstance(said["upt.tokens"], int)
    assert said["upt.tokens"] > len(SECRET.split())
    forward, batch = collector.one("forward"), collector.one("batch")
    assert batch.trace_id != call.trace_id
    assert [link.span_id for link in batch.links] == [call.span_id]
    assert [link.span_id for link in forward.links] == [batch.span_id]
    for span in (forward, batch):
        facts = values(span.attributes)
        assert facts["upt.batch.rows"] == 1
        batch_tokens = said["upt.tokens"] + 2  # the prompt's vectors
        assert (facts["upt.batch.tokens"], facts["upt.batch.fill"]) == (
            batch_tokens,
            batch_tokens / 100,
        )
    assert not any("gripping" in str(request) for request in collector.requests)


async def test_a_grpc_call_is_a_child_of_its_callers_span(
    collector: Collector, store: Store, backbone: Backbone, fake: FakeRunner
) -> None:
    context = (("traceparent", TRACEPARENT), ("tracestate", "vendor=value"))
    async with traced(collector, store, backbone, fake) as served:
        trailers = await ask_grpc(served, *context)
    check_call(collector, "upt.v1.Inference/Predict", store)
    own = collector.one("upt.v1.Inference/Predict").span_id.hex()
    assert trailers["traceresponse"] == f"00-{TRACE}-{own}-01"
    assert collector.resource()["service.name"] == "upt-server"
    assert collector.resource()["service.version"] == "1.2.3"


async def test_an_http_call_is_a_child_of_its_callers_span(
    collector: Collector, store: Store, backbone: Backbone, fake: FakeRunner
) -> None:
    context = (("traceparent", TRACEPARENT), ("tracestate", "vendor=value"))
    async with traced(collector, store, backbone, fake) as served:
        headers = await ask_http(served, "/v1/predict", BODY, *context)
    check_call(collector, "POST /v1/predict", store)
    own = collector.one("POST /v1/predict").span_id.hex()
    assert headers["traceresponse"] == f"00-{TRACE}-{own}-01"


@pytest.mark.parametrize("edge", ["grpc", "http"])
async def test_a_call_by_the_open_inference_protocol_is_one_too(
    edge: str, collector: Collector, store: Store, backbone: Backbone, fake: FakeRunner
) -> None:
    context = (("traceparent", TRACEPARENT), ("tracestate", "vendor=value"))
    async with traced(collector, store, backbone, fake) as served:
        if edge == "http":
            tensor = {"name": "sentence", "datatype": "BYTES", "shape": [1], "data": [SECRET]}
            await ask_http(served, "/v2/models/sst2/infer", {"inputs": [tensor]}, *context)
        else:
            request = oip.ModelInferRequest(model_name="sst2")
            tensor_of = request.inputs.add(name="sentence", datatype="BYTES", shape=[1])
            tensor_of.contents.bytes_contents.append(SECRET.encode())
            async with grpc.aio.insecure_channel(served.target) as channel:
                stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
                await stub.ModelInfer(request, metadata=context)  # type: ignore[misc]  # the stubs know two kinds of channel
    name = "inference.GRPCInferenceService/ModelInfer"
    check_call(collector, name if edge == "grpc" else "POST /v2/models/{model}/infer", store)


async def test_calls_that_share_a_batch_are_linked_to_it(
    collector: Collector, store: Store, backbone: Backbone, fake: FakeRunner
) -> None:
    async with traced(collector, store, backbone, fake) as served:
        fake.hold()
        first = asyncio.create_task(ask_grpc(served))
        await fake.entered()
        others = [asyncio.create_task(ask_grpc(served)) for _ in range(3)]
        await until(lambda: served.engine.status().queue_rows == 3)
        fake.release()
        await asyncio.gather(first, *others)
    alone, shared = collector.named("batch")
    calls = {span.span_id for span in collector.named("upt.v1.Inference/Predict")}
    linked = [{link.span_id for link in batch.links} for batch in (alone, shared)]
    assert [len(each) for each in linked] == [1, 3]
    assert linked[0] | linked[1] == calls
    forwards = [
        span for span in collector.named("forward") if span.links[0].span_id == shared.span_id
    ]
    assert {span.parent_span_id for span in forwards} == linked[1]
    assert values(shared.attributes)["upt.batch.rows"] == 3


async def test_the_requests_of_a_stream_are_children_of_the_stream(
    collector: Collector, store: Store, backbone: Backbone, fake: FakeRunner
) -> None:
    async def inputs() -> AsyncIterator[tuple[str, list[str]]]:
        for name in ("sst2", "cola", "nobody"):
            yield name, [SECRET]

    async with (
        traced(collector, store, backbone, fake) as served,
        AsyncClient(served.target) as client,
    ):
        answers = [answer async for answer in client.predict_stream(inputs())]
    assert len(answers) == 3
    (stream,) = [
        span
        for span in collector.named("upt.v1.Inference/PredictStream")
        if not span.parent_span_id
    ]
    assert collector.children(stream) == ["upt.v1.Inference/PredictStream"] * 3
    statuses = {
        str(values(span.attributes)["upt.adapters"]): values(span.attributes)["upt.status"]
        for span in collector.named("upt.v1.Inference/PredictStream")
        if span.parent_span_id
    }
    assert statuses == {
        "['sst2:1.0.0']": "OK",
        "['cola:1.0.0']": "OK",
        "['nobody']": "NOT_FOUND",
    }


async def test_a_fault_of_the_server_is_one_of_its_span_and_a_callers_is_not(
    collector: Collector, store: Store, backbone: Backbone, fake: FakeRunner
) -> None:
    async with (
        traced(collector, store, backbone, fake) as served,
        AsyncClient(served.target) as client,
    ):
        with pytest.raises(AdapterNotFound):
            await client.predict("nobody", SECRET)
        fake.error = RuntimeError(SECRET)
        with pytest.raises(Exception, match="a fault of the server"):
            await client.predict("sst2", SECRET)
    theirs, ours = collector.named("upt.v1.Inference/Predict")
    assert (theirs.status.code, ours.status.code) == (0, 2)
    assert values(theirs.attributes)["upt.status"] == "NOT_FOUND"
    assert values(ours.attributes)["upt.status"] == "INTERNAL"
    assert not any("gripping" in str(request) for request in collector.requests)


async def test_a_call_that_leaves_the_queue_ends_its_spans(
    collector: Collector, store: Store, backbone: Backbone, fake: FakeRunner
) -> None:
    async with traced(collector, store, backbone, fake) as served:
        fake.hold()
        first = asyncio.create_task(ask_grpc(served))
        await fake.entered()
        second = asyncio.create_task(ask_grpc(served, ("traceparent", TRACEPARENT)))
        await until(lambda: served.engine.status().queue_rows == 1)
        second.cancel()
        await until(lambda: served.engine.status().queue_rows == 0)
        fake.release()
        await first
    (left,) = [span for span in collector.spans if span.parent_span_id.hex() == PARENT]
    assert collector.children(left) == ["load", "tokenize", "queue"]
    assert values(left.attributes)["upt.status"] == "CANCELLED"


@pytest.mark.parametrize(
    "headers",
    [
        [("traceparent", "00-0-0-01")],
        [("traceparent", "x" * 4000)],
        [("traceparent", f"00-{'0' * 32}-{PARENT}-01")],
    ],
)
async def test_a_context_that_is_none_begins_a_trace(
    headers: list[tuple[str, str]],
    collector: Collector,
    store: Store,
    backbone: Backbone,
    fake: FakeRunner,
) -> None:
    async with traced(collector, store, backbone, fake) as served:
        trailers = await ask_grpc(served, *headers)
    call = collector.one("upt.v1.Inference/Predict")
    assert not call.parent_span_id
    # sampled, and its number drawn at random
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-0[13]", trailers["traceresponse"])


async def test_of_two_contexts_neither_counts(
    collector: Collector, store: Store, backbone: Backbone, fake: FakeRunner
) -> None:
    def ask(address: str) -> int:
        connection = HTTPConnection(address, timeout=30)
        connection.putrequest("GET", "/v1/adapters")
        for parent in (TRACEPARENT, TRACEPARENT.replace("b7", "c8")):
            connection.putheader("traceparent", parent)
        connection.endheaders()
        with closing(connection):
            return connection.getresponse().status

    async with traced(collector, store, backbone, fake) as served:
        assert await asyncio.to_thread(ask, served.http) == 200
    assert not collector.one("GET /v1/adapters").parent_span_id


@pytest.mark.parametrize(
    ("state", "kept"),
    [
        ("a=b, c@d=e f", "a=b,c@d=e f"),
        (f"a={'x' * 256}", f"a={'x' * 256}"),
        ("", ""),
        (f"{SECRET}", ""),
        (f"a=b,{SECRET}=c", ""),
        ("a=b=c", ""),
        (",".join(f"k{n}={'x' * 90}" for n in range(9)), ""),
    ],
)
async def test_a_state_that_is_none_is_dropped_without_a_word(
    state: str,
    kept: str,
    collector: Collector,
    store: Store,
    backbone: Backbone,
    fake: FakeRunner,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with traced(collector, store, backbone, fake) as served:
        await ask_grpc(served, ("traceparent", TRACEPARENT), ("tracestate", state))
    call = collector.one("upt.v1.Inference/Predict")
    assert (call.parent_span_id.hex(), call.trace_state) == (PARENT, kept)
    assert "gripping" not in caplog.text


async def test_what_the_caller_does_not_sample_is_not_recorded(
    collector: Collector, store: Store, backbone: Backbone, fake: FakeRunner
) -> None:
    async with traced(collector, store, backbone, fake) as served:
        trailers = await ask_grpc(served, ("traceparent", UNSAMPLED))
    assert collector.spans == []
    assert trailers["traceresponse"].startswith(f"00-{TRACE}-")
    assert trailers["traceresponse"].endswith("-00")


async def test_our_client_gives_its_programs_span_on(
    collector: Collector, store: Store, backbone: Backbone, fake: FakeRunner
) -> None:
    tracer = TracerProvider().get_tracer("a program")
    async with (
        traced(collector, store, backbone, fake) as served,
        AsyncClient(served.target) as client,
    ):
        with tracer.start_as_current_span("work") as span:
            await client.predict("sst2", SECRET)
        await client.predict("cola", SECRET)
    inside, outside = collector.named("upt.v1.Inference/Predict")
    assert int(inside.parent_span_id.hex(), 16) == span.get_span_context().span_id
    assert not outside.parent_span_id


async def test_health_is_not_traced(
    collector: Collector, store: Store, backbone: Backbone, fake: FakeRunner
) -> None:
    async with traced(collector, store, backbone, fake) as served:
        for path in ("/healthz", "/readyz", "/v2/health/live", "/metrics"):
            assert "x-request-id" not in await ask_http(served, path)
    assert collector.spans == []


async def test_a_collector_that_is_away_keeps_nobody_waiting(
    store: Store, backbone: Backbone, fake: FakeRunner
) -> None:
    async with traced(Collector(url="http://127.0.0.1:1"), store, backbone, fake) as served:
        assert "traceresponse" in await ask_grpc(served)


async def test_without_a_tracer_there_is_no_trace(
    store: Store, backbone: Backbone, fake: FakeRunner
) -> None:
    async with serving(make_settings(store.root), backbone, fake) as served:
        trailers = await ask_grpc(served, ("traceparent", TRACEPARENT))
    assert "traceresponse" not in trailers
    assert "x-request-id" in trailers


@pytest.mark.parametrize(
    ("endpoint", "environment", "expected"),
    [
        (None, {}, None),
        ("http://c:4317", {}, Traces(endpoint="http://c:4317")),
        (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c"}, Traces(endpoint=None)),
        (None, {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c"}, Traces(endpoint=None)),
        (None, {"OTEL_TRACES_EXPORTER": "otlp"}, Traces(endpoint=None)),
        (None, {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c"}, None),
        (None, {"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c"}, None),
        (
            "https://c",
            {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"},
            Traces(endpoint="https://c", protocol="http/protobuf"),
        ),
        (
            "https://c",
            {
                "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
                "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc",
            },
            Traces(endpoint="https://c"),
        ),
    ],
)
def test_the_option_and_the_standard_variables_say_where_traces_go(
    endpoint: str | None, environment: dict[str, str], expected: Traces | None
) -> None:
    assert choose_traces(endpoint, environment) == expected


@pytest.mark.parametrize(
    ("endpoint", "environment", "message"),
    [
        ("collector:4317", {}, "expected http://HOST:PORT"),
        ("http://c", {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}, "got 'http/json'"),
    ],
)
def test_an_endpoint_or_a_protocol_that_is_none_is_an_error(
    endpoint: str, environment: dict[str, str], message: str
) -> None:
    with pytest.raises(InvalidInput, match=re.escape(message)):
        choose_traces(endpoint, environment)


def test_without_the_packages_the_option_is_an_error_and_a_variable_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "upt_server.telemetry.otel", None)
    with pytest.raises(InvalidInput, match=r"pip install upt-zoo\[otel\]"):
        open_tracer(Traces(endpoint="http://c"), "1")
    with caplog.at_level(logging.WARNING):
        assert open_tracer(Traces(endpoint=None), "1") is None
    assert "upt-zoo[otel]" in caplog.text
    assert open_tracer(None, "1") is None


async def test_spans_go_by_http_too(store: Store, backbone: Backbone, fake: FakeRunner) -> None:
    with collecting_by_http() as collector:
        async with traced(collector, store, backbone, fake, protocol="http/protobuf") as served:
            await ask_grpc(served, ("traceparent", TRACEPARENT), ("tracestate", "vendor=value"))
    check_call(collector, "upt.v1.Inference/Predict", store)


async def test_what_the_environment_says_of_the_service_counts(
    monkeypatch: pytest.MonkeyPatch,
    collector: Collector,
    store: Store,
    backbone: Backbone,
    fake: FakeRunner,
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "reviews")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
    async with traced(collector, store, backbone, fake) as served:
        await ask_grpc(served)
    resource = collector.resource()
    assert (resource["service.name"], resource["deployment.environment"]) == ("reviews", "test")
