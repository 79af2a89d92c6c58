"""The web page on the HTTP port: the zoo's assets, and its documents of this server's store.

Assets are open, as a page must come before it can ask for a token; documents name adapters.
"""

import asyncio
from collections.abc import Mapping

from pydantic import JsonValue
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from upt_server.access.callers import Access
from upt_server.access.scopes import PAGE
from upt_server.http_calls import Endpoint, ending_with_a_response
from upt_zoo.local.store import Store
from upt_zoo.site.assets import INDEX, POLICY, SETUP, Asset, read_assets
from upt_zoo.site.documents import CATALOGUE, Documents, document_path

_HEADERS = {
    "content-security-policy": f"{POLICY}; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def build_routes(
    store: Store, access: Access, backbone_digest: str, setup: Mapping[str, JsonValue]
) -> list[Route]:
    """Route the page; ``setup`` tells it, and whoever asks, what this server does."""
    documents, assets = Documents(store), read_assets()

    async def enter(_: Request) -> Response:
        return RedirectResponse(PAGE.lstrip("/"), headers=_HEADERS)

    async def show_setup(_: Request) -> Response:
        return _document({"is_live": True, **setup})

    async def show_catalogue(_: Request) -> Response:
        catalogue = await asyncio.to_thread(documents.catalogue, access.allows)
        return _document({**catalogue, "backbone_digest": backbone_digest})

    async def show_adapter(request: Request) -> Response:
        name, version = request.path_params["name"], request.path_params["version"]
        access.check_adapters([name])
        with access.discreet():
            return _document(await asyncio.to_thread(documents.adapter, name, version))

    answered = {
        SETUP: show_setup,
        CATALOGUE: show_catalogue,
        document_path("{name}", "{version}"): show_adapter,
    }
    return [
        Route("/", enter),
        *(Route(PAGE + path, ending_with_a_response(show)) for path, show in answered.items()),
        *(Route(PAGE + name, _showing(asset)) for name, asset in assets.items()),
        Route(PAGE, _showing(assets[INDEX])),
    ]


def _showing(asset: Asset) -> Endpoint:
    headers = {"cache-control": "no-cache", "etag": asset.etag, "vary": "accept-encoding"}

    async def show(request: Request) -> Response:
        if request.headers.get("if-none-match") == asset.etag:
            return Response(status_code=304, headers=_HEADERS | headers)
        if "gzip" in request.headers.get("accept-encoding", ""):
            content, encoding = asset.gzipped, {"content-encoding": "gzip"}
        else:
            content, encoding = asset.content, {}
        return Response(content, media_type=asset.media_type, headers=_HEADERS | headers | encoding)

    return show


def _document(value: Mapping[str, JsonValue]) -> Response:
    return JSONResponse(value, headers=_HEADERS | {"cache-control": "no-store"})
