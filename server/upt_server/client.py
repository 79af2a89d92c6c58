"""Clients of ``upt.v1``, for programs without torch.

    with Client() as client:
        output = client.predict("sst2", "a gripping, funny film")
        print(output.answer, output.adapter.version)

``Client`` blocks, ``AsyncClient`` is awaited; both raise the errors of ``upt_zoo.errors`` that the
server met, and ``TimeoutError`` where no answer came in time. A client holds one connection and may
be shared by threads, or by tasks.

With ``retry_for_s`` a client asks again while the server is away or overloaded, as ``Retries`` of
``upt_server.retries`` says: what it asks changes nothing, so that asking twice is as good as once.
Streams are not begun again.
"""

import asyncio
import time
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from typing import Self, TypeVar, cast

from google.protobuf.message import Message

from upt_protos.v1 import inference_pb2 as pb
from upt_protos.v1 import inference_pb2_grpc
from upt_server import wire
from upt_server.channels import open_async_channel, open_channel, our_errors
from upt_server.inputs import Input, Options
from upt_server.portions import INPUTS_A_CALL, portions
from upt_server.results import AdapterDescription, Output, Prediction
from upt_server.retries import Retries
from upt_server.telemetry.outgoing import outgoing_context
from upt_server.tls import ClientTls
from upt_zoo.errors import InvalidInput, Overloaded, Unavailable
from upt_zoo.references import Reference

DEFAULT_TARGET = "127.0.0.1:8001"
DEFAULT_TIMEOUT_S = 30.0
DEFAULT_OPTIONS = Options()
_Response = TypeVar("_Response", bound=Message)


