"""One line for each call: what stands in it, what never does, and by which id it is found again."""

import asyncio
import io
import json
import logging
import re
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias, cast
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request, urlopen

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message, Receive, Scope, Send

from upt_protos.oip import open_inference_pb2 as oip
from upt_protos.oip import open_inference_pb2_grpc
from upt_protos.v1 import inference_pb2 as pb
from upt_protos.v1 import inference_pb2_grpc
from upt_server.access.callers import Access
from upt_server.access.tokens import Token, add_token
from upt_server.client import AsyncClient
from upt_server.telemetry.choices import LogFormat, LoggedCalls
from upt_server.telemetry.http_recorder import HttpRecorder
from upt_server.telemetry.log_lines import make_formatter
from upt_server.telemetry.recorder import Recorder
from upt_server.telemetry.request_ids import choose_request_id
from upt_testing.collectors import collecting
from upt_testing.serving import FakeRunner, Served, make_settings, serving, until
from upt_zoo.backbone import Backbone
from upt_zoo.errors import AdapterNotFound
from upt_zoo.local.store import Store

Raw: TypeAlias = "grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]"
SECRET = "a gripping film that nobody may read"
MADE = r"[0-9a-f]{32}"
EVIL = 'x"}\r\nx-evil: 1\n{"caller": "root"}\x1b[2J\u2028'


@dataclass
class Log:
    """What the server's log got, line by line."""

    form: LogFormat = "json"
    stream: io.StringIO = field(default_factory=io.StringIO)

    @property
    def lines(self) -> list[str]:
        return self.stream.getvalue().splitlines()

    def of(self, logger: str) -> list[str]:
        return [line for line in self.lines if logger in line]

    def calls(self) -> list[dict[str, object]]:
        parsed: list[dict[str, object]] = [json.loads(line) for line in self.lines]
        return [line for line in parsed if line["logger"] == "upt_server.calls"]


@contextmanager
def logging_to(log: Log) -> Iterator[None]:
    """Write the log of everything as the command does."""
    handler = logging.StreamHandler(log.stream)
    handler.setFormatter(make_formatter(log.form))
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)


@asynccontextmanager
async def logged(
    store: Store,
    backbone: Backbone,
    fake: FakeRunner,
    *,
    calls: LoggedCalls = "all",
    form: LogFormat = "json",
    **settings: object,
) -> AsyncIterator[tuple[Served, Log]]:
    log = Log(form)
    with logging_to(log):
        made = make_settings(store.root, **settings)
        async with serving(made, backbone, fake, recorder=Recorder(logged=calls)) as served:
            yield served, log


def async_stub(channel: grpc.aio.Channel) -> "inference_pb2_grpc.InferenceAsyncStub":
    # one class serves both kinds of channel; its types stand under two names
    stub = inference_pb2_grpc.InferenceStub(channel)
    return cast("inference_pb2_grpc.InferenceAsyncStub", stub)


async def ask_grpc(served: Served, adapter: str, *headers: tuple[str, str]) -> dict[str, str]:
    """Ask by ``upt.v1`` and return the trailing metadata, of a refusal too."""
    async with grpc.aio.insecure_channel(served.target) as channel:
        stub = async_stub(channel)
        request = pb.PredictRequest(inputs=[pb.Input(adapter=adapter, texts=[SECRET])])
        call = stub.Predict(request, metadata=headers)
        await call.code()
        return {key: str(value) for key, value in await call.trailing_metadata()}


async def ask_http(
    served: Served, path: str, body: object = None, *headers: tuple[str, str]
) -> tuple[int, dict[str, str]]:
    data = None if body is None else json.dumps(body).encode()
    request = Request(f"http://{served.http}{path}", data, dict(headers))

    def ask() -> tuple[int, dict[str, str]]:
        try:
            with urlopen(request, timeout=30) as response:
                status, found = response.status, response.headers
        except HTTPError as error:
            status, found = error.code, error.headers
        return status, {key.lower(): value for key, value in found.items()}

    return await asyncio.to_thread(ask)


def infer_request(adapter: str) -> oip.ModelInferRequest:
    request = oip.ModelInferRequest(model_name=adapter)
    message = request.inputs.add(name="sentence", datatype="BYTES", shape=[1])
    message.contents.bytes_contents.append(SECRET.encode())
    return request


