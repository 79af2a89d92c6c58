"""Against a real registry: Debian's docker-registry, and skopeo beside us."""

import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qs, urlsplit

import pytest

from upt_testing.adapters import LORA, random_tensors, tiny_spec
from upt_testing.commands import Run
from upt_testing.registries import (
    Certificate,
    Registry,
    make_certificate,
    make_htpasswd,
    need,
    running_registry,
    sign_token,
)
from upt_zoo.errors import AdapterNotFound, Conflict, InvalidInput
from upt_zoo.local.store import Store, StoredAdapter
from upt_zoo.references import Reference
from upt_zoo.remote.credentials import Credentials, read_credentials, save_credentials
from upt_zoo.remote.remotes import Remotes

PASSWORD = "correct horse"
CARD = "# Tiny\n\nAn adapter for tests: ä.\n"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "zoo")


def publish(store: Store, *, name: str = "tiny", seed: int = 0, version: str) -> StoredAdapter:
    spec = tiny_spec(name=name, lora=LORA)
    return store.publish(spec, random_tensors(spec, seed), CARD, version=version)


def blobs(store: Store) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (store.root / "blobs" / "sha256").iterdir()}


def push(store: Store, remote: str, text: str = "tiny") -> StoredAdapter:
    return Remotes().push(Reference.parse(text), store, remote)


def pull(store: Store, text: str) -> StoredAdapter:
    return Remotes().pull(Reference.parse(text), store)


def test_what_is_pushed_is_pulled_to_the_last_byte(store: Store, home: Store, remote: str) -> None:
    stored = publish(store, version="1.0.0")
    assert push(store, remote) == stored
    assert pull(home, f"{remote}/tiny:1.0.0") == stored
    assert blobs(home) == blobs(store)
    home.verify(stored)
    assert not list((home.root / ".partial").iterdir())


def test_a_bare_name_is_the_newest_version_in_the_registry(
    store: Store, home: Store, remote: str
) -> None:
    for version in ("1.9.0", "1.10.0", "1.2.0"):
        push(store, remote, publish(store, version=version, seed=int(version[2])).reference)
    assert pull(home, f"{remote}/tiny").version == "1.10.0"


def test_a_digest_is_found_and_a_tag_must_have_it(store: Store, home: Store, remote: str) -> None:
    first, second = publish(store, version="1.0.0"), publish(store, version="1.0.1", seed=1)
    push(store, remote, "tiny:1.0.0")
    push(store, remote, "tiny:1.0.1")
    assert pull(home, f"{remote}/tiny@{first.digest}") == first
    with pytest.raises(Exception, match="expected that digest"):
        pull(home, f"{remote}/tiny:1.0.0@{second.digest}")


def test_pushing_again_changes_nothing_and_other_bytes_are_refused(
    store: Store, tmp_path: Path, home: Store, remote: str
) -> None:
    stored = publish(store, version="1.0.0")
    push(store, remote)
    push(store, remote)
    other = Store(tmp_path / "other")
    publish(other, version="1.0.0", seed=1)
    with pytest.raises(Conflict, match=r"tiny:1\.0\.0 exists"):
        push(other, remote)
    assert pull(home, f"{remote}/tiny") == stored


@pytest.mark.parametrize("text", ["other", "tiny:9.9.9", f"tiny@sha256:{'0' * 64}"])
def test_what_the_registry_lacks_is_not_found(
    store: Store, home: Store, remote: str, text: str
) -> None:
    publish(store, version="1.0.0")
    push(store, remote)
    with pytest.raises(AdapterNotFound, match=text.partition("@")[0]):
        pull(home, f"{remote}/{text}")
    assert not home.root.exists()


def test_pulling_mends_what_is_damaged_and_loads_no_more(
    store: Store, home: Store, remote: str
) -> None:
    stored = publish(store, version="1.0.0")
    push(store, remote)
    pull(home, f"{remote}/tiny")
    path = home.blob_path(stored.manifest.tensors.digest)
    path.write_bytes(b"damaged")
    pull(home, f"{remote}/tiny")
    home.verify(stored)


