"""The Open Inference Protocol beside ``upt.v1``: a model is an adapter. Translation only.

Source: kserve/open-inference-protocol, specification/protocol/inference_grpc.md, and Triton's
streaming and repository index. ``upt_server.client`` must not import this: two copies of the
protocol's stubs cannot live in one process, and callers may bring Triton's.
"""

import asyncio
import logging
import struct
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeAlias, TypeVar

import grpc
import numpy as np
from numpy.typing import NDArray

from upt_protos.oip import open_inference_pb2 as pb
from upt_protos.oip import open_inference_pb2_grpc
from upt_server import statuses
from upt_server.calls import ending_with_a_status
from upt_server.engine import Engine
from upt_server.inputs import Input, check_count
from upt_server.metrics import Metrics
from upt_server.results import AdapterDescription, Output, Prediction
from upt_zoo.answers import LabelAnswer, LabelSetAnswer, SpanAnswer, ValueAnswer
from upt_zoo.errors import InvalidInput, InvalidText
from upt_zoo.references import Reference
from upt_zoo.spec import MAX_FIELDS, HeadKind

_Context: TypeAlias = "grpc.aio.ServicerContext[object, object]"
_Result = TypeVar("_Result")
_Values: TypeAlias = "NDArray[np.float32] | NDArray[np.int64] | list[bytes]"