def body(adapter: str) -> object:
    return {"inputs": [{"adapter": adapter, "texts": [SECRET]}]}


# the request's id


@given(st.lists(st.text(), max_size=3))
def test_an_id_is_harmless_whatever_is_sent(sent: list[str]) -> None:
    chosen = choose_request_id(sent)
    assert re.fullmatch(r"[A-Za-z0-9][\x21-\x7e]{0,127}", chosen)
    assert chosen == "".join(sent) or re.fullmatch(MADE, chosen)


@pytest.mark.parametrize(
    "sent",
    ["a", "7d8f", "Root=1-67891233-abcdef012345678912345678", "a.b_c:d=e+f/g@h-i", "x" * 128],
)
def test_a_well_formed_id_is_kept(sent: str) -> None:
    assert choose_request_id([sent]) == sent


@pytest.mark.parametrize(
    "sent",
    [
        [],
        [""],
        ["a", "a"],
        ["x" * 129],
        ["a\n"],
        ["a\r\nx-evil: 1"],
        ["a b"],
        ["a\x00"],
        ["a\x1b[2J"],
        ["-a"],
        ['a"'],
        ["é"],
        ["a\u2028"],
        ["a#1"],  # how the requests of a stream are counted
    ],
)
def test_any_other_is_made_anew(sent: list[str]) -> None:
    made = {choose_request_id(sent) for _ in range(3)}
    assert len(made) == 3
    assert all(re.fullmatch(MADE, each) for each in made)


async def test_the_id_comes_back_by_grpc_with_answers_and_refusals(
    store: Store, backbone: Backbone, fake: FakeRunner
) -> None:
    async with serving(make_settings(store.root), backbone, fake) as served:
        for adapter in ("sst2", "nobody", EVIL):
            assert (await ask_grpc(served, adapter, ("x-request-id", "a-1")))[
                "x-request-id"
            ] == "a-1"
            for wrong in ("two words", "x" * 4000, 'a","caller":"root'):
                trailers = await ask_grpc(served, adapter, ("x-request-id", wrong))
                assert re.fullmatch(MADE, trailers["x-request-id"])
        assert "grpc-status-details-bin" in await ask_grpc(served, "nobody")


async def test_the_id_comes_back_by_http_with_answers_and_refusals(
    store: Store, backbone: Backbone, fake: FakeRunner
) -> None:
    async with serving(make_settings(store.root), backbone, fake) as served:
        for path, data, code in (
            ("/v1/predict", body("sst2"), 200),
            ("/v1/predict", body("nobody"), 404),
            ("/v2/models/nobody", None, 404),
            ("/nowhere", None, 404),
        ):
            status, headers = await ask_http(served, path, data, ("x-request-id", "a-1"))
            assert (status, headers["x-request-id"]) == (code, "a-1")
            for wrong in ("two words", "x" * 4000, "a\tb"):
                _, headers = await ask_http(served, path, data, ("x-request-id", wrong))
                assert re.fullmatch(MADE, headers["x-request-id"])


@pytest.mark.parametrize(
    "line",
    [
        b"x-request-id: a\r\n b: c",  # a folded line
        b"x-request-id: a\x0bb",
        b"x-request-id: a\x00b",
        b"x-request-id: a\x1b[2J",
        b"x-request-id: a\rb",
        b"x-request-id: \xff\xfe",
        b"x-request-id: a\r\nx-request-id: b",
    ],
)
async def test_no_header_can_be_injected_by_an_id(
    line: bytes, store: Store, backbone: Backbone, fake: FakeRunner
) -> None:
    def ask(address: str) -> bytes:
        host, _, port = address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall(
                b"GET /v1/adapters HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
                + line
                + b"\r\n\r\n"
            )
            return b"".join(iter(lambda: connection.recv(65536), b""))

    async with serving(make_settings(store.root), backbone, fake) as served:
        head = (await asyncio.to_thread(ask, served.http)).partition(b"\r\n\r\n")[0]
    given_back = [each for each in head.split(b"\r\n") if each.lower().startswith(b"x-request-id")]
    assert head.startswith(b"HTTP/1.1 400") or re.fullmatch(
        rb"x-request-id: [0-9a-f]{32}", b"|".join(given_back)
    )


