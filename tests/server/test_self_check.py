"""Adapters whose bytes are whole and whose answers are not."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import grpc
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from upt_protos.oip import open_inference_pb2 as oip
from upt_protos.oip import open_inference_pb2_grpc
from upt_server.app import build_engine, serve
from upt_server.batcher import Batcher
from upt_server.client import AsyncClient
from upt_server.metrics import Metrics
from upt_server.precision import CheckedLoads, Precision
from upt_server.runner import TorchRunner
from upt_server.scheduling import Budget
from upt_server.self_check import SelfCheck, distance
from upt_testing.adapters import (
    BOTTLENECK,
    CLASSIFICATION,
    LORA,
    PREFIX,
    PROMPT,
    SPAN,
    random_tensors,
    tiny_spec,
)
from upt_testing.serving import make_settings, serving, until
from upt_zoo.backbone import Backbone
from upt_zoo.errors import WrongAnswer
from upt_zoo.local import tags
from upt_zoo.local.store import Store, StoredAdapter
from upt_zoo.nn.adapter import PreparedAdapter, prepare
from upt_zoo.nn.encoder import load_encoder
from upt_zoo.nn.example import record_example
from upt_zoo.nn.packing import Row
from upt_zoo.references import Reference
from upt_zoo.spec import AdapterSpec, Example, Head
from upt_zoo.tokenization import Tokenizer

FILM = "a gripping , funny film"


@pytest.fixture
def home(store: Store, backbone: Backbone) -> Store:
    """A store with adapters of every kind: right, wrong and without an example."""
    publish_checked(store, backbone, "right")
    publish_checked(store, backbone, "right-span", SPAN)
    publish_checked(store, backbone, "wrong", is_wrong=True)
    publish_checked(store, backbone, "wrong-span", SPAN, is_wrong=True)
    return store


def publish_checked(
    store: Store,
    backbone: Backbone,
    name: str,
    head: Head = CLASSIFICATION,
    *,
    is_wrong: bool = False,
    version: str = "1.0.0",
) -> StoredAdapter:
    """Publish an adapter with its example; a wrong one has another's tensors, under its digest."""
    spec = tiny_spec(
        backbone=backbone.identity,
        name=name,
        lora=LORA,
        prefix=PREFIX,
        bottleneck=BOTTLENECK,
        prompt=PROMPT,
        head=head,
    )
    tensors = random_tensors(spec, 1)
    prepared = prepare(
        spec, {key: torch.from_numpy(array) for key, array in tensors.items()}, dtype=torch.float32
    )
    tokenizer = Tokenizer(backbone.tokenizer_file)
    example = record_example(load_encoder(backbone), spec, prepared, tokenizer)
    published = random_tensors(spec, 2) if is_wrong else tensors
    spec = spec.model_copy(update={"example": example})
    return store.publish(spec, published, "# Card", version=version)


def references(*names: str) -> tuple[Reference, ...]:
    return tuple(map(Reference.parse, names))


@pytest.mark.parametrize("self_check", ["all", "start"])
async def test_a_wrong_adapter_is_refused_and_all_others_answer(
    home: Store, backbone: Backbone, runner: TorchRunner, self_check: CheckedLoads
) -> None:
    async with serving(make_settings(home.root, self_check=self_check), backbone, runner) as served:
        names = ("wrong", "right", "wrong-span", "right-span", "sst2")
        await served.engine.preload(references(*names))
        served.engine.check_servable()
        async with AsyncClient(served.target) as client:
            for name in ("right", "sst2"):
                assert (await client.predict(name, FILM)).adapter.name == name
            assert (await client.predict("right-span", FILM, FILM)).adapter.name == "right-span"
            for name, texts in (("wrong", [FILM]), ("wrong-span", [FILM, FILM])):
                with pytest.raises(
                    WrongAnswer, match="answers its own example otherwise"
                ) as caught:
                    await client.predict(name, *texts)
                cause = caught.value.__cause__
                assert isinstance(cause, grpc.RpcError)
                assert cause.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert {each.stored.name for each in served.engine.lifecycle.resident()} == {
            "right",
            "right-span",
            "sst2",
        }


