"""Calls that Ray's gRPC proxy hands on, answered as the server's own gRPC answers them.

The same services answer, behind the same interceptors. Ray knows a call by its method's name and
gives it a context of its own, which travels back to the proxy with each message.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias, cast

import grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from ray.serve.grpc_util import RayServegRPCContext

_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_MaybeHandler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"
_Metadata: TypeAlias = Sequence[tuple[str, str]]
# the types of gRPC know blocking servers only
_Answer = Callable[[AsyncIterator[Message], "ReplicaContext"], Awaitable[Message]]
_AnswerStream = Callable[[AsyncIterator[Message], "ReplicaContext"], AsyncIterator[Message]]


@dataclass(frozen=True, slots=True)
class _Details:
    """What interceptors are told of a call, as ``grpc.HandlerCallDetails``."""

    method: str
    invocation_metadata: _Metadata


class Handlers:
    """Collects the handlers of services as a gRPC server does, by the paths of their methods."""

    def __init__(self) -> None:
        self.by_path: dict[str, _Handler] = {}

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """Pass over what is added by name too."""

    def add_registered_method_handlers(
        self, service: str, handlers: Mapping[str, _Handler]
    ) -> None:
        """Add a service's handlers."""
        self.by_path |= {f"/{service}/{name}": handler for name, handler in handlers.items()}


class Calls:
    """Answers calls by their paths. Every answer passes the interceptors, the first one first."""

    def __init__(
        self, handlers: Handlers, interceptors: Sequence[grpc.aio.ServerInterceptor]
    ) -> None:
        self._handlers, self._interceptors = handlers, interceptors

    async def answer(self, path: str, request: Message, context: RayServegRPCContext) -> Message:
        """Answer a call of one message; an error is a status in the context, with its details."""
        own = ReplicaContext(context)
        handler = await self._handler(path, own)
        try:
            if handler.stream_unary:
                return await cast("_Answer", handler.stream_unary)(_only(request), own)
            async for response in cast("_AnswerStream", handler.stream_stream)(_only(request), own):
                return response  # none comes: it is a refusal
        except grpc.aio.AbortError:
            pass
        return Empty()  # gRPC sends no message beside an error

    async def answer_stream(
        self, path: str, requests: AsyncIterator[Message], context: RayServegRPCContext
    ) -> AsyncIterator[Message]:
        """Answer a stream.

        Raises:
            AbortError: it ended with an error, whose status is in the context.
        """
        own = ReplicaContext(context)
        handler = await self._handler(path, own)
        async for response in cast("_AnswerStream", handler.stream_stream)(requests, own):
            yield response

    async def _handler(self, path: str, context: "ReplicaContext") -> _Handler:
        async def found(_: object) -> _MaybeHandler:
            return self._handlers.by_path.get(path)

        find: Callable[..., Awaitable[Any]] = found
        for interceptor in reversed(self._interceptors):
            find = partial(interceptor.intercept_service, find)
        handler: _Handler = await find(_Details(path, context.invocation_metadata()))
        return handler


class ReplicaContext:
    """What the services ask of gRPC's context, kept in Ray's."""

    def __init__(self, context: RayServegRPCContext) -> None:
        self._context = context
        self._trailers: _Metadata = ()

    def invocation_metadata(self) -> _Metadata:
        """Return what came with the call."""
        return self._context.invocation_metadata()

    def peer(self) -> str:
        """Say who called the proxy."""
        return self._context.peer()

    def time_remaining(self) -> None:
        """Return no deadline: the proxy keeps it, and cancels the call when it has passed."""

    def code(self) -> object:
        """Return the status, if one was set."""
        return self._context.code()

    def trailing_metadata(self) -> _Metadata:
        """Return what was set."""
        return self._trailers

    def set_trailing_metadata(self, trailers: _Metadata) -> None:
        """Set what goes with the status."""
        self._trailers = trailers
        self._context.set_trailing_metadata(list(trailers))

    async def abort(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: _Metadata = ()
    ) -> None:
        """End the call.

        Raises:
            AbortError: always.
        """
        self._context.set_code(code)
        self._context.set_details(details)
        self.set_trailing_metadata(trailing_metadata)
        raise grpc.aio.AbortError(details)


async def _only(request: Message) -> AsyncIterator[Message]:
    yield request