# the lines


async def test_each_call_of_each_protocol_leaves_one_line(
    store: Store, backbone: Backbone, fake: FakeRunner
) -> None:
    tensor = {"name": "sentence", "datatype": "BYTES", "shape": [1], "data": [SECRET]}
    async with logged(store, backbone, fake) as (served, log):
        await ask_grpc(served, "sst2", ("x-request-id", "a-1"))
        await ask_http(served, "/v1/predict", body("sst2:1.0.0"), ("x-request-id", "a-2"))
        await ask_http(served, "/v2/models/sst2/infer", {"inputs": [tensor]})
        async with grpc.aio.insecure_channel(served.target) as channel:
            stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
            await stub.ModelInfer(infer_request("cola"))  # type: ignore[misc]  # the stubs know two kinds of channel
        await ask_grpc(served, "nobody")
        await ask_http(served, "/v1/predict", body("nobody"))
        await ask_http(served, "/v1/adapters/sst2")
        await ask_http(served, "/nowhere")
        await ask_http(served, "/healthz")
        await ask_http(served, "/metrics")
    calls = log.calls()
    assert [(each["call"], each["adapters"], each["status"]) for each in calls] == [
        ("upt.v1.Inference/Predict", ["sst2:1.0.0"], "OK"),
        ("POST /v1/predict", ["sst2:1.0.0"], "OK"),
        ("POST /v2/models/{model}/infer", ["sst2:1.0.0"], "OK"),
        ("inference.GRPCInferenceService/ModelInfer", ["cola:1.0.0"], "OK"),
        ("upt.v1.Inference/Predict", ["nobody"], "NOT_FOUND"),
        ("POST /v1/predict", ["nobody"], "NOT_FOUND"),
        ("GET /v1/adapters/{adapter:path}", [], "OK"),
        ("unknown", [], "404"),
    ]
    assert [each["request_id"] for each in calls[:2]] == ["a-1", "a-2"]
    assert {each["caller"] for each in calls} == {"anybody"}
    assert {each["level"] for each in calls} == {"INFO", "WARNING"}
    assert all(float(str(each["milliseconds"])) > 0 for each in calls)
    assert all(int(str(each["tokens"])) > 1 and each["inputs"] == 1 for each in calls[:4])
    assert "gripping" not in log.stream.getvalue()


async def test_the_caller_is_named_by_its_token_and_refusals_have_none(
    store: Store, backbone: Backbone, fake: FakeRunner, tmp_path: Path
) -> None:
    file = tmp_path / "tokens.json"
    token, secret = Token.create(name="web", scopes=("predict",), adapters=("sst2",))
    add_token(file, token)
    async with logged(store, backbone, fake, tokens=file) as (served, log):
        for adapter, authorization in (
            ("sst2", f"Bearer {secret}"),
            ("cola", f"Bearer {secret}"),
            ("sst2", "Bearer upt_wrong"),
        ):
            await ask_grpc(served, adapter, ("authorization", authorization))
            await ask_http(served, "/v1/predict", body(adapter), ("authorization", authorization))
        async with grpc.aio.insecure_channel(served.target) as channel:
            call: Raw = channel.unary_unary("/evil.Service/Method")
            await call(b"").code()
    calls = [(each.get("caller"), each["status"]) for each in log.calls()]
    assert calls == [
        ("web", "OK"),
        ("web", "OK"),
        ("web", "PERMISSION_DENIED"),
        ("web", "PERMISSION_DENIED"),
        (None, "UNAUTHENTICATED"),
        (None, "UNAUTHENTICATED"),
        (None, "UNAUTHENTICATED"),
    ]
    assert log.calls()[-1]["call"] == "unknown"
    assert secret not in log.stream.getvalue()
    assert "gripping" not in log.stream.getvalue()


