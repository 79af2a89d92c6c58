"""Which adapter Ray's router goes by; what it makes of it is ``upt_server.affinity``'s."""

import pickle

import pytest
from ray.serve._private.common import RequestMetadata, RequestProtocol, gRPCRequest
from ray.serve.request_router import PendingRequest

from upt_protos.oip import open_inference_pb2
from upt_protos.v1 import inference_pb2 as pb
from upt_server.ray.router import adapter_of


async def call(
    message: object, *, named: str = "", protocol: RequestProtocol = RequestProtocol.GRPC
) -> PendingRequest:
    """A call as the proxy makes it; a future in it needs an event loop."""
    metadata = RequestMetadata("1", "2", multiplexed_model_id=named, _request_protocol=protocol)
    return PendingRequest([pickle.dumps(gRPCRequest(message))], {}, metadata)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (pb.PredictRequest(inputs=[pb.Input(adapter="sst2"), pb.Input(adapter="cola")]), "sst2"),
        (pb.PredictRequest(inputs=[pb.Input(adapter="sst2:stable")]), "sst2"),
        (pb.PredictRequest(inputs=[pb.Input(adapter=f"sst2@sha256:{'0' * 64}")]), "sst2"),
        (pb.PredictRequest(inputs=[pb.Input(adapter="no such")]), ""),
        (pb.PredictRequest(inputs=[pb.Input(adapter="x" * 1_000_000)]), ""),
        (pb.PredictRequest(inputs=[pb.Input(adapters=["cola", "sst2"])]), "cola"),
        (open_inference_pb2.ModelInferRequest(model_name="sst2"), "sst2"),
        (pb.PredictRequest(), ""),
        (pb.ListAdaptersRequest(), ""),
        (None, ""),
    ],
)
async def test_a_call_over_grpc_goes_by_its_first_adapter(message: object, expected: str) -> None:
    assert adapter_of(await call(message)) == expected


async def test_a_caller_may_name_the_adapter_and_over_http_must() -> None:
    message = pb.PredictRequest(inputs=[pb.Input(adapter="sst2")])
    assert adapter_of(await call(message, named="cola:stable")) == "cola"
    http = RequestProtocol.HTTP
    assert adapter_of(await call(message, named="cola", protocol=http)) == "cola"
    assert adapter_of(await call(message, protocol=http)) == ""
