"""``upt-server top``: the arithmetic on metrics, and the command beside a running server."""

import asyncio
import json
import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import trustme
from grpc import StatusCode

from upt_server.access.tokens import Token, add_token
from upt_server.activity import compare, read_metrics
from upt_server.client import AsyncClient
from upt_server.metrics import Metrics
from upt_server.metrics_client import MetricsClient
from upt_server.results import BatchFacts
from upt_server.tls import ClientTls, ServerTls
from upt_testing.predictions import make_prediction
from upt_testing.serving import FakeRunner, Served, make_settings, serving
from upt_zoo.backbone import Backbone
from upt_zoo.errors import (
    AdapterNotFound,
    Corrupt,
    Forbidden,
    InvalidInput,
    NotFound,
    Unauthenticated,
    Unavailable,
)
from upt_zoo.local.store import Store

COMMAND = [sys.executable, "-m", "upt_server.cli", "top"]


def test_activity_is_what_happened_between_two_readings() -> None:
    metrics = Metrics()
    metrics.limits_set(batch_tokens=100, queue_tokens=1000, adapter_bytes=5000)
    metrics.queue_built(lambda: 7)
    metrics.memory_built(lambda: 3000)
    metrics.call_answered(make_prediction("sst2", tokens=50, total_ms=4))
    metrics.adapter_loaded(0.1, 1)
    before = read_metrics(metrics.text().decode(), 10.0)
    for _ in range(6):
        metrics.call_answered(make_prediction("sst2", tokens=10, total_ms=8, inputs=2))
    metrics.call_answered(make_prediction("cola", tokens=40, total_ms=200))
    metrics.call_failed(["cola", "cola"], StatusCode.INTERNAL)
    metrics.call_failed(["nobody"], StatusCode.RESOURCE_EXHAUSTED)
    metrics.batch_computed(BatchFacts(rows=2, tokens=60, distinct_adapters=1, forward_ms=1))
    metrics.batch_computed(BatchFacts(rows=2, tokens=100, distinct_adapters=1, forward_ms=1))
    metrics.adapter_loaded(0.1, 2)
    metrics.adapter_evicted(1)
    activity = compare(before, read_metrics(metrics.text().decode(), 12.0))
    assert (activity.seconds, activity.inputs_per_s) == (2.0, 6.5)
    assert (activity.errors_per_s, activity.rejected_per_s) == (1.5, 0.5)
    assert (activity.batches_per_s, activity.batch_fill) == (1.0, 0.8)
    assert (activity.queue_rows, activity.resident) == (7, 1)
    assert (activity.adapter_bytes, activity.max_adapter_bytes) == (3000, 5000)
    assert (activity.loads, activity.evictions) == (1, 1)
    sst2, cola, other = activity.adapters
    assert (sst2.adapter, sst2.inputs_per_s, sst2.errors_per_s) == ("sst2", 6.0, 0.0)
    assert (cola.adapter, cola.inputs_per_s, cola.errors_per_s) == ("cola", 0.5, 1.0)
    assert (other.adapter, other.inputs_per_s, other.errors_per_s) == ("other", 0.0, 0.5)
    assert (sst2.share, cola.share, other.share) == (0.75, 0.25, 0.0)
    assert sst2.p50_ms == pytest.approx(7.5)  # half way through the bucket of 5 to 10 ms
    assert cola.p99_ms == pytest.approx(248.5)  # of the bucket of 100 to 250 ms
    assert other.p50_ms is None


def test_a_server_that_has_begun_anew_counts_from_there() -> None:
    first, second = Metrics(), Metrics()
    for _ in range(5):
        first.call_answered(make_prediction("sst2", tokens=5, total_ms=8))
    second.call_answered(make_prediction("sst2", tokens=5, total_ms=8))
    before, after = (
        read_metrics(each.text().decode(), at_s) for each, at_s in ((first, 0.0), (second, 1.0))
    )
    assert compare(before, after).inputs_per_s == 1.0


def test_nothing_is_divided_by_nothing() -> None:
    before, after = (read_metrics(Metrics().text().decode(), at_s) for at_s in (0.0, 1.0))
    activity = compare(before, after)
    assert activity.adapters == ()
    assert (activity.p50_ms, activity.batch_fill, activity.inputs_per_s) == (None, None, 0.0)


def test_a_quantile_lies_in_the_bucket_of_the_true_one() -> None:
    seconds = np.random.default_rng(0).lognormal(-4, 1, 1000)
    metrics = Metrics()
    before = read_metrics(metrics.text().decode(), 0.0)
    for each in seconds:
        metrics.call_answered(make_prediction("sst2", tokens=1, total_ms=each * 1000))
    activity = compare(before, read_metrics(metrics.text().decode(), 1.0))
    for estimated_ms, share in ((activity.p50_ms, 0.5), (activity.p99_ms, 0.99)):
        assert estimated_ms is not None
        true_ms = float(np.quantile(seconds, share)) * 1000
        assert true_ms / 2.5 < estimated_ms < true_ms * 2.5