async def test_each_request_of_a_stream_leaves_a_line_and_the_stream_one(
    store: Store, backbone: Backbone, fake: FakeRunner
) -> None:
    async def inputs() -> AsyncIterator[tuple[str, list[str]]]:
        for name in ("sst2", "nobody"):
            yield name, [SECRET]

    async def requests() -> AsyncIterator[oip.ModelInferRequest]:
        yield infer_request("nobody")

    async with logged(store, backbone, fake) as (served, log):
        async with AsyncClient(served.target) as client:
            assert len([each async for each in client.predict_stream(inputs())]) == 2
        async with grpc.aio.insecure_channel(served.target) as channel:
            stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
            metadata = (("x-request-id", "s"),)
            stream = stub.ModelStreamInfer(requests(), metadata=metadata)  # type: ignore[arg-type]  # the stubs know two kinds of channel
            assert len([each async for each in stream]) == 1  # type: ignore[attr-defined]  # as above
    calls = log.calls()
    assert sorted((str(each["adapters"]), str(each["status"])) for each in calls) == [
        ("['nobody']", "NOT_FOUND"),
        ("['nobody']", "NOT_FOUND"),
        ("['sst2:1.0.0']", "OK"),
        ("[]", "OK"),
        ("[]", "OK"),
    ]
    assert [each["request_id"] for each in calls[-2:]] == ["s#1", "s"]
    whole = str(calls[2]["request_id"])
    assert {str(each["request_id"]) for each in calls[:2]} == {f"{whole}#1", f"{whole}#2"}


async def test_only_failed_calls_leave_one_if_so_chosen(
    store: Store, backbone: Backbone, fake: FakeRunner
) -> None:
    async with logged(store, backbone, fake, calls="failed") as (served, log):
        await ask_grpc(served, "sst2")
        await ask_grpc(served, "nobody")
    assert [each["status"] for each in log.calls()] == ["NOT_FOUND"]


async def test_none_does_by_default(store: Store, backbone: Backbone, fake: FakeRunner) -> None:
    log = Log()
    with logging_to(log):
        async with serving(make_settings(store.root), backbone, fake) as served:
            await ask_grpc(served, "nobody")
    assert log.calls() == []


async def test_who_leaves_is_logged_as_one_who_left(
    store: Store, backbone: Backbone, fake: FakeRunner
) -> None:
    async with logged(store, backbone, fake) as (served, log):
        fake.hold()
        asked = [
            asyncio.create_task(ask_grpc(served, "sst2")),
            asyncio.create_task(ask_and_leave(served)),
        ]
        await fake.entered()
        await until(lambda: served.engine.status().calls == 2)
        for each in asked:
            each.cancel()
        await until(lambda: len(log.calls()) == 2)
        fake.release()
    assert {each["status"] for each in log.calls()} == {"CANCELLED"}


async def ask_and_leave(served: Served) -> None:
    """Ask over HTTP until cancelled."""
    host, _, port = served.http.rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    data = json.dumps(body("sst2")).encode()
    head = f"POST /v1/predict HTTP/1.1\r\nhost: x\r\ncontent-length: {len(data)}\r\n\r\n"
    writer.write(head.encode() + data)
    try:
        await asyncio.Event().wait()
    finally:
        writer.close()


async def test_a_fault_is_found_by_its_request_and_says_nothing_of_a_text(
    store: Store, backbone: Backbone, fake: FakeRunner
) -> None:
    fake.error = RuntimeError("the runner broke")
    async with logged(store, backbone, fake) as (served, log):
        await ask_grpc(served, "sst2", ("x-request-id", "a-1"))
    lines = [json.loads(line) for line in log.lines]
    (fault,) = [line for line in lines if line["message"] == "a call failed"]
    assert (fault["level"], fault["request_id"]) == ("ERROR", "a-1")
    assert "the runner broke" in fault["exception"]
    assert log.calls()[0]["level"] == "ERROR"
    assert "gripping" not in log.stream.getvalue()


@pytest.mark.parametrize("form", ["json", "text"])
async def test_nothing_that_callers_write_forges_a_line(
    form: LogFormat, store: Store, backbone: Backbone, fake: FakeRunner
) -> None:
    async with logged(store, backbone, fake, form=form) as (served, log):
        for adapter in (EVIL, SECRET, f"sst2:{SECRET}", "sst2@" + EVIL, "x" * 5000):
            await ask_grpc(served, adapter, ("upt-request-key", "evil"))
            await ask_http(served, "/v1/predict", body(adapter))
            await ask_http(served, f"/v1/adapters/{quote(adapter)}")
            await ask_http(served, f"/{quote(adapter)}")
        async with AsyncClient(served.target) as client:
            await client.predict("sst2", EVIL)
            with pytest.raises(AdapterNotFound):
                await client.predict("nobody", EVIL)
    assert len(log.of("upt_server.calls")) == 22
    assert len(log.lines) == len(log.of("upt_server.calls")) + len(log.of("uvicorn"))
    text = log.stream.getvalue()
    assert not any(each in text for each in ("evil", "root", "gripping", "\x1b", "\u2028"))
    assert max(map(len, log.lines)) < 600


