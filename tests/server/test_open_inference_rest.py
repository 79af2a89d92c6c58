"""The Open Inference Protocol over HTTP, over a real socket, with tiny adapters."""

import asyncio
import json
import struct
from collections.abc import AsyncIterator, Sequence
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import grpc
import numpy as np
import pytest

from upt_protos.oip import open_inference_pb2 as pb
from upt_protos.oip import open_inference_pb2_grpc
from upt_server.runner import TorchRunner
from upt_testing.serving import Served, make_settings, serving
from upt_zoo.backbone import Backbone
from upt_zoo.local.store import Store
from upt_zoo.references import Reference

FILMS = ["a good film", "a bad film, é"]
LENGTH = "Inference-Header-Content-Length"


@pytest.fixture
async def served(store: Store, backbone: Backbone, runner: TorchRunner) -> AsyncIterator[Served]:
    settings = make_settings(store.root, has_model_control=True)
    async with serving(settings, backbone, runner) as started:
        yield started


async def fetch(
    served: Served, path: str, data: bytes | None = None, **headers: str
) -> tuple[int, bytes, dict[str, str]]:
    def ask() -> tuple[int, bytes, dict[str, str]]:
        request = Request(
            f"http://{served.http}{path}",
            data=data,
            headers={name.replace("_", "-"): value for name, value in headers.items()},
        )
        try:
            with urlopen(request, timeout=30) as response:
                return response.status, response.read(), dict(response.headers)
        except HTTPError as error:
            with error:
                return error.code, error.read(), dict(error.headers)

    return await asyncio.to_thread(ask)


async def call(served: Served, path: str, body: object = None) -> tuple[int, Any]:
    data = None if body is None else json.dumps(body).encode()
    status, content, _ = await fetch(served, path, data)
    return status, json.loads(content)


def texts(name: str, values: Sequence[str]) -> dict[str, object]:
    return {"name": name, "shape": [len(values)], "datatype": "BYTES", "data": list(values)}


def raw(values: Sequence[str]) -> bytes:
    return b"".join(struct.pack("<I", len(each.encode())) + each.encode() for each in values)


async def test_texts_are_answered_as_by_grpc(served: Served, store: Store) -> None:
    body = {"id": "seven", "inputs": [texts("sentence", FILMS)]}
    status, answer = await call(served, "/v2/models/sst2/infer", body)
    assert status == 200
    message = pb.ModelInferRequest(model_name="sst2")
    tensor = message.inputs.add(name="sentence", datatype="BYTES", shape=[2])
    tensor.contents.bytes_contents.extend(each.encode() for each in FILMS)
    async with grpc.aio.insecure_channel(served.target) as channel:
        stub: Any = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        expected = await stub.ModelInfer(message)
    label, score, logits = answer["outputs"]
    assert label["data"] == [each.decode() for each in expected.outputs[0].contents.bytes_contents]
    assert score["data"] == pytest.approx(list(expected.outputs[1].contents.fp32_contents))
    assert logits["data"] == pytest.approx(
        list(expected.outputs[2].contents.fp32_contents), abs=1e-5
    )
    assert [each["shape"] for each in answer["outputs"]] == [[2], [2], [2, 2]]
    assert [each["datatype"] for each in answer["outputs"]] == ["BYTES", "FP32", "FP32"]
    digest = store.resolve(Reference.parse("sst2")).digest
    assert answer["parameters"]["digest"] == digest
    assert (answer["model_name"], answer["model_version"], answer["id"]) == (
        "sst2",
        "1.0.0",
        "seven",
    )


