"""An alias that moves and a name that is shared out, as callers of a running server see them."""

import asyncio
import json
from collections.abc import AsyncIterator
from urllib.request import Request, urlopen

import grpc
import pytest

from upt_protos.v1 import inference_pb2 as pb
from upt_protos.v1 import inference_pb2_grpc
from upt_server.client import AsyncClient
from upt_server.routes import Route
from upt_testing.serving import TIMEOUT_S, FakeRunner, Publisher, Served, make_settings, serving
from upt_zoo.backbone import Backbone
from upt_zoo.local.tags import move_alias, roll_back
from upt_zoo.references import Reference


def ref(text: str) -> Reference:
    return Reference.parse(text)


@pytest.fixture
async def served(publish: Publisher, backbone: Backbone, fake: FakeRunner) -> AsyncIterator[Served]:
    for seed, version in enumerate(("1.0.0", "1.1.0", "1.2.0")):
        publish("sst2", version=version, seed=seed)
    move_alias(publish.store, ref("sst2:1.0.0"), "stable")
    move_alias(publish.store, ref("sst2:1.1.0"), "canary")
    routes = (Route.parse("sst2:stable=50,canary=50"),)
    async with serving(make_settings(publish.store.root, routes=routes), backbone, fake) as started:
        yield started
        fake.release()


async def version_of(served: Served, adapter: str, key: str | None = None) -> str:
    metadata = () if key is None else (("upt-request-key", key),)
    request = pb.PredictRequest(inputs=[pb.Input(adapter=adapter, texts=["a film"])])
    async with grpc.aio.insecure_channel(served.target) as channel:
        stub = inference_pb2_grpc.InferenceStub(channel)
        response = await stub.Predict(request, metadata=metadata)  # type: ignore[misc]  # one class, two kinds of channel
    version: str = response.outputs[0].adapter.version
    return version


async def until_version(served: Served, adapter: str, version: str) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while await version_of(served, adapter) != version:
            pass


async def test_who_is_inside_when_an_alias_moves_finishes_on_what_it_began_with(
    served: Served, publish: Publisher, fake: FakeRunner
) -> None:
    fake.hold()
    async with AsyncClient(served.target) as client:
        inside = asyncio.create_task(client.predict("sst2:stable", "a film"))
        await fake.entered()
        move_alias(publish.store, ref("sst2:1.2.0"), "stable")
        fake.release()
        assert (await inside).adapter.version == "1.0.0"
    await until_version(served, "sst2:stable", "1.2.0")
    roll_back(publish.store, ref("sst2:stable"))
    await until_version(served, "sst2:stable", "1.0.0")


async def test_a_shared_name_leads_equal_keys_to_equal_versions(served: Served) -> None:
    found = {key: await version_of(served, "sst2", key) for key in map(str, range(12))}
    assert set(found.values()) == {"1.0.0", "1.1.0"}
    for key, version in found.items():
        assert await version_of(served, "sst2", key) == version
    assert await version_of(served, "sst2:1.2.0", "0") == "1.2.0"
    assert await version_of(served, "sst2:canary") == "1.1.0"

    def ask(key: str) -> str:
        body = json.dumps({"inputs": [{"adapter": "sst2", "texts": ["a film"]}]}).encode()
        request = Request(f"http://{served.http}/v1/predict", data=body)
        request.add_header("Upt-Request-Key", key)
        with urlopen(request, timeout=TIMEOUT_S) as response:
            version: str = json.load(response)["outputs"][0]["adapter"]["version"]
            return version

    assert {key: await asyncio.to_thread(ask, key) for key in found} == found


async def test_the_inputs_of_one_call_for_one_name_go_together(served: Served) -> None:
    async with AsyncClient(served.target) as client:
        for _ in range(10):
            prediction = await client.predict_many([("sst2", ["a film"])] * 4)
            assert len({output.adapter.version for output in prediction.outputs}) == 1


async def test_names_that_the_store_has_not_are_told_of_at_the_start(
    publish: Publisher, backbone: Backbone, fake: FakeRunner, caplog: pytest.LogCaptureFixture
) -> None:
    publish("sst2")
    move_alias(publish.store, ref("sst2:1.0.0"), "stable")
    routes = (Route.parse("sst2:stable=90,canary=10"),)
    settings = make_settings(publish.store.root, routes=routes, weights={"sst2": 2, "sst3": 5})
    async with serving(settings, backbone, fake) as served:
        await served.engine.warn_of_missing()
    route, weight = (each.message for each in caplog.records if each.levelname == "WARNING")
    assert route.startswith("calls that --route sends to sst2:canary fail until the store has it:")
    assert weight.startswith("--weight sst3 has no effect until the store has it: no adapter sst3")
