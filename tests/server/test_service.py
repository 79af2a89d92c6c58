"""The whole server over a real channel: what callers get, and what they get when it goes wrong."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TypeVar, cast

import grpc
import numpy as np
import pytest
import torch
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]  # no py.typed
from grpc import StatusCode

from upt_protos.v1 import inference_pb2 as pb
from upt_protos.v1 import inference_pb2_grpc
from upt_server.inputs import Limits
from upt_server.runner import TorchRunner
from upt_server.statuses import DETAILS_KEY
from upt_testing.backbones import write_tiny_backbone
from upt_testing.serving import FakeRunner, Publisher, Served, make_settings, serving, until
from upt_zoo.answers import LabelAnswer, answer
from upt_zoo.backbone import Backbone
from upt_zoo.local.store import Store
from upt_zoo.nn.adapter import prepare
from upt_zoo.nn.packing import Row
from upt_zoo.references import Reference
from upt_zoo.tokenization import Tokenizer

MessageT = TypeVar("MessageT", bound=Message)
FILM = "a gripping , funny film"
MIXED = [
    pb.Input(adapter="sst2", texts=[FILM]),
    pb.Input(adapter="topics", texts=["the old city was very dull"]),
    pb.Input(adapter="stsb", fields={"sentence": "this book is fine"}),
    pb.Input(adapter="squad", texts=["who wrote the book ?", "the man wrote it . " * 12]),
    pb.Input(adapter="cola", texts=["the woman painted the house"]),
]


class Asker:
    """Speaks ``upt.v1`` without our client."""

    def __init__(self, served: Served, channel: grpc.aio.Channel) -> None:
        self.served = served
        self.stub = cast(
            "inference_pb2_grpc.InferenceAsyncStub", inference_pb2_grpc.InferenceStub(channel)
        )

    def call(
        self, *inputs: pb.Input, timeout_s: float | None = None
    ) -> "grpc.aio.UnaryUnaryCall[pb.PredictRequest, pb.PredictResponse]":
        return self.stub.Predict(pb.PredictRequest(inputs=inputs), timeout=timeout_s)

    async def refusal(self, *inputs: pb.Input) -> grpc.aio.AioRpcError:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.call(*inputs)
        return caught.value


@pytest.fixture
async def ask(store: Store, backbone: Backbone, runner: TorchRunner) -> AsyncIterator[Asker]:
    settings = make_settings(store.root, limits=Limits(max_inputs=8, max_input_chars=2000))
    async with (
        serving(settings, backbone, runner) as served,
        grpc.aio.insecure_channel(served.target) as channel,
    ):
        yield Asker(served, channel)


@pytest.fixture
async def ask_fake(store: Store, backbone: Backbone, fake: FakeRunner) -> AsyncIterator[Asker]:
    settings = make_settings(store.root, max_queue_tokens=20)
    async with (
        serving(settings, backbone, fake) as served,
        grpc.aio.insecure_channel(served.target) as channel,
    ):
        yield Asker(served, channel)
        fake.release()


def scores_of(output: pb.Output) -> list[float]:
    match output.WhichOneof("answer"):
        case "label":
            return [score.score for score in output.label.scores]
        case "label_set":
            return [score.score for score in output.label_set.scores]
        case "value":
            return [output.value.value]
    return [output.span.start, output.span.end, output.span.score]


def queue_depth(served: Served) -> int:
    lines = served.metrics.text().decode().splitlines()
    (line,) = (line for line in lines if line.startswith("upt_queue_depth "))
    return int(float(line.split()[1]))


def detail_of(error: grpc.aio.AioRpcError, kind: type[MessageT]) -> MessageT:
    """Return the one detail of that kind."""
    trailers = dict(error.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailers[DETAILS_KEY])
    (found,) = (detail for detail in status.details if detail.Is(kind.DESCRIPTOR))
    unpacked = kind()
    assert found.Unpack(unpacked)
    return unpacked


async def test_a_mixed_call_is_one_forward_pass_of_five_adapters(ask: Asker) -> None:
    response = await ask.call(*MIXED)
    (batch,) = response.batches
    windows = sum(output.windows for output in response.outputs)
    assert (batch.rows, batch.distinct_adapters) == (windows, 5)
    assert windows > 5  # the long context is split
    metrics = ask.served.metrics.text().decode()
    assert "upt_batch_distinct_adapters_sum 5.0" in metrics
    assert "upt_batch_distinct_adapters_count 1.0" in metrics


@pytest.mark.parametrize(
    ("repeats", "adapters", "message", "field"),
    [
        (60, 1, "expected at most 20 windows, got 30 of 5 tokens", "inputs[0].adapters[0]"),
        (10, 8, "expected at most 20 rows and windows a call, got 25 ", "inputs[0].adapters[4]"),
    ],
)
async def test_tiny_windows_are_counted_before_they_are_cut_and_over_the_call(
    store: Store,
    backbone: Backbone,
    runner: TorchRunner,
    *,
    repeats: int,
    adapters: int,
    message: str,
    field: str,
) -> None:
    tiny = pb.Input(
        adapters=["squad"] * adapters,
        texts=["who wrote", "man " * repeats],
        options=pb.Options(max_tokens=8, stride=1),
    )
    settings = make_settings(store.root, limits=Limits(max_rows=20))
    async with (
        serving(settings, backbone, runner) as served,
        grpc.aio.insecure_channel(served.target) as channel,
    ):
        error = await Asker(served, channel).refusal(tiny)
        assert error.code() == StatusCode.INVALID_ARGUMENT
        assert message in (error.details() or "")
        violation = detail_of(error, error_details_pb2.BadRequest).field_violations[0]
        assert violation.field == field
        tiny.texts[1], tiny.adapters[:] = "man " * 10, ["squad"]
        assert (await Asker(served, channel).call(tiny)).outputs[0].windows == 5


async def test_each_input_is_answered_by_the_adapter_it_names(ask: Asker, store: Store) -> None:
    response = await ask.call(*MIXED)
    for given, output in zip(MIXED, response.outputs, strict=True):
        stored = store.resolve(Reference.parse(given.adapter))
        identity = output.adapter
        assert (identity.name, identity.version) == (given.adapter, "1.0.0")
        assert identity.digest == stored.digest
        assert output.task == given.adapter
    kinds = [output.WhichOneof("answer") for output in response.outputs]
    assert kinds == ["label", "label_set", "value", "span", "label"]


async def test_batch_mates_change_nothing(ask: Asker) -> None:
    mixed = (await ask.call(*MIXED)).outputs
    for given, together in zip(MIXED, mixed, strict=True):
        (alone,) = (await ask.call(given)).outputs
        assert scores_of(together) == pytest.approx(scores_of(alone), abs=1e-5)  # fp32 rounding


async def test_serving_equals_the_forward_pass_alone(
    ask: Asker, store: Store, backbone: Backbone, runner: TorchRunner
) -> None:
    stored = store.resolve(Reference(name="sst2"))
    spec, arrays = store.load(stored)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    (row,) = Tokenizer(backbone.tokenizer_file).encode(spec.task, (FILM,), kind="classification")
    adapter = prepare(spec, tensors, dtype=torch.float32)
    logits = runner.run([Row(ids=row.ids, type_ids=row.type_ids, adapter=adapter)])
    expected = answer(spec, (FILM,), [row], logits)
    (output,) = (await ask.call(MIXED[0])).outputs
    assert isinstance(expected, LabelAnswer)
    assert output.label.label == expected.label
    assert scores_of(output) == pytest.approx(expected.scores, abs=1e-6)
    assert output.tokens == len(row.ids)


async def test_the_answer_says_backbone_precision_and_times(ask: Asker, backbone: Backbone) -> None:
    response = await ask.call(*MIXED)
    assert response.backbone_digest == backbone.identity.digest
    assert response.precision == pb.PRECISION_EXACT
    times = response.timings
    parts = times.load_ms + times.tokenize_ms + times.queue_ms + times.forward_ms
    assert 0 < parts <= times.total_ms
    assert np.isclose(times.forward_ms, sum(batch.forward_ms for batch in response.batches))


async def test_label_names_stand_beside_their_scores(ask: Asker) -> None:
    (output,) = (await ask.call(MIXED[0])).outputs
    assert [score.label for score in output.label.scores] == ["negative", "positive"]
    assert output.label.scores[output.label.index].label == output.label.label
    assert output.label.scores[output.label.index].score == output.label.score


async def test_a_span_is_cut_out_of_the_context(ask: Asker) -> None:
    (output,) = (await ask.call(MIXED[3])).outputs
    assert MIXED[3].texts[1][output.span.start : output.span.end] == output.span.text


async def test_a_cut_input_says_so(ask: Asker) -> None:
    short, long = (
        await ask.call(
            pb.Input(adapter="sst2", texts=["good"]),
            pb.Input(adapter="sst2", texts=["very " * 200]),
        )
    ).outputs
    assert (short.truncated, short.tokens) == (False, 3)
    assert (long.truncated, long.tokens) == (True, 32)


async def test_a_new_version_is_served_by_name_without_restart(
    ask: Asker, publish: Publisher
) -> None:
    before = (await ask.call(MIXED[0])).outputs[0]
    publish("sst2", version="2.0.0", seed=99)
    after = (await ask.call(MIXED[0])).outputs[0]
    pinned = (await ask.call(pb.Input(adapter="sst2:1.0.0", texts=[FILM]))).outputs[0]
    by_digest = pb.Input(adapter=f"sst2@{after.adapter.digest}", texts=[FILM])
    assert (before.adapter.version, after.adapter.version) == ("1.0.0", "2.0.0")
    assert scores_of(pinned) == pytest.approx(scores_of(before), abs=1e-6)
    assert scores_of(after) != pytest.approx(scores_of(before), abs=1e-3)
    assert (await ask.call(by_digest)).outputs[0].adapter == after.adapter


@pytest.mark.parametrize(
    ("bad", "code", "message"),
    [
        (pb.Input(adapter="nobody", texts=["x"]), StatusCode.NOT_FOUND, "no adapter nobody"),
        (pb.Input(adapter="sst2:9.9.9", texts=["x"]), StatusCode.NOT_FOUND, "it has 1.0.0"),
        (pb.Input(adapter="sst2:canary", texts=["x"]), StatusCode.NOT_FOUND, "canary"),
        (
            pb.Input(adapter="sst2@sha256:" + "0" * 64, texts=["x"]),
            StatusCode.NOT_FOUND,
            "sst2@sha256:000",
        ),
        (pb.Input(texts=["x"]), StatusCode.INVALID_ARGUMENT, "reference ''"),
        (pb.Input(adapter="../sst2", texts=["x"]), StatusCode.INVALID_ARGUMENT, "reference"),
        (pb.Input(adapter="embedded/sst2", texts=["x"]), StatusCode.INVALID_ARGUMENT, "own store"),
        (pb.Input(adapter="sst2"), StatusCode.INVALID_ARGUMENT, "takes sentence"),
        (pb.Input(adapter="sst2", texts=["a", "b"]), StatusCode.INVALID_ARGUMENT, "got 2 texts"),
        (
            pb.Input(adapter="sst2", fields={"text": "x"}),
            StatusCode.INVALID_ARGUMENT,
            "takes sentence, got text",
        ),
        (
            pb.Input(adapter="sst2", texts=["a"], fields={"sentence": "a"}),
            StatusCode.INVALID_ARGUMENT,
            "either texts or fields",
        ),
        (pb.Input(adapter="sst2", texts=[" "]), StatusCode.INVALID_ARGUMENT, "sentence is empty"),
        (
            pb.Input(adapter="sst2", texts=["x" * 2001]),
            StatusCode.INVALID_ARGUMENT,
            "at most 2000 characters, got 2001",
        ),
    ],
)
async def test_a_bad_input_fails_the_call_and_is_named(
    ask: Asker, bad: pb.Input, code: StatusCode, message: str
) -> None:
    error = await ask.refusal(MIXED[0], bad)
    assert error.code() is code
    assert message in (error.details() or "")
    assert (error.details() or "").startswith("inputs[1]: ")
    info = detail_of(error, error_details_pb2.ErrorInfo)
    assert info.domain == "upt"
    if code is StatusCode.INVALID_ARGUMENT:
        request = detail_of(error, error_details_pb2.BadRequest)
        assert [violation.field for violation in request.field_violations] == ["inputs[1]"]


@pytest.mark.parametrize("count", [0, 9])
async def test_too_few_and_too_many_inputs_are_refused(ask: Asker, count: int) -> None:
    error = await ask.refusal(*[MIXED[0]] * count)
    assert error.code() is StatusCode.INVALID_ARGUMENT
    assert "1 to 8 inputs" in (error.details() or "")


async def test_inputs_beyond_the_limit_are_counted_but_not_read(ask: Asker) -> None:
    error = await ask.refusal(*[pb.Input(adapter="not a reference")] * 5000)
    assert error.code() is StatusCode.INVALID_ARGUMENT
    assert "expected 1 to 8 inputs a call, got 5000" in (error.details() or "")
    labels = 'adapter="other",code="INVALID_ARGUMENT",task="other"'
    assert f"upt_requests_total{{{labels}}} 8.0" in ask.served.metrics.text().decode()


async def test_more_texts_than_any_task_has_fields_are_refused(ask: Asker) -> None:
    error = await ask.refusal(pb.Input(adapter="sst2", texts=[""] * 100_000))
    assert error.code() is StatusCode.INVALID_ARGUMENT
    assert "inputs[0]: a task takes 1 or 2 texts, got 100000" in (error.details() or "")


async def test_an_adapter_of_another_backbone_is_a_failed_precondition(
    ask: Asker, store: Store, tmp_path: Path
) -> None:
    other = write_tiny_backbone(tmp_path / "other", seed=1)
    Publisher(store=store, backbone=other)("foreign")
    error = await ask.refusal(pb.Input(adapter="foreign", texts=["x"]))
    assert error.code() is StatusCode.FAILED_PRECONDITION
    assert detail_of(error, error_details_pb2.ErrorInfo).reason == "WRONG_BACKBONE"


def change(blob: Path) -> None:
    blob.write_bytes(blob.read_bytes()[:-1] + b"\0")


def replace_by_a_directory(blob: Path) -> None:
    blob.unlink()
    blob.mkdir()


@pytest.mark.parametrize("damage", [change, Path.unlink, replace_by_a_directory])
@pytest.mark.parametrize("part", ["manifest", "config", "tensors"])
async def test_damaged_bytes_are_data_loss_and_the_caller_is_not_told_where_they_are(
    ask: Asker,
    store: Store,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], None],
    part: str,
) -> None:
    stored = store.resolve(Reference(name="cola"))
    blobs = {
        "manifest": stored.digest,
        "config": stored.manifest.config.digest,
        "tensors": stored.manifest.tensors.digest,
    }
    file = store.blob_path(blobs[part])
    damage(file)
    error = await ask.refusal(MIXED[4])
    await ask.refusal(MIXED[4])
    assert error.code() is StatusCode.DATA_LOSS
    assert f"inputs[0]: the blob {blobs[part]}" in (error.details() or "")
    assert str(store.root) not in (error.details() or "")
    assert [str(file.parent) in line for line in caplog.messages if blobs[part] in line] == [True]
    assert (await ask.call(MIXED[0])).outputs[0].HasField("label")


async def test_a_full_queue_is_exhausted_and_says_when_to_come_back(
    ask_fake: Asker, fake: FakeRunner
) -> None:
    fake.hold()
    running = asyncio.ensure_future(ask_fake.call(MIXED[0]))
    await fake.entered()
    waiting = [asyncio.ensure_future(ask_fake.call(MIXED[index])) for index in (0, 4)]
    await until(lambda: queue_depth(ask_fake.served) == 2)
    error = await ask_fake.refusal(MIXED[0])
    assert error.code() is StatusCode.RESOURCE_EXHAUSTED
    retry = detail_of(error, error_details_pb2.RetryInfo)
    assert retry.retry_delay.ToNanoseconds() > 0
    fake.release()
    await asyncio.gather(running, *waiting)
    assert 'upt_rejected_total{reason="overloaded"} 1.0' in ask_fake.served.metrics.text().decode()


async def test_a_full_queue_refuses_before_anything_is_loaded_or_tokenised(
    ask_fake: Asker, fake: FakeRunner
) -> None:
    fake.hold()
    running = asyncio.ensure_future(ask_fake.call(MIXED[0]))
    await fake.entered()
    waiting = asyncio.ensure_future(ask_fake.call(MIXED[0], MIXED[0]))
    await until(lambda: queue_depth(ask_fake.served) == 2)
    error = await ask_fake.refusal(*[pb.Input(adapter="nobody", texts=[FILM])] * 6)
    assert error.code() is StatusCode.RESOURCE_EXHAUSTED
    fake.release()
    await asyncio.gather(running, waiting)


async def test_a_passed_deadline_frees_the_place(ask_fake: Asker, fake: FakeRunner) -> None:
    fake.hold()
    running = asyncio.ensure_future(ask_fake.call(MIXED[0]))
    await fake.entered()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask_fake.call(MIXED[1], timeout_s=0.2)
    assert caught.value.code() is StatusCode.DEADLINE_EXCEEDED
    await until(lambda: queue_depth(ask_fake.served) == 0)
    fake.release()
    await running
    assert len(fake.batches) == 1


async def test_the_servers_own_limit_is_a_deadline_too(
    store: Store, backbone: Backbone, fake: FakeRunner
) -> None:
    settings = make_settings(store.root, limits=Limits(timeout_s=0.05))
    fake.hold()
    async with (
        serving(settings, backbone, fake) as served,
        grpc.aio.insecure_channel(served.target) as channel,
    ):
        error = await Asker(served, channel).refusal(MIXED[0])
        assert error.code() is StatusCode.DEADLINE_EXCEEDED
        assert error.details() == "no answer within 0.050 s"
        fake.release()


async def test_a_caller_that_leaves_frees_its_place(ask_fake: Asker, fake: FakeRunner) -> None:
    fake.hold()
    running = asyncio.ensure_future(ask_fake.call(MIXED[0]))
    await fake.entered()
    leaving = ask_fake.call(MIXED[1])
    await until(lambda: queue_depth(ask_fake.served) == 1)
    leaving.cancel()
    await until(lambda: queue_depth(ask_fake.served) == 0)
    fake.release()
    await running
    assert await leaving.code() is StatusCode.CANCELLED
    assert len(fake.batches) == 1
    metrics = ask_fake.served.metrics.text().decode()
    assert 'upt_requests_total{adapter="other",code="CANCELLED",task="other"} 1.0' in metrics


async def test_our_fault_is_logged_and_told_without_internals(
    ask_fake: Asker, fake: FakeRunner, caplog: pytest.LogCaptureFixture
) -> None:
    fake.error = RuntimeError("secret of the inside")
    with caplog.at_level(logging.ERROR):
        error = await ask_fake.refusal(MIXED[0])
    assert error.code() is StatusCode.INTERNAL
    assert "secret" not in f"{error.details()} {error.trailing_metadata()}"
    assert "secret of the inside" in caplog.text
    assert "gripping" not in caplog.text
    fake.error = None
    assert (await ask_fake.call(MIXED[0])).outputs


async def test_a_starting_server_is_unavailable(
    store: Store, backbone: Backbone, fake: FakeRunner
) -> None:
    settings = make_settings(store.root)
    async with (
        serving(settings, backbone, fake, is_open=False) as served,
        grpc.aio.insecure_channel(served.target) as channel,
    ):
        error = await Asker(served, channel).refusal(MIXED[0])
        assert error.code() is StatusCode.UNAVAILABLE
        assert "starting" in (error.details() or "")
        assert detail_of(error, error_details_pb2.RetryInfo)


async def test_a_draining_server_finishes_who_is_inside_and_admits_nobody(
    ask_fake: Asker, fake: FakeRunner
) -> None:
    fake.hold()
    inside = asyncio.ensure_future(ask_fake.call(MIXED[0]))
    await fake.entered()
    draining = asyncio.create_task(ask_fake.served.server.drain())
    await until(lambda: not ask_fake.served.engine.gate.is_open)
    error = await ask_fake.refusal(MIXED[0])
    assert error.code() is StatusCode.UNAVAILABLE
    assert "draining" in (error.details() or "")
    assert detail_of(error, error_details_pb2.RetryInfo)
    fake.release()
    assert (await inside).outputs[0].HasField("label")
    await draining


async def test_a_call_that_outlasts_the_drain_is_cut_off(
    store: Store, backbone: Backbone, fake: FakeRunner
) -> None:
    fake.hold()
    settings = make_settings(store.root, drain_timeout_s=0.01)
    async with (
        serving(settings, backbone, fake) as served,
        grpc.aio.insecure_channel(served.target) as channel,
    ):
        inside = asyncio.ensure_future(Asker(served, channel).call(MIXED[0]))
        await fake.entered()
        draining = asyncio.create_task(served.server.drain())
        with pytest.raises(grpc.aio.AioRpcError):
            await inside
        fake.release()
        await draining


async def test_adapters_are_described_before_and_after_they_are_loaded(
    ask: Asker, store: Store, backbone: Backbone
) -> None:
    request = pb.GetAdapterRequest(adapter="sst2")
    before: pb.Adapter = await ask.stub.GetAdapter(request)
    await ask.call(MIXED[0])
    after: pb.Adapter = await ask.stub.GetAdapter(request)
    assert (before.resident, after.resident) == (False, True)
    assert list(after.fields) == ["sentence"]
    assert list(after.labels) == ["negative", "positive"]
    assert after.head == pb.HEAD_KIND_CLASSIFICATION
    assert after.metrics == {"dev/accuracy": 75.0}
    assert after.backbone_digest == backbone.identity.digest
    assert after.parameters.served > after.parameters.head > 0
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask.stub.GetAdapter(pb.GetAdapterRequest(adapter="nobody"))
    assert caught.value.code() is StatusCode.NOT_FOUND


async def test_the_list_names_every_version_and_leaves_damaged_ones_out(
    ask: Asker, store: Store, publish: Publisher, caplog: pytest.LogCaptureFixture
) -> None:
    publish("sst2", version="1.10.0", seed=7)
    damaged = store.resolve(Reference(name="cola")).manifest.config.digest
    (store.root / "blobs" / "sha256" / damaged.removeprefix("sha256:")).unlink()
    response: pb.ListAdaptersResponse = await ask.stub.ListAdapters(pb.ListAdaptersRequest())
    names = [f"{a.identity.name}:{a.identity.version}" for a in response.adapters]
    assert names == ["squad:1.0.0", "sst2:1.0.0", "sst2:1.10.0", "stsb:1.0.0", "topics:1.0.0"]
    assert "left out of the list" in caplog.text


async def test_who_can_wait_says_so_in_a_header_and_other_words_are_refused(
    ask: Asker,
) -> None:
    request = pb.PredictRequest(inputs=[MIXED[0]])
    response = await ask.stub.Predict(request, metadata=(("upt-priority", "bulk"),))
    assert response.outputs
    with pytest.raises(grpc.aio.AioRpcError, match="priority normal or bulk, got 'urgent'"):
        await ask.stub.Predict(request, metadata=(("upt-priority", "urgent"),))


async def test_a_stream_answers_out_of_order_with_ids(ask_fake: Asker, fake: FakeRunner) -> None:
    async def requests() -> AsyncIterator[pb.StreamRequest]:
        yield pb.StreamRequest(id="slow", request=pb.PredictRequest(inputs=[MIXED[0]]))
        await fake.entered()
        refused = pb.Input(adapter="nobody", texts=[FILM])
        yield pb.StreamRequest(id="bad", request=pb.PredictRequest(inputs=[refused]))

    fake.hold()
    responses = aiter(ask_fake.stub.PredictStream(requests()))
    first = await anext(responses)
    fake.release()
    second = await anext(responses)
    assert (first.id, first.failure.reason) == ("bad", "ADAPTER_NOT_FOUND")
    assert (second.id, len(second.response.outputs)) == ("slow", 1)
    assert second.response.timings.total_ms > 0
    with pytest.raises(StopAsyncIteration):
        await anext(responses)


async def test_a_fault_ends_its_request_and_not_the_stream(
    ask_fake: Asker, fake: FakeRunner, caplog: pytest.LogCaptureFixture
) -> None:
    fake.error = RuntimeError("secret")
    request = pb.StreamRequest(id="1", request=pb.PredictRequest(inputs=[MIXED[0]]))
    responses = [response async for response in ask_fake.stub.PredictStream(iter([request]))]
    assert [response.failure.status for response in responses] == ["INTERNAL"]
    assert "secret" not in responses[0].failure.message
    assert "a call failed" in caplog.text
    assert FILM not in caplog.text


async def test_a_cancelled_stream_leaves_the_queue(ask_fake: Asker, fake: FakeRunner) -> None:
    fake.hold()
    running = asyncio.ensure_future(ask_fake.call(MIXED[0]))
    await fake.entered()
    request = pb.StreamRequest(id="1", request=pb.PredictRequest(inputs=[MIXED[0]]))
    stream = ask_fake.stub.PredictStream(iter([request] * 2))
    await stream.wait_for_connection()
    await until(lambda: queue_depth(ask_fake.served) > 0)
    stream.cancel()
    await until(lambda: queue_depth(ask_fake.served) == 0)
    fake.release()
    await running
    await until(lambda: ask_fake.served.engine.gate.inside == 0)


async def test_adapters_of_one_text_count_as_inputs(ask: Asker) -> None:
    error = await ask.refusal(pb.Input(adapters=["sst2"] * 9, texts=[FILM]))
    assert "expected 1 to 8 inputs a call, got 9" in (error.details() or "")
    metrics = ask.served.metrics.text().decode()
    assert 'upt_requests_total{adapter="other",code="INVALID_ARGUMENT",task="other"} 8.0' in metrics