# Who we are


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry that lets in alice with her password."""
    folder = tmp_path_factory.mktemp("guarded")
    auth = make_htpasswd(folder / "htpasswd", "alice", PASSWORD)
    with running_registry(folder, auth=auth) as running:
        yield running


def test_without_a_password_the_error_says_how_to_give_one(
    run: Run, home: Store, guarded: Registry
) -> None:
    publish(home, version="1.0.0")
    for arguments in (["push", "tiny", guarded.remote], ["pull", f"{guarded.remote}/tiny"]):
        result = run(*arguments)
        assert result.code == 64
        assert f"upt-zoo login {guarded.host}" in result.stderr


def test_a_password_is_tried_kept_for_the_owner_and_used(
    run: Run, home: Store, guarded: Registry, tmp_path: Path
) -> None:
    stored, kept = publish(home, version="1.0.0"), tmp_path / "config" / "upt" / "credentials.json"
    login = ("login", guarded.host, "--username", "alice", "--password-stdin")
    assert run(*login, stdin="wrong\n").code == 64
    assert not kept.exists()
    result = run(*login, stdin=f"{PASSWORD}\n")
    assert (result.code, result.stdout) == (0, "")
    assert PASSWORD not in result.stderr
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert run("push", "tiny", guarded.remote).stdout == f"tiny:1.0.0@{stored.digest}\n"
    result = run("pull", f"{guarded.remote}/tiny", "--home", str(tmp_path / "other"))
    assert result.stdout == f"tiny:1.0.0@{stored.digest}\n"
    assert Store(tmp_path / "other").read_manifest(Reference(name="tiny"))


def test_name_and_password_are_asked_for(
    run: Run, guarded: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = {"Username": "alice", f"Password of alice, to be shown to {guarded.host}": PASSWORD}
    asked: list[tuple[str, object]] = []

    def prompt(text: str, *, hide_input: bool = False, err: bool) -> str:
        asked.append((text, hide_input))
        return answers[text]

    monkeypatch.setattr("typer.prompt", prompt)
    assert run("login", guarded.host).code == 0
    assert asked == list(zip(answers, (False, True), strict=True))
    assert run("login", guarded.host, "--username", "a:b").code == 64


def test_dockers_password_is_used(run: Run, home: Store, guarded: Registry, tmp_path: Path) -> None:
    publish(home, version="1.0.0")
    (tmp_path / "docker").mkdir()
    auth = Credentials(username="alice", password=PASSWORD).basic
    file = {"auths": {guarded.host: {"auth": auth}}, "credsStore": "none"}
    (tmp_path / "docker" / "config.json").write_text(json.dumps(file))
    assert run("push", "tiny", guarded.remote).code == 0


def test_a_login_keeps_the_others_and_is_not_needed_where_all_may_enter(
    run: Run, guarded: Registry, registry: Registry, tmp_path: Path
) -> None:
    path = tmp_path / "config" / "upt" / "credentials.json"
    save_credentials("elsewhere", Credentials(username="bob", password="b:c"), path)
    run("login", guarded.host, "--username", "alice", "--password-stdin", stdin=PASSWORD)
    assert "nothing to keep" in run("login", registry.host).stderr
    found = read_credentials("elsewhere", [path])
    assert found == Credentials(username="bob", password="b:c")
    assert read_credentials(guarded.host, [tmp_path / "none", path]) is not None
    assert "b:c" not in repr(found)


def test_logout_forgets_one_password_and_tells_of_dockers(run: Run, config: Path) -> None:
    path, docker = config.with_name("credentials.json"), config.parents[2] / "docker"
    for host in ("here:5000", "elsewhere"):
        save_credentials(host, Credentials(username="bob", password="b"), path)
    result = run("logout", "here:5000")
    assert (result.code, result.stdout, result.stderr) == (0, "", "forgot here:5000\n")
    assert read_credentials("here:5000", [path]) is None
    assert read_credentials("elsewhere", [path]) is not None
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    docker.mkdir()
    save_credentials("there", Credentials(username="bob", password="b"), docker / "config.json")
    assert run("logout", "there").stderr.splitlines() == [
        "nothing is kept of there",
        "Docker's config.json still names a password for there",
    ]


@pytest.mark.parametrize("text", ["[]", "{", '{"auths": {"h": {"auth": "%"}}}'])
def test_a_file_of_passwords_that_cannot_be_read_is_named_without_its_content(
    tmp_path: Path, text: str
) -> None:
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(InvalidInput, match=r"c\.json: expected"):
        read_credentials("h", [tmp_path / "c.json"])


# Tokens


class TokenServer(ThreadingHTTPServer):
    """Gives tokens to alice, as the registry's ``auth: token`` wants them."""

    def __init__(self, certificate: Certificate) -> None:
        super().__init__(("127.0.0.1", 0), TokenHandler)
        self.certificate = certificate
        self.shown: list[str | None] = []

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_port}"


