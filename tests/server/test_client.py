import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import grpc
import pytest

from upt_protos.v1 import inference_pb2_grpc
from upt_protos.v1.inference_pb2 import PredictRequest, PredictResponse
from upt_server.client import AsyncClient, Client
from upt_server.inputs import Options
from upt_server.runner import TorchRunner
from upt_testing.serving import FakeRunner, Served, make_settings, serving
from upt_zoo.answers import LabelAnswer, LabelSetAnswer, SpanAnswer, ValueAnswer
from upt_zoo.backbone import Backbone
from upt_zoo.errors import (
    AdapterNotFound,
    InvalidInput,
    InvalidReference,
    InvalidText,
    Overloaded,
    Unavailable,
    UptError,
)
from upt_zoo.local.store import Store
from upt_zoo.references import Reference

FILM = "a gripping , funny film"
MIXED = [
    ("sst2", [FILM]),
    ("topics", ["the old city"]),
    ("stsb", ["this book is fine"]),
    ("squad", ["who wrote it ?", "the man wrote it ."]),
]
KINDS = [LabelAnswer, LabelSetAnswer, ValueAnswer, SpanAnswer]


@pytest.fixture
async def served(store: Store, backbone: Backbone, runner: TorchRunner) -> AsyncIterator[Served]:
    async with serving(make_settings(store.root), backbone, runner) as served:
        yield served


@pytest.fixture
async def faked(store: Store, backbone: Backbone, fake: FakeRunner) -> AsyncIterator[Served]:
    settings = make_settings(store.root, max_queue_tokens=20)
    async with serving(settings, backbone, fake) as served:
        yield served
        fake.release()


@dataclass(frozen=True)
class Blocking:
    """The blocking client behind the awaited one's interface: each call in a thread."""

    client: Client

    def __getattr__(self, name: str) -> object:
        method = getattr(self.client, name)
        return lambda *args, **kwargs: asyncio.to_thread(method, *args, **kwargs)


@pytest.fixture(params=["blocking", "awaited"])
async def client(request: pytest.FixtureRequest, served: Served) -> AsyncIterator[AsyncClient]:
    if request.param == "awaited":
        async with AsyncClient(served.target) as client:
            yield client
    else:
        with Client(served.target) as blocking:
            yield Blocking(blocking)  # type: ignore[misc]  # the same interface, by __getattr__


async def test_a_text_gets_a_typed_answer_and_who_gave_it(
    client: AsyncClient, store: Store
) -> None:
    output = await client.predict("sst2", FILM)
    assert isinstance(output.answer, LabelAnswer)
    assert output.labels == ("negative", "positive")
    assert sum(output.answer.scores) == pytest.approx(1, abs=1e-6)
    assert output.adapter.digest == store.resolve(Reference(name="sst2")).digest


async def test_fields_by_name_equal_texts_in_order(client: AsyncClient) -> None:
    by_order = await client.predict("squad", *MIXED[3][1])
    by_name = await client.predict(
        "squad", fields=dict(zip(("context", "question"), reversed(MIXED[3][1]), strict=True))
    )
    assert by_name == by_order


async def test_a_mixed_call_is_answered_in_order_by_one_batch(client: AsyncClient) -> None:
    prediction = await client.predict_many(MIXED)
    assert [output.adapter.name for output in prediction.outputs] == [name for name, _ in MIXED]
    assert [type(output.answer) for output in prediction.outputs] == KINDS
    (batch,) = prediction.batches
    assert (batch.rows, batch.distinct_adapters) == (4, 4)
    assert prediction.precision == "exact"
    assert prediction.timings.total_ms > prediction.timings.forward_ms > 0


async def test_any_number_of_inputs_is_answered_in_order_by_calls_of_bounded_size(
    served: Served,
) -> None:
    inputs = [*MIXED, *MIXED[::-1], MIXED[0]]
    async with AsyncClient(served.target) as client:
        whole = await client.predict_many(inputs)
        found = [each async for each in client.predict_all(iter(inputs), inputs_a_call=2)]
        assert [each.adapter for each in found] == [each.adapter for each in whole.outputs]
        assert served.metrics.text().count(b"upt_request_duration_seconds_count 6.0") == 1

    def blocking() -> list[str]:
        with Client(served.target) as client:
            return [each.adapter.name for each in client.predict_all(inputs, inputs_a_call=4)]

    assert await asyncio.to_thread(blocking) == [name for name, _ in inputs]


async def test_of_many_inputs_those_before_a_bad_one_are_answered(served: Served) -> None:
    inputs = [MIXED[0]] * 3 + [("sst2", [""])]
    async with AsyncClient(served.target) as client:
        outputs = client.predict_all(inputs, inputs_a_call=2)
        assert [(await anext(outputs)).adapter.name for _ in range(2)] == ["sst2", "sst2"]
        with pytest.raises(InvalidText, match=r"inputs\[1\]: .*sentence is empty"):
            await anext(outputs)


async def test_one_text_is_answered_by_each_adapter_with_the_options(client: AsyncClient) -> None:
    prediction = await client.predict_each(["sst2", "cola"], FILM, options=Options(top_k=1))
    assert [output.adapter.name for output in prediction.outputs] == ["sst2", "cola"]
    assert [len(output.labels) for output in prediction.outputs] == [1, 1]


async def test_adapters_are_listed_and_described(client: AsyncClient) -> None:
    adapters = await client.adapters()
    assert [adapter.identity.name for adapter in adapters] == [
        "cola",
        "squad",
        "sst2",
        "stsb",
        "topics",
    ]
    assert await client.adapter("sst2:1.0.0") == adapters[2]
    assert (adapters[1].head, adapters[1].fields) == ("span", ("question", "context"))


