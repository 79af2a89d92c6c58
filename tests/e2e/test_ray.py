"""Two replicas behind Ray Serve, as callers of a single server see them."""

import asyncio
import json
import os
import random
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import sleep
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import grpc
import pytest

from upt_benchmarks.processors import used_by
from upt_benchmarks.ray_app import RayApp, running_ray
from upt_benchmarks.restarts import Persistent, asking
from upt_benchmarks.truth import Truth
from upt_protos.oip import open_inference_pb2, open_inference_pb2_grpc
from upt_server.access.tokens import Token, add_token
from upt_server.client import AsyncClient, Client
from upt_server.results import Output
from upt_server.runner import TorchRunner
from upt_testing.adapters import CLASSIFICATION, REGRESSION, SPAN
from upt_testing.backbones import write_tiny_backbone
from upt_testing.serving import TIMEOUT_S, Publisher, Served, make_settings, serving
from upt_zoo.answers import LabelAnswer, SpanAnswer, ValueAnswer
from upt_zoo.backbone import Backbone
from upt_zoo.errors import Unauthenticated, UptError
from upt_zoo.local.store import Store, StoredAdapter
from upt_zoo.local.tags import move_alias
from upt_zoo.nn.encoder import load_encoder
from upt_zoo.references import Reference
from upt_zoo.tokenization import Tokenizer

pytestmark = pytest.mark.slow

HEADS = {"sst2": CLASSIFICATION, "stsb": REGRESSION, "squad": SPAN}
PLACED = [f"task{index}" for index in range(8)]
TEXTS = ["a film", "a gripping , funny film", "a dull story of a man and a woman in an old city"]
CALLERS = 4
AUTOSCALING = {
    "min_replicas": 1,
    "max_replicas": 2,
    "target_ongoing_requests": 2,
    "metrics_interval_s": 0.5,
    "look_back_period_s": 2,
    "upscale_delay_s": 1,
    "downscale_delay_s": 3,
}


@dataclass(frozen=True, kw_only=True)
class Replicated:
    """The application, what it serves, and who may ask it."""

    app: RayApp
    args: dict[str, object]
    publish: Publisher
    token: str

    def clients(self, count: int, truth: Truth, asked: list[Reference]) -> list[Persistent]:
        return [
            Persistent(
                target=self.app.target,
                truth=truth,
                asked=[(reference, text) for reference in asked for text in TEXTS],
                source=random.Random(number),
                token=self.token,
            )
            for number in range(count)
        ]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return write_tiny_backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="module")
def runner(backbone: Backbone) -> TorchRunner:
    return TorchRunner(load_encoder(backbone))


@pytest.fixture(scope="module")
def replicated(
    tmp_path_factory: pytest.TempPathFactory, backbone: Backbone
) -> Iterator[Replicated]:
    folder = tmp_path_factory.mktemp("replicated")
    publish = Publisher(store=Store(folder / "home"), backbone=backbone)
    for seed, name in enumerate([*HEADS, *PLACED]):
        publish(name, HEADS.get(name, CLASSIFICATION), seed=seed)
    token, secret = Token.create(name="tests", scopes=("predict", "metadata"))
    add_token(folder / "tokens.json", token)
    args: dict[str, object] = {
        "home": str(publish.store.root),
        "backbone": str(backbone.directory),
        "runner": "torch-fp32",
        "tokens": str(folder / "tokens.json"),
    }
    with running_ray() as app:
        app.deploy(args)
        yield Replicated(app=app, args=args, publish=publish, token=secret)


@pytest.fixture
async def single(
    replicated: Replicated, backbone: Backbone, runner: TorchRunner
) -> AsyncIterator[Served]:
    async with serving(make_settings(replicated.publish.store.root), backbone, runner) as served:
        yield served


@pytest.fixture
async def clients(
    replicated: Replicated, single: Served
) -> AsyncIterator[tuple[AsyncClient, AsyncClient]]:
    async with (
        AsyncClient(replicated.app.target, token=replicated.token, retry_for_s=TIMEOUT_S) as many,
        AsyncClient(single.target) as one,
    ):
        yield many, one


def numbers(output: Output) -> tuple[float, ...]:
    match output.answer:
        case LabelAnswer(scores=scores):
            return tuple(scores)
        case ValueAnswer(value=value):
            return (value,)
        case SpanAnswer(start=start, end=end, score=score):
            return (start, end, score)
    raise AssertionError(output.answer)


def learn(
    truth: Truth, replicated: Replicated, runner: TorchRunner, *stored: StoredAdapter
) -> None:
    tokenizer = Tokenizer(replicated.publish.backbone.tokenizer_file)
    truth.learn(replicated.publish.store, stored, TEXTS, runner=runner, tokenizer=tokenizer)