def test_what_takes_longer_than_any_bucket_is_shown_as_the_last_bound() -> None:
    metrics = Metrics()
    before = read_metrics(metrics.text().decode(), 0.0)
    metrics.call_answered(make_prediction("sst2", tokens=1, total_ms=60_000))
    assert compare(before, read_metrics(metrics.text().decode(), 1.0)).p99_ms == 10_000


# on a server


@pytest.fixture
async def served(store: Store, backbone: Backbone, fake: FakeRunner) -> AsyncIterator[Served]:
    async with serving(make_settings(store.root), backbone, fake) as served:
        yield served


async def run_top(*arguments: str, **environment: str) -> tuple[int | None, str, str]:
    """Run the command to its end beside this process's own server."""
    process = await asyncio.create_subprocess_exec(
        *COMMAND,
        *arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"COLUMNS": "120"} | environment,
    )
    out, messages = await process.communicate()
    return process.returncode, out.decode(), messages.decode()


async def ask_until(done: "asyncio.Task[tuple[int | None, str, str]]", served: Served) -> None:
    async with AsyncClient(served.target) as client:
        while not done.done():
            await client.predict_many([("sst2", ["a film"]), ("sst2", ["a film"])])
            await client.predict("cola", "the film")
            with suppress(AdapterNotFound):
                await client.predict("nobody", "a film")
            await asyncio.sleep(0.01)


async def test_json_tells_what_the_server_does(served: Served) -> None:
    arguments = ("--server", served.http, "--once", "--json", "--interval-s", "1")
    task = asyncio.create_task(run_top(*arguments))
    await ask_until(task, served)
    code, out, messages = await task
    assert (code, messages) == (0, "")
    activity = json.loads(out)
    assert len(out.splitlines()) == 1
    by_name = {each["adapter"]: each for each in activity["adapters"]}
    assert by_name.keys() == {"sst2", "cola", "other"}
    assert by_name["sst2"]["inputs_per_s"] > by_name["cola"]["inputs_per_s"] > 0
    assert by_name["other"]["errors_per_s"] > 0
    assert sum(each["share"] for each in activity["adapters"]) == pytest.approx(1)
    assert by_name["sst2"]["p50_ms"] <= by_name["sst2"]["p99_ms"]
    assert 0 < activity["batch_fill"] < 1
    assert activity["resident"] == 2
    assert 0 < activity["adapter_bytes"] < activity["max_adapter_bytes"]


async def test_the_table_names_every_adapter(served: Served) -> None:
    task = asyncio.create_task(run_top("--server", served.http, "--once", "--interval-s", "0.5"))
    await ask_until(task, served)
    code, out, messages = await task
    assert (code, messages) == (0, "")
    lines = out.splitlines()
    assert "inputs/s" in lines[0]
    assert "rows wait" in lines[1]
    assert "2 adapters in memory" in lines[2]
    assert lines[3].split() == [
        "adapter",
        "inputs/s",
        "errors/s",
        "p50",
        "ms",
        "p99",
        "ms",
        "share",
    ]
    assert {line.split()[0] for line in lines[4:]} == {"sst2", "cola", "other"}


@pytest.mark.parametrize("arguments", [(), ("--json",)])
async def test_ctrl_c_ends_it_without_a_word(served: Served, arguments: tuple[str, ...]) -> None:
    leader, follower = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *COMMAND,
        *("--server", served.http, "--interval-s", "0.1", *arguments),
        stdin=follower,
        stdout=follower,
        stderr=subprocess.PIPE,
        env=os.environ | {"COLUMNS": "120", "TERM": "xterm"},
        preexec_fn=hear_signals,
    )
    os.close(follower)
    shown = b""
    try:
        async with AsyncClient(served.target) as client:
            while shown.count(b"sst2") < 2:  # at work, in the middle of it
                await client.predict("sst2", "a film")
                shown += await asyncio.to_thread(read_some, leader)
        process.send_signal(signal.SIGINT)
        reading = asyncio.create_task(asyncio.to_thread(read_all, leader))
        _, messages = await process.communicate()
        shown += await reading
    finally:
        if process.returncode is None:
            process.kill()
        os.close(leader)
    assert (process.returncode, messages) == (0, b"")
    assert b"Traceback" not in shown
    if not arguments:
        assert shown.count(b"\x1b[?25h") >= shown.count(b"\x1b[?25l") > 0  # the cursor is back