async def test_a_text_in_place_of_a_list_is_refused(client: AsyncClient) -> None:
    with pytest.raises(InvalidInput, match="as a list, got one text"):
        await client.predict_many([("squad", "ab")])  # two letters would be two texts
    with pytest.raises(InvalidInput, match="expected 1 to 256 inputs"):
        await client.predict_each([], FILM)


@pytest.mark.parametrize("kind", ["blocking", "awaited"])
@pytest.mark.parametrize(
    ("broken", "error"), [(("No Such", [FILM]), InvalidReference), (None, ZeroDivisionError)]
)
async def test_what_breaks_the_inputs_of_a_stream_is_raised_when_the_rest_is_answered(
    served: Served, kind: str, broken: tuple[str, list[str]] | None, error: type[Exception]
) -> None:
    def inputs() -> Iterator[tuple[str, list[str]]]:
        yield MIXED[0]
        yield MIXED[1]
        yield broken or MIXED[1 // 0]

    places: list[int] = []

    def blocking() -> None:
        with Client(served.target) as client:
            for place, _ in client.predict_stream(inputs()):
                places.append(place)

    async def awaited() -> None:
        async def given() -> AsyncIterator[tuple[str, list[str]]]:
            for each in inputs():
                yield each

        async with AsyncClient(served.target) as client:
            async for place, _ in client.predict_stream(given()):
                places.append(place)

    with pytest.raises(error):
        await (awaited() if kind == "awaited" else asyncio.to_thread(blocking))
    assert sorted(places) == [0, 1]


async def test_the_servers_errors_are_raised_as_themselves(client: AsyncClient) -> None:
    with pytest.raises(AdapterNotFound, match="no adapter nobody"):
        await client.predict("nobody", FILM)
    with pytest.raises(AdapterNotFound):
        await client.adapter("nobody")
    with pytest.raises(InvalidText, match=r"inputs\[1\]: .*sentence is empty"):
        await client.predict_many([("sst2", [FILM]), ("sst2", [""])])


async def test_a_reference_that_does_not_parse_asks_no_server() -> None:
    async with AsyncClient("127.0.0.1:1") as client:
        with pytest.raises(InvalidReference):
            await client.predict("No Such", FILM)


async def test_a_server_that_is_not_there_is_unavailable() -> None:
    async with AsyncClient("127.0.0.1:1") as client:
        with pytest.raises(Unavailable, match=r"cannot reach 127\.0\.0\.1:1: .*`upt-server run`"):
            await client.predict("sst2", FILM)


@dataclass
class EndingService(inference_pb2_grpc.InferenceServicer):
    """Ends calls as gRPC and proxies do, without details."""

    code: grpc.StatusCode

    async def Predict(
        self, request: PredictRequest, context: "grpc.aio.ServicerContext[object, object]"
    ) -> PredictResponse:
        await context.abort(self.code, "somebody's words")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        # of calls that a stopping server has not taken up
        (grpc.StatusCode.CANCELLED, "ended the call: it stops"),
        # of calls whose server died behind a proxy
        (grpc.StatusCode.INTERNAL, "lost the call"),
    ],
)
async def test_a_call_that_nobody_answered_is_unavailable(code: grpc.StatusCode, said: str) -> None:
    server = grpc.aio.server()
    service = EndingService(code)  # type: ignore[abstract]  # of three calls it is asked one
    inference_pb2_grpc.add_InferenceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with AsyncClient(f"127.0.0.1:{port}") as client:
        with pytest.raises(Unavailable, match=said):
            await client.predict("sst2", FILM)
    await server.stop(None)


async def test_no_answer_in_time_is_a_timeout(faked: Served, fake: FakeRunner) -> None:
    fake.hold()
    async with AsyncClient(faked.target, timeout_s=0.1) as client:
        with pytest.raises(TimeoutError):
            await client.predict("sst2", FILM)


async def test_a_full_queue_says_when_to_come_back(faked: Served, fake: FakeRunner) -> None:
    async with AsyncClient(faked.target) as client, asyncio.TaskGroup() as group:
        fake.hold()
        group.create_task(client.predict("sst2", FILM))
        await fake.entered()
        calls = [group.create_task(_outcome(client, name)) for name in ("sst2", "cola", "stsb")]
        done, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        (turned_away,) = done
        error = turned_away.result()
        assert isinstance(error, Overloaded)
        assert error.retry_after_s > 0
        fake.release()


async def _outcome(client: AsyncClient, adapter: str) -> Exception | None:
    try:
        await client.predict(adapter, FILM)
    except UptError as error:
        return error
    return None


async def test_a_fault_of_the_server_is_an_error_of_upt(faked: Served, fake: FakeRunner) -> None:
    fake.error = RuntimeError("secret")
    async with AsyncClient(faked.target) as client:
        with pytest.raises(UptError, match="a fault of the server") as caught:
            await client.predict("sst2", FILM)
    assert type(caught.value) is UptError


def test_the_client_needs_no_torch() -> None:
    code = "import sys, upt_server.client; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_client_leaves_room_for_another_copy_of_the_open_inference_protocol() -> None:
    code = (
        "import sys, upt_server.client;"
        "sys.exit(any(name.startswith('upt_protos.oip') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


async def test_a_message_too_large_for_grpc_is_no_reason_to_try_again(faked: Served) -> None:
    inputs = [("sst2", ["x" * 100_000])] * 50
    async with AsyncClient(faked.target) as client:
        with pytest.raises(InvalidInput, match="send fewer inputs"):
            await client.predict_many(inputs)
