"""``upt.v1`` from an engine: what a message asks for, and the gRPC edge of it. Translation only."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import partial
from itertools import islice
from typing import TypeAlias

import grpc

from upt_protos.v1 import inference_pb2 as pb
from upt_protos.v1 import inference_pb2_grpc
from upt_server import statuses, wire
from upt_server.calls import ending_with_a_status, log_fault
from upt_server.engine import Engine
from upt_server.inputs import check_count
from upt_server.metrics import Metrics
from upt_server.off_loop import SHORT_INPUTS, off_loop
from upt_server.streams import Streams
from upt_server.telemetry.recorder import Recorder
from upt_server.telemetry.records import note_answered, note_failed
from upt_zoo.references import Reference

_Context: TypeAlias = "grpc.aio.ServicerContext[object, object]"


class Answers:
    """Answers the messages of ``upt.v1``, whichever edge they came in by.

    Every method raises what ``Engine`` and ``upt_server.wire`` raise.
    """

    def __init__(self, engine: Engine, metrics: Metrics) -> None:
        self._engine, self._metrics = engine, metrics

    async def predict(
        self, request: pb.PredictRequest, timeout_s: float | None
    ) -> pb.PredictResponse:
        """Answer every input of the call."""
        try:
            check_count(len(request.inputs), self._engine.limits)  # reading costs the loop
            check_count(wire.count_inputs(request), self._engine.limits)
            is_short = len(request.inputs) <= SHORT_INPUTS
            inputs = await off_loop(partial(wire.read_inputs, request), is_short=is_short)
            prediction = await self._engine.predict(inputs, timeout_s=timeout_s)
        except (Exception, asyncio.CancelledError) as error:
            names = _names(request, self._engine.limits.max_inputs)
            self._metrics.call_failed(names, statuses.code_of(error))
            note_failed(names, statuses.code_of(error))
            raise
        self._metrics.call_answered(prediction)
        note_answered(prediction)
        return wire.write_prediction(prediction)

    async def list_adapters(self) -> pb.ListAdaptersResponse:
        """Describe every version in the store."""
        descriptions = await self._engine.describe_all()
        return await asyncio.to_thread(wire.write_adapters, descriptions)

    async def get_adapter(self, reference: str) -> pb.Adapter:
        """Describe one adapter."""
        return wire.write_adapter(await self._engine.describe(Reference.parse(reference)))


class InferenceService(inference_pb2_grpc.InferenceServicer):
    """Serves ``upt.v1.Inference``."""

    def __init__(self, answers: Answers, recorder: Recorder, streams: Streams) -> None:
        self._answers, self._recorder, self._streams = answers, recorder, streams

    async def Predict(self, request: pb.PredictRequest, context: _Context) -> pb.PredictResponse:
        """Answer every input of the call."""
        async with ending_with_a_status(context):
            return await self._answers.predict(request, context.time_remaining())

    async def PredictStream(
        self, requests: AsyncIterator[pb.StreamRequest], context: _Context
    ) -> AsyncIterator[pb.StreamResponse]:
        """Answer the requests of a stream, each as soon as it is ready."""

        async def answer(request: pb.StreamRequest) -> pb.StreamResponse:
            try:
                timeout_s = context.time_remaining()
                with self._recorder.recording_part():
                    response = await self._answers.predict(request.request, timeout_s)
            except Exception as error:  # noqa: BLE001 - the edge: it ends its request, not the stream
                log_fault(error)
                return pb.StreamResponse(id=request.id, failure=wire.write_failure(error))
            return pb.StreamResponse(id=request.id, response=response)

        async with (
            ending_with_a_status(context),
            aclosing(self._streams.answer(requests, answer)) as responses,
        ):
            async for response in responses:
                yield response

    async def ListAdapters(
        self, request: pb.ListAdaptersRequest, context: _Context
    ) -> pb.ListAdaptersResponse:
        """Describe every version in the store."""
        async with ending_with_a_status(context):
            return await self._answers.list_adapters()

    async def GetAdapter(self, request: pb.GetAdapterRequest, context: _Context) -> pb.Adapter:
        """Describe one adapter."""
        async with ending_with_a_status(context):
            return await self._answers.get_adapter(request.adapter)


def _names(request: pb.PredictRequest, most: int) -> list[str]:
    """Return the first adapters' names, for metrics, of references that need not even parse."""
    given = (name for item in request.inputs for name in item.adapters or [item.adapter])
    return [name.partition("@")[0].partition(":")[0] for name in islice(given, most)]
