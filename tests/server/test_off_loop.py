"""What takes long is done off the event loop, and other calls are taken up meanwhile."""

import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any
from urllib.request import Request, urlopen

import pytest

from upt_server import http, wire
from upt_server.client import AsyncClient
from upt_server.off_loop import SHORT_INPUTS, off_loop
from upt_server.open_inference import messages
from upt_server.runner import TorchRunner
from upt_testing.adapters import random_tensors, tiny_spec
from upt_testing.serving import TIMEOUT_S, make_settings, serving, until
from upt_zoo.backbone import Backbone
from upt_zoo.local.draft import Draft
from upt_zoo.local.store import Store
from upt_zoo.tokenization import Tokenizer, TokenRow

FILM = "a good film"


class Threads:
    """Notes in which threads a function is called."""

    def __init__(self, patch: pytest.MonkeyPatch, module: object, name: str) -> None:
        self._called: list[bool] = []
        function: Callable[..., object] = getattr(module, name)

        def noting(*arguments: object) -> object:
            self._called.append(threading.current_thread() is threading.main_thread())
            return function(*arguments)

        patch.setattr(module, name, noting)

    def were_the_loop(self) -> list[bool]:
        called, self._called = self._called, []
        return called


async def test_what_is_short_is_done_at_once_and_the_rest_in_a_thread() -> None:
    here = threading.get_ident()
    assert await off_loop(threading.get_ident, is_short=True) == here
    assert await off_loop(threading.get_ident, is_short=False) != here


async def test_a_call_is_read_and_written_off_the_loop_where_it_has_many_inputs(
    store: Store, backbone: Backbone, runner: TorchRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = Threads(monkeypatch, wire, "read_inputs")
    infers = Threads(monkeypatch, messages, "read_inputs")
    writes = Threads(monkeypatch, http, "_write")
    async with serving(make_settings(store.root), backbone, runner) as served:

        async def post(path: str, body: object) -> None:
            request = Request(f"http://{served.http}{path}", data=json.dumps(body).encode())
            with await asyncio.to_thread(urlopen, request) as response:
                assert response.status == 200

        for count, is_on_loop in ((1, True), (SHORT_INPUTS, True), (200, False)):
            one = {"adapter": "sst2", "texts": [FILM]}
            await post("/v1/predict", {"inputs": [one] * count})
            tensor = {"name": "sentence", "datatype": "BYTES", "shape": [count]}
            await post("/v2/models/sst2/infer", {"inputs": [{**tensor, "data": [FILM] * count}]})
            assert reads.were_the_loop() == [is_on_loop]
            assert infers.were_the_loop() == [is_on_loop]
            assert writes.were_the_loop() == [is_on_loop]


class HeldTokenizer:
    """Notes in which threads texts are tokenised; whatever leaves the loop waits for ``free``."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.threads: list[str] = []
        self.free = threading.Event()
        loop, encode = threading.current_thread(), Tokenizer.encode

        def held(*arguments: Any, **options: Any) -> list[TokenRow]:
            here = threading.current_thread()
            self.threads.append("the loop" if here is loop else here.name)
            assert here is loop or self.free.wait(TIMEOUT_S), "never released"
            return encode(*arguments, **options)

        patch.setattr(Tokenizer, "encode", held)


@pytest.mark.parametrize(
    ("texts", "thread"),
    [
        (["good " * 400], "the loop"),  # 2,000 characters
        (["good " * 400 + "!"], "upt-text"),
        (["good " * 200, "good " * 200 + "!"], "upt-text"),
        ([FILM] * SHORT_INPUTS, "the loop"),
        ([FILM] * (SHORT_INPUTS + 1), "upt-text"),
    ],
)
async def test_long_calls_are_tokenised_in_threads_of_their_own_and_short_ones_at_once(
    store: Store,
    backbone: Backbone,
    runner: TorchRunner,
    monkeypatch: pytest.MonkeyPatch,
    *,
    texts: list[str],
    thread: str,
) -> None:
    tokenizer = HeldTokenizer(monkeypatch)
    tokenizer.free.set()
    async with (
        serving(make_settings(store.root), backbone, runner) as served,
        AsyncClient(served.target) as client,
    ):
        await client.predict_many([("sst2", [text]) for text in texts])
    assert {name.partition("_")[0] for name in tokenizer.threads} == {thread}


async def test_other_calls_are_answered_while_long_texts_are_tokenised(
    store: Store, backbone: Backbone, runner: TorchRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = HeldTokenizer(monkeypatch)
    async with (
        serving(make_settings(store.root), backbone, runner) as served,
        AsyncClient(served.target) as client,
    ):
        long = [asyncio.create_task(client.predict("sst2", "good " * 1000)) for _ in range(3)]
        try:
            await until(lambda: len(tokenizer.threads) >= 2)  # as many as there are threads
            assert (await client.predict("cola", FILM)).adapter.name == "cola"
            assert not any(each.done() for each in long)
        finally:
            tokenizer.free.set()
        assert all(each.is_truncated for each in await asyncio.gather(*long))
    assert sorted(tokenizer.threads[:2]) == ["upt-text_0", "upt-text_1"]


async def test_other_calls_are_taken_up_while_thousands_of_adapters_are_listed(
    store: Store, backbone: Backbone, runner: TorchRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tiny_spec(backbone=backbone.identity)
    tensors = random_tensors(spec, seed=0)
    names = [f"task{index}" for index in range(1000)]
    store.publish_all(
        Draft(
            spec=spec.model_copy(update={"task": spec.task.model_copy(update={"name": name})}),
            tensors=tensors,
            card="# Card",
        )
        for name in names
    )
    writes = Threads(monkeypatch, wire, "write_adapters")
    async with (
        serving(make_settings(store.root), backbone, runner) as served,
        AsyncClient(served.target) as client,
    ):
        assert len(await client.adapters()) > len(names)
        assert writes.were_the_loop() == [False]
        listing = asyncio.create_task(served.engine.describe_all())  # known by now: nothing to load
        turns = 0
        while not listing.done():
            await asyncio.sleep(0)
            turns += 1
        assert turns >= 10
