"""``upt-server doctor``: each check on a machine where it is well, and where it is not."""

import json
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from upt_server import checkup, runner_choice
from upt_server.checkup import Start, examine
from upt_server.native import library
from upt_server.runner import TorchRunner
from upt_server.runner_choice import load_runner
from upt_server.tls import ServerTls
from upt_testing.backbones import write_tiny_backbone
from upt_testing.processes import upt_server
from upt_zoo.backbone import open_backbone
from upt_zoo.findings import Finding
from upt_zoo.local.store import Store

Look = Callable[..., Mapping[str, Finding]]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write_tiny_backbone(tmp_path / "backbone", heads=2).directory


@pytest.fixture
def look(store: Store, directory: Path, tmp_path: Path) -> Look:
    def look(**changes: object) -> Mapping[str, Finding]:
        values: dict[str, object] = {
            "home": store.root,
            "backbone": str(directory),
            "host": "127.0.0.1",
            "grpc_port": 0,
            "http_port": 0,
            "precision": "exact",
            "runner": "auto",
            "runner_cache": tmp_path / "runners.json",
            "device": "cpu",
            "threads": 1,
        }
        found = examine(Start(**(values | changes)))  # type: ignore[arg-type]  # as the cases say
        return {each.check: each for each in found}

    return look


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


@pytest.fixture
def old_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_cpu_facts", lambda: "flags: sse2")
    monkeypatch.setattr(runner_choice, "is_bf16_fast", lambda: False)


def test_where_all_is_well_nothing_is_to_be_done(look: Look, directory: Path) -> None:
    found = look()
    levels = {each.check: each.level for each in found.values()}
    assert levels.pop("kernel") in ("ok", "warning")  # as this machine is
    assert set(levels.values()) == {"ok"}
    assert found["backbone"].text.startswith(f"{directory}, sha256:")
    assert "torch-fp32" in found["precision"].text
    assert found["threads"].text.startswith("1 on ")


def test_a_port_is_free_until_somebody_listens(look: Look, taken: int) -> None:
    found = look(http_port=taken)
    assert found["grpc port"].level == "ok"
    assert found["http port"].level == "failure"
    assert f"127.0.0.1:{taken}" in found["http port"].text
    assert "--http-port" in found["http port"].remedy


def test_two_ports_are_two(look: Look) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        free = listening.getsockname()[1]
    found = look(grpc_port=free, http_port=free)
    assert (found["grpc port"].level, found["http port"].level) == ("ok", "failure")
    assert found["http port"].text == f"{free} is the port for gRPC"


def test_a_host_that_is_none_is_told_as_the_system_tells_it(look: Look) -> None:
    found = look(host="nowhere.invalid", grpc_port=1)["grpc port"]
    assert found.level == "failure"
    assert found.text.startswith("nowhere.invalid:1: ")
    assert "Unknown error" not in found.text


def test_beyond_this_machine_a_server_needs_tls_or_that_it_is_waived(
    look: Look, tmp_path: Path
) -> None:
    assert look()["tls"].text == "none on 127.0.0.1"
    bare = look(host="0.0.0.0")["tls"]
    assert (bare.level, "--insecure" in bare.text) == ("failure", True)
    assert look(host="0.0.0.0", is_insecure=True)["tls"].level == "ok"
    pem = tmp_path / "pem"
    tls = ServerTls(certificate=pem, key=pem)
    missing = look(host="0.0.0.0", tls=tls)["tls"]
    assert (missing.level, str(pem) in missing.text) == ("failure", True)
    pem.touch()
    assert look(host="0.0.0.0", tls=tls)["tls"].text == f"the certificate {pem}"


def test_a_port_that_was_looked_at_is_free_again(look: Look, taken: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        free = listening.getsockname()[1]
    assert look(grpc_port=free)["grpc port"].level == "ok"
    assert look(grpc_port=free)["grpc port"].level == "ok"


@pytest.mark.usefixtures("old_cpu")
def test_an_old_cpu_computes_exactly_by_torch_and_nothing_fast(look: Look) -> None:
    found = look()
    assert (found["kernel"].level, found["precision"].level) == ("warning", "ok")
    assert found["runner"].text == "torch-fp32, the only one"
    found = look(precision="fast")
    assert found["precision"].level == found["runner"].level == "failure"
    assert "--precision" in found["precision"].remedy


def test_a_runner_of_another_precision_is_a_failure(look: Look) -> None:
    assert look(runner="torch-fp32")["runner"].text == "torch-fp32, as was asked"
    found = look(runner="torch-bf16")["runner"]
    assert found.level == "failure"
    assert "torch-fp32" in found.text


def test_what_auto_has_measured_is_told(
    look: Look, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (checkup, runner_choice):  # on any machine two of the precision
        monkeypatch.setattr(module, "missing_for", lambda *_: None)
    monkeypatch.setattr(
        runner_choice, "NativeRunner", lambda encoder, *_, **__: TorchRunner(encoder)
    )
    assert look()["runner"].text == "the start will measure native-fp32, torch-fp32"
    backbone = open_backbone(directory, hub_id=str(directory))
    cache = tmp_path / "runners.json"
    load_runner(backbone, "exact", wanted="auto", threads=1, cache=cache)
    assert "measured earlier: native-fp32 " in look()["runner"].text
    assert "the start will measure" in look(threads=2)["runner"].text


def test_a_backbone_that_is_not_here_is_fetched_by_the_start(look: Look) -> None:
    found = look(backbone="nobody/nothing")
    assert found["backbone"].level == "warning"
    assert "hub" in found["backbone"].remedy
    assert not {"precision", "runner"} & found.keys()


def test_a_damaged_backbone_is_a_failure(look: Look, directory: Path) -> None:
    (directory / "config.json").write_text("{}")
    found = look()
    assert found["backbone"].level == "failure"
    assert "config.json" in found["backbone"].text


def test_a_store_is_empty_or_damaged_or_well(look: Look, store: Store, tmp_path: Path) -> None:
    assert look(home=tmp_path / "nowhere")["zoo"].remedy.endswith("`upt-zoo pull NAME` fetches")
    stored = store.resolve(store.list()[0])
    digest = stored.digest.removeprefix("sha256:")
    (store.root / "blobs" / "sha256" / digest).write_bytes(b"{}")
    found = look()["zoo"]
    assert (found.level, found.remedy) == ("warning", "`upt-zoo doctor` says what")
    assert "manifests" in found.text
    (store.root / "index.json").write_text("{")
    assert look()["zoo"].level == "failure"


def test_more_threads_than_cores_are_a_warning(look: Look) -> None:
    assert look(threads=4096)["threads"].remedy.startswith("--threads ")


def test_the_exit_code_says_whether_it_could_serve(
    store: Store, directory: Path, taken: int, tmp_path: Path
) -> None:
    file = tmp_path / "server.toml"
    values = ("http-port = 0", 'host = "0.0.0.0"', "insecure = true", 'preload = "sst2"')
    file.write_text("\n".join(values))  # the one of `run`, whole
    arguments = ("--home", str(store.root), "--backbone", str(directory), "--config", str(file))
    good = upt_server("doctor", *arguments, "--json", UPT_SERVER_GRPC_PORT="0")
    assert (good.returncode, good.stderr) == (0, "")
    assert {each["level"] for each in json.loads(good.stdout)} <= {"ok", "warning"}
    bad = upt_server("doctor", *arguments, UPT_SERVER_GRPC_PORT=str(taken))
    assert bad.returncode == 69
    assert "--grpc-port" in bad.stdout
