"""The OpenAPI document against the routes and against what the server really answers."""

import json
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx2
import pytest
from starlette.routing import Route

from upt_server.openapi import build_document
from upt_server.runner import TorchRunner
from upt_testing.serving import Served, make_settings, serving
from upt_zoo.backbone import Backbone
from upt_zoo.local.store import Store

DOCUMENT: dict[str, Any] = build_document("1.0.0")
SCHEMAS: dict[str, Any] = DOCUMENT["components"]["schemas"]
TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
}
TEXTS = {"name": "sentence", "shape": [1], "datatype": "BYTES", "data": ["a film"]}
BODIES: dict[str, object] = {
    "/v1/predict": {
        "inputs": [
            {"adapter": "sst2", "texts": ["a film"]},
            {"adapter": "topics", "texts": ["a film"]},
            {"adapter": "stsb", "texts": ["a film"]},
            {"adapter": "squad", "fields": {"question": "who ?", "context": "a man"}},
        ]
    },
    "/v2/models/{model}/infer": {"inputs": [TEXTS]},
}


@pytest.fixture
async def served(store: Store, backbone: Backbone, runner: TorchRunner) -> AsyncIterator[Served]:
    settings = make_settings(store.root, has_model_control=True)
    async with serving(settings, backbone, runner) as started:
        yield started


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, verbs in DOCUMENT["paths"].items():
        for verb, operation in verbs.items():
            yield verb.upper(), path, operation


def check(value: object, schema: dict[str, Any], place: str = "$") -> None:
    """Check a value against those parts of JSON Schema that the document uses."""
    if "$ref" in schema:
        schema = SCHEMAS[schema["$ref"].removeprefix("#/components/schemas/")]
    if "enum" in schema:
        assert value in schema["enum"], place
        return
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    assert any(isinstance(value, TYPES[kind]) for kind in kinds), (place, value, schema)
    if isinstance(value, list):
        for each in value:
            check(each, schema["items"], f"{place}[]")
    if isinstance(value, dict):
        assert set(schema.get("required", ())) <= value.keys(), place
        properties, others = schema.get("properties", {}), schema["additionalProperties"]
        for name, each in value.items():
            assert name in properties or others, f"{place}.{name}"
            check(each, properties.get(name) or others, f"{place}.{name}")


def references(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"].removeprefix("#/components/schemas/")
        for each in value.values():
            yield from references(each)
    if isinstance(value, list):
        for each in value:
            yield from references(each)


async def test_every_route_of_both_versions_is_described(served: Served) -> None:
    application = served.server._http.config.app
    routes = {
        (verb, re.sub(r":\w+\}", "}", route.path))
        for route in application.routes  # type: ignore[union-attr]  # a Starlette application
        if isinstance(route, Route) and re.match(r"/v[12]", route.path)
        for verb in route.methods or ()
        if verb != "HEAD"
    }
    assert {(verb, path) for verb, path, _ in operations()} == routes


def test_every_schema_is_there_and_used() -> None:
    assert set(references(DOCUMENT)) == SCHEMAS.keys()


async def test_what_is_answered_is_what_is_described(served: Served) -> None:
    async with httpx2.AsyncClient(base_url=f"http://{served.http}", timeout=30) as client:
        for verb, path, operation in operations():
            named = path.format(adapter="squad:1.0.0", model="sst2", version="1.0.0")
            body = BODIES.get(path.replace("/versions/{version}", ""), {})
            response = await client.request(
                verb, named, content=json.dumps(body) if verb == "POST" else None
            )
            assert response.status_code == 200, (path, response.text)
            schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
            check(response.json(), schema, path)
            assert verb == "GET" or "requestBody" in operation or path.endswith("/index")


async def test_errors_are_described(served: Served) -> None:
    async with httpx2.AsyncClient(base_url=f"http://{served.http}", timeout=30) as client:
        for path, described in {
            "/v1/adapters/nobody": "/v1/adapters/{adapter}",
            "/v2/models/nobody": "/v2/models/{model}",
        }.items():
            answer = (await client.get(path)).json()
            responses = DOCUMENT["paths"][described]["get"]["responses"]
            check(answer, responses["default"]["content"]["application/json"]["schema"])


def test_what_is_asked_in_the_tests_is_what_is_described() -> None:
    for path, body in BODIES.items():
        content = DOCUMENT["paths"][path]["post"]["requestBody"]["content"]
        if path.startswith("/v1"):
            check(body, content["application/json"]["schema"])


async def test_the_document_and_its_page_are_served_and_load_nothing(served: Served) -> None:
    async with httpx2.AsyncClient(base_url=f"http://{served.http}", timeout=30) as client:
        document = (await client.get("/openapi.json")).json()
        page = await client.get("/docs")
    assert document["paths"] == DOCUMENT["paths"]
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert not re.search(r"src=|https?://|<script|<link", page.text)
    for verb, path, _ in operations():
        assert f"{verb} {path}" in page.text