class TokenHandler(BaseHTTPRequestHandler):
    server: TokenServer

    def do_GET(self) -> None:
        shown = self.headers["Authorization"]
        self.server.shown.append(shown)
        asked = parse_qs(urlsplit(self.path).query)
        expected = Credentials(username="alice", password=PASSWORD).basic
        is_alice = shown == f"Basic {expected}"
        access = []
        for scope in asked.get("scope", []):
            kind, name, actions = scope.split(":")
            granted = [a for a in actions.split(",") if is_alice or a == "pull"]
            access.append({"type": kind, "name": name, "actions": granted})
        now = int(time.time())
        claims = {
            "iss": "tests",
            "sub": "alice",
            "aud": asked["service"][0],
            "jti": "1",
            "iat": now,
            "nbf": now - 60,
            "exp": now + 300,
            "access": access,
        }
        body = json.dumps({"token": sign_token(self.server.certificate, claims)}).encode()
        self.send_response(401 if shown and not is_alice else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def tokens(certificate: Certificate) -> Iterator[TokenServer]:
    with TokenServer(certificate) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def token_registry(
    tokens: TokenServer, certificate: Certificate, tmp_path: Path
) -> Iterator[Registry]:
    auth = {
        "token": {
            "realm": f"http://{tokens.host}/token",
            "service": "registry of the tests",
            "issuer": "tests",
            "rootcertbundle": str(certificate.certificate),
        }
    }
    with running_registry(tmp_path / "registry", auth=auth) as running:
        yield running


def test_tokens_are_fetched_for_what_is_to_be_done(
    run: Run, home: Store, token_registry: Registry, tokens: TokenServer, tmp_path: Path
) -> None:
    stored, remote = publish(home, version="1.0.0"), token_registry.remote
    assert run("push", "tiny", remote).code == 64  # everybody may pull, alice may push
    login = ("login", token_registry.host, "--username", "alice", "--password-stdin")
    assert run(*login, stdin="wrong").code == 64
    assert run(*login, stdin=PASSWORD).code == 0
    assert run("push", "tiny", remote).stdout == f"tiny:1.0.0@{stored.digest}\n"
    assert Remotes().pull(Reference.parse(f"{remote}/tiny"), Store(tmp_path / "x")) == stored
    assert tokens.shown[-1] is None  # no credentials: a token for everybody


def test_a_password_is_not_shown_to_a_host_that_the_user_did_not_agree_to(
    run: Run, home: Store, token_registry: Registry, tokens: TokenServer, tmp_path: Path
) -> None:
    path = tmp_path / "config" / "upt" / "credentials.json"
    secret = Credentials(username="alice", password=PASSWORD)
    save_credentials(token_registry.host, secret, path)
    result = run("pull", f"{token_registry.remote}/tiny")
    assert result.code == 64
    assert f"show our password to {tokens.host}" in result.stderr
    assert tokens.shown == []


# TLS


def test_tls_is_spoken_where_the_certificate_is_trusted(
    certificate: Certificate,
    store: Store,
    home: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stored = publish(store, version="1.0.0")
    with running_registry(tmp_path / "registry", tls=certificate) as registry:
        with pytest.raises(InvalidInput, match=r"not trusted.*SSL_CERT_FILE"):
            push(store, registry.remote)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate.certificate))
        push(store, registry.remote)
        assert pull(home, f"{registry.remote}/tiny") == stored


# Other tools


def copy_with_skopeo(source: str, target: str) -> None:
    need("skopeo")
    subprocess.run(
        [
            *("skopeo", "--insecure-policy", "copy", "--quiet"),
            *("--src-tls-verify=false", "--dest-tls-verify=false", source, target),
        ],
        check=True,
    )


