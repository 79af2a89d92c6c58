"""Clients of ``upt.v1``, for programs without torch.

    with Client() as client:
        output = client.predict("sst2", "a gripping, funny film")
        print(output.answer, output.adapter.version)

``Client`` blocks, ``AsyncClient`` is awaited; both raise the errors of ``upt_zoo.errors`` that the
server met, and ``TimeoutError`` where no answer came in time. A client holds one connection and may
be shared by threads, or by tasks.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Self, cast

import grpc

from upt_protos.v1 import inference_pb2 as pb
from upt_protos.v1 import inference_pb2_grpc
from upt_server import statuses, wire
from upt_server.inputs import Input
from upt_server.results import AdapterDescription, Output, Prediction
from upt_server.tls import ClientTls
from upt_zoo.errors import Unavailable
from upt_zoo.references import Reference

DEFAULT_TARGET = "127.0.0.1:8001"
DEFAULT_TIMEOUT_S = 30.0


class Client:
    """A blocking client; a context manager, or ended by ``close``. ``tls`` None: in the clear."""

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        tls: ClientTls | None = None,
    ) -> None:
        self._target, self._timeout_s = target, timeout_s
        self._channel = (
            grpc.secure_channel(target, tls.channel_credentials())
            if tls
            else grpc.insecure_channel(target)
        )
        self._stub = inference_pb2_grpc.InferenceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the connection up."""
        self._channel.close()

    def predict(self, adapter: str, *texts: str, fields: Mapping[str, str] | None = None) -> Output:
        """Answer one input: ``texts`` in the order of the task's fields, or ``fields`` by name.

        Raises:
            UptError: what the server says.
            TimeoutError: no answer in time.
        """
        return self._predict([_input(adapter, texts, fields)]).outputs[0]

    def predict_many(self, inputs: Iterable[tuple[str, Sequence[str]]]) -> Prediction:
        """Answer pairs of adapter and texts, of any adapters, in one call.

        Raises:
            UptError: what the server says; the message names the input.
            TimeoutError: no answer in time.
        """
        return self._predict([_input(adapter, texts) for adapter, texts in inputs])

    def adapters(self) -> tuple[AdapterDescription, ...]:
        """Describe every version of every adapter in the server's store.

        Raises:
            UptError: what the server says.
            TimeoutError: no answer in time.
        """
        with _our_errors(self._target):
            response = self._stub.ListAdapters(pb.ListAdaptersRequest(), timeout=self._timeout_s)
        return tuple(wire.read_adapter(message) for message in response.adapters)

    def adapter(self, reference: str) -> AdapterDescription:
        """Describe one adapter.

        Raises:
            UptError: what the server says.
            TimeoutError: no answer in time.
        """
        request = pb.GetAdapterRequest(adapter=reference)
        with _our_errors(self._target):
            return wire.read_adapter(self._stub.GetAdapter(request, timeout=self._timeout_s))

    def _predict(self, inputs: Sequence[Input]) -> Prediction:
        request = wire.write_request(inputs)
        with _our_errors(self._target):
            return wire.read_prediction(self._stub.Predict(request, timeout=self._timeout_s))


class AsyncClient:
    """The same, awaited; a cancelled call leaves the server's queue."""

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        tls: ClientTls | None = None,
    ) -> None:
        self._target, self._timeout_s = target, timeout_s
        self._channel = (
            grpc.aio.secure_channel(target, tls.channel_credentials())
            if tls
            else grpc.aio.insecure_channel(target)
        )
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
        self, adapter: str, *texts: str, fields: Mapping[str, str] | None = None
    ) -> Output:
        """Answer one input, as ``Client.predict``."""
        return (await self._predict([_input(adapter, texts, fields)])).outputs[0]

    async def predict_many(self, inputs: Iterable[tuple[str, Sequence[str]]]) -> Prediction:
        """Answer pairs of adapter and texts in one call, as ``Client.predict_many``."""
        return await self._predict([_input(adapter, texts) for adapter, texts in inputs])

    async def adapters(self) -> tuple[AdapterDescription, ...]:
        """Describe every version of every adapter, as ``Client.adapters``."""
        request = pb.ListAdaptersRequest()
        with _our_errors(self._target):
            response = await self._stub.ListAdapters(request, timeout=self._timeout_s)
        return tuple(wire.read_adapter(message) for message in response.adapters)

    async def adapter(self, reference: str) -> AdapterDescription:
        """Describe one adapter, as ``Client.adapter``."""
        request = pb.GetAdapterRequest(adapter=reference)
        with _our_errors(self._target):
            return wire.read_adapter(await self._stub.GetAdapter(request, timeout=self._timeout_s))

    async def _predict(self, inputs: Sequence[Input]) -> Prediction:
        request = wire.write_request(inputs)
        with _our_errors(self._target):
            return wire.read_prediction(await self._stub.Predict(request, timeout=self._timeout_s))


def _input(adapter: str, texts: Sequence[str], fields: Mapping[str, str] | None = None) -> Input:
    return Input(adapter=Reference.parse(adapter), texts=tuple(texts), fields=fields or {})


@contextmanager
def _our_errors(target: str) -> Iterator[None]:
    """Raise what the server met; a call that did not reach it is ``Unavailable``."""
    try:
        yield
    except grpc.RpcError as error:
        code, message = error.code(), error.details() or ""
        # pairs of key and value in both kinds of channel, of two types
        trailers = cast("Iterable[tuple[str, str | bytes]]", error.trailing_metadata() or ())
        details = next((value for key, value in trailers if key == statuses.DETAILS_KEY), None)
        if details is None and code is grpc.StatusCode.CANCELLED:
            # what gRPC says of calls that reached a stopping server and were never taken up
            raise Unavailable(f"{target} ended the call: it stops; try another server") from error
        if details is None and code is grpc.StatusCode.UNAVAILABLE:
            message = f"cannot reach {target}: {message}; is `upt-server run` running there?"
        data = details if isinstance(details, bytes) else b""
        raise statuses.error_of(code, message or code.name, data) from error
