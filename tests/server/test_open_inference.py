"""The Open Inference Protocol over a real channel, with tiny adapters of every kind of head."""

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import grpc
import pytest

from upt_protos.oip import open_inference_pb2 as pb
from upt_protos.oip import open_inference_pb2_grpc
from upt_server import app
from upt_server.runner import TorchRunner
from upt_server.streams import Streams
from upt_testing.serving import TIMEOUT_S, FakeRunner, make_settings, serving
from upt_zoo.backbone import Backbone
from upt_zoo.local.store import Store
from upt_zoo.references import Reference

TYPES = {pb.TYPE_STRING: "BYTES", pb.TYPE_FP32: "FP32", pb.TYPE_INT64: "INT64"}
if TYPE_CHECKING:
    Stub: TypeAlias = open_inference_pb2_grpc.GRPCInferenceServiceAsyncStub


@pytest.fixture
async def stub(store: Store, backbone: Backbone, runner: TorchRunner) -> "AsyncIterator[Stub]":
    async with (
        serving(make_settings(store.root), backbone, runner) as served,
        grpc.aio.insecure_channel(served.target) as channel,
    ):
        yield open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[misc]  # the stubs know two kinds


def raw(texts: Sequence[str]) -> bytes:
    return b"".join(struct.pack("<I", len(each.encode())) + each.encode() for each in texts)


def request(model: str, *, is_raw: bool = False, **fields: Sequence[str]) -> pb.ModelInferRequest:
    return request_of(model, fields, is_raw=is_raw)


def request_of(
    model: str, fields: Mapping[str, Sequence[str]], *, is_raw: bool = False
) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name=model, id="1")
    for name, texts in fields.items():
        tensor = message.inputs.add(name=name, datatype="BYTES", shape=[len(texts)])
        if is_raw:
            message.raw_input_contents.append(raw(texts))
        else:
            tensor.contents.bytes_contents.extend(each.encode() for each in texts)
    return message


