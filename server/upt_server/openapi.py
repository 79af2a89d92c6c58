"""What can be called over HTTP under ``/v1`` and ``/v2``, as an OpenAPI document and as a page.

Bodies are described from their own descriptors and models, so that the document cannot go stale.

Source: the OpenAPI specification 3.1; https://protobuf.dev/programming-guides/json.
"""

import json
from collections.abc import Iterator
from html import escape
from typing import TypeAlias

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto
from google.protobuf.message import Message
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from upt_protos.oip import open_inference_pb2 as oip
from upt_protos.v1 import inference_pb2 as v1
from upt_server.open_inference.bodies import InferBody, Json, LoadBody

Schema: TypeAlias = dict[str, Json]
_Operation: TypeAlias = tuple[str, str, str, Schema | None, Schema]

_SCHEMAS = "#/components/schemas/"
_WIDE = ("TYPE_INT64", "TYPE_UINT64")  # which protobuf's JSON writes as texts
_SCALARS = {
    "TYPE_STRING": "string",
    "TYPE_BOOL": "boolean",
    "TYPE_FLOAT": "number",
    "TYPE_DOUBLE": "number",
}


_MESSAGES: tuple[type[Message], ...] = (
    v1.PredictRequest,
    v1.PredictResponse,
    v1.ListAdaptersResponse,
    oip.ServerMetadataResponse,
    oip.ModelMetadataResponse,
    oip.ModelConfig,
    oip.ModelStatisticsResponse,
    oip.RepositoryIndexResponse.ModelIndex,
)


def build_routes(version: str) -> list[Route]:
    """Route the document and its page."""
    document = build_document(version)
    page = _write_page(document)

    async def show_document(_: Request) -> Response:
        return JSONResponse(document)

    async def show_page(_: Request) -> Response:
        policy = "default-src 'none'; style-src 'unsafe-inline'"
        return HTMLResponse(page, headers={"content-security-policy": policy})

    return [Route("/openapi.json", show_document), Route("/docs", show_page)]


def build_document(version: str) -> Schema:
    """Describe every call under ``/v1`` and ``/v2``."""
    paths: dict[str, dict[str, Json]] = {}
    for operation in _operations():
        verb, path, *_ = operation
        paths.setdefault(path, {})[verb] = _write_operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "upt",
            "version": version,
            "description": "Many adapters on one frozen encoder. Under /v1 upt's own calls, under "
            "/v2 those of the Open Inference Protocol, whose models are adapters.",
        },
        "paths": dict(paths),
        "components": {
            "schemas": _schemas(),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    }


def _operations() -> Iterator[_Operation]:
    """Yield verb, path, summary, the request's schema and the answer's of every call."""
    truth: Schema = {"type": "boolean"}
    adapter, stats = _ref(v1.Adapter), _ref(oip.ModelStatisticsResponse)
    predicted, adapters = _ref(v1.PredictResponse), _ref(v1.ListAdaptersResponse)
    index: Schema = {"type": "array", "items": _ref(oip.RepositoryIndexResponse.ModelIndex)}
    load = _named("LoadBody")
    yield "post", "/v1/predict", "Answer texts.", _ref(v1.PredictRequest), predicted
    yield "get", "/v1/adapters", "Describe every version of every adapter.", None, adapters
    yield "get", "/v1/adapters/{adapter}", "Describe an adapter.", None, adapter
    yield "get", "/v2", "Name the server.", None, _ref(oip.ServerMetadataResponse)
    yield "get", "/v2/health/live", "Say that the process lives.", None, _object(live=truth)
    yield "get", "/v2/health/ready", "Say whether calls are admitted.", None, _object(ready=truth)
    yield "get", "/v2/models/stats", "Say what each adapter has answered.", None, stats
    yield "post", "/v2/repository/index", "List every version of every adapter.", None, index
    repository = "/v2/repository/models/{model}"
    yield "post", f"{repository}/load", "Load an adapter into memory.", load, _object()
    yield "post", f"{repository}/unload", "Drop an adapter from memory.", load, _object()
    for model in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
        ready = _object(name={"type": "string"}, ready=truth)
        metadata, config = _ref(oip.ModelMetadataResponse), _ref(oip.ModelConfig)
        infer, inferred = _named("InferBody"), _named("Inferred")
        yield "get", model, "Name an adapter's inputs and outputs.", None, metadata
        yield "get", f"{model}/ready", "Say whether an adapter can be asked.", None, ready
        yield "get", f"{model}/config", "Say what an adapter takes and gives.", None, config
        yield "get", f"{model}/stats", "Say what an adapter has answered.", None, stats
        yield "post", f"{model}/infer", "Answer n texts by one adapter.", infer, inferred


def _write_operation(operation: _Operation) -> Schema:
    _, path, summary, request, response = operation
    error = _named("ErrorV2" if path.startswith("/v2") else "ErrorV1")
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    written: Schema = {
        "summary": summary,
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in names
        ],
        "responses": {
            "200": {"description": "The answer.", "content": _as_json(response)},
            "default": {"description": "What went wrong.", "content": _as_json(error)},
        },
    }
    if request is not None:
        is_needed = request != _named("LoadBody")
        written["requestBody"] = {"content": _as_json(request), "required": is_needed}
    return written