async def test_answers_and_digests_are_those_of_a_single_server(
    clients: tuple[AsyncClient, AsyncClient],
) -> None:
    asked = [("sst2", [TEXTS[1]]), ("stsb", [TEXTS[0]]), ("squad", ["who", TEXTS[2]])]
    many, one = [(await client.predict_many(asked)).outputs for client in clients]
    assert [output.adapter for output in many] == [output.adapter for output in one]
    assert [output.labels for output in many] == [output.labels for output in one]
    for got, expected in zip(many, one, strict=True):
        assert numbers(got) == pytest.approx(numbers(expected), abs=1e-5)
    listed = [{each.identity for each in await client.adapters()} for client in clients]
    assert listed[0] == listed[1]


@pytest.mark.parametrize(
    "ask",
    [
        lambda client: client.predict("nobody", "a film"),
        lambda client: client.predict("sst2:9.9.9", "a film"),
        lambda client: client.predict("sst2", "a", "b", "c"),
        lambda client: client.predict_many([]),
        lambda client: client.adapter("nobody"),
    ],
)
async def test_errors_are_those_of_a_single_server(
    clients: tuple[AsyncClient, AsyncClient], ask: Callable[[AsyncClient], object]
) -> None:
    raised = []
    for client in clients:
        with pytest.raises(UptError) as caught:
            await ask(client)  # type: ignore[misc]  # each returns an awaitable
        raised.append((type(caught.value), str(caught.value)))
    assert raised[0] == raised[1]


async def test_http_says_what_a_single_server_says(replicated: Replicated, single: Served) -> None:
    def ask(http: str, adapter: str) -> tuple[int, dict[str, object]]:
        body = json.dumps({"inputs": [{"adapter": adapter, "texts": ["a film"]}]}).encode()
        headers = {"authorization": f"Bearer {replicated.token}"}
        request = Request(f"http://{http}/v1/predict", data=body, headers=headers)
        try:
            with urlopen(request, timeout=TIMEOUT_S) as response:
                (output,) = json.load(response)["outputs"]
                return response.status, output["adapter"]
        except HTTPError as error:
            return error.code, json.load(error)

    for adapter, code in (("sst2", 200), ("nobody", 404)):
        many, one = [
            await asyncio.to_thread(ask, http, adapter)
            for http in (replicated.app.http, single.http)
        ]
        assert many == one
        assert many[0] == code


async def test_a_stream_answers_each_input_or_says_why_not(
    clients: tuple[AsyncClient, AsyncClient],
) -> None:
    async def inputs() -> AsyncIterator[tuple[str, list[str]]]:
        for adapter in ("sst2", "nobody", "sst2"):
            yield adapter, ["a film"]

    many, one = [
        {place: answer async for place, answer in client.predict_stream(inputs())}
        for client in clients
    ]
    assert many.keys() == one.keys() == {0, 1, 2}
    assert (type(many[1]), str(many[1])) == (type(one[1]), str(one[1]))
    first, expected = many[0], one[0]
    assert isinstance(first, Output)
    assert isinstance(expected, Output)
    assert first.adapter == expected.adapter


async def test_the_open_inference_protocol_is_spoken_too(replicated: Replicated) -> None:
    request = open_inference_pb2.ModelInferRequest(model_name="sst2")
    tensor = request.inputs.add(name="sentence", datatype="BYTES", shape=[2])
    tensor.contents.bytes_contents.extend([b"a film", b"a dull film"])
    async with grpc.aio.insecure_channel(replicated.app.target) as channel:
        stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        bearer = (("authorization", f"Bearer {replicated.token}"),)
        response = await stub.ModelInfer(request, metadata=bearer)  # type: ignore[misc]  # one class, two kinds of channel
    assert response.model_version == "1.0.0"
    assert list(response.outputs[0].shape) == [2]


async def test_without_a_token_nobody_is_answered(replicated: Replicated) -> None:
    async with AsyncClient(replicated.app.target) as client:
        with pytest.raises(Unauthenticated):
            await client.predict("sst2", "a film")
        with pytest.raises(Unauthenticated):
            async for _ in client.predict_stream(aiter_of(("sst2", ["a film"]))):
                pass


async def aiter_of(*items: tuple[str, list[str]]) -> AsyncIterator[tuple[str, list[str]]]:
    for item in items:
        yield item