async def code_and_message(call: Awaitable[object]) -> tuple[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code().name, caught.value.details() or ""


async def test_every_kind_of_head_has_its_outputs(stub: "Stub") -> None:
    films = ["a good film", "a bad film"]
    for model, outputs in {
        "sst2": {"label": [2], "score": [2], "logits": [2, 2]},
        "topics": {"label": [2], "logits": [2, 3]},
        "stsb": {"score": [2]},
    }.items():
        metadata = await stub.ModelMetadata(pb.ModelMetadataRequest(name=model))
        names = [tensor.name for tensor in metadata.inputs]
        answer = await stub.ModelInfer(request_of(model, dict.fromkeys(names, films)))
        assert {each.name: list(each.shape) for each in answer.outputs} == outputs
        assert [each.name for each in metadata.outputs] == list(outputs)
    spans = await stub.ModelInfer(
        request("squad", question=["who wrote it ?"], context=["a man wrote the book"])
    )
    values = {each.name: each.contents for each in spans.outputs}
    start, end = values["start"].int64_contents[0], values["end"].int64_contents[0]
    assert values["answer"].bytes_contents[0] == b"a man wrote the book"[start:end]
    assert 0 < values["score"].fp32_contents[0] <= 1


async def test_raw_contents_are_answered_raw_with_the_same_values(stub: "Stub") -> None:
    films = ["a good film", "", "a bad film"][::2]
    typed = await stub.ModelInfer(request("sst2", sentence=films))
    packed = await stub.ModelInfer(request("sst2", is_raw=True, sentence=films))
    labels = list(typed.outputs[0].contents.bytes_contents)
    assert packed.raw_output_contents[0] == raw([label.decode() for label in labels])
    scores = struct.pack("<2f", *typed.outputs[1].contents.fp32_contents)
    assert packed.raw_output_contents[1] == scores
    assert not packed.outputs[0].HasField("contents")


async def test_answers_name_their_adapter(stub: "Stub", store: Store) -> None:
    answer = await stub.ModelInfer(request("sst2", sentence=["a film"]))
    facts = {name: value.string_param for name, value in answer.parameters.items()}
    assert facts["digest"] == store.resolve(Reference.parse("sst2")).digest
    assert (answer.model_name, answer.model_version, answer.id) == ("sst2", "1.0.0", "1")


async def test_a_version_may_stand_in_its_own_field(stub: "Stub") -> None:
    message = request("sst2", sentence=["a film"])
    message.model_version = "1.0.0"
    assert (await stub.ModelInfer(message)).model_version == "1.0.0"
    message.model_version = "9.0.0"
    assert (await code_and_message(stub.ModelInfer(message)))[0] == "NOT_FOUND"
    message.model_name, message.model_version = "sst2:1.0.0", "9.0.0"
    assert (await code_and_message(stub.ModelInfer(message)))[0] == "INVALID_ARGUMENT"


def malformed() -> dict[str, pb.ModelInferRequest]:
    cases = {
        "no inputs": pb.ModelInferRequest(model_name="sst2"),
        "other field": request("sst2", text=["a film"]),
        "uneven": request("squad", question=["who ?", "what ?"], context=["a man"]),
        "unknown output": request("sst2", sentence=["a film"]),
        "output of another head": request("sst2", sentence=["a film"]),
        "more inputs than fields": request("sst2", a=["a"], b=["b"], c=["c"], d=["d"]),
        "type": request("sst2", sentence=["a film"]),
        "count": request("sst2", sentence=["a film"]),
        "not UTF-8": request("sst2", sentence=["a film"]),
        "raw count": request("sst2", is_raw=True, sentence=["a film"]),
        "raw length": request("sst2", is_raw=True, sentence=["a film"]),
        "raw text": request("sst2", is_raw=True, sentence=["a film"]),
        "twice": request("sst2", sentence=["a film"]),
        "reference": request("SST 2", sentence=["a film"]),
    }
    cases["unknown output"].outputs.add(name="probability")
    cases["output of another head"].outputs.add(name="start")
    cases["type"].inputs[0].datatype = "FP32"
    cases["count"].inputs[0].contents.bytes_contents.append(b"one more")
    cases["not UTF-8"].inputs[0].contents.bytes_contents[0] = b"\xff"
    cases["raw count"].raw_input_contents.append(b"")
    cases["raw length"].raw_input_contents[0] += b"\x01"
    cases["raw text"].raw_input_contents[0] = b"\xff\xff\xff\xff"
    cases["twice"].inputs.add().CopyFrom(cases["twice"].inputs[0])
    return cases


@pytest.mark.parametrize("name", malformed())
async def test_bad_requests_are_invalid_arguments(stub: "Stub", name: str) -> None:
    code, message = await code_and_message(stub.ModelInfer(malformed()[name]))
    assert code == "INVALID_ARGUMENT"
    assert message


async def test_a_stream_is_answered_in_order_and_survives_errors(stub: "Stub") -> None:
    async def asked() -> AsyncIterator[pb.ModelInferRequest]:
        for index in range(100):
            message = request("nobody" if index % 10 == 3 else "sst2", sentence=["a film"])
            message.id = str(index)
            yield message

    answers = [each async for each in stub.ModelStreamInfer(asked())]
    assert [each.infer_response.id for each in answers] == [str(index) for index in range(100)]
    failed = [index for index, each in enumerate(answers) if each.error_message]
    assert failed == list(range(3, 100, 10))
    assert "no adapter nobody" in answers[3].error_message


async def test_streams_that_are_left_early_take_no_place_from_later_ones(
    store: Store, backbone: Backbone, runner: TorchRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "Streams", partial(Streams, most_of_all=4))

    async def asked() -> AsyncIterator[pb.ModelInferRequest]:
        for _ in range(100):
            yield request("sst2", sentence=["a film"])

    async with (
        serving(make_settings(store.root), backbone, runner) as served,
        grpc.aio.insecure_channel(served.target) as channel,
    ):
        stub: Stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[assignment]  # the stubs know two kinds
        for _ in range(8):
            call = stub.ModelStreamInfer(asked())
            await call.read()
            call.cancel()
        async with asyncio.timeout(TIMEOUT_S):
            assert len([each async for each in stub.ModelStreamInfer(asked())]) == 100


async def test_the_server_and_its_models_say_that_they_are_ready(stub: "Stub") -> None:
    assert (await stub.ServerLive(pb.ServerLiveRequest())).live
    assert (await stub.ServerReady(pb.ServerReadyRequest())).ready
    assert (await stub.ServerMetadata(pb.ServerMetadataRequest())).name == "upt"
    assert (await stub.ModelReady(pb.ModelReadyRequest(name="sst2"))).ready
    unknown = stub.ModelReady(pb.ModelReadyRequest(name="nobody"))
    assert (await code_and_message(unknown))[0] == "NOT_FOUND"
    index = await stub.RepositoryIndex(pb.RepositoryIndexRequest())
    assert {model.name for model in index.models} == {"cola", "sst2", "squad", "stsb", "topics"}


async def test_a_configuration_says_the_same_as_the_metadata_and_names_the_labels(
    stub: "Stub", store: Store
) -> None:
    for model in ("sst2", "topics", "stsb", "squad"):
        metadata = await stub.ModelMetadata(pb.ModelMetadataRequest(name=model))
        config = (await stub.ModelConfig(pb.ModelConfigRequest(name=model))).config
        assert [(each.name, list(each.dims)) for each in config.input] == [
            (each.name, list(each.shape)) for each in metadata.inputs
        ]
        assert [(each.name, TYPES[each.data_type], list(each.dims)) for each in config.output] == [
            (each.name, each.datatype, list(each.shape)) for each in metadata.outputs
        ]
        stored = store.resolve(Reference.parse(model))
        facts = {name: value.string_value for name, value in config.parameters.items()}
        assert facts["labels"] == ",".join(stored.spec.head.labels or ())
        assert facts["digest"] == stored.digest


async def test_statistics_count_calls_inputs_and_failures(stub: "Stub") -> None:
    await stub.ModelInfer(request("sst2", sentence=["a film", "another film"]))
    await stub.ModelInfer(request("sst2", sentence=["a film"]))
    await code_and_message(stub.ModelInfer(request("sst2", sentence=[" "])))
    await code_and_message(stub.ModelInfer(request("cola", sentence=[" "])))
    found = await stub.ModelStatistics(pb.ModelStatisticsRequest())
    by_name = {each.name: each for each in found.model_stats}
    sst2, cola = by_name["sst2"], by_name["cola"]
    assert (sst2.inference_count, sst2.execution_count) == (3, 2)
    stats = sst2.inference_stats
    assert (stats.success.count, stats.fail.count) == (2, 1)
    assert 0 < stats.compute_infer.ns < stats.success.ns
    assert sst2.last_inference > 1_700_000_000_000  # in milliseconds
    assert (cola.inference_count, cola.last_inference) == (0, 0)
    (alone,) = (await stub.ModelStatistics(pb.ModelStatisticsRequest(name="sst2"))).model_stats
    assert alone == sst2
    unknown = stub.ModelStatistics(pb.ModelStatisticsRequest(name="nobody"))
    assert (await code_and_message(unknown))[0] == "NOT_FOUND"


async def test_nobody_loads_or_unloads_by_this_protocol_unless_the_server_says_so(
    stub: "Stub",
) -> None:
    for call in (
        stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="sst2")),
        stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="sst2")),
    ):
        code, message = await code_and_message(call)
        assert code == "PERMISSION_DENIED"
        assert "--model-control" in message


