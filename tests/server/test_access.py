"""Who may do what: tokens, scopes, quotas and what the guards make of them, without a server."""

import asyncio
import json
import os
import stat
from contextlib import ExitStack
from pathlib import Path

import pytest

from upt_server.access.callers import Access
from upt_server.access.quotas import RateLimit
from upt_server.access.scopes import need_of_path
from upt_server.access.tokens import Token, TokenFile, add_token, revoke_token
from upt_zoo.errors import (
    Conflict,
    Forbidden,
    InvalidInput,
    NotFound,
    Overloaded,
    Unauthenticated,
    Unavailable,
)


def add(file: Path, name: str = "ci", **fields: object) -> str:
    token, secret = Token.create(**{"name": name, "scopes": ("predict",), **fields})
    add_token(file, token)
    return secret


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tokens.json"


def bearer(secret: str) -> list[str]:
    return [f"Bearer {secret}"]


def test_the_file_holds_no_secret_and_is_its_owners(file: Path) -> None:
    secret = add(file)
    assert secret not in file.read_text()
    assert secret.removeprefix("upt_") not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    token = TokenFile(file).find(secret)
    assert token is not None
    assert (token.name, token.scopes, token.adapters) == ("ci", ("predict",), ("*",))
    assert TokenFile(file).find(token.sha256) is None  # the hash opens nothing


def test_nobody_else_may_read_the_file_while_it_is_written(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes = []
    replace = Path.replace

    def noting(path: Path, target: Path) -> Path:
        modes.append(stat.S_IMODE(path.stat().st_mode))
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", noting)
    umask = os.umask(0)
    try:
        add(file)
    finally:
        os.umask(umask)
    assert modes == [0o600]


def test_two_tokens_are_never_alike(file: Path) -> None:
    assert add(file, "a") != add(file, "b")


def test_a_name_is_taken_once_and_free_after_revoking(file: Path) -> None:
    first = add(file)
    file.chmod(0o640)
    with pytest.raises(Conflict, match="another name"):
        add(file)
    tokens = TokenFile(file)
    assert tokens.find(first)
    revoke_token(file, "ci")
    assert tokens.find(first) is None  # without a restart
    second = add(file)
    assert tokens.find(second)
    assert tokens.find(first) is None
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    with pytest.raises(NotFound, match="no token nobody"):
        revoke_token(file, "nobody")
    with pytest.raises(NotFound, match="did you mean ci"):
        revoke_token(file, "cii")


@pytest.mark.parametrize(
    "fields",
    [
        {"scopes": ()},
        {"scopes": ("root",)},
        {"adapters": ()},
        {"adapters": ("sst2[0-9]",)},
        {"name": "a b"},
        {"name": "a\nb"},
        {"name": ""},
        {"requests_per_second": 0},
        {"queued_tokens": -1},
        {"colour": "red"},
    ],
)
def test_a_token_that_makes_no_sense_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(InvalidInput, match="token: "):
        Token.create(**{"name": "ci", "scopes": ("predict",), **fields})


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"tokens": [{"name": "a"}]}', '{"tokens": [], "more": 1}', "\0" * 100],
)
def test_a_file_of_another_form_lets_nobody_in(file: Path, content: str) -> None:
    secret = add(file)
    tokens = TokenFile(file)
    assert tokens.find(secret)
    file.write_text(content)
    with pytest.raises(InvalidInput, match=r"tokens\.json"):
        tokens.tokens()
    with pytest.raises(Unavailable, match="cannot read its tokens"):
        Access(tokens).admit("predict", bearer(secret))


def test_a_file_that_is_gone_anybodys_or_no_file_lets_nobody_in(file: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="cannot read"):
        TokenFile(file).tokens()
    with pytest.raises(InvalidInput, match="regular file"):
        TokenFile(tmp_path).tokens()
    add(file)
    file.chmod(0o666)
    with pytest.raises(InvalidInput, match="anybody may write"):
        TokenFile(file).tokens()


def test_a_file_with_a_name_twice_is_refused(file: Path) -> None:
    add(file)
    content = json.loads(file.read_text())
    file.write_text(json.dumps({"tokens": content["tokens"] * 2}))
    with pytest.raises(InvalidInput, match="every name once"):
        TokenFile(file).tokens()


@pytest.mark.parametrize(
    ("patterns", "allowed", "forbidden"),
    [
        (("*",), ("sst2", "a.b"), ()),
        (("sst2",), ("sst2",), ("sst", "sst22", "xsst2")),
        (("team-a.*", "sst2"), ("team-a.x", "sst2"), ("team-b.x", "team-a", "xteam-a.x")),
        (("*-small",), ("sst2-small",), ("sst2-small2",)),
    ],
)
def test_patterns_are_of_whole_names(
    patterns: tuple[str, ...], allowed: tuple[str, ...], forbidden: tuple[str, ...]
) -> None:
    token, _ = Token.create(name="ci", scopes=("predict",), adapters=patterns)
    assert all(map(token.allows, allowed))
    assert not any(map(token.allows, forbidden))