PLATFORM = "upt"
_LOGGER = logging.getLogger(__name__)
_STREAM_REQUESTS = 64  # of one stream at work at once; more wait in the connection
_ALL_STREAM_REQUESTS = 1024  # of all streams, as many as there may be calls
# the outputs of each kind of head; -1 stands for the number of inputs, 0 for that of the logits
_OUTPUTS: Mapping[HeadKind, tuple[tuple[str, str, tuple[int, ...]], ...]] = {
    "classification": (
        ("label", "BYTES", (-1,)),
        ("score", "FP32", (-1,)),
        ("logits", "FP32", (-1, 0)),
    ),
    "multi_label": (("label", "BYTES", (-1,)), ("logits", "FP32", (-1, 0))),
    "regression": (("score", "FP32", (-1,)),),
    "span": (
        ("answer", "BYTES", (-1,)),
        ("start", "INT64", (-1,)),
        ("end", "INT64", (-1,)),
        ("score", "FP32", (-1,)),
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tensor:
    """One output of a call: BYTES as a list, the others as arrays."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: _Values


class OpenInferenceService(open_inference_pb2_grpc.GRPCInferenceServiceServicer):
    """Serves ``inference.GRPCInferenceService`` from an engine."""

    def __init__(self, engine: Engine, metrics: Metrics, version: str) -> None:
        self._engine, self._metrics, self._version = engine, metrics, version
        self._stream_requests = asyncio.Semaphore(_ALL_STREAM_REQUESTS)

    async def ServerLive(self, request: object, context: _Context) -> pb.ServerLiveResponse:
        """Say that the process lives."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: object, context: _Context) -> pb.ServerReadyResponse:
        """Say whether calls are admitted."""
        return pb.ServerReadyResponse(ready=self._engine.gate.is_open)

    async def ServerMetadata(
        self, request: pb.ServerMetadataRequest, context: _Context
    ) -> pb.ServerMetadataResponse:
        """Name the server."""
        return pb.ServerMetadataResponse(
            name=PLATFORM, version=self._version, extensions=["model_repository"]
        )

    async def ModelReady(
        self, request: pb.ModelReadyRequest, context: _Context
    ) -> pb.ModelReadyResponse:
        """Say whether an adapter can be asked; it is loaded when it is."""
        async with ending_with_a_status(context):
            await self._engine.describe(_reference(request.name, request.version))
            return pb.ModelReadyResponse(ready=self._engine.gate.is_open)

    async def ModelMetadata(
        self, request: pb.ModelMetadataRequest, context: _Context
    ) -> pb.ModelMetadataResponse:
        """Name an adapter's inputs, its task's text fields, and its outputs."""
        async with ending_with_a_status(context):
            about = await self._engine.describe(_reference(request.name, request.version))
            return _metadata(about)

    async def ModelInfer(
        self, request: pb.ModelInferRequest, context: _Context
    ) -> pb.ModelInferResponse:
        """Answer one call: n texts for one adapter."""
        async with ending_with_a_status(context):
            return await self._infer(request, context.time_remaining())

    async def ModelStreamInfer(
        self, requests: AsyncIterator[pb.ModelInferRequest], context: _Context
    ) -> AsyncIterator[pb.ModelStreamInferResponse]:
        """Answer the requests of a stream, many at once, in their order."""
        waiting: asyncio.Queue[asyncio.Task[pb.ModelStreamInferResponse] | None]
        waiting = asyncio.Queue(_STREAM_REQUESTS)
        tasks: set[asyncio.Task[object]] = set()

        def start(work: Coroutine[object, object, _Result]) -> "asyncio.Task[_Result]":
            task = asyncio.create_task(work)
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            return task

        async def read() -> None:
            try:
                async for request in requests:
                    await self._stream_requests.acquire()
                    task = start(self._infer_for_stream(request))
                    # by the task's end, since one that is cancelled early never runs a line
                    task.add_done_callback(lambda _: self._stream_requests.release())
                    await waiting.put(task)
            except Exception:
                _LOGGER.exception("a stream could not be read to its end")
            await waiting.put(None)

        start(read())
        try:
            while (answer := await waiting.get()) is not None:
                yield await answer
        finally:
            for task in list(tasks):  # the caller has left: what is at work frees its place
                task.cancel()

    async def RepositoryIndex(
        self, request: pb.RepositoryIndexRequest, context: _Context
    ) -> pb.RepositoryIndexResponse:
        """List every version in the store; all can be asked, none has to be loaded first."""
        async with ending_with_a_status(context):
            adapters = await self._engine.describe_all()
            return pb.RepositoryIndexResponse(
                models=[
                    pb.RepositoryIndexResponse.ModelIndex(
                        name=each.identity.name, version=each.identity.version, state="READY"
                    )
                    for each in adapters
                ]
            )

    async def _infer_for_stream(self, request: pb.ModelInferRequest) -> pb.ModelStreamInferResponse:
        try:
            response = await self._infer(request, None)
        except Exception as error:  # the edge: an error ends its request, not the stream
            if statuses.code_of(error) is grpc.StatusCode.INTERNAL:
                _LOGGER.exception("a request of a stream failed")
            return pb.ModelStreamInferResponse(
                error_message=statuses.message_of(error),
                infer_response=pb.ModelInferResponse(id=request.id),
            )
        return pb.ModelStreamInferResponse(infer_response=response)

    async def _infer(
        self, request: pb.ModelInferRequest, timeout_s: float | None
    ) -> pb.ModelInferResponse:
        try:
            reference = _reference(request.model_name, request.model_version)
            inputs = _read_inputs(request, reference, self._engine)
            prediction = await self._engine.predict(inputs, timeout_s=timeout_s)
            response = _write_response(request, prediction)
        except (Exception, asyncio.CancelledError) as error:
            name = request.model_name.partition("@")[0].partition(":")[0]
            self._metrics.call_failed([name], statuses.code_of(error))
            raise
        self._metrics.call_answered(prediction)
        return response


def _reference(name: str, version: str) -> Reference:
    """Read an adapter's reference; the protocol has a field of its own for a version."""
    reference = Reference.parse(name)
    if not version or reference.tag == version:
        return reference
    if reference.tag is not None:
        raise InvalidInput(f"the model {name} is asked for in version {version}: expected one")
    return Reference.parse(f"{name}:{version}")


def _read_inputs(
    request: pb.ModelInferRequest, reference: Reference, engine: Engine
) -> list[Input]:
    """Read n inputs: one tensor of n texts for each field of the task."""
    if len(request.inputs) > MAX_FIELDS:
        raise InvalidInput(f"a task takes at most {MAX_FIELDS} inputs, got {len(request.inputs)}")
    count = max((tensor.shape[0] for tensor in request.inputs if tensor.shape), default=0)
    check_count(count, engine.limits)
    _check_wanted(request)
    raw: Sequence[bytes | None] = request.raw_input_contents or [None] * len(request.inputs)
    if len(raw) != len(request.inputs):
        raise InvalidInput(
            f"expected raw contents for all {len(request.inputs)} inputs, got {len(raw)}"
        )
    fields = {
        tensor.name: _read_texts(tensor, content, count)
        for tensor, content in zip(request.inputs, raw, strict=True)
    }
    if len(fields) != len(request.inputs):
        raise InvalidInput("an input's name comes twice")
    return [
        Input(adapter=reference, fields={name: texts[index] for name, texts in fields.items()})
        for index in range(count)
    ]


def _check_wanted(request: pb.ModelInferRequest) -> None:
    """Refuse what no head can give before anything is computed."""
    names = [output.name for output in request.outputs]
    known = {name for outputs in _OUTPUTS.values() for name, _, _ in outputs}
    if len(names) > len(known) or len(set(names)) < len(names) or not known.issuperset(names):
        raise InvalidInput(f"expected each output once, of {', '.join(sorted(known))}")


def _read_texts(
    tensor: pb.ModelInferRequest.InferInputTensor, raw: bytes | None, count: int
) -> list[str]:
    shape = tuple(tensor.shape)
    if tensor.datatype != "BYTES" or shape not in ((count,), (count, 1)):
        raise InvalidInput(
            f"input {tensor.name}: expected BYTES of shape [{count}], got {tensor.datatype} of "
            f"shape {list(shape)}; all inputs of a call have as many texts"
        )
    given = tensor.contents.bytes_contents if raw is None else _split_raw(raw)
    elements = list(islice(given, count + 1))  # one too many shows that there are others
    if len(elements) != count:
        raise InvalidInput(f"input {tensor.name}: expected {count} texts, got others")
    try:
        return [element.decode() for element in elements]
    except UnicodeDecodeError as error:
        raise InvalidText(f"input {tensor.name}: expected UTF-8: {error.reason}") from error


def _split_raw(raw: bytes) -> Iterator[bytes]:
    """Yield the elements of raw BYTES, each behind its length in four bytes, little-endian."""
    place = 0
    while place < len(raw):
        start = place + 4
        if start > len(raw):
            raise InvalidInput("raw contents end within a length")
        place = start + int.from_bytes(raw[place:start], "little")
        if place > len(raw):
            raise InvalidInput("raw contents end within a text")
        yield raw[start:place]


def _metadata(about: AdapterDescription) -> pb.ModelMetadataResponse:
    tensor = pb.ModelMetadataResponse.TensorMetadata
    return pb.ModelMetadataResponse(
        name=about.identity.name,
        versions=[about.identity.version],
        platform=PLATFORM,
        inputs=[tensor(name=name, datatype="BYTES", shape=[-1]) for name in about.fields],
        outputs=[
            tensor(
                name=name, datatype=datatype, shape=[size or len(about.labels) for size in shape]
            )
            for name, datatype, shape in _OUTPUTS[about.head]
        ],
    )


def _write_response(request: pb.ModelInferRequest, prediction: Prediction) -> pb.ModelInferResponse:
    adapter = prediction.outputs[0].adapter
    tensors = _wanted([each.name for each in request.outputs], _tensors(prediction.outputs))
    response = pb.ModelInferResponse(
        model_name=request.model_name, model_version=adapter.version, id=request.id
    )
    facts = {
        "adapter": f"{adapter.name}:{adapter.version}",
        "digest": adapter.digest,
        "backbone_digest": prediction.backbone_digest,
        "precision": prediction.precision,
    }
    for name, value in facts.items():
        response.parameters[name].string_param = value
    for tensor in tensors:
        output = response.outputs.add(
            name=tensor.name, datatype=tensor.datatype, shape=tensor.shape
        )
        if request.raw_input_contents:
            response.raw_output_contents.append(_raw(tensor.values))
        else:
            _fill(output.contents, tensor.values)
    return response


def _wanted(names: Sequence[str], tensors: Sequence[_Tensor]) -> list[_Tensor]:
    """Choose the outputs asked for; all of them where none is named."""
    by_name = {tensor.name: tensor for tensor in tensors}
    if unknown := [name for name in names if name not in by_name]:
        raise InvalidInput(f"no output {', '.join(unknown)}; there are {', '.join(by_name)}")
    return [by_name[name] for name in names] or list(tensors)


def _tensors(outputs: Sequence[Output]) -> list[_Tensor]:
    """Turn the answers of one adapter, which are of one kind, into tensors."""
    kind, columns = _columns(outputs)
    width = len(outputs[0].logits)
    sizes = {-1: len(outputs), 0: width}
    return [
        _Tensor(
            name=name,
            datatype=datatype,
            shape=tuple(sizes[size] for size in shape),
            values=_WRITERS[datatype](columns[name]),
        )
        for name, datatype, shape in _OUTPUTS[kind]
    ]


def _columns(outputs: Sequence[Output]) -> tuple[HeadKind, dict[str, list[object]]]:
    answers = [output.answer for output in outputs]
    logits: list[object] = [value for output in outputs for value in output.logits]
    match answers[0]:
        case LabelAnswer():
            kind: HeadKind = "classification"
            names = {"label": "label", "score": "score"}
        case LabelSetAnswer():
            labels: list[object] = [",".join(each.labels) for each in answers]  # type: ignore[union-attr]  # all of one kind
            return "multi_label", {"label": labels, "logits": logits}
        case ValueAnswer():
            kind, names = "regression", {"score": "value"}
        case SpanAnswer():
            kind = "span"
            names = {"answer": "text", "start": "start", "end": "end", "score": "score"}
    columns = {name: [getattr(each, field) for each in answers] for name, field in names.items()}
    return kind, columns | {"logits": logits}


_WRITERS: Mapping[str, Callable[[list[object]], _Values]] = {
    "BYTES": lambda values: [str(value).encode() for value in values],
    "FP32": lambda values: np.array(values, np.float32),
    "INT64": lambda values: np.array(values, np.int64),
}


def _raw(values: _Values) -> bytes:
    if isinstance(values, list):
        return b"".join(struct.pack("<I", len(value)) + value for value in values)
    return values.astype(values.dtype.newbyteorder("<")).tobytes()


def _fill(contents: pb.InferTensorContents, values: _Values) -> None:
    if isinstance(values, list):
        contents.bytes_contents.extend(values)
    elif values.dtype == np.int64:
        contents.int64_contents.extend(values.tolist())
    else:
        contents.fp32_contents.extend(values.tolist())