async def test_tensors_may_stand_behind_the_json_both_ways(served: Served) -> None:
    _, plain = await call(served, "/v2/models/sst2/infer", {"inputs": [texts("sentence", FILMS)]})
    behind = raw(FILMS)
    tensor = texts("sentence", FILMS) | {"parameters": {"binary_data_size": len(behind)}}
    del tensor["data"]
    head = json.dumps(
        {
            "inputs": [tensor],
            "parameters": {"binary_data_output": True},
            "outputs": [
                {"name": "logits"},
                {"name": "score", "parameters": {"binary_data": False}},
                {"name": "label"},
            ],
        }
    ).encode()
    path = "/v2/models/sst2/infer"
    status, content, headers = await fetch(served, path, head + behind, **{LENGTH: str(len(head))})
    assert status == 200
    length = int(headers[LENGTH.lower()])
    logits, score, label = json.loads(content[:length])["outputs"]
    sizes = [each["parameters"]["binary_data_size"] for each in (logits, label)]
    assert len(content) == length + sum(sizes)
    numbers = np.frombuffer(content[length : length + sizes[0]], "<f4")
    expected = {each["name"]: each["data"] for each in plain["outputs"]}
    assert numbers == pytest.approx(np.array(expected["logits"]), abs=1e-5)
    assert content[length + sizes[0] :] == raw(expected["label"])
    assert score["data"] == pytest.approx(expected["score"], abs=1e-5)


@pytest.mark.parametrize("model", ["sst2:1.0.0", "sst2/versions/1.0.0"])
async def test_a_version_may_stand_in_the_name_or_behind_it(served: Served, model: str) -> None:
    body = {"inputs": [texts("sentence", ["a film"])]}
    for path in ("", "/ready", "/config", "/stats"):
        status, _ = await call(served, f"/v2/models/{model}{path}")
        assert status == 200
    status, answer = await call(served, f"/v2/models/{model}/infer", body)
    assert (status, answer["model_version"]) == (200, "1.0.0")
    status, answer = await call(served, f"/v2/models/{model.replace('1.0.0', '9.0.0')}")
    assert (status, "9.0.0" in answer["error"]) == (404, True)


async def test_what_the_server_is_and_has(served: Served) -> None:
    assert await call(served, "/v2/health/live") == (200, {"live": True})
    assert await call(served, "/v2/health/ready") == (200, {"ready": True})
    _, server = await call(served, "/v2")
    assert (server["name"], "binary_tensor_data" in server["extensions"]) == ("upt", True)
    _, metadata = await call(served, "/v2/models/squad")
    assert [each["name"] for each in metadata["inputs"]] == ["question", "context"]
    assert metadata["outputs"][1] == {"name": "start", "datatype": "INT64", "shape": [-1]}
    _, config = await call(served, "/v2/models/sst2/config")
    assert config["input"] == [{"name": "sentence", "data_type": "TYPE_STRING", "dims": [-1]}]
    assert config["parameters"]["task"]["string_value"] == "sst2"
    await call(served, "/v2/models/sst2/infer", {"inputs": [texts("sentence", ["a film"])]})
    _, every = await call(served, "/v2/models/stats")
    counts = {each["name"]: each["inference_count"] for each in every["model_stats"]}
    assert counts == {"cola": 0, "sst2": 1, "squad": 0, "stsb": 0, "topics": 0}
    _, one = await call(served, "/v2/models/sst2/stats")
    assert one["model_stats"][0]["inference_stats"]["success"]["count"] == 1


async def test_adapters_are_loaded_and_unloaded(served: Served) -> None:
    async def in_memory() -> list[str]:
        _, index = await call(served, "/v2/repository/index", {})
        return [each["name"] for each in index if each["reason"] == "in memory"]

    repository = "/v2/repository/models"
    assert await call(served, f"{repository}/sst2/load", {}) == (200, {})
    assert await in_memory() == ["sst2"]
    unload = {"parameters": {"unload_dependents": False}}
    assert await call(served, f"{repository}/sst2/unload", unload) == (200, {})
    assert await in_memory() == []
    assert (await fetch(served, f"{repository}/sst2/load", b""))[0] == 200
    status, answer = await call(served, f"{repository}/sst2/load", {"parameters": {"config": ""}})
    assert (status, "leave out config" in answer["error"]) == (400, True)
    assert (await call(served, f"{repository}/nobody/load", {}))[0] == 404


@pytest.mark.parametrize("verb", ["load", "unload"])
async def test_nobody_loads_or_unloads_unless_the_server_says_so(
    store: Store, backbone: Backbone, runner: TorchRunner, verb: str
) -> None:
    async with serving(make_settings(store.root), backbone, runner) as served:
        status, answer = await call(served, f"/v2/repository/models/sst2/{verb}", {})
    assert (status, "--model-control" in answer["error"]) == (403, True)


