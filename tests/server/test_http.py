"""``upt.v1`` as JSON, over a real socket."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from upt_server import http_calls
from upt_server.client import AsyncClient
from upt_server.http_calls import MAX_BODY_BYTES
from upt_server.runner import TorchRunner
from upt_testing.serving import TIMEOUT_S, FakeRunner, Served, make_settings, serving, until
from upt_zoo.answers import LabelAnswer
from upt_zoo.backbone import Backbone
from upt_zoo.errors import Overloaded
from upt_zoo.local.store import Store
from upt_zoo.references import Reference


@pytest.fixture
async def served(store: Store, backbone: Backbone, runner: TorchRunner) -> AsyncIterator[Served]:
    async with serving(make_settings(store.root), backbone, runner) as started:
        yield started


async def call(
    served: Served, path: str, body: object = None, *, raw: bytes | None = None
) -> tuple[int, dict[str, Any], dict[str, str]]:
    data = raw if raw is not None else None if body is None else json.dumps(body).encode()

    def ask() -> tuple[int, dict[str, Any], dict[str, str]]:
        try:
            with urlopen(Request(f"http://{served.http}{path}", data=data), timeout=30) as response:
                return response.status, json.load(response), dict(response.headers)
        except HTTPError as error:
            return error.code, json.load(error), dict(error.headers)

    return await asyncio.to_thread(ask)


async def test_a_mixed_call_is_answered_as_by_grpc(served: Served, store: Store) -> None:
    inputs = [
        {"adapter": "sst2", "texts": ["a good film"]},
        {"adapter": "squad", "fields": {"question": "who ?", "context": "a man wrote it"}},
    ]
    status, answer, _ = await call(served, "/v1/predict", {"inputs": inputs})
    assert status == 200
    first, second = answer["outputs"]
    async with AsyncClient(served.target) as client:
        expected = await client.predict("sst2", "a good film")
    assert isinstance(expected.answer, LabelAnswer)
    assert first["label"]["score"] == pytest.approx(expected.answer.score, abs=1e-6)
    assert first["adapter"]["digest"] == store.resolve(Reference.parse("sst2")).digest
    assert (
        second["span"]["text"] == "a man wrote it"[second["span"]["start"] : second["span"]["end"]]
    )
    assert answer["precision"] == "PRECISION_EXACT"


async def test_adapters_are_listed_and_described(served: Served) -> None:
    status, answer, _ = await call(served, "/v1/adapters")
    assert status == 200
    assert len(answer["adapters"]) == 5
    status, answer, _ = await call(served, "/v1/adapters/sst2:1.0.0")
    assert (status, answer["fields"]) == (200, ["sentence"])


@pytest.mark.parametrize(
    ("path", "body", "code", "status", "message"),
    [
        ("/v1/predict", {"inputs": []}, 400, "INVALID_ARGUMENT", "1 to 256 inputs"),
        ("/v1/predict", {"input": []}, 400, "INVALID_ARGUMENT", "PredictRequest in JSON"),
        ("/v1/predict", [1], 400, "INVALID_ARGUMENT", "PredictRequest in JSON"),
        (
            "/v1/predict",
            {"inputs": [{"adapter": "nobody", "texts": ["a"]}]},
            404,
            "NOT_FOUND",
            "no adapter nobody",
        ),
        ("/v1/adapters/nobody", None, 404, "NOT_FOUND", "no adapter nobody"),
    ],
)
async def test_errors_have_the_form_of_googles_apis(
    served: Served, path: str, body: object, code: int, status: str, message: str
) -> None:
    given, answer, _ = await call(served, path, body)
    error = answer["error"]
    assert (given, error["code"], error["status"]) == (code, code, status)
    assert message in error["message"]


@pytest.mark.parametrize(
    ("path", "code", "message"),
    [("/v1/nowhere", 404, "no such path"), ("/v1/predict", 405, "expected POST, got GET")],
)
async def test_what_no_route_takes_has_that_form_too(
    served: Served, path: str, code: int, message: str
) -> None:
    given, answer, headers = await call(served, path)
    error = answer["error"]
    assert (given, error["code"], error["status"]) == (code, code, "UNIMPLEMENTED")
    assert error["message"].startswith(message)
    assert headers.get("allow") == ("POST" if code == 405 else None)
    given, answer, _ = await call(served, "/v2/nowhere")
    assert (given, "no such path" in answer["error"]) == (404, True)


async def test_a_body_is_bounded_before_it_is_parsed(served: Served) -> None:
    status, answer, _ = await call(served, "/v1/predict", raw=b" " * (MAX_BODY_BYTES + 1))
    assert status == 400
    assert "split the call" in str(answer)


@pytest.mark.parametrize(
    ("error", "code", "retry"),
    [(Overloaded("full", retry_after_s=1.2), 429, "2"), (ValueError("secret"), 500, None)],
)
async def test_a_full_queue_says_when_to_come_back_and_faults_say_nothing(
    store: Store,
    backbone: Backbone,
    fake: FakeRunner,
    error: Exception,
    code: int,
    retry: str | None,
) -> None:
    fake.error = error
    async with serving(make_settings(store.root), backbone, fake) as served:
        body = {"inputs": [{"adapter": "sst2", "texts": ["a film"]}]}
        status, answer, headers = await call(served, "/v1/predict", body)
    assert (status, headers.get("retry-after")) == (code, retry)
    assert "secret" not in str(answer)


ONE_INPUT = {"inputs": [{"adapter": "sst2", "texts": ["a film"]}]}


@pytest.fixture
async def faked(store: Store, backbone: Backbone, fake: FakeRunner) -> AsyncIterator[Served]:
    settings = make_settings(store.root, max_concurrent_calls=2)
    async with serving(settings, backbone, fake) as served:
        yield served
        fake.release()


async def leave_behind(served: Served, head: bytes) -> asyncio.StreamWriter:
    """Begin a request and wait for no answer."""
    _, writer = await asyncio.open_connection(*served.http.split(":"))
    writer.write(head)
    await writer.drain()
    return writer


def post(body: object) -> bytes:
    data = json.dumps(body).encode()
    return (
        b"POST /v1/predict HTTP/1.1\r\nHost: upt\r\nContent-Length: %d\r\n\r\n" % len(data)
    ) + data


async def test_a_caller_that_leaves_frees_its_place(faked: Served, fake: FakeRunner) -> None:
    fake.hold()
    first = await leave_behind(faked, post(ONE_INPUT))
    await fake.entered()  # computing; what comes now waits
    second = await leave_behind(faked, post(ONE_INPUT))
    await until(lambda: queue_depth(faked) == 1)
    for writer in (first, second):
        writer.close()
        await writer.wait_closed()
    await until(lambda: queue_depth(faked) == 0)
    fake.release()
    async with asyncio.timeout(TIMEOUT_S):
        await faked.engine.gate.drain()  # nobody is inside
    assert 'code="CANCELLED"' in faked.metrics.text().decode()
    assert len(fake.batches) == 1


async def test_a_caller_that_leaves_while_its_body_comes_is_forgotten(faked: Served) -> None:
    writers = [
        await leave_behind(faked, post(ONE_INPUT)[:-5]) for _ in range(2)
    ]  # as many as may come in
    status = 429
    for writer in writers:
        writer.close()
        await writer.wait_closed()
    async with asyncio.timeout(TIMEOUT_S):
        while status == 429:
            status, _, _ = await call(faked, "/v1/predict", ONE_INPUT)
    assert status == 200


@pytest.mark.parametrize(("path", "is_text"), [("/v1/adapters", False), ("/v2/models/sst2", True)])
async def test_calls_beyond_the_bound_are_turned_away_and_operators_are_not(
    faked: Served, fake: FakeRunner, path: str, is_text: bool
) -> None:
    fake.hold()
    inside = [asyncio.create_task(call(faked, "/v1/predict", ONE_INPUT))]
    await fake.entered()  # computing; what comes now waits
    inside.append(asyncio.create_task(call(faked, "/v1/predict", ONE_INPUT)))
    await until(lambda: queue_depth(faked) == 1)
    status, answer, headers = await call(faked, path)
    assert (status, headers["retry-after"]) == (429, "1")
    assert isinstance(answer["error"], str) == is_text
    assert "2 calls are inside" in str(answer)
    assert (await call(faked, "/v2/health/ready"))[0] == 200
    assert 'upt_rejected_total{reason="overloaded"} 1.0' in faked.metrics.text().decode()
    fake.release()
    assert [status for status, _, _ in await asyncio.gather(*inside)] == [200, 200]
    assert (await call(faked, path))[0] == 200


async def test_a_body_that_does_not_come_is_not_waited_for(
    faked: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_calls, "_MAX_BODY_S", 0.01)
    reader, writer = await asyncio.open_connection(*faked.http.split(":"))
    writer.write(post(ONE_INPUT)[:-5])
    async with asyncio.timeout(TIMEOUT_S):
        head = await reader.readline()
    assert b"504" in head
    writer.close()
    await writer.wait_closed()


def queue_depth(served: Served) -> int:
    lines = served.metrics.text().decode().splitlines()
    (line,) = (line for line in lines if line.startswith("upt_queue_depth "))
    return int(float(line.split()[1]))
