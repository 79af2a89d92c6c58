"""Answers the protocol's questions from an engine, whichever edge they came in by."""

import asyncio
from dataclasses import dataclass
from functools import partial

from upt_protos.oip import open_inference_pb2 as pb
from upt_server import statuses
from upt_server.engine import Engine
from upt_server.metrics import Metrics
from upt_server.off_loop import SHORT_INPUTS, off_loop
from upt_server.open_inference import messages
from upt_server.open_inference.tensors import Tensor, make_tensors
from upt_server.results import Prediction
from upt_server.telemetry.records import note_answered, note_failed
from upt_zoo.errors import Forbidden, InvalidInput
from upt_zoo.references import Reference


@dataclass(frozen=True, slots=True, kw_only=True)
class Inferred:
    """The answer to one request: the outputs that it asked for, in their order."""

    prediction: Prediction
    tensors: tuple[Tensor, ...]


class OpenInferenceAnswers:
    """Every question of the protocol as a method, which raises what ``Engine`` raises.

    ``has_model_control``: callers may load and unload adapters.
    """

    def __init__(
        self, engine: Engine, metrics: Metrics, version: str, *, has_model_control: bool = False
    ) -> None:
        self._engine, self._metrics, self._version = engine, metrics, version
        self._has_model_control = has_model_control

    def is_ready(self) -> bool:
        """Say whether calls are admitted."""
        return self._engine.gate.is_open

    def server_metadata(self) -> pb.ServerMetadataResponse:
        """Name the server."""
        return pb.ServerMetadataResponse(
            name=messages.PLATFORM, version=self._version, extensions=messages.EXTENSIONS
        )

    async def is_model_ready(self, name: str, version: str) -> bool:
        """Say whether an adapter can be asked; it is loaded when it is."""
        about = await self._engine.describe(messages.read_reference(name, version))
        return self.is_ready() and not self._engine.is_refused(about.identity.digest)

    async def metadata(self, name: str, version: str) -> pb.ModelMetadataResponse:
        """Name an adapter's inputs, its task's text fields, and its outputs."""
        about = await self._engine.describe(messages.read_reference(name, version))
        return messages.write_metadata(about)

    async def config(self, name: str, version: str) -> pb.ModelConfig:
        """Say what an adapter takes, gives and is."""
        about = await self._engine.describe(messages.read_reference(name, version))
        return messages.write_config(about)

    async def statistics(self, name: str, version: str) -> pb.ModelStatisticsResponse:
        """Say what an adapter has answered since the start; without a name, every one of them."""
        if name:
            adapters = [await self._engine.describe(messages.read_reference(name, version))]
        else:
            adapters = list(await self._engine.describe_all())
        sums = self._metrics.statistics
        return pb.ModelStatisticsResponse(
            model_stats=[
                messages.write_statistics(each.identity, sums.of(each.identity))
                for each in adapters
            ]
        )

    async def index(self) -> pb.RepositoryIndexResponse:
        """List every version in the store."""
        return await asyncio.to_thread(messages.write_index, await self._engine.describe_all())

    async def load(self, request: pb.RepositoryModelLoadRequest) -> None:
        """Load an adapter before anybody asks for it; it may be evicted again.

        Raises:
            Forbidden: the server does not do this by this protocol.
            InvalidInput: a configuration or files come with the request.
        """
        reference = self._read_controlled(request.model_name)
        if request.parameters:
            names = ", ".join(sorted(request.parameters))[:200]
            raise InvalidInput(f"an adapter is loaded as it stands in the store; leave out {names}")
        await self._engine.lifecycle.load(reference)

    async def unload(self, request: pb.RepositoryModelUnloadRequest) -> None:
        """Drop an adapter from memory; the next call for it loads it again.

        Raises:
            Forbidden: the server does not do this by this protocol.
        """
        await self._engine.lifecycle.unload(self._read_controlled(request.model_name))

    async def infer(self, request: pb.ModelInferRequest, timeout_s: float | None) -> Inferred:
        """Answer one request: n texts for one adapter, within the shorter of both timeouts."""
        try:
            reference = messages.read_reference(request.model_name, request.model_version)
            inputs = await off_loop(
                partial(messages.read_inputs, request, reference, self._engine.limits),
                is_short=all(sum(tensor.shape[:1]) <= SHORT_INPUTS for tensor in request.inputs),
            )
            timeouts = (timeout_s, messages.read_timeout_s(request))
            prediction = await self._engine.predict(
                inputs, timeout_s=min((each for each in timeouts if each is not None), default=None)
            )
            tensors = make_tensors(prediction.outputs, [each.name for each in request.outputs])
        except (Exception, asyncio.CancelledError) as error:
            name = request.model_name.partition("@")[0].partition(":")[0]
            self._metrics.call_failed([name], statuses.code_of(error))
            note_failed([name], statuses.code_of(error))
            raise
        self._metrics.call_answered(prediction)
        note_answered(prediction)
        return Inferred(prediction=prediction, tensors=tensors)

    def _read_controlled(self, name: str) -> Reference:
        if not self._has_model_control:
            raise Forbidden(
                "this server neither loads nor unloads by this protocol: adapters load when asked; "
                "start it with --model-control, or call upt.v1.Admin"
            )
        return Reference.parse(name)