class Client:
    """A blocking client; a context manager, or ended by ``close``.

    ``tls`` None: in the clear. ``token`` says who calls; without TLS it never leaves this machine.
    ``timeout_s`` is that of one attempt.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        tls: ClientTls | None = None,
        token: str | None = None,
        retry_for_s: float = 0.0,
    ) -> None:
        self._target, self._timeout_s, self._retry_for_s = target, timeout_s, retry_for_s
        self._channel = open_channel(target, tls, token)
        self._stub = inference_pb2_grpc.InferenceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the connection up."""
        self._channel.close()

    def predict(
        self,
        adapter: str,
        *texts: str,
        fields: Mapping[str, str] | None = None,
        options: Options = DEFAULT_OPTIONS,
    ) -> Output:
        """Answer one input: ``texts`` in the order of the task's fields, or ``fields`` by name.

        Raises:
            UptError: what the server says.
            TimeoutError: no answer in time.
        """
        inputs = [_input(adapter, texts, fields, options)]
        return self._predict(wire.write_request(inputs)).outputs[0]

    def predict_many(
        self, inputs: Iterable[tuple[str, Sequence[str]]], *, options: Options = DEFAULT_OPTIONS
    ) -> Prediction:
        """Answer pairs of adapter and texts, of any adapters, in one call.

        Raises:
            UptError: what the server says; the message names the input.
            TimeoutError: no answer in time.
        """
        given = [_input(adapter, texts, None, options) for adapter, texts in inputs]
        return self._predict(wire.write_request(given))

    def predict_each(
        self,
        adapters: Iterable[str],
        *texts: str,
        fields: Mapping[str, str] | None = None,
        options: Options = DEFAULT_OPTIONS,
    ) -> Prediction:
        """Answer one input by each of several adapters, in their order; it is sent once.

        Raises:
            UptError: what the server says; the message names the adapter's place.
            TimeoutError: no answer in time.
        """
        inputs = [_input(adapter, texts, fields, options) for adapter in adapters]
        return self._predict(wire.write_shared(inputs))

    def predict_all(
        self,
        inputs: Iterable[tuple[str, Sequence[str]]],
        *,
        inputs_a_call: int = INPUTS_A_CALL,
        options: Options = DEFAULT_OPTIONS,
    ) -> Iterator[Output]:
        """Answer any number of pairs of adapter and texts, in their order, call after call.

        A call takes at most ``inputs_a_call`` of them, and fewer long ones; ``inputs`` are read as
        the outputs are. Where a call fails, its outputs are missing: of the input that the message
        names, the place is that in the call, behind all that were answered.

        Raises:
            InvalidInput: ``inputs_a_call`` is less than one.
            UptError: what the server says.
            TimeoutError: no answer in time to one of the calls.
        """
        for portion in portions(inputs, inputs_a_call):
            yield from self.predict_many(portion, options=options).outputs

    def predict_stream(
        self, inputs: Iterable[tuple[str, Sequence[str]]], *, options: Options = DEFAULT_OPTIONS
    ) -> Iterator[tuple[int, Output | Exception]]:
        """Answer any number of pairs of adapter and texts, each as soon as it is ready.

        Yields each input's place in ``inputs``, from 0, and its output, or the ``UptError`` or
        ``TimeoutError`` that ended it alone. ``inputs`` are read in another thread, a little ahead.
        Leaving the loop cancels what is at work. There is no limit to the time of the whole.

        Raises:
            UptError: the stream as a whole failed.
            Exception: what ``inputs`` raise, or a pair that is none, once all before is answered.
        """
        broken: list[Exception] = []

        def requests() -> Iterator[pb.StreamRequest]:
            try:
                for place, pair in enumerate(inputs):
                    yield _stream_request(place, *pair, options)
            except Exception as error:  # noqa: BLE001 - raised below: gRPC would swallow it
                broken.append(error)

        stream = self._stub.PredictStream(requests(), metadata=outgoing_context())
        try:
            with our_errors(self._target):
                for message in stream:
                    yield _read_answer(message)
        finally:
            stream.cancel()
        for error in broken:
            raise error

    def adapters(self) -> tuple[AdapterDescription, ...]:
        """Describe every version of every adapter in the server's store.

        Raises:
            UptError: what the server says.
            TimeoutError: no answer in time.
        """
        response = self._ask(self._stub.ListAdapters, pb.ListAdaptersRequest())
        return tuple(wire.read_adapter(message) for message in response.adapters)

    def adapter(self, reference: str) -> AdapterDescription:
        """Describe one adapter.

        Raises:
            UptError: what the server says.
            TimeoutError: no answer in time.
        """
        request = pb.GetAdapterRequest(adapter=reference)
        return wire.read_adapter(self._ask(self._stub.GetAdapter, request))

    def _predict(self, request: pb.PredictRequest) -> Prediction:
        return wire.read_prediction(self._ask(self._stub.Predict, request))

    def _ask(self, ask: Callable[..., _Response], request: Message) -> _Response:
        retries = Retries(self._retry_for_s)
        while True:
            try:
                with our_errors(self._target):
                    return ask(request, timeout=self._timeout_s, metadata=outgoing_context())
            except (Overloaded, Unavailable) as error:
                pause_s = retries.pause_s(error)
            time.sleep(pause_s)


