"""Which Hub is asked, who asks, and what is no Hub."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from parity.foreign import CHECKPOINTS
from upt_testing.fake_registry import FakeRegistry, Handler, running_fake
from upt_testing.hub_client import name_endpoint, pull, push
from upt_testing.hubs import Hub
from upt_testing.stores import publish, resolve
from upt_zoo.backbone import Backbone
from upt_zoo.errors import (
    AdapterNotFound,
    Corrupt,
    InvalidInput,
    InvalidReference,
    Unavailable,
)
from upt_zoo.local.store import Store
from upt_zoo.references import Reference
from upt_zoo.remote.hub import Hub as Client
from upt_zoo.remote.remotes import Remotes

QV = CHECKPOINTS / "peft" / "bert-qv"
TOKEN = "hf_of_the_tests"
pytestmark = pytest.mark.filterwarnings(
    "ignore:Use 'content:DeprecationWarning"  # huggingface-hub's own, when it uploads by LFS
)


# Which remotes are asked


def test_a_hub_stands_among_the_other_remotes(
    remotes: Remotes, store: Store, home: Store, tmp_path: Path, remote: str
) -> None:
    elsewhere = Store(tmp_path / "elsewhere")
    only_there = publish(elsewhere, name="other", version="1.0.0")
    stored = publish(store, version="1.0.0")
    push(remotes, store, remote)
    order = Remotes(order=(remote, elsewhere.root.as_uri()))
    assert order.pull(Reference(name="tiny"), home) == stored
    assert order.pull(Reference(name="other"), home) == only_there


def test_a_hub_that_does_not_answer_is_passed_over(
    store: Store, home: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    name_endpoint(monkeypatch, "http://127.0.0.1:1")
    monkeypatch.setattr("time.sleep", lambda _: None)
    stored = publish(store, version="1.0.0")
    order = Remotes(order=("hf://team", store.root.as_uri()))
    assert order.pull(Reference(name="tiny"), home) == stored
    assert "no answer from the Hub" in caplog.text
    with pytest.raises(Unavailable):
        pull(order, home, "hf://team/tiny:1.0.0")
    with pytest.raises(Unavailable):
        push(order, store, "hf://team")


def test_offline_nothing_is_asked(
    remotes: Remotes, hub: Hub, store: Store, home: Store, remote: str
) -> None:
    publish(store, version="1.0.0")
    push(remotes, store, remote)
    asked = len(hub.requests)
    offline = Remotes(order=(remote, "embedded"), is_offline=True)
    for action in (
        lambda: pull(offline, home, f"{remote}/tiny"),
        lambda: push(offline, store, remote),
        lambda: offline.fetch_checkpoint(f"{remote}/tiny"),
    ):
        with pytest.raises(Unavailable, match="offline"):
            action()
    with pytest.raises(AdapterNotFound, match="embedded"):
        offline.pull(Reference(name="tiny"), home)
    assert len(hub.requests) == asked


def test_what_is_not_allowed_is_not_used(
    remotes: Remotes, hub: Hub, store: Store, home: Store, remote: str
) -> None:
    publish(store, version="1.0.0")
    asked = len(hub.requests)
    strict = Remotes(allowed=("hf://good",))
    for action in (
        lambda: pull(strict, home, f"{remote}/tiny"),
        lambda: push(strict, store, remote),
        lambda: strict.fetch_checkpoint(f"{remote}/tiny"),
    ):
        with pytest.raises(InvalidInput, match=r"remotes\.toml allows"):
            action()
    assert len(hub.requests) == asked


def test_with_the_hub_switched_off_the_cache_answers(
    remotes: Remotes,
    hub: Hub,
    store: Store,
    tmp_path: Path,
    remote: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stored = publish(store, version="1.0.0")
    push(remotes, store, remote)
    pull(remotes, Store(tmp_path / "1"), f"{remote}/tiny:1.0.0")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.requests)
    assert pull(remotes, Store(tmp_path / "2"), f"{remote}/tiny:1.0.0") == stored
    for text in ("tiny", "tiny:1.0.1"):
        with pytest.raises(Unavailable, match="HF_HUB_OFFLINE"):
            pull(remotes, Store(tmp_path / "2"), f"{remote}/{text}")
    assert len(hub.requests) == asked


# The Hub's own settings, and who we are


@pytest.fixture
def guarded(hub: Hub) -> Iterator[Hub]:
    hub.token = TOKEN
    yield hub
    hub.token = None


def test_the_commands_use_the_hub_that_the_environment_names(
    guarded: Hub, store: Store, tmp_path: Path, remote: str, backbone: Backbone
) -> None:
    stored = publish(store, version="1.0.0")
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HF_", "UPT_")) and name != "TRANSFORMERS_OFFLINE"
    }
    environment |= {
        "HF_ENDPOINT": guarded.endpoint,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "UPT_ZOO_HOME": str(store.root),
    }

    def run(*arguments: str, **extra: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "upt_zoo.cli", *arguments],
            env=environment | extra,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    denied = run("push", "tiny", remote)
    assert (denied.returncode, "set HF_TOKEN" in denied.stderr) == (64, True), denied.stderr
    assert run("pull", f"{remote}/tiny").returncode == 66
    pushed = run("push", "tiny", remote, HF_TOKEN=TOKEN)
    assert pushed.stdout == f"tiny:1.0.0@{stored.digest}\n", pushed.stderr
    (tmp_path / "hf").mkdir(exist_ok=True)
    (tmp_path / "hf" / "token").write_text(TOKEN)
    there = {"UPT_ZOO_HOME": str(tmp_path / "there")}
    pulled = run("pull", f"{remote}/tiny:1.0.0@{stored.digest}", "--json", **there)
    assert json.loads(pulled.stdout)["digest"] == stored.digest, pulled.stderr
    assert list((tmp_path / "hf" / "hub").glob("models--*--tiny"))
    shown = run("show", f"{remote}/tiny:1.0.0", "--json", HF_HUB_OFFLINE="1")
    assert json.loads(shown.stdout)["digest"] == stored.digest, shown.stderr
    lora = guarded.repository(f"{remote[5:]}/lora")
    lora.create()
    commit = lora.commit("Add", {file.name: file.read_bytes() for file in QV.iterdir()})
    source = f"{remote}/lora"
    options = ("--task", "mnli", "--name", "mine", "--backbone", str(backbone.directory))
    imported = run("import", "peft", source, *options, **there)
    assert imported.returncode == 0, imported.stderr
    mine = resolve(Store(tmp_path / "there"), "mine").spec
    assert mine.lineage.recipe["source"] == f"{source}@{commit}"
    assert run("import", "peft", source, *options, "--offline").returncode == 69


def test_a_token_that_may_only_read_is_said_to(
    guarded: Hub, remotes: Remotes, store: Store, remote: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(store, version="1.0.0")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    push(remotes, store, remote)
    publish(store, version="1.0.1", seed=1)
    guarded.before["preupload"] = lambda: setattr(guarded, "token", "another")
    with pytest.raises(InvalidInput, match="does not let us"):
        push(remotes, store, remote)


def test_an_endpoint_without_tls_must_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidInput, match="plain_http"):
        Client(endpoint="http://hub.lan:8090")
    Client(endpoint="http://hub.lan:8090", plain_http=["hub.lan:8090"])
    Client(endpoint="https://hub.lan")


# A Hub that is none


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRegistry]:
    monkeypatch.setattr("time.sleep", lambda _: None)
    with running_fake() as server:
        name_endpoint(monkeypatch, f"http://{server.host}")
        yield server


RESOLVED = {"x_repo_commit": "c" * 40, "etag": '"e"'}
MANIFEST_PATH = "/team/tiny/resolve/1.0.0/upt/manifest.json"
REFS_PATH = "/api/models/team/tiny/refs"


def answering(status: int, body: bytes, **headers: str) -> Callable[[Handler], None]:
    def route(handler: Handler) -> None:
        if handler.command == "HEAD":
            handler.answer(status, b"", content_length=str(len(body)), **headers)
        else:
            handler.answer(status, body, **headers)

    return route


def pour(handler: Handler) -> None:
    """Send for ever where a small file was announced."""
    if handler.command == "HEAD":
        handler.answer(200, b"", content_length="5", **RESOLVED)
        return
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.pour(chunked=True)


@pytest.mark.parametrize(
    ("text", "status", "body", "headers", "error"),
    [
        ("tiny:1.0.0", 200, b"<html>", {}, Corrupt),
        ("tiny:1.0.0", 200, b"{}", RESOLVED, Corrupt),
        ("tiny:1.0.0", 200, b"{" * 5_000_000, RESOLVED, Corrupt),
        ("tiny:1.0.0", 403, b"", {"x_error_code": "GatedRepo"}, InvalidInput),
        ("tiny:1.0.0", 403, b"", {}, InvalidInput),
        ("tiny:1.0.0", 500, b"", {}, Unavailable),
        ("tiny", 200, b"<html>", {}, Corrupt),
        ("tiny", 200, b'{"branches": 1}', {}, Corrupt),
        ("tiny", 429, b"", {}, Unavailable),
        ("tiny", 418, b"", {}, InvalidInput),
    ],
)
def test_another_answer_is_refused_and_leaves_nothing(
    fake: FakeRegistry,
    home: Store,
    online: Path,
    text: str,
    status: int,
    body: bytes,
    headers: dict[str, str],
    error: type[Exception],
) -> None:
    path = MANIFEST_PATH if ":" in text else REFS_PATH
    fake.routes[path] = answering(status, body, **headers)
    with pytest.raises(error):
        pull(Remotes(), home, f"hf://team/{text}")
    assert not home.root.exists()
    assert not list(online.rglob("*.incomplete"))


@pytest.mark.parametrize(("status", "error"), [(500, Unavailable), (404, Corrupt)])
def test_signatures_that_cannot_be_asked_for_are_not_taken_for_none(
    fake: FakeRegistry, store: Store, home: Store, status: int, error: type[Exception]
) -> None:
    """Without signatures the adapter is read, which is damaged here."""
    stored = publish(store, version="1.0.0")
    manifest = store.read_manifest(Reference(name="tiny"))
    signatures = f"upt/signatures/{stored.digest.removeprefix('sha256:')}.json"
    for path, code, body in (
        ("1.0.0/upt/manifest.json", 200, manifest),
        (f"{'c' * 40}/upt/spec.json", 200, b"?"),
        (f"main/{signatures}", status, b""),
    ):
        missing = {"x_error_code": "EntryNotFound"} if code == 404 else {}
        fake.routes[f"/team/tiny/resolve/{path}"] = answering(code, body, **RESOLVED, **missing)
    with pytest.raises(error):
        pull(Remotes(), home, "hf://team/tiny:1.0.0")


def test_a_hub_that_takes_no_tag_says_why(
    remotes: Remotes, hub: Hub, store: Store, remote: str
) -> None:
    def refuse() -> None:
        hub.token = TOKEN

    publish(store, version="1.0.0")
    hub.before["tag"] = refuse
    try:
        push(remotes, store, remote)
        publish(store, version="1.0.1", seed=1)
        with pytest.raises(InvalidInput, match="does not let us"):
            Client(endpoint=hub.endpoint).tag(f"{remote[5:]}/tiny", "1.0.1", "main")
    finally:
        hub.token = None


def test_a_name_that_the_hub_cannot_have_is_refused(remotes: Remotes, home: Store) -> None:
    with pytest.raises(InvalidReference, match="Repo id"):
        pull(remotes, home, f"hf://team/{'x' * 120}")


def test_a_file_that_never_ends_is_given_up(
    fake: FakeRegistry, home: Store, online: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("upt_zoo.remote.hub._SLACK_BYTES", 0)
    fake.routes[MANIFEST_PATH] = pour
    with pytest.raises(Corrupt, match="expected at most"):
        pull(Remotes(), home, "hf://team/tiny:1.0.0")
    assert not list(online.rglob("*.incomplete"))


def test_a_disk_that_refuses_is_no_fault_of_the_hub(
    remotes: Remotes,
    store: Store,
    home: Store,
    tmp_path: Path,
    remote: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    publish(store, version="1.0.0")
    push(remotes, store, remote)
    file = tmp_path / "a file where a directory is needed"
    file.touch()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(file))
    with pytest.raises(OSError, match="Not a directory"):
        pull(remotes, home, f"{remote}/tiny:1.0.0")
