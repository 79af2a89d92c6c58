"""What Ray's proxy brings over HTTP is guarded as what comes to a server of its own."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from starlette.types import Message

from upt_server.access.tokens import Token, add_token
from upt_server.ray.replica import Unprefixed
from upt_testing.serving import FakeRunner, Served, make_settings, serving
from upt_zoo.backbone import Backbone
from upt_zoo.local.store import Store


@pytest.fixture
async def served(
    store: Store, backbone: Backbone, fake: FakeRunner, tmp_path: Path
) -> AsyncIterator[Served]:
    token, _ = Token.create(name="x", scopes=("predict",))
    add_token(tmp_path / "tokens.json", token)
    settings = make_settings(store.root, tokens=tmp_path / "tokens.json")
    async with serving(settings, backbone, fake) as started:
        yield started


@pytest.mark.parametrize("prefix", ["", "/upt", "/page"])
@pytest.mark.parametrize(
    ("path", "expected"),
    [("/healthz", 200), ("/page/", 200), ("/metrics", 401), ("/v1/adapters", 401), ("", 307)],
)
async def test_a_prefix_changes_nothing_of_what_a_path_needs(
    served: Served, prefix: str, path: str, expected: int
) -> None:
    said: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        said.append(message)

    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": prefix + path,
        "root_path": prefix,
        "query_string": b"",
        "headers": [],
    }
    await Unprefixed(served.server.application)(scope, receive, send)
    assert said[0]["status"] == expected