def hear_signals() -> None:
    """Hear Ctrl-C, also where the tests run behind a shell that has switched it off."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def read_some(descriptor: int) -> bytes:
    ready, _, _ = select.select([descriptor], [], [], 0.1)
    return os.read(descriptor, 65536) if ready else b""


def read_all(descriptor: int) -> bytes:
    found = b""
    with suppress(OSError):  # what a terminal says whose other side is closed
        while data := os.read(descriptor, 65536):
            found += data
    return found


@pytest.mark.parametrize("arguments", [("--json",), ()])
async def test_a_server_that_goes_away_is_waited_for(
    store: Store, backbone: Backbone, fake: FakeRunner, arguments: tuple[str, ...]
) -> None:
    async with serving(make_settings(store.root), backbone, fake) as served:
        target = served.http
        process = await asyncio.create_subprocess_exec(
            *COMMAND,
            *("--server", target, "--interval-s", "0.1", *arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=hear_signals,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        assert await process.stdout.readline()
    try:
        message = (await process.stderr.readline()).decode()
        assert message.startswith(f"cannot reach {target}")
        assert message.endswith("Trying again until Ctrl-C.\n")
        settings = make_settings(store.root, http_port=int(target.rpartition(":")[2]))
        async with (
            serving(settings, backbone, fake) as again,
            AsyncClient(again.target) as client,
        ):
            shown = b""
            while b"cola" not in shown:
                await client.predict("cola", "the film")
                shown = await process.stdout.readline()
            process.send_signal(signal.SIGINT)
            _, messages = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert (process.returncode, messages) == (0, b"")


async def test_who_may_not_read_metrics_is_told(
    store: Store, backbone: Backbone, fake: FakeRunner, tmp_path: Path
) -> None:
    file = tmp_path / "tokens.json"
    secrets: dict[str, str] = {}
    for name, fields in {
        "ops": {"scopes": ("metadata",)},
        "some": {"scopes": ("metadata",), "adapters": ("sst2",)},
        "web": {"scopes": ("predict",)},
    }.items():
        token, secrets[name] = Token.create(name=name, **fields)
        add_token(file, token)
    own = tmp_path / "ops.token"
    own.write_text(secrets["ops"])
    async with serving(make_settings(store.root, tokens=file), backbone, fake) as served:
        arguments = ("--server", served.http, "--once", "--interval-s", "0.1", "--json")
        assert (await run_top(*arguments, "--token-file", str(own)))[0] == 0
        code, _, messages = await run_top(*arguments)
        assert (code, "--token-file" in messages) == (77, True)
        for name in ("some", "web"):
            with (
                MetricsClient(served.http, token=secrets[name], tls=None) as client,
                pytest.raises(Forbidden, match="scope metadata"),
            ):
                await asyncio.to_thread(client.read)
        with (
            MetricsClient(served.http, token="upt_wrong", tls=None) as client,
            pytest.raises(Unauthenticated),
        ):
            await asyncio.to_thread(client.read)


async def test_it_speaks_tls(
    store: Store, backbone: Backbone, fake: FakeRunner, tmp_path: Path
) -> None:
    authority = trustme.CA()
    ca, cert, key = (tmp_path / name for name in ("ca.pem", "cert.pem", "key.pem"))
    own_cert, own_key = tmp_path / "own.pem", tmp_path / "own.key"
    authority.cert_pem.write_to_path(ca)
    issued = authority.issue_cert("127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(cert)
    issued.private_key_pem.write_to_path(key)
    client_cert = authority.issue_cert("ops@example.org")
    client_cert.cert_chain_pems[0].write_to_path(own_cert)
    client_cert.private_key_pem.write_to_path(own_key)
    tls = ServerTls(certificate=cert, key=key, client_ca=ca)
    async with serving(make_settings(store.root, tls=tls), backbone, fake) as served:
        mine = ClientTls(ca=ca, certificate=own_cert, key=own_key)
        with MetricsClient(served.http, token="upt_any", tls=mine) as client:
            reading = await asyncio.to_thread(client.read)
        assert reading.label_values("upt_build_info", "precision") == {"exact"}
        with (
            MetricsClient(served.http, token=None, tls=ClientTls(ca=ca)) as client,
            pytest.raises(Unavailable),
        ):
            await asyncio.to_thread(client.read)
    with pytest.raises(InvalidInput, match="cannot speak TLS"):
        MetricsClient("127.0.0.1:1", token=None, tls=ClientTls(ca=tmp_path / "nowhere"))


async def test_a_server_without_metrics_or_none_at_all_is_an_error(
    store: Store, backbone: Backbone, fake: FakeRunner
) -> None:
    settings = make_settings(store.root, has_metrics=False)
    async with serving(settings, backbone, fake) as served:
        with (
            MetricsClient(served.http, token=None, tls=None) as client,
            pytest.raises(NotFound, match="--no-metrics"),
        ):
            await asyncio.to_thread(client.read)
    code, _, messages = await run_top("--server", served.http, "--once")
    assert (code, "is `upt-server run` running there?" in messages) == (69, True)
    with pytest.raises(InvalidInput, match="expected HOST:PORT"):
        MetricsClient("here:there", token=None, tls=None)


@pytest.mark.parametrize("answer", [b"hello, world\n", b"", b"up 1\n", b'upt_build_info{version="'])
def test_what_is_no_server_of_ours_is_an_error(answer: bytes) -> None:
    with (
        answering(answer) as server,
        MetricsClient(server, token=None, tls=None) as client,
        pytest.raises(Corrupt, match="expected metrics of upt-server"),
    ):
        client.read()


@contextmanager
def answering(answer: bytes) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_a_token_does_not_leave_the_machine_in_the_clear() -> None:
    with pytest.raises(InvalidInput, match="by TLS only"):
        MetricsClient("server.example:8000", token="upt_x", tls=None)
    with MetricsClient("[::1]:8000", token="upt_x", tls=None):
        pass