class AsyncClient:
    """The same, awaited; a cancelled call leaves the server's queue."""

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        tls: ClientTls | None = None,
        token: str | None = None,
        retry_for_s: float = 0.0,
    ) -> None:
        self._target, self._timeout_s, self._retry_for_s = target, timeout_s, retry_for_s
        self._channel = open_async_channel(target, tls, token)
        # one class serves both kinds of channel; its types stand under two names
        self._stub = cast(
            "inference_pb2_grpc.InferenceAsyncStub", inference_pb2_grpc.InferenceStub(self._channel)
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Give the connection up."""
        await self._channel.close()

    async def predict(
        self,
        adapter: str,
        *texts: str,
        fields: Mapping[str, str] | None = None,
        options: Options = DEFAULT_OPTIONS,
    ) -> Output:
        """Answer one input, as ``Client.predict``."""
        inputs = [_input(adapter, texts, fields, options)]
        return (await self._predict(wire.write_request(inputs))).outputs[0]

    async def predict_many(
        self, inputs: Iterable[tuple[str, Sequence[str]]], *, options: Options = DEFAULT_OPTIONS
    ) -> Prediction:
        """Answer pairs of adapter and texts in one call, as ``Client.predict_many``."""
        given = [_input(adapter, texts, None, options) for adapter, texts in inputs]
        return await self._predict(wire.write_request(given))

    async def predict_each(
        self,
        adapters: Iterable[str],
        *texts: str,
        fields: Mapping[str, str] | None = None,
        options: Options = DEFAULT_OPTIONS,
    ) -> Prediction:
        """Answer one input by each of several adapters, as ``Client.predict_each``."""
        inputs = [_input(adapter, texts, fields, options) for adapter in adapters]
        return await self._predict(wire.write_shared(inputs))

    async def predict_all(
        self,
        inputs: Iterable[tuple[str, Sequence[str]]],
        *,
        inputs_a_call: int = INPUTS_A_CALL,
        options: Options = DEFAULT_OPTIONS,
    ) -> AsyncIterator[Output]:
        """Answer any number of pairs of adapter and texts in order, as ``Client.predict_all``."""
        for portion in portions(inputs, inputs_a_call):
            for output in (await self.predict_many(portion, options=options)).outputs:
                yield output

    async def predict_stream(
        self,
        inputs: AsyncIterable[tuple[str, Sequence[str]]],
        *,
        options: Options = DEFAULT_OPTIONS,
    ) -> AsyncIterator[tuple[int, Output | Exception]]:
        """Answer any number of pairs of adapter and texts, as ``Client.predict_stream``."""

        broken: list[Exception] = []

        async def requests() -> AsyncIterator[pb.StreamRequest]:
            place = 0
            try:
                async for adapter, texts in inputs:
                    yield _stream_request(place, adapter, texts, options)
                    place += 1
            except Exception as error:  # noqa: BLE001 - raised below: gRPC would swallow it
                broken.append(error)

        stream = self._stub.PredictStream(requests(), metadata=outgoing_context())
        try:
            with our_errors(self._target):
                async for message in stream:
                    yield _read_answer(message)
        finally:
            stream.cancel()
        for error in broken:
            raise error

    async def adapters(self) -> tuple[AdapterDescription, ...]:
        """Describe every version of every adapter, as ``Client.adapters``."""
        request = pb.ListAdaptersRequest()
        response = await self._ask(self._stub.ListAdapters, request)
        return tuple(wire.read_adapter(message) for message in response.adapters)

    async def adapter(self, reference: str) -> AdapterDescription:
        """Describe one adapter, as ``Client.adapter``."""
        request = pb.GetAdapterRequest(adapter=reference)
        return wire.read_adapter(await self._ask(self._stub.GetAdapter, request))

    async def _predict(self, request: pb.PredictRequest) -> Prediction:
        return wire.read_prediction(await self._ask(self._stub.Predict, request))

    async def _ask(self, ask: Callable[..., Awaitable[_Response]], request: Message) -> _Response:
        retries = Retries(self._retry_for_s)
        while True:
            try:
                with our_errors(self._target):
                    return await ask(request, timeout=self._timeout_s, metadata=outgoing_context())
            except (Overloaded, Unavailable) as error:
                pause_s = retries.pause_s(error)
            await asyncio.sleep(pause_s)


def _input(
    adapter: str, texts: Sequence[str], fields: Mapping[str, str] | None, options: Options
) -> Input:
    if isinstance(texts, str):  # whose letters would be the texts
        raise InvalidInput("expected the texts of an input as a list, got one text; write [TEXT]")
    return Input(
        adapter=Reference.parse(adapter),
        texts=tuple(texts),
        fields=fields or {},
        options=options,
    )


def _stream_request(
    place: int, adapter: str, texts: Sequence[str], options: Options
) -> pb.StreamRequest:
    request = wire.write_request([_input(adapter, texts, None, options)])
    return pb.StreamRequest(id=str(place), request=request)


def _read_answer(message: pb.StreamResponse) -> tuple[int, Output | Exception]:
    if message.WhichOneof("result") == "failure":
        return int(message.id), wire.read_failure(message.failure)
    return int(message.id), wire.read_prediction(message.response).outputs[0]
