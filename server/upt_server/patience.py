"""gRPC calls whose caller is silent, or does not take what it asked for, end and free their place.

gRPC itself waits for the message of a unary call as long as the caller likes, before any handler
runs. So every handler becomes one of a stream here, which on the wire is the same.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeAlias, cast

import grpc

from upt_server.access.open_calls import OpenCall
from upt_server.calls import ending_with_a_status
from upt_zoo.errors import InvalidInput

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_Requests: TypeAlias = AsyncIterator[Any]
# the types of gRPC know blocking servers only
_Answer = Callable[[Any, _Context], Awaitable[Any]]
_AnswerStream = Callable[[_Requests, _Context], AsyncIterator[Any]]
_FIRST_MESSAGE_S = 30.0  # as long as a call may take
_SILENCE_S = 300.0  # as long as a connection without calls is kept
_STANDSTILL_S = 390.0  # longer by as much as a call may take, so that who is silent is told
_LAST_WORDS_S = 1.0


def impatient(handler: _Handler) -> _Handler:
    """Return a handler that waits for messages itself, and not for ever.

    A stream ends, too, if its caller takes no answers: the guard has made its ``OpenCall``.
    """
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
        return await answer(await _only(requests, context), context)

    return call


def _stream(handler: _Handler) -> Any:
    async def write(requests: _Requests, context: _Context) -> AsyncIterator[Any]:
        # of the kind that writes; no service here has one that yields
        answer = cast("_Answer", handler.unary_stream)
        await answer(await _only(requests, context), context)
        return
        yield  # makes it a stream

    async def call(requests: _Requests, context: _Context) -> AsyncIterator[Any]:
        open_call = OpenCall.at_hand.get()
        messages = _Messages(await _first(requests, context), requests, open_call)
        answer = cast("_AnswerStream", handler.stream_stream)
        async for response in answer(messages.until_silence(), context):
            open_call.end_after(_STANDSTILL_S)
            yield response
        open_call.end_after(_STANDSTILL_S)
        if messages.are_awaited:
            async with ending_with_a_status(context):
                raise TimeoutError(f"expected a message, or the end, within {_SILENCE_S:g} s")

    return write if handler.unary_stream else call


class _Messages:
    """The messages of a stream; ``are_awaited`` tells that they ended because none came in time."""

    def __init__(self, first: Any, more: _Requests, open_call: OpenCall) -> None:
        self._first, self._more, self._open_call = first, more, open_call
        self.are_awaited = False

    async def until_silence(self) -> AsyncIterator[Any]:
        message = self._first
        try:
            while message is not None:
                self._open_call.end_after(_STANDSTILL_S)
                yield message
                async with asyncio.timeout(_SILENCE_S):
                    message = await anext(aiter(self._more), None)
        except TimeoutError:
            self.are_awaited = True
        finally:
            await _let_go(self._more)


async def _only(requests: _Requests, context: _Context) -> Any:
    """Return the first message and let go of the others; end the call if there is none."""
    first = await _first(requests, context)
    if first is None:
        async with ending_with_a_status(context):
            raise InvalidInput("expected a message, got none")
    await _let_go(requests)
    return first


async def _first(requests: _Requests, context: _Context) -> Any:
    """Return the first message, or None if there is none; end the call if none comes in time."""
    try:
        async with asyncio.timeout(_FIRST_MESSAGE_S):
            return await anext(aiter(requests), None)
    except TimeoutError:
        async with ending_with_a_status(context):
            raise TimeoutError(f"expected a message within {_FIRST_MESSAGE_S:g} s") from None


async def _let_go(requests: _Requests) -> None:
    """Close the iterator of messages: gRPC's refers to itself.

    A call that was ended would stay open until the garbage collector finds it.
    """
    messages = aiter(requests)
    if isinstance(messages, AsyncGenerator):
        await messages.aclose()