def test_skopeo_copies_the_store_to_the_registry_and_back(
    run: Run, registry: Registry, home: Store, tmp_path: Path
) -> None:
    stored, copy = publish(home, version="1.0.0"), Store(tmp_path / "copy")
    there = f"{registry.host}/skopeo/tiny:1.0.0"
    copy_with_skopeo(f"oci:{home.root}:tiny-1.0.0", f"docker://{there}")
    copy_with_skopeo(f"docker://{there}", f"oci:{copy.root}:tiny-1.0.0")
    assert blobs(copy) == blobs(home)
    result = run("verify", "--home", str(copy.root), "--json")
    assert result.code == 0
    assert json.loads(result.stdout) == [
        {"reference": "tiny:1.0.0", "damage": None, "signer": None}
    ]
    assert pull(Store(tmp_path / "a"), f"oci://{there}") == stored
    assert pull(Store(tmp_path / "b"), f"{copy.root.as_uri()}/tiny") == stored


def test_skopeo_reads_what_we_push(store: Store, remote: str, tmp_path: Path) -> None:
    publish(store, version="1.0.0")
    push(store, remote)
    copy = Store(tmp_path / "copy")
    copy_with_skopeo(
        f"docker://{remote.removeprefix('oci://')}/tiny:1.0.0", f"oci:{copy.root}:tiny-1.0.0"
    )
    assert blobs(copy) == blobs(store)


def test_skopeo_reads_a_bundle(run: Run, home: Store, tmp_path: Path) -> None:
    publish(home, version="1.0.0")
    run("bundle", "tiny", "--out", str(tmp_path / "b.tar"))
    copy_with_skopeo(f"oci-archive:{tmp_path / 'b.tar'}:tiny-1.0.0", f"oci:{tmp_path / 'c'}:x")
    assert blobs(Store(tmp_path / "c")) == blobs(home)


# From the command line


def test_show_explains_an_adapter_in_a_registry_without_pulling_it(
    run: Run, store: Store, home: Store, remote: str
) -> None:
    stored = publish(store, version="1.0.0")
    push(store, remote)
    assert json.loads(run("show", f"{remote}/tiny", "--json").stdout)["digest"] == stored.digest
    assert run("verify", f"{remote}/tiny").code == 0
    assert not home.root.exists()


# Killed

# more of them, with UPT_TEST_KILLS=200, take three minutes
KILLS = os.environ.get("UPT_TEST_KILLS", "5")
KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import upt_zoo.remote.connection, upt_zoo.remote.oci
from upt_zoo.references import Reference
from upt_zoo.remote.remotes import Remotes
from upt_zoo.local.store import Store

root, remote = Path(sys.argv[1]), sys.argv[2]
count, longest_s = int(sys.argv[3]), float(sys.argv[4])
source, killed = Store(root / "source"), 0

def work(number):
    for name in ("a", "b"):
        reference = Reference.parse(f"{remote}/{number}/{name}")
        Remotes().push(Reference(name=name), source, reference.remote)
        Remotes().pull(reference, Store(root / f"home{number}"))

for number in range(count):
    child = os.fork()
    if child == 0:
        work(number)
        os._exit(0)
    time.sleep(random.uniform(0, longest_s))
    os.kill(child, signal.SIGKILL)
    killed += os.waitpid(child, 0)[1] == signal.SIGKILL
    home, there = Store(root / f"home{number}"), Store(root / f"there{number}")
    for reference in home.list():  # whole or not to be seen
        home.verify(home.resolve(reference))
    for name in ("a", "b"):
        try:
            Remotes().pull(Reference.parse(f"{remote}/{number}/{name}"), there)
        except upt_zoo.errors.AdapterNotFound:
            pass
    work(number)  # again, to the end
    assert [reference.name for reference in home.list()] == ["a", "b"]
    for reference in home.list():
        assert home.read_manifest(reference) == source.read_manifest(reference)
    assert not list((home.root / ".partial").iterdir())
print(killed)
"""


def test_killed_at_any_moment_nothing_is_half_visible_and_the_command_can_be_repeated(
    store: Store, remote: str, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        publish(Store(tmp_path / "source"), name=name, version="1.0.0")
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), remote, KILLS, "0.4"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert int(killed) > 0
