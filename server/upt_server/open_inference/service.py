"""The protocol over gRPC: ``inference.GRPCInferenceService``."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import TypeAlias

import grpc
import numpy as np

from upt_protos.oip import open_inference_pb2 as pb
from upt_protos.oip import open_inference_pb2_grpc
from upt_server import statuses
from upt_server.calls import ending_with_a_status, log_fault
from upt_server.open_inference.answers import Inferred, OpenInferenceAnswers
from upt_server.open_inference.messages import facts_of
from upt_server.open_inference.tensors import Values
from upt_server.streams import Streams
from upt_server.telemetry.recorder import Recorder

_Context: TypeAlias = "grpc.aio.ServicerContext[object, object]"


class OpenInferenceService(open_inference_pb2_grpc.GRPCInferenceServiceServicer):
    """Serves ``inference.GRPCInferenceService``."""

    def __init__(self, answers: OpenInferenceAnswers, recorder: Recorder, streams: Streams) -> None:
        self._answers, self._recorder, self._streams = answers, recorder, streams

    async def ServerLive(self, request: object, context: _Context) -> pb.ServerLiveResponse:
        """Say that the process lives."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: object, context: _Context) -> pb.ServerReadyResponse:
        """Say whether calls are admitted."""
        return pb.ServerReadyResponse(ready=self._answers.is_ready())

    async def ServerMetadata(
        self, request: pb.ServerMetadataRequest, context: _Context
    ) -> pb.ServerMetadataResponse:
        """Name the server."""
        return self._answers.server_metadata()

    async def ModelReady(
        self, request: pb.ModelReadyRequest, context: _Context
    ) -> pb.ModelReadyResponse:
        """Say whether an adapter can be asked; it is loaded when it is."""
        async with ending_with_a_status(context):
            is_ready = await self._answers.is_model_ready(request.name, request.version)
            return pb.ModelReadyResponse(ready=is_ready)

    async def ModelMetadata(
        self, request: pb.ModelMetadataRequest, context: _Context
    ) -> pb.ModelMetadataResponse:
        """Name an adapter's inputs, its task's text fields, and its outputs."""
        async with ending_with_a_status(context):
            return await self._answers.metadata(request.name, request.version)

    async def ModelConfig(
        self, request: pb.ModelConfigRequest, context: _Context
    ) -> pb.ModelConfigResponse:
        """Say what an adapter takes, gives and is."""
        async with ending_with_a_status(context):
            config = await self._answers.config(request.name, request.version)
            return pb.ModelConfigResponse(config=config)

    async def ModelStatistics(
        self, request: pb.ModelStatisticsRequest, context: _Context
    ) -> pb.ModelStatisticsResponse:
        """Say what one adapter, or each, has answered since the start."""
        async with ending_with_a_status(context):
            return await self._answers.statistics(request.name, request.version)

    async def ModelInfer(
        self, request: pb.ModelInferRequest, context: _Context
    ) -> pb.ModelInferResponse:
        """Answer one call: n texts for one adapter."""
        async with ending_with_a_status(context):
            inferred = await self._answers.infer(request, context.time_remaining())
            return _write(request, inferred)

    async def ModelStreamInfer(
        self, requests: AsyncIterator[pb.ModelInferRequest], context: _Context
    ) -> AsyncIterator[pb.ModelStreamInferResponse]:
        """Answer the requests of a stream, many at once, in their order."""
        async with (
            ending_with_a_status(context),
            aclosing(
                self._streams.answer(requests, self._infer_for_stream, in_order=True)
            ) as responses,
        ):
            async for response in responses:
                yield response

    async def RepositoryIndex(
        self, request: pb.RepositoryIndexRequest, context: _Context
    ) -> pb.RepositoryIndexResponse:
        """List every version in the store; all can be asked, none has to be loaded first."""
        async with ending_with_a_status(context):
            return await self._answers.index()

    async def RepositoryModelLoad(
        self, request: pb.RepositoryModelLoadRequest, context: _Context
    ) -> pb.RepositoryModelLoadResponse:
        """Load an adapter before anybody asks for it."""
        async with ending_with_a_status(context):
            await self._answers.load(request)
            return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(
        self, request: pb.RepositoryModelUnloadRequest, context: _Context
    ) -> pb.RepositoryModelUnloadResponse:
        """Drop an adapter from memory."""
        async with ending_with_a_status(context):
            await self._answers.unload(request)
            return pb.RepositoryModelUnloadResponse()

    async def _infer_for_stream(self, request: pb.ModelInferRequest) -> pb.ModelStreamInferResponse:
        try:
            with self._recorder.recording_part():
                response = _write(request, await self._answers.infer(request, None))
        except Exception as error:  # noqa: BLE001 - the edge: it ends its request, not the stream
            log_fault(error)
            return pb.ModelStreamInferResponse(
                error_message=statuses.message_of(error),
                infer_response=pb.ModelInferResponse(id=request.id),
            )
        return pb.ModelStreamInferResponse(infer_response=response)


def _write(request: pb.ModelInferRequest, inferred: Inferred) -> pb.ModelInferResponse:
    """Write an answer, raw where the request came so."""
    response = pb.ModelInferResponse(
        model_name=request.model_name,
        model_version=inferred.prediction.outputs[0].adapter.version,
        id=request.id,
    )
    for name, value in facts_of(inferred.prediction).items():
        response.parameters[name].string_param = value
    for tensor in inferred.tensors:
        output = response.outputs.add(
            name=tensor.name, datatype=tensor.datatype, shape=tensor.shape
        )
        if request.raw_input_contents:
            response.raw_output_contents.append(tensor.raw())
        else:
            _fill(output.contents, tensor.values)
    return response


def _fill(contents: pb.InferTensorContents, values: Values) -> None:
    if isinstance(values, list):
        contents.bytes_contents.extend(values)
    elif values.dtype == np.int64:
        contents.int64_contents.extend(values.tolist())
    else:
        contents.fp32_contents.extend(values.tolist())
