"""gRPC calls whose first message does not come in time end, and free their place.

gRPC itself waits for the message of a unary call as long as the caller likes, before any handler
runs. So every handler becomes one of a stream here, which on the wire is the same.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeAlias, cast

import grpc

from upt_server.calls import ending_with_a_status
from upt_zoo.errors import InvalidInput

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_Requests: TypeAlias = AsyncIterator[Any]
# the types of gRPC know blocking servers only
_Answer = Callable[[Any, _Context], Awaitable[Any]]
_AnswerStream = Callable[[_Requests, _Context], AsyncIterator[Any]]
_FIRST_MESSAGE_S = 30.0  # as long as a call may take
_LAST_WORDS_S = 0.2


def impatient(handler: _Handler) -> _Handler:
    """Return a handler that waits for the first message itself, and not for ever."""
    make, behaviour = (
        (grpc.stream_unary_rpc_method_handler, _unary(cast("_Answer", handler.unary_unary)))
        if handler.unary_unary
        else (grpc.stream_stream_rpc_method_handler, _stream(handler))
    )
    return cast("Callable[[Any, Any, Any], _Handler]", make)(
        behaviour, handler.request_deserializer, handler.response_serializer
    )


async def pass_over(requests: _Requests) -> None:
    """Take what is on its way from a caller, for a moment, before its stream is refused.

    The client of grpc.aio shows INTERNAL instead of the status if it could not send a message.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(_LAST_WORDS_S):
            async for _ in requests:
                pass


def _unary(answer: _Answer) -> Any:
    async def call(requests: _Requests, context: _Context) -> Any:
        return await answer(await _first(requests, context), context)

    return call


def _stream(handler: _Handler) -> Any:
    async def write(requests: _Requests, context: _Context) -> AsyncIterator[Any]:
        # of the kind that writes; no service here has one that yields
        answer = cast("_Answer", handler.unary_stream)
        await answer(await _first(requests, context), context)
        return
        yield  # makes it a stream

    async def call(requests: _Requests, context: _Context) -> AsyncIterator[Any]:
        first = await _first(requests, context, is_needed=False)
        answer = cast("_AnswerStream", handler.stream_stream)
        async for response in answer(_all(first, requests), context):
            yield response

    return write if handler.unary_stream else call


async def _first(requests: _Requests, context: _Context, *, is_needed: bool = True) -> Any:
    """Return the first message, or None if none came and none is needed; else end the call."""
    async with ending_with_a_status(context):
        try:
            async with asyncio.timeout(_FIRST_MESSAGE_S):
                first = await anext(aiter(requests), None)
        except TimeoutError:
            raise TimeoutError(f"expected a message within {_FIRST_MESSAGE_S:g} s") from None
        if first is None and is_needed:
            raise InvalidInput("expected a message, got none")
        return first


async def _all(first: Any, requests: _Requests) -> AsyncIterator[Any]:
    if first is not None:
        yield first
        async for request in requests:
            yield request
