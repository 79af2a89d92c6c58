"""A generic client, as grpcurl is one: it learns all that it knows from the server."""

import asyncio
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from upt_server.runner import TorchRunner
from upt_testing.serving import make_settings, serving
from upt_zoo.backbone import Backbone
from upt_zoo.local.store import Store
from upt_zoo.references import Reference

TENSOR = {
    "name": "sentence",
    "datatype": "BYTES",
    "shape": [1],
    "contents": {"bytesContents": ["YSBmaWxt"]},  # "a film", as JSON writes bytes
}


def ask(target: str, service: str, method: str, request: dict[str, object]) -> dict[str, Any]:
    """Call a method of which only the name is known; JSON in, JSON out."""
    with grpc.insecure_channel(target) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert service in database.get_services()
        pool = DescriptorPool(database)  # a pool of its own: nothing compiled in is in it
        described = pool.FindServiceByName(service).FindMethodByName(method)
        answer_type = GetMessageClass(described.output_type)
        call: Any = channel.unary_unary(
            f"/{service}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer_type.FromString,
        )
        message = ParseDict(request, GetMessageClass(described.input_type)())
        return MessageToDict(call(message, timeout=30))


@pytest.mark.parametrize(
    ("service", "method", "request_body", "place"),
    [
        (
            "upt.v1.Inference",
            "Predict",
            {"inputs": [{"adapter": "sst2", "texts": ["a film"]}]},
            ("outputs", 0, "adapter", "digest"),
        ),
        (
            "inference.GRPCInferenceService",
            "ModelInfer",
            {"modelName": "sst2", "inputs": [TENSOR]},
            ("parameters", "digest", "stringParam"),
        ),
    ],
)
async def test_a_client_without_stubs_is_answered(
    store: Store,
    backbone: Backbone,
    runner: TorchRunner,
    service: str,
    method: str,
    request_body: dict[str, object],
    place: tuple[str | int, ...],
) -> None:
    async with serving(make_settings(store.root), backbone, runner) as served:
        found: Any = await asyncio.to_thread(ask, served.target, service, method, request_body)
    for step in place:
        found = found[step]
    assert found == store.resolve(Reference.parse("sst2")).digest
