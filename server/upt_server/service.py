"""The gRPC edge of ``upt.v1``: translation only. Texts are never logged."""

import asyncio
from typing import TypeAlias

import grpc

from upt_protos.v1 import inference_pb2 as pb
from upt_protos.v1 import inference_pb2_grpc
from upt_server import statuses, wire
from upt_server.calls import ending_with_a_status
from upt_server.engine import Engine
from upt_server.inputs import check_count
from upt_server.metrics import Metrics
from upt_zoo.references import Reference

_Context: TypeAlias = "grpc.aio.ServicerContext[object, object]"


class InferenceService(inference_pb2_grpc.InferenceServicer):
    """Serves ``upt.v1.Inference`` from an engine."""

    def __init__(self, engine: Engine, metrics: Metrics) -> None:
        self._engine, self._metrics = engine, metrics

    async def Predict(self, request: pb.PredictRequest, context: _Context) -> pb.PredictResponse:
        """Answer every input of the call."""
        async with ending_with_a_status(context):
            try:
                check_count(len(request.inputs), self._engine.limits)  # reading costs the loop
                prediction = await self._engine.predict(
                    wire.read_inputs(request), timeout_s=context.time_remaining()
                )
            except (Exception, asyncio.CancelledError) as error:
                names = _names(request, self._engine.limits.max_inputs)
                self._metrics.call_failed(names, statuses.code_of(error))
                raise
            self._metrics.call_answered(prediction)
            return wire.write_prediction(prediction)

    async def ListAdapters(
        self, request: pb.ListAdaptersRequest, context: _Context
    ) -> pb.ListAdaptersResponse:
        """Describe every version in the store."""
        async with ending_with_a_status(context):
            descriptions = await self._engine.describe_all()
            return pb.ListAdaptersResponse(adapters=map(wire.write_adapter, descriptions))

    async def GetAdapter(self, request: pb.GetAdapterRequest, context: _Context) -> pb.Adapter:
        """Describe one adapter."""
        async with ending_with_a_status(context):
            description = await self._engine.describe(Reference.parse(request.adapter))
            return wire.write_adapter(description)


def _names(request: pb.PredictRequest, most: int) -> list[str]:
    """Return the first adapters' names, for metrics, of references that need not even parse."""
    return [item.adapter.partition("@")[0].partition(":")[0] for item in request.inputs[:most]]
