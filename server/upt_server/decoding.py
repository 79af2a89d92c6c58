"""What arrives as a message and is none ends its call as INVALID_ARGUMENT; gRPC says UNKNOWN."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias, cast

import grpc
from google.protobuf.message import DecodeError

from upt_server.calls import ending_with_a_status
from upt_zoo.errors import InvalidInput

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_Deserialize: TypeAlias = Callable[[bytes], Any]
# the types of gRPC know blocking servers only
_Answer = Callable[[Any, _Context], Awaitable[Any]]
_AnswerStream = Callable[[Any, _Context], AsyncIterator[Any]]


class Undecodable(Exception):
    """Stands in for a message that could not be read."""


def refusing_undecodable(handler: _Handler) -> _Handler:
    """Return a handler that ends calls with undecodable messages before they are looked at.

    In a stream, what came before such a message is answered, and what comes after is not read.
    """
    read = _reader(cast("_Deserialize", handler.request_deserializer))
    if handler.unary_unary:
        make, behaviour = grpc.unary_unary_rpc_method_handler, _refusing(handler.unary_unary)
    elif handler.unary_stream:  # of the kind that writes; no service here has one that yields
        make, behaviour = grpc.unary_stream_rpc_method_handler, _refusing(handler.unary_stream)
    else:
        make, behaviour = grpc.stream_stream_rpc_method_handler, _ending(handler.stream_stream)
    return make(behaviour, read, handler.response_serializer)


def _reader(deserialize: _Deserialize) -> _Deserialize:
    def read(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError as error:
            return Undecodable(str(error))

    return read


def _refusing(behaviour: object) -> Any:
    answer = cast("_Answer", behaviour)

    async def call(request: Any, context: _Context) -> Any:
        if isinstance(request, Undecodable):
            async with ending_with_a_status(context):
                raise InvalidInput(f"expected a message of this call: {request}")
        return await answer(request, context)

    return call


def _ending(behaviour: object) -> Any:
    answer = cast("_AnswerStream", behaviour)

    async def call(requests: AsyncIterator[Any], context: _Context) -> AsyncIterator[Any]:
        undecodable: list[Undecodable] = []

        async def whole() -> AsyncIterator[Any]:
            async for request in requests:
                if isinstance(request, Undecodable):
                    undecodable.append(request)
                    return
                yield request

        async for response in answer(whole(), context):
            yield response
        for each in undecodable:
            async with ending_with_a_status(context):
                raise InvalidInput(f"expected a message of this call: {each}")

    return call
