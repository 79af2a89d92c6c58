"""What takes long is done off the event loop, and other calls are taken up meanwhile."""

import asyncio
import json
import threading
from collections.abc import Callable
from urllib.request import Request, urlopen

import pytest

from upt_server import http, wire
from upt_server.client import AsyncClient
from upt_server.off_loop import SHORT_INPUTS, off_loop
from upt_server.open_inference import messages
from upt_server.runner import TorchRunner
from upt_testing.adapters import random_tensors, tiny_spec
from upt_testing.serving import make_settings, serving
from upt_zoo.backbone import Backbone
from upt_zoo.local.draft import Draft
from upt_zoo.local.store import Store

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
