"""The Open Inference Protocol over a real channel, with tiny adapters of every kind of head."""

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import grpc
import pytest

from upt_protos.oip import open_inference_pb2 as pb
from upt_protos.oip import open_inference_pb2_grpc
from upt_server import open_inference
from upt_server.runner import TorchRunner
from upt_testing.serving import TIMEOUT_S, make_settings, serving
from upt_zoo.backbone import Backbone
from upt_zoo.local.store import Store
from upt_zoo.references import Reference

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
    monkeypatch.setattr(open_inference, "_ALL_STREAM_REQUESTS", 4)

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