async def test_an_adapter_that_a_caller_asks_for_is_checked_where_all_are(
    home: Store, backbone: Backbone, runner: TorchRunner
) -> None:
    settings = make_settings(home.root, self_check="all")
    async with serving(settings, backbone, runner) as served, AsyncClient(served.target) as client:
        calls = [client.predict("wrong", FILM) for _ in range(3)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [WrongAnswer] * 3
        assert (await client.predict("right", FILM)).adapter.name == "right"
        assert (await client.predict("sst2", FILM)).adapter.name == "sst2"


async def test_an_adapter_loaded_by_name_is_checked_even_where_callers_use_it_already(
    home: Store, backbone: Backbone, runner: TorchRunner
) -> None:
    settings = make_settings(home.root, self_check="start")
    async with serving(settings, backbone, runner) as served, AsyncClient(served.target) as client:
        await client.predict("wrong", FILM)  # nobody has looked
        with pytest.raises(WrongAnswer):
            await served.engine.lifecycle.load(Reference.parse("wrong"))
        with pytest.raises(WrongAnswer):
            await client.predict("wrong", FILM)
        assert served.engine.lifecycle.resident() == ()
        await client.predict("right", FILM)
        await served.engine.lifecycle.pin(Reference.parse("right"))
        await client.predict("right", FILM)


async def test_nothing_is_checked_where_that_is_switched_off(
    home: Store, backbone: Backbone, runner: TorchRunner
) -> None:
    settings = make_settings(home.root, self_check="off")
    async with serving(settings, backbone, runner) as served, AsyncClient(served.target) as client:
        await served.engine.preload(references("wrong"))
        assert (await client.predict("wrong", FILM)).adapter.name == "wrong"


async def test_a_refused_adapter_is_not_ready_and_can_be_tried_again(
    home: Store, backbone: Backbone, runner: TorchRunner
) -> None:
    async with serving(make_settings(home.root), backbone, runner) as served:
        await served.engine.warm(references("wrong", "right"))
        async with grpc.aio.insecure_channel(served.target) as channel:
            stub = cast(
                "open_inference_pb2_grpc.GRPCInferenceServiceAsyncStub",
                open_inference_pb2_grpc.GRPCInferenceServiceStub(channel),
            )
            ready = [
                (await stub.ModelReady(oip.ModelReadyRequest(name=name))).ready
                for name in ("wrong", "right", "sst2")
            ]
        assert ready == [False, True, True]
        for _ in range(2):
            with pytest.raises(WrongAnswer):
                await served.engine.lifecycle.pin(Reference.parse("wrong"))


async def test_an_alias_stays_where_it_led_while_the_next_version_gives_wrong_answers(
    store: Store, backbone: Backbone, runner: TorchRunner
) -> None:
    publish_checked(store, backbone, "film")
    publish_checked(store, backbone, "film", is_wrong=True, version="2.0.0")
    tags.move_alias(store, Reference.parse("film:1.0.0"), "stable")
    settings = make_settings(store.root)
    async with serving(settings, backbone, runner) as served, AsyncClient(served.target) as client:
        assert (await client.predict("film:stable", FILM)).adapter.version == "1.0.0"
        tags.move_alias(store, Reference.parse("film:2.0.0"), "stable")
        await client.predict("film:stable", FILM)
        digest = store.resolve(Reference.parse("film:2.0.0")).digest
        await until(lambda: served.engine.is_refused(digest))
        for _ in range(3):
            assert (await client.predict("film:stable", FILM)).adapter.version == "1.0.0"


async def test_an_adapter_without_an_example_is_told(
    store: Store, backbone: Backbone, runner: TorchRunner, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    engine = build_engine(make_settings(store.root), backbone, runner, Metrics())
    await engine.preload(references("sst2"))
    assert "sst2:1.0.0 has no example: not checked" in caplog.text
    await engine.close()


async def test_a_server_that_can_serve_nothing_does_not_start(
    home: Store, backbone: Backbone
) -> None:
    settings = make_settings(
        home.root, backbone=str(backbone.directory), preload=references("wrong", "wrong-span")
    )
    with pytest.raises(WrongAnswer, match="nothing can be served: wrong:1"):
        await serve(settings, lambda _: pytest.fail("it said that it was ready"))


@dataclass(frozen=True)
class GivenRunner:
    """Gives every row the same logits."""

    logits: tuple[float, ...]
    name = "given"

    def prepare(self, spec: AdapterSpec, tensors: Mapping[str, Tensor]) -> PreparedAdapter:
        return prepare(spec, tensors, dtype=torch.float32)

    def run(self, rows: Sequence[Row]) -> list[NDArray[np.float32]]:
        return [np.array(self.logits, np.float32) for _ in rows]


@pytest.fixture
def published(store: Store, backbone: Backbone) -> StoredAdapter:
    """An adapter whose example has the largest logit 4: tolerances are shares of it."""
    spec = tiny_spec(backbone=backbone.identity, name="film", lora=LORA, head=CLASSIFICATION)
    example = Example(texts=(FILM,), logits=(1.0, -4.0))
    spec = spec.model_copy(update={"example": example})
    return store.publish(spec, random_tensors(spec, 1), "# Card", version="1.0.0")


async def check(
    store: Store,
    backbone: Backbone,
    published: StoredAdapter,
    *,
    precision: Precision,
    logits: tuple[float, ...],
) -> None:
    """Check an adapter that a runner answers with these logits."""
    spec, arrays = store.load(published)
    runner = GivenRunner(logits)
    prepared = runner.prepare(
        spec, {name: torch.from_numpy(array) for name, array in arrays.items()}
    )
    budget = Budget(tokens=4096)
    batcher = Batcher(runner, budget=budget, max_queue_tokens=4096, observe=lambda _: None)
    try:
        await SelfCheck(Tokenizer(backbone.tokenizer_file), batcher, precision).check(
            published, prepared
        )
    finally:
        await batcher.close()


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("precision", "within", "beyond"), [("exact", 0.00399, 0.00401), ("fast", 0.799, 0.801)]
)
async def test_an_answer_may_differ_as_far_as_the_precision_promises_and_no_farther(
    store: Store,
    backbone: Backbone,
    published: StoredAdapter,
    *,
    precision: Precision,
    within: float,
    beyond: float,
    sign: int,
) -> None:
    for right in ((1.0, -4.0 + sign * within), (1.0 + sign * within, -4.0)):
        await check(store, backbone, published, precision=precision, logits=right)
    for wrong in ((1.0, -4.0 + sign * beyond), (1.0 + sign * beyond, -4.0)):
        with pytest.raises(WrongAnswer, match="of its largest logit away"):
            await check(store, backbone, published, precision=precision, logits=wrong)


@pytest.mark.parametrize(
    "logits", [(1.0, float("nan")), (1.0, float("inf")), (1.0,), (1.0, -4.0, 0.0)]
)
async def test_what_is_no_answer_at_all_passes_in_neither_precision(
    store: Store, backbone: Backbone, published: StoredAdapter, logits: tuple[float, ...]
) -> None:
    for precision in ("exact", "fast"):
        with pytest.raises(WrongAnswer):
            await check(store, backbone, published, precision=precision, logits=logits)


def test_the_distance_is_a_share_of_the_largest_logit_and_never_of_less_than_one() -> None:
    got = [np.array([8.0, 1.0], np.float32), np.array([-10.0], np.float32)]
    assert distance((8.0, 1.0, -8.0), got) == 0.25
    assert distance((0.5,), [np.array([0.25], np.float32)]) == 0.25
    assert distance((1.0, 2.0), got) == float("inf")
    assert np.isnan(distance((1.0,), [np.array([np.nan], np.float32)]))