def test_each_adapter_is_in_the_memory_of_one_replica(replicated: Replicated) -> None:
    with Client(replicated.app.target, token=replicated.token, retry_for_s=TIMEOUT_S) as client:
        for _ in range(4):
            for name in PLACED:
                client.predict(name, "a film")
        found: set[frozenset[str]] = set()

        def look(_: int) -> frozenset[str]:
            names = {each.identity.name for each in client.adapters() if each.is_resident}
            return frozenset(names & set(PLACED))

        def both_have_answered() -> bool:  # the idlest does: of calls at once not always the same
            found.update(callers.map(look, range(16)))
            return len(found) == 2

        with ThreadPoolExecutor(8) as callers:
            until(both_have_answered)
    first, second = found
    assert first | second == set(PLACED)
    assert not first & second


def test_replicas_that_are_killed_or_replaced_lose_no_call(
    replicated: Replicated, runner: TorchRunner
) -> None:
    truth, asked = Truth(), [Reference(name=name) for name in ("kill0", "kill1", "kill2")]
    for seed, reference in enumerate(asked):
        stored = replicated.publish(reference.name, seed=100 + seed)
        learn(truth, replicated, runner, stored)
        truth.means(reference, stored.digest)
    callers, app = replicated.clients(CALLERS, truth, asked), replicated.app
    with asking(callers):
        until(lambda: all(len(each.calls) > 10 for each in callers))
        before = app.replicas()
        os.kill(min(before), signal.SIGKILL)
        until(lambda: len(app.replicas() - {min(before)}) == 2)
        killed = app.replicas()
        app.deploy({**replicated.args, "log-calls": "failed"})
        until(lambda: not killed & app.replicas())
        answered = [len(each.calls) for each in callers]
        until(
            lambda: all(len(each.calls) > 10 + n for each, n in zip(callers, answered, strict=True))
        )
    assert [fault for each in callers for fault in each.faults] == []


def test_a_tag_that_moves_is_followed_by_all_replicas_and_fails_no_call(
    replicated: Replicated, runner: TorchRunner
) -> None:
    publish, stable = replicated.publish, Reference.parse("moving:stable")
    truth, old, new = (
        Truth(),
        publish("moving", version="1.0.0", seed=200),
        publish("moving", version="1.1.0", seed=201),
    )
    learn(truth, replicated, runner, old, new)
    move_alias(publish.store, Reference.parse("moving:1.0.0"), "stable")
    truth.means(stable, old.digest)
    callers = replicated.clients(CALLERS, truth, [stable])
    with (
        asking(callers),
        Client(replicated.app.target, token=replicated.token, retry_for_s=TIMEOUT_S) as client,
    ):
        until(lambda: all(len(each.calls) > 10 for each in callers))
        move_alias(publish.store, Reference.parse("moving:1.1.0"), "stable")
        truth.moved(stable, new.digest)

        def is_followed() -> bool:
            answers = [client.predict("moving:stable", "a film") for _ in range(20)]
            return {output.adapter.version for output in answers} == {"1.1.0"}

        until(is_followed)
    assert [fault for each in callers for fault in each.faults] == []


def test_a_replica_is_added_under_load_and_goes_when_it_is_over_and_no_call_is_lost(
    replicated: Replicated, runner: TorchRunner
) -> None:
    truth, asked = Truth(), [Reference(name=f"scaled{index}") for index in range(8)]
    for seed, reference in enumerate(asked):
        stored = replicated.publish(reference.name, seed=300 + seed)
        learn(truth, replicated, runner, stored)
        truth.means(reference, stored.digest)
    callers, app = replicated.clients(2 * CALLERS, truth, asked), replicated.app
    at_first_s: dict[int, float] = {}
    try:
        app.deploy(replicated.args, ray_options={"autoscaling_config": AUTOSCALING})
        with asking(callers[:1]):  # one asks all the time
            until(lambda: len(app.replicas()) == 1)
            alone = app.replicas()
            with asking(callers[1:]):
                until(lambda: computes(app.replicas() - alone, at_first_s))
            until(lambda: len(app.replicas()) == 1)
            answered = len(callers[0].calls)
            until(lambda: len(callers[0].calls) > 10 + answered)
    finally:
        app.deploy(replicated.args)
        until(lambda: len(app.replicas()) == 2)
    assert [fault for each in callers for fault in each.faults] == []


def computes(replicas: set[int], at_first_s: dict[int, float]) -> bool:
    """Say whether one of the processes has computed since it was looked at first.

    There may be another one each time: Ray replaces what does not answer its health checks in time.
    """
    used_s = {pid: used_by({pid}).runners_s for pid in replicas}
    return any(used > at_first_s.setdefault(pid, used) + 0.05 for pid, used in used_s.items())


def until(is_true: Callable[[], bool]) -> None:
    """Wait for other processes; the test's own timeout ends it."""
    while not is_true():
        sleep(0.05)