async def test_a_line_of_text_names_what_it_says(
    store: Store, backbone: Backbone, fake: FakeRunner
) -> None:
    async with logged(store, backbone, fake, form="text") as (served, log):
        await ask_grpc(served, "sst2", ("x-request-id", "a-1"))
        await ask_http(served, "/v1/adapters")
    first, second = log.of("upt_server.calls")
    assert re.fullmatch(
        r"\S+ \S+ INFO upt_server\.calls: call request_id=a-1 call=upt\.v1\.Inference/Predict "
        r"caller=anybody adapters=sst2:1\.0\.0 status=OK inputs=1 tokens=\d+ milliseconds=[0-9.]+",
        first,
    )
    assert "adapters=- status=OK milliseconds=" in second


async def test_adapters_beyond_sixteen_are_counted(
    store: Store, backbone: Backbone, fake: FakeRunner
) -> None:
    inputs = [pb.Input(adapter=f"nobody-{n}", texts=[SECRET]) for n in range(20)]
    async with (
        logged(store, backbone, fake) as (served, log),
        grpc.aio.insecure_channel(served.target) as channel,
    ):
        stub = async_stub(channel)
        await stub.Predict(pb.PredictRequest(inputs=inputs)).code()
    (call,) = log.calls()
    assert call["adapters"] == [f"nobody-{n}" for n in range(16)]
    assert call["more_adapters"] == 4


@pytest.mark.parametrize("form", ["json", "text"])
def test_a_message_stays_one_line(form: LogFormat) -> None:
    log = Log(form)
    logger = logging.getLogger("some.library")
    with logging_to(log):
        logger.warning("it says %s", EVIL)
    (line,) = log.lines
    assert "\x1b" not in line
    assert "it says x" in line


@pytest.mark.parametrize(
    ("error", "status"), [(RuntimeError, "INTERNAL"), (asyncio.CancelledError, "CANCELLED")]
)
async def test_what_breaks_out_of_the_http_edge_is_recorded(
    error: type[BaseException], status: str
) -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise error

    async def receive() -> Message:
        raise AssertionError("nobody reads")

    async def send(message: Message) -> None:
        raise AssertionError(message)

    log = Log()
    recorder = HttpRecorder(broken, recorder=Recorder(logged="all"), access=Access())
    scope = {"type": "http", "method": "POST", "path": "/v1/predict", "headers": []}
    with logging_to(log), pytest.raises(error):
        await recorder(scope, receive, send)
    assert [(each["call"], each["status"]) for each in log.calls()] == [("unknown", status)]


async def test_the_command_logs_and_traces_as_it_is_told(store: Store, backbone: Backbone) -> None:
    with collecting() as collector:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "upt_server.cli", "run", "--json", "--threads", "1"),
            *("--grpc-port", "0", "--http-port", "0", "--log-format", "json"),
            *("--log-calls", "all", "--trace-endpoint", collector.url),
            *("--home", str(store.root), "--backbone", str(backbone.directory)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            assert process.stdout is not None
            ports = json.loads(await process.stdout.readline())
            async with AsyncClient(f"127.0.0.1:{ports['grpc_port']}") as client:
                await client.predict("sst2", SECRET)
            process.terminate()
            _, messages = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
    assert process.returncode == 0
    lines = [json.loads(line) for line in messages.decode().splitlines()]
    (line,) = [line for line in lines if line["logger"] == "upt_server.calls"]
    span = collector.one("upt.v1.Inference/Predict")
    assert line["trace_id"] == span.trace_id.hex()
    assert line["adapters"] == ["sst2:1.0.0"]
    assert "gripping" not in messages.decode()
