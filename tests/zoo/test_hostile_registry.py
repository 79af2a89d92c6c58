"""Registries that fail, lie, stall and send us elsewhere: the right error, nothing left behind."""

import fcntl
import gzip
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from upt_testing.adapters import LORA, random_tensors, tiny_spec
from upt_testing.fake_registry import (
    FakeRegistry,
    Handler,
    Route,
    blob_route,
    cut_route,
    in_turn,
    json_route,
    manifest_route,
    running_fake,
)
from upt_zoo.errors import Conflict, Corrupt, InvalidInput, InvalidReference, Unavailable
from upt_zoo.local.store import Store, StoredAdapter
from upt_zoo.manifest import MANIFEST_TYPE, Manifest
from upt_zoo.references import Reference, registry_host, repository_prefix
from upt_zoo.remote import oci
from upt_zoo.remote.connection import Connection, Patience
from upt_zoo.remote.credentials import Credentials
from upt_zoo.remote.oci import OciRemote

TINY = Reference(name="tiny")
PATIENCE = Patience(attempts=2, backoff_s=0.001)  # a busy machine may take its time
HASTE = Patience(attempts=2, backoff_s=0.001, timeout_s=0.3, min_bytes_per_s=1e7)
ALICE = Credentials(username="alice", password="correct horse")
REPOSITORY = "/v2/team/tiny"
MANIFEST = f"{REPOSITORY}/manifests/1.0.0"
GIGABYTE = str(2**30)


@pytest.fixture
def server() -> Iterator[FakeRegistry]:
    with running_fake() as running:
        yield running