@pytest.mark.parametrize(
    "authorization",
    [
        [],
        [""],
        ["{secret}"],
        ["Bearer"],
        ["Bearer "],
        ["Basic {secret}"],
        ["Bearer {secret}x"],
        ["Bearer x{secret}"],
        ["Bearer upt_"],
        ["Bearer " + "x" * 100_000],
        ["Bearer \u00e9\ud800".encode("utf-8", "replace").decode()],
        ["Bearer {secret}", "Bearer {secret}"],
        ["Bearer {secret}, Bearer {secret}"],
    ],
)
def test_what_is_not_one_right_token_is_refused(file: Path, authorization: list[str]) -> None:
    secret = add(file)
    given = [text.replace("{secret}", secret) for text in authorization]
    with pytest.raises(Unauthenticated, match="authorization: Bearer TOKEN") as raised:
        Access(TokenFile(file)).admit("predict", given)
    assert secret not in str(raised.value)


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_scheme_has_no_case(file: Path, scheme: str) -> None:
    secret = add(file)
    caller = Access(TokenFile(file)).admit("predict", [f"{scheme} {secret}"])
    assert caller is not None
    assert caller.name == "ci"


def test_a_scope_includes_no_other(file: Path) -> None:
    access = Access(TokenFile(file))
    secrets = {scope: add(file, scope, scopes=(scope,)) for scope in ("predict", "metadata")}
    secrets["admin"] = add(file, "admin", scopes=("admin",))
    for has, secret in secrets.items():
        for need in ("predict", "metadata", "admin"):
            if has == need:
                access.admit(need, bearer(secret))
            else:
                with pytest.raises(Forbidden, match=f"scope {need}"):
                    access.admit(need, bearer(secret))


def test_without_tokens_anybody_may_but_for_admin_from_elsewhere() -> None:
    assert Access().caller().name == "anybody"
    Access().admit("admin", [])
    far = Access(is_local=False)
    far.admit("predict", [])
    far.admit("metadata", ["Bearer whatever"])
    with pytest.raises(Forbidden, match="--tokens"):
        far.admit("admin", [])


async def test_a_call_that_no_guard_has_let_in_may_nothing(file: Path) -> None:
    add(file)
    access = Access(TokenFile(file))
    for ask in (access.caller, access.count_call, access.check_all_adapters):
        with pytest.raises(Unauthenticated):
            ask()
    with pytest.raises(Unauthenticated):
        access.check_adapters(["sst2"])


async def test_a_caller_is_its_own_calls_only(file: Path) -> None:
    access = Access(TokenFile(file))
    secrets = {name: add(file, name, adapters=(name,)) for name in ("a", "b")}
    turns = {"a": asyncio.Event(), "b": asyncio.Event()}

    async def call(name: str, other: str) -> list[bool]:
        access.admit("predict", bearer(secrets[name]))
        turns[other].set()
        await turns[name].wait()  # both are let in before either goes on
        return [access.allows("a"), access.allows("b")]

    found = tuple(await asyncio.gather(call("a", "b"), call("b", "a")))
    assert found == ([True, False], [False, True])


def test_only_some_adapters_are_not_all(file: Path) -> None:
    secret = add(file, scopes=("metadata",), adapters=("s*",))
    access = Access(TokenFile(file))
    access.admit("metadata", bearer(secret))
    with pytest.raises(Forbidden, match="a token for \\*"):
        access.check_all_adapters()
    with pytest.raises(Forbidden, match="adapter cola"):
        access.check_adapters(["sst2", "cola"])


def test_a_rate_lets_through_a_seconds_worth_and_then_so_many_a_second() -> None:
    limit = RateLimit(4, now_s=100)
    assert [limit.take(100) for _ in range(5)] == [0, 0, 0, 0, 0.25]
    assert limit.take(100.25) == 0
    assert limit.take(100.25) == 0.25
    assert [limit.take(1000) for _ in range(5)] == [0, 0, 0, 0, 0.25]
    slow = RateLimit(0.1, now_s=0)
    assert slow.take(0) == 0
    assert slow.take(0) == pytest.approx(10)