def _schemas() -> Schema:
    """Return every schema that is referred to, by its name."""
    _, definitions = models_json_schema(
        [(InferBody, "validation"), (LoadBody, "validation")], ref_template=f"{_SCHEMAS}{{model}}"
    )
    text: Schema = {"type": "string"}
    error = _object(code={"type": "integer"}, status=text, message=text)
    output = _object(
        name=text,
        datatype={"enum": ["BYTES", "FP32", "INT64"]},
        shape={"type": "array", "items": {"type": "integer"}},
        data={"type": "array", "items": {"type": ["string", "number"]}},
        parameters=_object(binary_data_size={"type": "integer"}),
    )
    output["required"] = ["name", "datatype", "shape"]
    schemas: Schema = {
        **definitions["$defs"],
        "ErrorV1": _object(error=error),
        "ErrorV2": _object(error=text),
        "Inferred": _object(
            model_name=text,
            model_version=text,
            id=text,
            parameters={"type": "object", "additionalProperties": text},
            outputs={"type": "array", "items": output},
        ),
    }
    for message in _MESSAGES:
        is_plain = message.DESCRIPTOR.file is oip.DESCRIPTOR
        _add_message(schemas, message.DESCRIPTOR, is_plain=is_plain)  # type: ignore[arg-type]  # two kinds
    return schemas


def _add_message(schemas: Schema, message: Descriptor, *, is_plain: bool) -> None:
    """Add a message's schema and those of the messages in it.

    ``is_plain``: as ``bodies.plain`` writes it, else as protobuf does.
    """
    written = DescriptorProto()
    message.CopyToProto(written)  # what a descriptor calls a list has changed, here it stays
    if message.full_name in schemas:
        return
    if not message.GetOptions().map_entry:
        properties: Schema = {
            field.name if is_plain else field.json_name: _schema_of_field(
                field, each, is_plain=is_plain
            )
            for field, each in zip(message.fields, written.field, strict=True)
        }
        schemas[message.full_name] = _object(**properties)
    for field in message.fields:
        if field.message_type is not None:
            _add_message(schemas, field.message_type, is_plain=is_plain)


def _schema_of_field(
    field: FieldDescriptor, written: FieldDescriptorProto, *, is_plain: bool
) -> Schema:
    message = field.message_type
    if message is not None and message.GetOptions().map_entry:
        value = message.fields_by_name["value"]
        return {"type": "object", "additionalProperties": _schema_of_one(value, is_plain=is_plain)}
    one = _schema_of_one(field, is_plain=is_plain)
    is_list = written.label == FieldDescriptorProto.LABEL_REPEATED
    return {"type": "array", "items": one} if is_list else one


def _schema_of_one(field: FieldDescriptor, *, is_plain: bool) -> Schema:
    if field.message_type is not None:
        return {"$ref": f"{_SCHEMAS}{field.message_type.full_name}"}
    if field.enum_type is not None:
        return {"enum": [value.name for value in field.enum_type.values]}
    kind = FieldDescriptorProto.Type.Name(field.type)  # type: ignore[arg-type]  # the same numbers
    is_text = kind in _WIDE and not is_plain
    return {"type": "string" if is_text else _SCALARS.get(kind, "integer")}


def _ref(message: type[Message]) -> Schema:
    return _named(message.DESCRIPTOR.full_name)


def _named(schema: str) -> Schema:
    return {"$ref": f"{_SCHEMAS}{schema}"}


def _object(**properties: Json) -> Schema:
    return {"type": "object", "properties": dict(properties), "additionalProperties": False}


def _as_json(schema: Schema) -> Schema:
    return {"application/json": {"schema": schema}}


def _write_page(document: Schema) -> str:
    """Write the document as a page that loads nothing and runs nothing."""
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>upt over HTTP</title>",
        "<style>body{font-family:sans-serif;max-width:60em;margin:2em auto;padding:0 1em}",
        "pre{background:#f4f4f4;padding:1em;overflow:auto}summary{cursor:pointer}</style>",
        "<h1>upt over HTTP</h1><p>The same as a document: <a href=openapi.json>openapi.json</a>.",
    ]
    paths, components = document["paths"], document["components"]
    assert isinstance(paths, dict)
    assert isinstance(components, dict)
    for path, verbs in paths.items():
        assert isinstance(verbs, dict)
        parts += [
            _details(f"{verb.upper()} {path}", operation) for verb, operation in verbs.items()
        ]
    schemas = components["schemas"]
    assert isinstance(schemas, dict)
    parts.append("<h2>Schemas</h2>")
    parts += [_details(name, schema) for name, schema in schemas.items()]
    return "\n".join(parts)


def _details(title: str, content: Json) -> str:
    text = json.dumps(content, indent=2)
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"
