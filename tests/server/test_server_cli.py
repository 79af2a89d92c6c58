"""The command as a user runs it: a process of its own."""

import asyncio
import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from google.protobuf.json_format import Parse
from typer.main import get_command
from typer.testing import CliRunner

from upt_protos.v1 import inference_pb2 as pb
from upt_server.app import Ports
from upt_server.cli import app
from upt_server.client import AsyncClient
from upt_server.results import Output
from upt_server.settings import Settings
from upt_testing.adapters import (
    CLASSIFICATION,
    EMBEDDING,
    MULTI_LABEL,
    REGRESSION,
    SPAN,
    TOKENS,
)
from upt_testing.processes import Running, running_server, upt_server
from upt_testing.serving import TIMEOUT_S, Publisher
from upt_zoo.backbone import Backbone
from upt_zoo.errors import Unavailable
from upt_zoo.local.store import Store


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, backbone: Backbone) -> Iterator[Running]:
    publish = Publisher(store=Store(tmp_path_factory.mktemp("home")), backbone=backbone)
    heads = {
        "people": TOKENS,
        "squad": SPAN,
        "sst2": CLASSIFICATION,
        "stsb": REGRESSION,
        "topics": MULTI_LABEL,
        "vectors": EMBEDDING,
    }
    for seed, (name, head) in enumerate(heads.items()):
        publish(name, head, seed=seed)
    file = tmp_path_factory.mktemp("configuration") / "server.toml"
    file.write_text(f"backbone = '{backbone.directory}'\npreload = 'sst2,squad:1.0.0'\n")
    places = {"UPT_SERVER_CONFIG": str(file), "UPT_ZOO_HOME": str(publish.store.root)}
    with running_server(**places) as server:
        assert server.event.keys() == {"event", "grpc_port", "http_port"}
        assert server.event["event"] == "ready"
        yield server


def test_predict_prints_labels_who_answered_and_times(server: Running) -> None:
    result = upt_server("predict", "sst2", "a funny film", "--server", server.target)
    assert (result.returncode, result.stderr) == (0, "")
    first, second, facts = result.stdout.splitlines()
    assert {first.split()[0], second.split()[0]} == {"negative", "positive"}
    assert float(first.split()[1]) >= float(second.split()[1])
    assert re.fullmatch(
        r"sst2:1\.0\.0@[0-9a-f]{12}, 5 tokens, [0-9.]+ ms \(load .*, queue .*, forward .*\)", facts
    )


def test_predict_takes_the_texts_in_the_order_of_the_fields(server: Running) -> None:
    context = "the man wrote the book . the woman painted the house"
    result = upt_server("predict", "squad", "who wrote it ?", context, "--server", server.target)
    found = re.search(r"(.*?)  .*characters (\d+) to (\d+)", result.stdout)
    assert found is not None
    assert context[int(found[2]) : int(found[3])] == found[1].strip()


def test_predict_prints_entities_with_their_characters(server: Running) -> None:
    text = "the woman painted the house by the river"
    result = upt_server("predict", "people", text, "--server", server.target)
    *lines, facts = result.stdout.splitlines()
    assert facts.startswith("people:1.0.0@")
    for line in lines:
        found = re.fullmatch(r"(.*?)  +(PER|LOC) +[0-9.]+ % +characters (\d+) to (\d+) *", line)
        assert found is not None, line
        assert text[int(found[3]) : int(found[4])] == found[1].strip()
    assert lines


def test_predict_prints_how_a_vector_begins(server: Running) -> None:
    result = upt_server("predict", "vectors", "the film", "--server", server.target)
    assert re.match(r"32 numbers: +(-?0\.\d{4} ){6}… *\n", result.stdout)


@pytest.mark.parametrize("adapter", ["topics", "stsb"])
def test_predict_prints_other_answers_too(server: Running, adapter: str) -> None:
    result = upt_server("predict", adapter, "the film", "--server", server.target)
    assert result.returncode == 0
    assert f"{adapter}:1.0.0@" in result.stdout


def test_predict_prints_the_wires_own_json(server: Running) -> None:
    result = upt_server("predict", "sst2", "a film", "--json", "--server", server.target)
    response = Parse(result.stdout, pb.PredictResponse())
    assert response.outputs[0].adapter.name == "sst2"
    assert response.outputs[0].HasField("label")


