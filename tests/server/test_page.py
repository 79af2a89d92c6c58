"""The web page over HTTP: what is open, what needs a token, and what its answers say of safety."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import HTTPRedirectHandler, Request, build_opener

import pytest

from upt_server.access.tokens import Token, add_token
from upt_server.runner import TorchRunner
from upt_testing.adapters import CURVE, LORA, random_tensors, tiny_spec, with_curve
from upt_testing.serving import Served, make_settings, serving
from upt_zoo.backbone import Backbone
from upt_zoo.local.store import Store
from upt_zoo.site.assets import POLICY, read_assets
from upt_zoo.site.documents import document_path

SST2 = "/page/" + document_path("sst2", "1.0.0")
COLA = "/page/" + document_path("cola", "1.0.0")
CATALOGUE = "/page/data/catalogue.json"


class _Staying(HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        return None


@pytest.fixture
async def served(store: Store, backbone: Backbone, runner: TorchRunner) -> AsyncIterator[Served]:
    async with serving(make_settings(store.root), backbone, runner) as started:
        yield started


async def get(
    served: Served, path: str, *, verb: str = "GET", **headers: str
) -> tuple[int, bytes, dict[str, str]]:
    def ask() -> tuple[int, bytes, dict[str, str]]:
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        request = Request(f"http://{served.http}{path}", headers=named, method=verb)
        try:
            with build_opener(_Staying).open(request, timeout=30) as response:
                return response.status, response.read(), dict(response.headers)
        except HTTPError as error:
            return error.code, error.read(), dict(error.headers)

    return await asyncio.to_thread(ask)


async def test_the_first_address_leads_to_the_page(served: Served) -> None:
    status, _, headers = await get(served, "/")
    assert (status, headers["location"]) == (307, "page/")
    status, body, headers = await get(served, "/page/")
    assert status == 200
    assert headers["content-type"] == "text/html; charset=utf-8"
    assert b"<title>upt</title>" in body


async def test_every_asset_comes_as_what_it_is_and_once(served: Served) -> None:
    for name, asset in read_assets().items():
        status, body, headers = await get(served, f"/page/{name}")
        assert (status, body) == (200, asset.content), name
        assert headers["content-type"] == asset.media_type
        status, body, headers = await get(served, f"/page/{name}", accept_encoding="br, gzip")
        assert gzip.decompress(body) == asset.content
        assert headers["vary"] == "accept-encoding"
        status, body, _ = await get(served, f"/page/{name}", if_none_match=asset.etag)
        assert (status, body) == (304, b"")


@pytest.mark.parametrize("path", ["/", "/page/", "/page/app.js", "/page/setup.json", CATALOGUE])
async def test_nothing_of_the_page_may_be_framed_sniffed_or_run_from_elsewhere(
    served: Served, path: str
) -> None:
    _, _, headers = await get(served, path)
    assert headers["content-security-policy"] == f"{POLICY}; frame-ancestors 'none'"
    assert "unsafe" not in POLICY
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize(
    "path",
    ["/page/../v1/adapters", "/page/nothing.js", "/page/data/adapters/sst2/../../x.json"],
)
async def test_other_files_are_not_there(served: Served, path: str) -> None:
    status, _, _ = await get(served, path)
    assert status == 404


async def test_documents_are_those_of_the_store(served: Served, store: Store) -> None:
    status, body, headers = await get(served, CATALOGUE)
    assert (status, headers["cache-control"]) == (200, "no-store")
    catalogue = json.loads(body)
    assert [each["name"] for each in catalogue["adapters"]] == sorted(store.listing().versions)
    assert catalogue["backbone_digest"] == served.engine.status().backbone_digest
    status, body, _ = await get(served, SST2)
    assert (status, json.loads(body)["name"]) == (200, "sst2")
    status, body, _ = await get(served, "/page/" + document_path("nobody", "1.0.0"))
    assert (status, json.loads(body)["error"]["status"]) == (404, "NOT_FOUND")


async def test_the_curve_of_an_adapter_is_in_its_document(
    served: Served, store: Store, backbone: Backbone
) -> None:
    spec = with_curve(tiny_spec(backbone=backbone.identity, name="learnt", lora=LORA), CURVE)
    store.publish(spec, random_tensors(spec, 0), "# Learnt", version="1.0.0")
    documents = []
    for path in (SST2, "/page/" + document_path("learnt", "1.0.0")):
        status, body, _ = await get(served, path)
        assert status == 200
        documents.append(json.loads(body))
    assert [each["curve"] for each in documents] == [None, CURVE.model_dump(mode="json")]


async def test_with_tokens_assets_are_open_and_documents_are_for_who_may_see_them(
    store: Store, backbone: Backbone, runner: TorchRunner, tmp_path: Path
) -> None:
    file, secrets = tmp_path / "tokens.json", {}
    for name, scopes in {"web": ("metadata",), "asking": ("predict",)}.items():
        token, secrets[name] = Token.create(name=name, scopes=scopes, adapters=("sst2",))
        add_token(file, token)
    settings = make_settings(store.root, tokens=file)
    async with serving(settings, backbone, runner) as served:
        for path in ("/", "/page/", "/page/app.js"):
            assert (await get(served, path))[0] in (200, 307)
        _, setup, _ = await get(served, "/page/setup.json")
        assert json.loads(setup) == {
            "is_live": True,
            "grpc_port": int(served.target.rpartition(":")[2]),  # of 0, the one that was taken
            "has_metrics": True,
            "needs_token": True,
        }
        for path in (CATALOGUE, SST2, COLA):
            assert (await get(served, path))[0] == 401
            asking = await get(served, path, authorization=f"Bearer {secrets['asking']}")
            assert asking[0] == 403
        web = f"Bearer {secrets['web']}"
        _, body, _ = await get(served, CATALOGUE, authorization=web)
        assert [each["name"] for each in json.loads(body)["adapters"]] == ["sst2"]
        assert (await get(served, SST2, authorization=web))[0] == 200
        assert (await get(served, COLA, authorization=web))[0] == 403


async def test_the_page_can_be_switched_off(
    store: Store, backbone: Backbone, runner: TorchRunner
) -> None:
    settings = make_settings(store.root, has_page=False)
    async with serving(settings, backbone, runner) as served:
        for path in ("/", "/page/", "/page/app.js", CATALOGUE):
            assert (await get(served, path))[0] == 404
        assert (await get(served, "/v1/adapters"))[0] == 200


async def test_nobody_writes_to_the_page(served: Served) -> None:
    for path in ("/page/", "/page/app.js", CATALOGUE):
        assert (await get(served, path, verb="PUT"))[0] == 405
        assert (await get(served, path, verb="HEAD"))[0] == 200
