"""Callers who say nothing, or a byte now and then, hold nothing for long and keep nobody out."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeAlias, cast

import grpc
import pytest

from upt_protos.oip import open_inference_pb2 as oip
from upt_protos.v1 import inference_pb2 as pb
from upt_server import app, http_calls, http_connections, patience
from upt_server.access import callers, grpc_guard
from upt_server.access.tokens import Token, add_token
from upt_server.client import AsyncClient
from upt_server.settings import AdminAddress, Settings
from upt_testing.serving import (
    TIMEOUT_S,
    FakeRunner,
    Served,
    make_settings,
    serving,
    until,
)
from upt_testing.unreading import PREFACE, Unreading
from upt_zoo.backbone import Backbone
from upt_zoo.errors import Overloaded
from upt_zoo.local.store import Store

Raw: TypeAlias = "grpc.aio.StreamStreamMultiCallable[bytes, bytes]"
Call: TypeAlias = "grpc.aio.StreamStreamCall[bytes, bytes]"
MOST_CALLS = 40
KEPT = 2  # grpc.aio keeps hold of the last calls that it dealt with until there are others
PREDICT = "/upt.v1.Inference/Predict"
STREAMS = (PREDICT, "/upt.v1.Inference/PredictStream", "/grpc.health.v1.Health/Check")
INFER, INFER_STREAM = (
    f"/inference.GRPCInferenceService/{name}" for name in ("ModelInfer", "ModelStreamInfer")
)
LOAD = "/upt.v1.Admin/Load"
PREDICT_ONE = pb.PredictRequest(inputs=[pb.Input(adapter="sst2", texts=["a film"])])
INFER_ONE = oip.ModelInferRequest(model_name="sst2")
text = INFER_ONE.inputs.add(name="sentence", datatype="BYTES", shape=[1])
text.contents.bytes_contents.append(b"a film")
BODY = b'{"inputs": [{"adapter": "sst2", "texts": ["a film"]}]}'
HEAD = b"POST /v1/predict HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n"


@pytest.fixture
def secrets(tmp_path: Path) -> dict[str, str]:
    made = {}
    for name in ("one", "other"):
        token, made[name] = Token.create(name=name, scopes=("predict", "metadata", "admin"))
        add_token(tmp_path / "tokens.json", token)
    return made


@pytest.fixture
async def served(store: Store, backbone: Backbone, fake: FakeRunner) -> AsyncIterator[Served]:
    settings = make_settings(store.root, max_concurrent_calls=MOST_CALLS)
    async with serving(settings, backbone, fake) as served:
        yield served
        fake.release()


@pytest.fixture
def guarded_settings(store: Store, tmp_path: Path, secrets: dict[str, str]) -> Settings:
    admin = AdminAddress(host="127.0.0.1", port=0)
    return make_settings(store.root, tokens=tmp_path / "tokens.json", admin=admin)


@pytest.fixture
async def guarded(
    guarded_settings: Settings, backbone: Backbone, fake: FakeRunner
) -> AsyncIterator[Served]:
    async with serving(guarded_settings, backbone, fake) as served:
        yield served
        fake.release()


async def silence() -> AsyncIterator[bytes]:
    await asyncio.Event().wait()
    yield b""


def say_nothing(channel: grpc.aio.Channel, method: str, secret: str | None = None) -> "Call":
    ask: Raw = channel.stream_stream(method)
    metadata = [("authorization", f"Bearer {secret}")] if secret else []
    return ask(silence(), metadata=metadata)


async def is_answered(served: Served, secret: str | None = None) -> bool:
    async with AsyncClient(served.target, token=secret) as client:
        try:
            return (await client.predict("sst2", "a film")).adapter.name == "sst2"
        except Overloaded:
            return False


async def becomes_answered(served: Served, secret: str | None = None) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not await is_answered(served, secret):  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.01)


async def test_others_are_answered_beside_many_silent_calls(served: Served) -> None:
    async with grpc.aio.insecure_channel(served.target) as channel:
        calls = [say_nothing(channel, PREDICT) for _ in range(MOST_CALLS - 1)]
        await asyncio.gather(*(call.wait_for_connection() for call in calls))
        for _ in range(5):
            assert await is_answered(served)
        assert not any(call.done() for call in calls)


@pytest.mark.parametrize("method", STREAMS)
async def test_silent_calls_end_and_their_places_are_free_again(
    served: Served, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr(patience, "_FIRST_MESSAGE_S", 0.5)
    async with grpc.aio.insecure_channel(served.target) as channel:
        calls = [say_nothing(channel, method) for _ in range(MOST_CALLS)]
        codes = [await call.code() for call in calls]
        assert set(codes) == {grpc.StatusCode.DEADLINE_EXCEEDED}
        await becomes_answered(served)


@pytest.mark.parametrize("method", [PREDICT, INFER, LOAD])
async def test_messages_that_trickle_in_end_and_others_are_answered_meanwhile(
    guarded: Served, secrets: dict[str, str], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr(patience, "_FIRST_MESSAGE_S", 1.0)
    monkeypatch.setattr(callers, "_MAX_CALLS", MOST_CALLS)
    target = guarded.admin if method == LOAD else guarded.target
    with Unreading(target, TIMEOUT_S) as caller:
        calls = [caller.begin(method, secrets["one"]) for _ in range(MOST_CALLS)]
        dripping = asyncio.ensure_future(asyncio.to_thread(caller.drip, calls))
        while not dripping.done():
            assert await is_answered(guarded, secrets["other"])
        ends = await dripping
        assert all(b"expected a message within 1 s" in ends[call] for call in calls)
        await becomes_answered(guarded, secrets["one"])


async def test_who_leaves_before_saying_anything_leaves_no_trace(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    async with grpc.aio.insecure_channel(served.target) as channel:
        for method in STREAMS * 10:
            call = say_nothing(channel, method)
            await call.wait_for_connection()
            call.cancel()
    await becomes_answered(served)
    assert not [each for each in caplog.records if each.levelno >= logging.WARNING]


async def test_a_call_that_ends_without_a_message_has_none(served: Served) -> None:
    async with grpc.aio.insecure_channel(served.target) as channel:
        assert await channel.stream_stream(PREDICT)(iter([])).code() is (
            grpc.StatusCode.INVALID_ARGUMENT
        )
        assert await channel.stream_stream(STREAMS[1])(iter([])).code() is grpc.StatusCode.OK


async def test_a_call_whose_message_came_may_take_longer(
    served: Served, fake: FakeRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "_FIRST_MESSAGE_S", 0.1)
    fake.hold()
    ended = asyncio.Event()

    async def inputs() -> AsyncIterator[tuple[str, list[str]]]:
        yield "sst2", ["a film"]
        await ended.wait()
        yield "sst2", ["a film"]

    async with AsyncClient(served.target) as client:
        call = asyncio.create_task(client.predict("cola", "a film"))
        stream = client.predict_stream(inputs())
        first = asyncio.ensure_future(anext(stream))
        await fake.entered()
        await asyncio.sleep(0.3)
        fake.release()
        assert (await call).adapter.name == "cola"
        assert (await first)[0] == 0
        ended.set()
        assert (await anext(stream))[0] == 1


UNREAD = {
    PREDICT: (grpc_guard, "_MAX_CALL_S", PREDICT_ONE.SerializeToString()),
    STREAMS[1]: (
        patience,
        "_STANDSTILL_S",
        pb.StreamRequest(request=PREDICT_ONE).SerializeToString(),
    ),
    INFER_STREAM: (patience, "_STANDSTILL_S", INFER_ONE.SerializeToString()),
}


@pytest.mark.parametrize("method", UNREAD)
async def test_callers_who_do_not_take_their_answers_hold_their_places_for_so_long(
    served: Served, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    module, bound, message = UNREAD[method]
    monkeypatch.setattr(module, bound, 1.0)
    with Unreading(served.target, TIMEOUT_S) as caller:
        for _ in range(MOST_CALLS):
            caller.call(method, message)
        await becomes_answered(served)
        assert await asyncio.to_thread(caller.wait_for_the_end, MOST_CALLS - KEPT) == 0


async def test_a_call_that_is_answered_too_late_ends_and_its_place_is_free(
    served: Served, fake: FakeRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpc_guard, "_MAX_CALL_S", 0.5)
    fake.hold()
    message = PREDICT_ONE.SerializeToString()
    async with grpc.aio.insecure_channel(served.target) as channel:
        ask: Raw = channel.stream_stream(PREDICT)
        calls = [ask(iter([message])) for _ in range(MOST_CALLS)]
        ended = asyncio.as_completed([call.code() for call in calls], timeout=TIMEOUT_S)
        codes = {await next(ended) for _ in range(MOST_CALLS - KEPT)}
        assert codes == {grpc.StatusCode.CANCELLED}
        fake.release()
        await becomes_answered(served)


@pytest.mark.parametrize("method", [STREAMS[1], INFER_STREAM])
async def test_a_stream_that_falls_silent_is_answered_and_ends(
    served: Served, fake: FakeRunner, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr(patience, "_SILENCE_S", 0.3)
    _, _, message = UNREAD[method]
    fake.hold()

    async def messages() -> AsyncIterator[bytes]:
        yield message
        yield message
        await asyncio.Event().wait()

    async with grpc.aio.insecure_channel(served.target) as channel:
        ask: Raw = channel.stream_stream(method)
        calls = [ask(messages()) for _ in range(MOST_CALLS)]
        await until(lambda: served.engine.status().calls == 2 * MOST_CALLS)
        await asyncio.sleep(0.5)
        fake.release()
        for call in calls:
            assert [isinstance(await call.read(), bytes) for _ in range(2)] == [True, True]
            assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert "expected a message, or the end, within 0.3 s" in await call.details()
        await becomes_answered(served)


async def test_a_stream_may_be_silent_for_a_while(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "_SILENCE_S", TIMEOUT_S)
    message = UNREAD[STREAMS[1]][2]
    async with grpc.aio.insecure_channel(served.target) as channel:
        call = cast("Raw", channel.stream_stream(STREAMS[1]))()
        for _ in range(3):
            await call.write(message)
            assert isinstance(await call.read(), bytes)
        await call.done_writing()
        assert await call.code() is grpc.StatusCode.OK


@contextmanager
def connections(
    served: Served, count: int, start: bytes = b"", *, port: str = "http"
) -> Iterator[list[socket.socket]]:
    host, _, number = getattr(served, port).rpartition(":")
    with ExitStack() as stack:
        opened = [
            stack.enter_context(socket.create_connection((host, int(number)), timeout=TIMEOUT_S))
            for _ in range(count)
        ]
        for each in opened:
            each.sendall(start)
        yield opened


def trickle(connection: socket.socket, data: bytes) -> bytes:
    """Send a byte of ``data`` now and then, over and over; return what came until the end."""
    received = b""
    connection.settimeout(0.02)
    for _ in range(1000):
        for byte in data:
            try:
                connection.sendall(bytes([byte]))
                more = connection.recv(4096)
            except TimeoutError:
                continue
            except ConnectionError:
                return received
            if not more:
                return received
            received += more
    raise AssertionError("the connection was kept")


def receive_all(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(4096), b""))


@pytest.fixture
async def hasty(
    guarded_settings: Settings,
    backbone: Backbone,
    fake: FakeRunner,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Served]:
    """A server whose gRPC ports wait a second until HTTP/2 begins."""
    options = dict(app._GRPC_OPTIONS)
    assert options["grpc.server_handshake_timeout_ms"] == 20_000
    options["grpc.server_handshake_timeout_ms"] = 1000
    monkeypatch.setattr(app, "_GRPC_OPTIONS", tuple(options.items()))
    async with serving(guarded_settings, backbone, fake) as served:
        yield served


LATE = b"Did not receive HTTP/2 settings before handshake timeout"
SETTINGS_BYTES = 6 * 2730  # of one frame, and as many as a frame may have


@pytest.mark.parametrize("port", ["target", "admin"])
@pytest.mark.parametrize("start", [b"", PREFACE[:8], PREFACE, PREFACE + b"\0\0\6\4"])
async def test_connections_on_which_no_http2_begins_are_closed(
    hasty: Served, secrets: dict[str, str], port: str, start: bytes
) -> None:
    with (
        Unreading(getattr(hasty, port), TIMEOUT_S) as speaking,
        connections(hasty, 50, start, port=port) as opened,
    ):
        assert await is_answered(hasty, secrets["one"])
        for each in opened:
            assert LATE in await asyncio.to_thread(receive_all, each)
        speaking.call("/upt.v1.Nothing/Ask", b"")  # it had begun in time
        assert await asyncio.to_thread(speaking.wait_for_the_end, 1) == 0


@pytest.mark.parametrize("port", ["target", "admin"])
async def test_http2_that_trickles_in_is_not_waited_for(hasty: Served, port: str) -> None:
    start = PREFACE + SETTINGS_BYTES.to_bytes(3) + b"\4\0\0\0\0\0"
    with connections(hasty, 1, start, port=port) as (slow,):
        # a setting that nobody knows
        assert LATE in await asyncio.to_thread(trickle, slow, b"\xff\xff\0\0\0\0")


@pytest.mark.parametrize("start", [b"", b"GET /readyz HTTP/1.1\r\nho"])
async def test_connections_without_a_request_are_closed(
    served: Served, monkeypatch: pytest.MonkeyPatch, start: bytes
) -> None:
    monkeypatch.setattr(http_connections, "_HEAD_S", 0.5)
    with connections(served, 200, start) as opened:
        with connections(served, 1, HEAD % len(BODY) + BODY) as (asking,):
            assert (await asyncio.to_thread(asking.recv, 12)) == b"HTTP/1.1 200"
        for each in opened:
            assert await asyncio.to_thread(each.recv, 12) == b""


async def test_a_head_that_trickles_in_is_not_waited_for(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_connections, "_HEAD_S", 0.3)
    with connections(served, 1, b"GET /readyz HTTP/1.1\r\nhost: x\r\nx-more: ") as (slow,):
        assert await asyncio.to_thread(trickle, slow, b"a") == b""


async def test_neither_is_one_behind_an_answer(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_connections, "_HEAD_S", 0.3)
    whole = b"GET /readyz HTTP/1.1\r\nhost: x\r\n\r\n"
    with connections(served, 1, whole) as (slow,):
        assert b"200 OK" in await asyncio.to_thread(trickle, slow, b"G")


async def test_a_body_that_nobody_asked_for_is_not_waited_for(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_connections, "_HEAD_S", 0.3)
    head = b"GET /readyz HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n"
    with connections(served, 1, head) as (slow,):
        assert b"200 OK" in await asyncio.to_thread(trickle, slow, b"x")


async def test_a_connection_with_a_request_at_work_is_kept(
    served: Served, fake: FakeRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_connections, "_HEAD_S", 0.1)
    fake.hold()
    with connections(served, 1, HEAD % len(BODY) + BODY) as (asking,):
        await fake.entered()
        await asyncio.sleep(0.3)
        fake.release()
        assert (await asyncio.to_thread(asking.recv, 12)) == b"HTTP/1.1 200"


async def test_bodies_that_trickle_in_end_and_others_are_answered_meanwhile(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_calls, "_MAX_BODY_S", 0.5)
    with connections(served, MOST_CALLS - 1, HEAD % 100 + b"{") as opened:
        with connections(served, 1, HEAD % len(BODY) + BODY) as (asking,):
            assert (await asyncio.to_thread(asking.recv, 12)) == b"HTTP/1.1 200"
        for each in opened:
            assert (await asyncio.to_thread(each.recv, 12)) == b"HTTP/1.1 504"


async def test_a_call_over_http_ends_in_any_case(
    served: Served, fake: FakeRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_calls, "_MAX_CALL_S", 0.2)
    fake.hold()
    with connections(served, 1, HEAD % len(BODY) + BODY) as (asking,):
        answer = await asyncio.to_thread(asking.recv, 12)
        assert answer != b"HTTP/1.1 200"
        await until(lambda: served.engine.status().calls == 0)


async def test_a_token_has_so_many_calls_open_and_no_more(
    guarded: Served, secrets: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callers, "_MAX_CALLS", 2)
    async with (
        grpc.aio.insecure_channel(guarded.target) as channel,
        AsyncClient(guarded.target, token=secrets["one"]) as one,
        AsyncClient(guarded.target, token=secrets["other"]) as other,
    ):
        silent = [say_nothing(channel, PREDICT, secrets["one"]) for _ in range(2)]
        await asyncio.gather(*(call.wait_for_connection() for call in silent))
        with pytest.raises(Overloaded, match="quota of one: 2 calls are open, 0 of them streams"):
            await first_refusal(one)
        head = HEAD.replace(b"host: x", f"authorization: Bearer {secrets['one']}".encode())
        with connections(guarded, 1, head.replace(b"\r\n", b"\r\nhost: x\r\n", 1) % 2) as (asking,):
            assert (await asyncio.to_thread(asking.recv, 12)) == b"HTTP/1.1 429"
        assert (await other.predict("sst2", "a film")).adapter.name == "sst2"
        silent[0].cancel()
        async with asyncio.timeout(TIMEOUT_S):
            while await refusal(one):  # noqa: ASYNC110 - the server hears of it later
                await asyncio.sleep(0.01)


async def first_refusal(client: AsyncClient) -> None:
    """Ask until a call is refused: the silent ones may not all have come in yet."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            await client.predict("sst2", "a film")