async def test_load_brings_an_adapter_into_memory_and_unload_takes_it_out(
    store: Store, backbone: Backbone, runner: TorchRunner
) -> None:
    settings = make_settings(store.root, has_model_control=True)
    digest = store.resolve(Reference.parse("sst2")).digest
    async with (
        serving(settings, backbone, runner) as served,
        grpc.aio.insecure_channel(served.target) as channel,
    ):
        stub: Stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[assignment]  # the stubs know two kinds

        async def in_memory() -> set[str]:
            index = await stub.RepositoryIndex(pb.RepositoryIndexRequest())
            return {each.name for each in index.models if each.reason == "in memory"}

        assert await in_memory() == set()
        await stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="sst2"))
        assert await in_memory() == {"sst2"}
        unload = pb.RepositoryModelUnloadRequest(model_name="sst2")
        unload.parameters["unload_dependents"].bool_param = False
        await stub.RepositoryModelUnload(unload)
        assert await in_memory() == set()
        answer = await stub.ModelInfer(request("sst2", sentence=["a film"]))
        assert answer.parameters["digest"].string_param == digest
        load = pb.RepositoryModelLoadRequest(model_name="sst2")
        load.parameters["config"].string_param = "{}"
        assert (await code_and_message(stub.RepositoryModelLoad(load)))[0] == "INVALID_ARGUMENT"
        lost = stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="nobody"))
        assert (await code_and_message(lost))[0] == "NOT_FOUND"


async def test_a_requests_own_timeout_counts(
    store: Store, backbone: Backbone, fake: FakeRunner
) -> None:
    async with (
        serving(make_settings(store.root), backbone, fake) as served,
        grpc.aio.insecure_channel(served.target) as channel,
    ):
        stub: Stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[assignment]  # the stubs know two kinds
        fake.hold()
        message = request("sst2", sentence=["a film"])
        message.parameters["timeout"].int64_param = 1000
        assert (await code_and_message(stub.ModelInfer(message)))[0] == "DEADLINE_EXCEEDED"
        fake.release()
        message.parameters["timeout"].string_param = "soon"
        assert (await code_and_message(stub.ModelInfer(message)))[0] == "INVALID_ARGUMENT"
        message.parameters["timeout"].int64_param = 0
        assert (await stub.ModelInfer(message)).model_version == "1.0.0"


@pytest.mark.parametrize("name", ["shared_memory_region", "classification"])
async def test_what_would_change_the_elements_is_refused(stub: "Stub", name: str) -> None:
    of_input, of_output = (request("sst2", sentence=["a film"]) for _ in range(2))
    of_input.inputs[0].parameters[name].string_param = "1"
    of_output.outputs.add(name="label").parameters[name].int64_param = 1
    for message in (of_input, of_output):
        code, text = await code_and_message(stub.ModelInfer(message))
        assert (code, name in text) == ("INVALID_ARGUMENT", True)