def test_ls_shows_what_can_be_asked(server: Running) -> None:
    result = upt_server("ls", "--server", server.target)
    lines = [line.split() for line in result.stdout.splitlines()]
    assert [line[0] for line in lines[1:]] == [
        "people:1.0.0",
        "squad:1.0.0",
        "sst2:1.0.0",
        "stsb:1.0.0",
        "topics:1.0.0",
        "vectors:1.0.0",
    ]
    adapters = json.loads(upt_server("ls", "--json", "--server", server.target).stdout)["adapters"]
    resident = {adapter["identity"]["name"]: adapter["resident"] for adapter in adapters}
    assert resident["sst2"]
    assert resident["squad"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("nobody", "x"), 66, "no adapter nobody"),
        (("sst2", ""), 64, "sentence is empty"),
        (("sst2", "a", "b"), 64, "got 2 texts"),
        (("No Such", "x"), 64, "reference 'No Such'"),
    ],
)
def test_an_error_is_one_line_and_a_code(
    server: Running, arguments: tuple[str, ...], code: int, message: str
) -> None:
    result = upt_server("predict", *arguments, "--server", server.target)
    assert (result.returncode, result.stdout) == (code, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("upt-server: ")
    assert message in line


def test_no_server_is_unavailable() -> None:
    result = upt_server("predict", "sst2", "x", "--server", "127.0.0.1:1")
    assert result.returncode == 69
    assert "cannot reach 127.0.0.1:1" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--preload", "nobody"), 66, "no adapter nobody"),
        (("--preload", "No Such"), 64, "reference 'No Such'"),
        (("--grpc-port", "70000"), 2, "--grpc-port"),
    ],
)
def test_a_server_that_cannot_start_says_why(
    tmp_path: Path, backbone: Backbone, arguments: tuple[str, ...], code: int, message: str
) -> None:
    places = ("--home", str(tmp_path), "--backbone", str(backbone.directory))
    ports = ("--grpc-port", "0", "--http-port", "0")
    result = upt_server("run", *places, *ports, *arguments)
    assert result.returncode == code
    assert message in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "page"),
    [
        ((), ", a page on http://127.0.0.1:8/"),
        (("--no-page",), ""),
        (("--tls-cert", "c.pem", "--tls-key", "k.pem"), ", a page on https://127.0.0.1:8/"),
    ],
)
def test_a_server_says_where_it_listens_and_where_its_page_is(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    backbone: Backbone,
    arguments: tuple[str, ...],
    page: str,
) -> None:
    async def serve(_: Settings, on_ready: Callable[[Ports], None]) -> None:
        on_ready(Ports(grpc=7, http=8, admin=9))

    monkeypatch.setattr("upt_server.app.serve", serve)
    places = ("--home", str(tmp_path), "--backbone", str(backbone.directory))
    result = CliRunner().invoke(app, ["run", *places, *arguments])
    assert result.stdout.splitlines() == [
        f"ready: gRPC on 127.0.0.1:7, HTTP on 127.0.0.1:8{page}, operators on 127.0.0.1:9"
    ]


def test_the_names_of_metrics_are_bounded_by_an_option(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, backbone: Backbone
) -> None:
    bounds = []

    async def serve(settings: Settings, _: object) -> None:
        bounds.append(settings.max_adapter_labels)

    monkeypatch.setattr("upt_server.app.serve", serve)
    run = ["run", "--home", str(tmp_path), "--backbone", str(backbone.directory)]
    for more in ([], ["--metrics-adapters", "5"]):
        assert CliRunner().invoke(app, [*run, *more]).exit_code == 0
    assert bounds == [100, 5]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_the_server_after_the_calls_inside(
    store: Store, backbone: Backbone, number: signal.Signals
) -> None:
    arguments = ("--home", str(store.root), "--backbone", str(backbone.directory))
    with running_server(*arguments) as server:
        async with AsyncClient(server.target) as client:
            calls = [asyncio.create_task(client.predict("sst2", "a film")) for _ in range(50)]
            await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
            server.process.send_signal(number)
            results = await asyncio.gather(*calls, return_exceptions=True)
        _, messages = await asyncio.to_thread(server.process.communicate, timeout=TIMEOUT_S)
    assert server.process.returncode == 0
    assert "Traceback" not in messages
    assert {type(result) for result in results} <= {Output, Unavailable}
    assert Output in {type(result) for result in results}


def test_help_loads_no_torch() -> None:
    code = (
        "import sys; from upt_server.cli import app; from typer.testing import CliRunner; "
        "result = CliRunner().invoke(app, ['--help']); "
        "sys.exit(result.exit_code or 'torch' in sys.modules or 'grpc' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_flag_and_argument_is_explained() -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]  # it is a group
    assert {"run", "predict", "ls", "status", "token", "admin"} <= set(commands)
    groups = [commands.pop(name).commands for name in ("token", "admin")]
    for command in [*commands.values(), *(each for group in groups for each in group.values())]:
        assert command.help
        assert all(parameter.help for parameter in command.params), command.name