async def refusal(client: AsyncClient) -> bool:
    try:
        await client.predict("sst2", "a film")
    except Overloaded:
        return True
    return False


@pytest.mark.parametrize("messages", [1, 20])
async def test_a_stream_that_is_refused_says_why_each_time(guarded: Served, messages: int) -> None:
    """By grpc.aio, whose client takes a message that it cannot send for an error of its own."""
    request = pb.StreamRequest(id="1").SerializeToString()

    async def requests() -> AsyncIterator[bytes]:
        for _ in range(messages):
            yield request

    async with grpc.aio.insecure_channel(guarded.target) as channel:
        ask: Raw = channel.stream_stream(STREAMS[1])

        async def code() -> grpc.StatusCode:
            call = ask(requests())
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
            return caught.value.code()

        codes = [await code() for _ in range(300)]
        for _ in range(30):
            codes += await asyncio.gather(*(code() for _ in range(20)))
        assert set(codes) == {grpc.StatusCode.UNAUTHENTICATED}


async def test_a_stream_that_is_refused_is_not_kept_while_it_says_nothing(guarded: Served) -> None:
    async with grpc.aio.insecure_channel(guarded.target) as channel:
        call = say_nothing(channel, STREAMS[1])
        async with asyncio.timeout(TIMEOUT_S):
            assert await call.code() is grpc.StatusCode.UNAUTHENTICATED