@pytest.fixture
def elsewhere() -> Iterator[FakeRegistry]:
    with running_fake() as running:
        yield running


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store that no test changes."""
    store, spec = Store(tmp_path_factory.mktemp("zoo")), tiny_spec(lora=LORA)
    store.publish(spec, random_tensors(spec, 0), "# Tiny\n")
    return store


@pytest.fixture
def manifest(server: FakeRegistry, store: Store) -> Manifest:
    """What the server answers with, unless the test says otherwise."""
    return server.serve_adapter(store, "tiny")


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Store]:
    """A store in which nothing may be seen but whole adapters."""
    home = Store(tmp_path / "home")
    yield home
    for reference in home.list():
        home.verify(home.resolve(reference))


@pytest.fixture
def patience() -> Patience:
    return PATIENCE


@pytest.fixture
def remote(server: FakeRegistry, home: Store, patience: Patience) -> Iterator[OciRemote]:
    connection = Connection(
        server.host, credentials=ALICE, plain_http=[server.host], patience=patience
    )
    yield OciRemote(f"oci://{server.host}/team", connection, partial=home.root / ".partial")
    connection.close()


def tensors_path(manifest: Manifest) -> str:
    return f"{REPOSITORY}/blobs/{manifest.tensors.digest}"


def is_clean(home: Store) -> bool:
    """Neither an adapter nor any part of one is there."""
    return not any(path.is_file() for path in home.root.rglob("*"))


def refuses(home: Store, remote: OciRemote, kind: type[Exception], match: str) -> None:
    with pytest.raises(kind, match=match):
        home.copy_from(remote, TINY)
    assert home.list() == ()


# Connections that break


def test_a_blob_is_loaded_on_from_where_the_connection_broke(
    server: FakeRegistry, remote: OciRemote, home: Store, store: Store, manifest: Manifest
) -> None:
    content, path = store.read_blob("tiny", manifest.tensors), tensors_path(manifest)
    server.routes[path] = in_turn(cut_route(content, 300), blob_route(content))
    assert home.copy_from(remote, TINY) == store.resolve(TINY)
    asked = [each.range for each in server.seen if each.path == path]
    assert asked == [None, "bytes=300-"]
    assert not list((home.root / ".partial").iterdir())


def test_a_later_pull_goes_on_where_the_first_one_gave_up(
    server: FakeRegistry, remote: OciRemote, home: Store, store: Store, manifest: Manifest
) -> None:
    content, path = store.read_blob("tiny", manifest.tensors), tensors_path(manifest)
    healthy = server.routes[path]
    server.routes[path] = cut_route(content, 300)
    refuses(home, remote, Unavailable, "closed connection")
    server.routes[path] = healthy
    server.seen.clear()
    home.copy_from(remote, TINY)
    assert [each.range for each in server.seen if each.path == path] == ["bytes=300-"]


@pytest.mark.parametrize(
    "answer",
    [
        lambda content: lambda handler: handler.answer(200, content),  # the whole
        lambda content: in_turn(lambda handler: handler.answer(416), blob_route(content)),
        lambda content: in_turn(
            lambda handler: handler.answer(206, b"x", content_range="bytes 7-7/9"),
            blob_route(content),
        ),
    ],
    ids=["the whole", "refusal", "another part"],
)
def test_a_registry_that_cannot_go_on_starts_again(
    server: FakeRegistry,
    remote: OciRemote,
    home: Store,
    store: Store,
    manifest: Manifest,
    answer: Callable[[bytes], Route],
) -> None:
    part = home.root / ".partial" / manifest.tensors.digest.removeprefix("sha256:")
    part.parent.mkdir(parents=True)
    content = store.read_blob("tiny", manifest.tensors)
    part.write_bytes(content[:10])
    server.routes[tensors_path(manifest)] = answer(content)
    home.copy_from(remote, TINY)
    home.verify(home.resolve(TINY))


@pytest.mark.parametrize("size", [10, 100_000])
def test_a_part_that_was_damaged_on_our_side_is_loaded_again(
    remote: OciRemote, home: Store, manifest: Manifest, size: int
) -> None:
    part = home.root / ".partial" / manifest.tensors.digest.removeprefix("sha256:")
    part.parent.mkdir(parents=True)
    part.write_bytes(b"?" * size)
    home.copy_from(remote, TINY)
    home.verify(home.resolve(TINY))
    assert not part.exists()


def test_of_two_who_load_the_same_blob_the_second_one_leaves_the_part_alone(
    remote: OciRemote, home: Store, manifest: Manifest
) -> None:
    part = home.root / ".partial" / manifest.tensors.digest.removeprefix("sha256:")
    part.parent.mkdir(parents=True)
    with part.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(b"of the first one")
        file.flush()
        home.copy_from(remote, TINY)
        home.verify(home.resolve(TINY))
    assert part.read_bytes() == b"of the first one"
    assert [path.name for path in part.parent.iterdir()] == [part.name]


def test_parts_that_nobody_came_back_for_go(
    remote: OciRemote, home: Store, manifest: Manifest
) -> None:
    old, young = home.root / ".partial" / "old", home.root / ".partial" / "young"
    old.parent.mkdir(parents=True)
    for path in (old, young):
        path.write_bytes(b"part")
    os.utime(old, (0, 0))
    home.copy_from(remote, TINY)
    assert [path.name for path in old.parent.iterdir()] == ["young"]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_what_may_pass_is_tried_again(
    server: FakeRegistry, remote: OciRemote, home: Store, manifest: Manifest, status: int
) -> None:
    for path in (MANIFEST, tensors_path(manifest)):
        fails: Route = lambda handler: handler.answer(status, retry_after="0")  # noqa: E731
        server.routes[path] = in_turn(fails, server.routes[path])
    home.copy_from(remote, TINY)


def test_what_does_not_pass_is_unavailable_and_says_why(
    server: FakeRegistry, remote: OciRemote, home: Store, manifest: Manifest
) -> None:
    body = json.dumps({"errors": [{"code": "UNKNOWN", "message": "\x1b[31mdisk is full"}]}).encode()
    server.routes[MANIFEST] = lambda handler: handler.answer(500, body)
    refuses(home, remote, Unavailable, "status 500: UNKNOWN \\[31mdisk is full")
    assert sum(each.path == MANIFEST for each in server.seen) == PATIENCE.attempts
    assert is_clean(home)


def test_where_nobody_listens_is_unavailable(server: FakeRegistry, home: Store) -> None:
    server.server_close()
    connection = Connection(server.host, patience=PATIENCE)
    refuses(home, OciRemote(f"oci://{server.host}", connection), Unavailable, server.host)
    connection.close()


# Registries that stall


@pytest.mark.parametrize("patience", [HASTE], ids=["haste"])
@pytest.mark.parametrize("place", ["manifest", "blob"])
def test_a_registry_that_stalls_is_left(
    server: FakeRegistry, remote: OciRemote, home: Store, manifest: Manifest, place: str
) -> None:
    path = MANIFEST if place == "manifest" else tensors_path(manifest)
    server.routes[path] = lambda handler: handler.pour(b"", pause_s=5)
    refuses(home, remote, Unavailable, "timed out")


@pytest.mark.parametrize("patience", [HASTE], ids=["haste"])
@pytest.mark.parametrize("place", ["manifest", "blob"])
def test_a_registry_that_drips_is_left(
    server: FakeRegistry, remote: OciRemote, home: Store, manifest: Manifest, place: str
) -> None:
    def drip(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", MANIFEST_TYPE)
        handler.end_headers()
        handler.pour(b" ", pause_s=0.05)

    path = MANIFEST if place == "manifest" else tensors_path(manifest)
    server.routes[path] = drip
    refuses(home, remote, Unavailable, "too slowly")


# Registries that lie


def announce(handler: Handler) -> None:
    handler.answer(200, b"{", content_type=MANIFEST_TYPE, content_length=GIGABYTE)


def flood(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Type", MANIFEST_TYPE)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.pour(chunked=True)


def squeeze(handler: Handler) -> None:
    body = gzip.compress(b" " * 10_000_000)
    handler.answer(200, body, content_type=MANIFEST_TYPE, content_encoding="gzip")


@pytest.mark.parametrize(
    ("route", "match"),
    [
        (announce, "at most 4194304 bytes"),
        (flood, "at most 4194304 bytes"),
        (squeeze, "not compressed"),
        (manifest_route(b""), "not a manifest"),
        (manifest_route(b"[" * 100_000), "not a manifest"),
        (lambda h: h.answer(200, b"<html>", content_type="text/html"), "got text/html"),
        (lambda h: h.answer(200, b"{}"), "no media type"),
        (lambda h: h.answer(200, b"{}", content_type="application/json"), "application/json"),
        (
            lambda h: h.answer(
                200, b"{}", content_type=MANIFEST_TYPE, docker_content_digest="sha256:0"
            ),
            "expected sha256:0",
        ),
    ],
    ids=[
        "announced",
        "endless",
        "zip",
        "empty",
        "deep",
        "html",
        "typeless",
        "json",
        "digest",
    ],
)
def test_what_is_no_manifest_is_corrupt(
    server: FakeRegistry,
    remote: OciRemote,
    home: Store,
    manifest: Manifest,
    route: Route,
    match: str,
) -> None:
    server.routes[MANIFEST] = route
    refuses(home, remote, Corrupt, match)
    assert is_clean(home)


@pytest.mark.parametrize("kind", ["other", "short", "long", "endless", "missing"])
def test_a_blob_that_is_not_the_one_is_corrupt(
    server: FakeRegistry,
    remote: OciRemote,
    home: Store,
    store: Store,
    manifest: Manifest,
    kind: str,
) -> None:
    content = store.read_blob("tiny", manifest.tensors)
    routes: dict[str, Route | None] = {
        "other": blob_route(content[:-1] + b"?"),
        "short": blob_route(content[:-1]),
        "long": blob_route(content + b"?"),
        "endless": flood,
        "missing": lambda handler: handler.answer(404),
    }
    server.routes[tensors_path(manifest)] = routes[kind] or flood
    refuses(home, remote, Corrupt, "expected|bytes|missing")
    assert is_clean(home)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'title":"tiny"', b'title":"other"'),
        (b'title":"tiny"', b'title":"../../tiny"'),
        (b'title":"tiny"', b'title":"/etc/passwd"'),
        (b'version":"1.0.0"', b'version":"2.0.0"'),
        (b'version":"1.0.0"', b'version":"../1.0.0"'),
        (b'digest":"sha256:', b'digest":"sha256:../../'),
        (b'digest":"sha256:', b'digest":"md5:'),
        (b'"size":', b'"size":99999999999'),
        (b'"size":', b'"size":-'),
    ],
)
def test_a_manifest_that_leads_elsewhere_is_corrupt(
    server: FakeRegistry,
    remote: OciRemote,
    home: Store,
    store: Store,
    manifest: Manifest,
    old: bytes,
    new: bytes,
) -> None:
    data = store.read_manifest(TINY)
    assert old in data
    server.routes[MANIFEST] = manifest_route(data.replace(old, new))
    refuses(home, remote, Corrupt, "manifest|title|digest|size")
    assert is_clean(home)


# Tags


def test_tags_are_read_page_by_page(
    server: FakeRegistry, remote: OciRemote, manifest: Manifest
) -> None:
    path = f"{REPOSITORY}/tags/list"
    server.routes[path] = in_turn(
        json_route(b'{"tags":["1.0.0","stable"]}', link=f'<{path}?last=x>; rel="next"'),
        json_route(b'{"tags":["../1.0.0","01.0.0"]}', link=f'<{path}?last=y&n=1>; rel="next"'),
        json_route(b'{"tags":["1.0.1"]}'),
    )
    assert remote.versions("tiny") == ("1.0.0", "1.0.1")
    assert [each.path for each in server.seen][1:] == [f"{path}?last=x", f"{path}?last=y&n=1"]


def test_tags_without_end_are_corrupt(
    server: FakeRegistry, remote: OciRemote, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oci, "_MAX_TAG_PAGES", 3)
    path = f"{REPOSITORY}/tags/list"
    server.routes[path] = json_route(b'{"tags":["1.0.0"]}', link=f'<{path}>; rel="next"')
    with pytest.raises(Corrupt, match="pages of tags"):
        remote.versions("tiny")


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"tags":[1]}', b"[" * 100_000])
def test_what_is_no_list_of_tags_is_corrupt(
    server: FakeRegistry, remote: OciRemote, body: bytes
) -> None:
    server.routes[f"{REPOSITORY}/tags/list"] = json_route(body)
    with pytest.raises(Corrupt, match="list of tags"):
        remote.versions("tiny")


def test_no_tags_are_no_versions(server: FakeRegistry, remote: OciRemote) -> None:
    server.routes[f"{REPOSITORY}/tags/list"] = json_route(b'{"tags":null}')
    assert remote.versions("tiny") == ()


# Registries that send us elsewhere


def ask_for_password(route: Route) -> Route:
    def guarded(handler: Handler) -> None:
        if handler.headers["Authorization"] == f"Basic {ALICE.basic}":
            route(handler)
        else:
            handler.answer(401, www_authenticate='Basic realm="x"')

    return guarded


def test_a_redirect_is_followed_without_saying_who_we_are(
    server: FakeRegistry,
    elsewhere: FakeRegistry,
    remote: OciRemote,
    home: Store,
    manifest: Manifest,
) -> None:
    path = tensors_path(manifest)
    elsewhere.routes["/here"] = server.routes[path]
    target = f"http://{elsewhere.host}/here"
    server.routes[path] = lambda handler: handler.answer(307, location=target)
    server.routes = {key: ask_for_password(route) for key, route in server.routes.items()}
    home.copy_from(remote, TINY)
    assert [each.authorization for each in elsewhere.seen] == [None]
    assert server.seen[-1].authorization is not None


@pytest.mark.parametrize(
    "location",
    ["https://127.0.0.1/x", "file:///etc/passwd", "ftp://127.0.0.1/x", "http://192.0.2.1/x", "//["],
)
def test_a_redirect_to_another_scheme_or_out_of_tls_is_refused(
    server: FakeRegistry, remote: OciRemote, home: Store, manifest: Manifest, location: str
) -> None:
    server.routes[tensors_path(manifest)] = lambda handler: handler.answer(307, location=location)
    refuses(home, remote, Corrupt, "sends us to|HTTP allows")
    assert is_clean(home)


def test_redirects_in_a_circle_are_corrupt(
    server: FakeRegistry, remote: OciRemote, home: Store, manifest: Manifest
) -> None:
    server.routes[MANIFEST] = lambda handler: handler.answer(302, location=MANIFEST)
    refuses(home, remote, Corrupt, "redirects")


@pytest.mark.parametrize(
    ("challenge", "kind", "match"),
    [
        ('Bearer realm="http://{elsewhere}/token"', InvalidInput, "show our password to"),
        ('Bearer realm="https://{elsewhere}/token"', Corrupt, "sends us to https"),
        ('Bearer realm="file:///etc/passwd"', Corrupt, "sends us to file"),
        ("Bearer", InvalidInput, "does not let us"),
        ("Digest x", InvalidInput, "does not let us"),
        ('Basic realm="x"', InvalidInput, "does not let us"),
        ('Bearer realm="/token"', Corrupt, "token"),
    ],
)
def test_a_challenge_gets_no_password_out_of_us(
    server: FakeRegistry,
    elsewhere: FakeRegistry,
    remote: OciRemote,
    home: Store,
    challenge: str,
    kind: type[Exception],
    match: str,
) -> None:
    text = challenge.replace("{elsewhere}", elsewhere.host)
    refusal: Route = lambda handler: handler.answer(401, www_authenticate=text)  # noqa: E731
    server.routes[f"{REPOSITORY}/tags/list"] = refusal
    server.routes["/token"] = json_route(b'{"token":"two\\r\\nlines"}')
    server.routes["/"] = refusal
    refuses(home, remote, kind, match)
    assert elsewhere.seen == []


def test_a_token_is_used_until_another_one_is_wanted(
    server: FakeRegistry, remote: OciRemote, home: Store, manifest: Manifest
) -> None:
    def guarded(route: Route) -> Route:
        def answer(handler: Handler) -> None:
            if handler.headers["Authorization"] == "Bearer t1":
                route(handler)
            else:
                handler.answer(401, www_authenticate='Bearer realm="/token",scope="repository:x"')

        return answer

    server.routes = {path: guarded(route) for path, route in server.routes.items()}
    server.routes["/token"] = json_route(b'{"access_token":"t1"}')
    home.copy_from(remote, TINY)
    tokens = [each for each in server.seen if each.path.startswith("/token")]
    assert [each.authorization for each in tokens] == [f"Basic {ALICE.basic}"]
    assert "scope=repository" in tokens[0].path


# Pushing


def upload(server: FakeRegistry, location: str) -> None:
    server.routes[f"{REPOSITORY}/blobs/uploads/"] = lambda handler: handler.answer(
        202, location=location
    )


def push(remote: OciRemote, store: Store) -> StoredAdapter:
    return remote.copy_from(store, TINY)


def test_an_upload_elsewhere_does_not_say_who_we_are(
    server: FakeRegistry, elsewhere: FakeRegistry, remote: OciRemote, store: Store
) -> None:
    upload(server, f"http://{elsewhere.host}/put?x=1")
    elsewhere.routes["/put"] = lambda handler: handler.answer(201)
    server.routes[f"PUT {MANIFEST}"] = lambda handler: handler.answer(201)
    server.routes = {key: ask_for_password(route) for key, route in server.routes.items()}
    push(remote, store)
    assert {each.authorization for each in elsewhere.seen} == {None}
    assert all("x=1&digest=sha256" in each.path for each in elsewhere.seen)


def test_an_upload_that_breaks_is_tried_again(
    server: FakeRegistry, remote: OciRemote, store: Store
) -> None:
    upload(server, "/put")
    fails: Route = lambda handler: handler.answer(502)  # noqa: E731
    server.routes["/put"] = in_turn(fails, lambda handler: handler.answer(201))
    server.routes[f"PUT {MANIFEST}"] = lambda handler: handler.answer(201)
    push(remote, store)


def test_a_refused_manifest_says_why(server: FakeRegistry, remote: OciRemote, store: Store) -> None:
    upload(server, "/put")
    server.routes["/put"] = lambda handler: handler.answer(201)
    body = json.dumps({"errors": [{"code": "MANIFEST_INVALID", "message": "no"}]}).encode()
    server.routes[f"PUT {MANIFEST}"] = lambda handler: handler.answer(400, body)
    with pytest.raises(InvalidInput, match="400: MANIFEST_INVALID no"):
        push(remote, store)


def test_a_tag_that_somebody_else_took_meanwhile_is_a_conflict(
    server: FakeRegistry, remote: OciRemote, store: Store
) -> None:
    upload(server, "/put")
    server.routes["/put"] = lambda handler: handler.answer(201)
    server.routes[f"PUT {MANIFEST}"] = lambda handler: handler.answer(201)
    server.routes[f"GET {MANIFEST}"] = in_turn(
        lambda handler: handler.answer(404), manifest_route(b"{}")
    )
    with pytest.raises(Conflict, match=r"tiny:1\.0\.0 exists"):
        push(remote, store)


def test_what_is_damaged_here_is_not_uploaded(
    server: FakeRegistry, remote: OciRemote, store: Store, tmp_path: Path
) -> None:
    damaged = Store(tmp_path / "damaged")
    stored = damaged.copy_from(store, TINY)
    damaged.blob_path(stored.manifest.tensors.digest).write_bytes(b"?")
    with pytest.raises(Corrupt):
        push(remote, damaged)
    assert server.seen == []


# Names of remotes


@pytest.mark.parametrize(
    ("remote", "host", "prefix"),
    [
        ("oci://host", "host", ""),
        ("oci://host:5000/a", "host:5000", "a"),
        ("oci://[::1]:5000/a__b/c.d-e", "[::1]:5000", "a__b/c.d-e"),
    ],
)
def test_a_remote_is_a_host_and_a_prefix(remote: str, host: str, prefix: str) -> None:
    assert (registry_host(remote), repository_prefix(remote)) == (host, prefix)


@pytest.mark.parametrize(
    "remote",
    [
        "oci://", "oci:///a", "oci://Host/a", "oci://host/A", "oci://host/a//b", "oci://host/a/",
        "oci://host/../a", "oci://host/%2e%2e", "oci://me:secret@host/a", "oci://host/a?b",
        "oci://host/a#b", "oci://host:port/a", "http://host/a", "oci://host/a b",
    ],
)  # fmt: skip
def test_anything_else_is_no_remote(remote: str) -> None:
    with pytest.raises(InvalidReference, match="expected oci://host"):
        repository_prefix(remote)