async def test_a_server_that_is_not_ready_says_so(
    store: Store, backbone: Backbone, runner: TorchRunner
) -> None:
    async with serving(make_settings(store.root), backbone, runner, is_open=False) as served:
        assert await call(served, "/v2/health/ready") == (503, {"ready": False})
        assert (await call(served, "/v2/models/sst2/ready"))[0] == 503
        assert await call(served, "/v2/health/live") == (200, {"live": True})
        body = {"inputs": [texts("sentence", ["a film"])]}
        status, answer = await call(served, "/v2/models/sst2/infer", body)
    assert (status, "starting" in answer["error"]) == (503, True)


SENTENCE = texts("sentence", ["a film"])
WITHOUT_DATA = {name: value for name, value in SENTENCE.items() if name != "data"}
MALFORMED: dict[str, tuple[object, str]] = {
    "not an object": ([1], "the body"),
    "no inputs": ({}, "inputs"),
    "unknown key": ({"inputs": [SENTENCE], "extra": 1}, "extra"),
    "number": ({"inputs": [SENTENCE | {"data": [1]}]}, "inputs.0.data"),
    "negative shape": ({"inputs": [SENTENCE | {"shape": [-1]}]}, "inputs.0.shape"),
    "huge shape": ({"inputs": [SENTENCE | {"shape": [2**63]}]}, "inputs.0.shape"),
    "huge timeout": ({"inputs": [SENTENCE], "parameters": {"timeout": 2**64}}, "microseconds"),
    "fraction": ({"inputs": [SENTENCE], "parameters": {"timeout": 0.5}}, "microseconds"),
    "other count": ({"inputs": [SENTENCE | {"shape": [2]}]}, "expected 2 texts"),
    "other type": ({"inputs": [SENTENCE | {"datatype": "FP32"}]}, "expected BYTES"),
    "other field": ({"inputs": [texts("text", ["a film"])]}, "takes sentence"),
    "other output": ({"inputs": [SENTENCE], "outputs": [{"name": "odds"}]}, "each output once"),
    "nothing behind": (
        {"inputs": [WITHOUT_DATA | {"parameters": {"binary_data_size": 4}}]},
        "0 bytes that are left",
    ),
    "size in words": (
        {"inputs": [WITHOUT_DATA | {"parameters": {"binary_data_size": "4"}}]},
        "binary_data_size",
    ),
    "both": (
        {"inputs": [SENTENCE | {"parameters": {"binary_data_size": 0}}]},
        "binary_data_size",
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
async def test_bad_requests_say_what_was_expected(served: Served, name: str) -> None:
    body, said = MALFORMED[name]
    status, answer = await call(served, "/v2/models/sst2/infer", body)
    assert (status, said in answer["error"]) == (400, True), answer


@pytest.mark.parametrize("length", ["0", "-1", "9999", "one", "²"])
async def test_a_wrong_length_of_the_json_is_refused(served: Served, length: str) -> None:
    data = json.dumps({"inputs": [SENTENCE]}).encode()
    path = "/v2/models/sst2/infer"
    status, content, _ = await fetch(served, path, data, **{LENGTH: length})
    assert (status, b"length of the JSON" in content) == (400, True)


async def test_bytes_that_no_input_tells_of_are_refused(served: Served) -> None:
    data = json.dumps({"inputs": [SENTENCE]}).encode()
    path = "/v2/models/sst2/infer"
    status, content, _ = await fetch(served, path, data + b"more", **{LENGTH: str(len(data))})
    assert (status, b"4 bytes stand behind" in content) == (400, True)


@pytest.mark.parametrize("data", [b"", b"{", b'{"inputs": [{"name": "\\ud800"}]}', b"\xff"])
async def test_what_is_no_json_is_refused(served: Served, data: bytes) -> None:
    status, content, _ = await fetch(served, "/v2/models/sst2/infer", data)
    assert status == 400
    assert isinstance(json.loads(content)["error"], str)


async def test_shapes_may_have_a_column(served: Served) -> None:
    column = SENTENCE | {"shape": [2, 1], "data": [["a film"], ["another"]]}
    status, answer = await call(served, "/v2/models/sst2/infer", {"inputs": [column]})
    assert (status, answer["outputs"][0]["shape"]) == (200, [2])
