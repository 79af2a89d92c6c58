"""Tokens, operators and warm starts, as users run them: processes of their own."""

import json
import signal
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from upt_server.admin_client import AdminClient
from upt_testing.processes import Running, running_server, upt_server
from upt_testing.serving import TIMEOUT_S
from upt_zoo.backbone import Backbone
from upt_zoo.errors import AdapterNotFound, Forbidden, Unauthenticated
from upt_zoo.local.store import Store


def running(store: Store, backbone: Backbone, *arguments: str) -> AbstractContextManager[Running]:
    places = ("--home", str(store.root), "--backbone", str(backbone.directory))
    return running_server("--admin-port", "0", *places, *arguments)


def create(file: Path, name: str, *more: str) -> Path:
    """Make a token and put it into a file of its own."""
    made = upt_server("token", "create", "--tokens", str(file), "--name", name, *more)
    assert (made.returncode, made.stderr) == (0, "")
    own = file.with_name(f"{name}.token")
    own.write_text(made.stdout)
    return own


def test_a_token_is_shown_once_listed_and_revoked(tmp_path: Path) -> None:
    file = tmp_path / "tokens.json"
    places = ("--tokens", str(file))
    more = ("--scope", "predict", "--scope", "metadata", "--adapters", "sst2,team-a.*")
    secret = create(file, "web", *more, "--requests-per-second", "5").read_text().strip()
    assert secret.startswith("upt_")
    assert secret not in file.read_text()
    listed = upt_server("token", "ls", *places)
    assert secret not in listed.stdout
    assert listed.stdout.splitlines()[1].split() == [
        "web", "predict,", "metadata", "sst2,", "team-a.*", "5.0", "any",
    ]  # fmt: skip
    (token,) = json.loads(upt_server("token", "ls", *places, "--json").stdout)
    assert token.keys() == {"name", "scopes", "adapters", "requests_per_second", "queued_tokens"}
    again = upt_server("token", "create", *places, "--name", "web", "--scope", "predict")
    assert again.returncode == 73
    wrong = upt_server("token", "create", *places, "--name", "x", "--scope", "root")
    assert (wrong.returncode, wrong.stdout) == (64, "")
    assert upt_server("token", "revoke", *places, "--name", "web").returncode == 0
    gone = upt_server("token", "revoke", *places, "--name", "web")
    assert gone.returncode == 66
    empty = upt_server("token", "ls", *places)
    assert (empty.returncode, empty.stdout) == (0, "")
    assert "`upt-server token create` makes one" in empty.stderr
    named = ("--name", "ci", "--scope", "predict", "--json")
    made = json.loads(upt_server("token", "create", *places, *named).stdout)
    assert (made["name"], made["token"][:4]) == ("ci", "upt_")
    assert (
        upt_server("token", "revoke", "--tokens", str(file) + "x", "--name", "a").returncode == 64
    )