def test_a_caller_over_its_rate_is_told_when_to_come_back(file: Path) -> None:
    now = [0.0]
    access = Access(TokenFile(file), clock=lambda: now[0])
    secret = add(file, requests_per_second=2, scopes=("predict", "metadata"))
    free = add(file, "free")
    access.admit("metadata", bearer(secret))
    access.count_call()
    with pytest.raises(Overloaded, match="quota of ci: 2 calls a second") as raised:
        access.count_call()
    assert raised.value.retry_after_s == pytest.approx(0.5)
    with pytest.raises(Overloaded):
        access.admit("metadata", bearer(secret))
    access.admit("open", [])
    access.admit("predict", bearer(free))
    for _ in range(100):
        access.count_call()
    now[0] = 0.5
    access.admit("metadata", bearer(secret))


def test_a_quota_follows_the_file(file: Path) -> None:
    access = Access(TokenFile(file), clock=lambda: 0.0)
    access.admit("predict", bearer(add(file, requests_per_second=1)))
    access.count_call()
    with pytest.raises(Overloaded):
        access.count_call()
    revoke_token(file, "ci")
    access.admit("predict", bearer(add(file)))
    access.count_call()


def test_a_call_let_in_long_ago_may_what_the_file_says_now(file: Path) -> None:
    access = Access(TokenFile(file), clock=lambda: 0.0)
    secret = add(file, requests_per_second=1)
    access.admit("predict", bearer(secret))
    access.count_call()
    content = json.loads(file.read_text())

    def change(**fields: object) -> None:
        file.write_text(json.dumps({"tokens": [{**content["tokens"][0], **fields}]}))

    change(adapters=["sst2"], requests_per_second=2)
    access.count_call()
    access.count_call()
    with pytest.raises(Overloaded, match="2 calls a second"):
        access.count_call()
    with pytest.raises(Forbidden, match="adapter cola"):
        access.check_adapters(["cola"])
    change(scopes=["metadata"])
    with pytest.raises(Forbidden, match="scope predict"):
        access.count_call()
    revoke_token(file, "ci")
    add(file)  # of that name, but another token
    with pytest.raises(Unauthenticated):
        access.count_call()


def test_open_streams_are_bounded_for_each_token(file: Path) -> None:
    access = Access(TokenFile(file))
    secret = add(file)
    access.admit("predict", bearer(secret))
    with ExitStack() as streams:
        for _ in range(64):
            streams.enter_context(access.open_call(is_stream=True))
        with (
            pytest.raises(Overloaded, match="quota of ci: 64 calls are open, 64 of them streams"),
            access.open_call(is_stream=True),
        ):
            pass
        with access.open_call():
            pass
        access.admit("predict", bearer(add(file, "other")))
        with access.open_call(is_stream=True):
            pass
    access.admit("predict", bearer(secret))
    with access.open_call(is_stream=True):
        pass


def test_open_calls_are_bounded_for_each_token(file: Path) -> None:
    access = Access(TokenFile(file))
    access.admit("predict", bearer(add(file)))
    with ExitStack() as calls:
        for _ in range(512):
            calls.enter_context(access.open_call())
        with pytest.raises(Overloaded, match="512 calls are open"), access.open_call():
            pass
    with access.open_call():
        pass


def test_tokens_of_text_that_wait_are_bounded_for_each_caller(file: Path) -> None:
    access = Access(TokenFile(file))
    access.admit("predict", bearer(add(file, queued_tokens=10)))
    with access.place(6):
        with pytest.raises(Overloaded, match="quota of ci: 6 of 10 tokens wait"), access.place(5):
            pass
        with access.place(4):
            pass
        with pytest.raises(InvalidInput, match="split it"), access.place(11):
            pass
        access.admit("predict", bearer(add(file, "other", queued_tokens=10)))
        with access.place(10):
            pass
    access.admit("predict", bearer(add(file, "free")))
    with access.place(10_000):
        pass


@pytest.mark.parametrize(
    ("verb", "path", "need"),
    [
        ("GET", "/healthz", "open"),
        ("GET", "/readyz", "open"),
        ("GET", "/v2/health/ready", "open"),
        ("POST", "/healthz", "admin"),
        ("GET", "/healthz/", "metadata"),
        ("GET", "/metrics", "metadata"),
        ("GET", "/v1/adapters", "metadata"),
        ("POST", "/v1/predict", "predict"),
        ("POST", "/v2/models/sst2/infer", "predict"),
        ("POST", "/v2/models/sst2/versions/1/infer", "predict"),
        ("POST", "/v2/repository/index", "metadata"),
        ("POST", "/v2/repository/models/sst2/load", "admin"),
        ("POST", "/v2/repository/models/infer", "admin"),
        ("DELETE", "/v1/adapters/sst2", "admin"),
        ("OPTIONS", "/", "admin"),
    ],
)
def test_a_path_that_no_rule_names_needs_the_most(verb: str, path: str, need: str) -> None:
    assert need_of_path(verb, path) == need