def test_operators_load_pin_unload_and_drain(
    store: Store, backbone: Backbone, tmp_path: Path
) -> None:
    file, audit = tmp_path / "tokens.json", tmp_path / "audit.jsonl"
    ops = create(file, "ops", "--scope", "admin")
    web = create(file, "web", "--scope", "predict", "--adapters", "sst2")
    arguments = ("--tokens", str(file), "--audit-log", str(audit))
    with running(store, backbone, *arguments) as server:
        asked = ("--server", server.admin, "--token-file", str(ops))
        nothing = upt_server("status", *asked)
        assert "`upt-server admin load`" in nothing.stderr
        assert "sst2:1.0.0" in upt_server("admin", "load", "sst2", *asked).stdout
        pinned = upt_server("admin", "pin", "cola", "squad:1.0.0", *asked).stdout
        assert [line.split()[-1] for line in pinned.splitlines()[1:]] == ["yes", "yes"]
        assert upt_server("admin", "unload", "sst2", *asked).stdout.startswith(
            "unloaded sst2:1.0.0@sha256:"
        )
        (loaded,) = json.loads(upt_server("admin", "load", "sst2", *asked, "--json").stdout)
        assert (loaded["adapter"], loaded["pinned"]) == ("sst2:1.0.0", False)
        dropped = json.loads(upt_server("admin", "unload", "sst2", *asked, "--json").stdout)
        assert dropped["digest"] == loaded["digest"]
        shown = upt_server("status", *asked[:2], UPT_TOKEN_FILE=str(ops)).stdout.splitlines()
        assert shown[0].startswith("open, upt ")
        assert [line.split()[0] for line in shown[2:]] == ["cola:1.0.0", "squad:1.0.0"]
        status = json.loads(upt_server("status", *asked, "--json").stdout)
        assert (status["state"], status["calls"]) == ("STATE_OPEN", 0)
        assert [each["pinned"] for each in status["adapters"]] == [True, True]
        predict = ("predict", "sst2", "a film", "--server", server.target)
        assert upt_server(*predict, "--token-file", str(web)).returncode == 0
        assert upt_server(*predict).returncode == 77
        assert (
            upt_server("ls", "--server", server.target, "--token-file", str(web)).returncode == 77
        )
        assert upt_server("admin", "load", "nobody", *asked).returncode == 66
        assert upt_server("admin", "drain", *asked).returncode == 0
        _, messages = server.process.communicate(timeout=TIMEOUT_S)
    assert server.process.returncode == 0
    assert "Traceback" not in messages
    assert '"who"' not in messages
    lines = [json.loads(line) for line in audit.read_text().splitlines()]
    assert {line["who"] for line in lines} == {"ops"}
    assert [(line["what"].rpartition("/")[2], line["result"]) for line in lines] == [
        ("GetStatus", "OK"),
        ("ListResident", "OK"),
        ("Load", "OK"),
        ("Preload", "OK"),
        ("Unload", "OK"),
        ("Load", "OK"),
        ("Unload", "OK"),
        ("GetStatus", "OK"),
        ("ListResident", "OK"),
        ("GetStatus", "OK"),
        ("ListResident", "OK"),
        ("Load", "NOT_FOUND"),
        ("Drain", "OK"),
    ]


def test_a_killed_server_starts_with_what_it_had_in_memory(
    store: Store, backbone: Backbone, tmp_path: Path
) -> None:
    file, memory = tmp_path / "tokens.json", tmp_path / "memory.json"
    token = create(file, "ops", "--scope", "admin").read_text().strip()
    arguments = ("--tokens", str(file), "--warm-start", str(memory))
    with running(store, backbone, *arguments) as server:
        with AdminClient(server.admin, token=token) as client:
            client.load("sst2")
            assert client.pin("cola").pinned
            client.drain()
        server.process.communicate(timeout=TIMEOUT_S)
    with running(store, backbone, *arguments) as server:
        with AdminClient(server.admin, token=token) as client:
            assert {each.adapter for each in client.resident()} == {"sst2:1.0.0", "cola:1.0.0"}
        server.process.send_signal(signal.SIGKILL)
        server.process.communicate(timeout=TIMEOUT_S)
    with (
        running(store, backbone, *arguments) as server,
        AdminClient(server.admin, token=token) as client,
    ):
        assert len(client.resident()) == 2
        with pytest.raises(AdapterNotFound):
            client.load("nobody")
        for wrong, kind in ((None, Unauthenticated), ("upt_wrong", Forbidden)):
            with AdminClient(server.admin, token=wrong) as other, pytest.raises(kind):
                other.status()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--admin-port", "0"), "needs --tokens"),
        (("--tokens", "nowhere.json"), "cannot read nowhere.json"),
        (("--admin-host", "0.0.0.0"), "0.0.0.0 can be reached from other machines"),
        (("--route", "sst2:stable"), "expected NAME:TAG=SHARE"),
    ],
)
def test_a_server_that_is_told_nonsense_does_not_start(
    store: Store, backbone: Backbone, arguments: tuple[str, ...], message: str
) -> None:
    places = ("--home", str(store.root), "--backbone", str(backbone.directory))
    result = upt_server("run", *places, "--grpc-port", "0", "--http-port", "0", *arguments)
    assert result.returncode == 64
    assert message in result.stderr


@pytest.mark.parametrize("content", [None, b"", b"two words", b"\xff\xfe", b"a\nb"])
def test_a_token_file_that_holds_no_token_is_an_error(
    tmp_path: Path, content: bytes | None
) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content)
    result = upt_server("status", "--server", "127.0.0.1:1", "--token-file", str(file))
    assert result.returncode == 64
    assert str(file) in result.stderr
