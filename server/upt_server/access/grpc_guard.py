"""The one place that every call of every gRPC service comes through."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from typing import Any, TypeAlias, cast

import grpc
from google.protobuf.message import Message

from upt_server import statuses
from upt_server.access import audit
from upt_server.access.callers import Access, Caller
from upt_server.access.scopes import Need, need_of_rpc
from upt_server.calls import ending_with_a_status
from upt_server.decoding import Undecodable, refusing_undecodable
from upt_zoo.errors import UptError

REQUEST_KEY, PRIORITY = "upt-request-key", "upt-priority"
_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_MaybeHandler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"
_NAMES = ("adapter", "adapters", "model_name")  # the fields of admin calls that hold references


class GrpcGuard(grpc.aio.ServerInterceptor):
    """Lets calls in that ``access`` admits, before their messages are read; audits admin calls.

    ``refused`` is told the code of every other one; ``need_of`` says what a method needs.
    """

    def __init__(
        self,
        access: Access,
        refused: Callable[[grpc.StatusCode], None],
        *,
        need_of: Callable[[str], Need] = need_of_rpc,
    ) -> None:
        self._access, self._refused, self._need_of = access, refused, need_of

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_MaybeHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _MaybeHandler:
        """Return the handler of the call, or one that refuses it."""
        method = handler_call_details.method
        need = self._need_of(method)
        metadata = [(key, str(value)) for key, value in handler_call_details.invocation_metadata]
        keys = [value for key, value in metadata if key == REQUEST_KEY]
        priorities = [value for key, value in metadata if key == PRIORITY]
        try:
            caller = self._access.admit(
                need,
                [value for key, value in metadata if key == "authorization"],
                keys[0] if keys else None,
                priority=priorities[0] if priorities else "normal",
            )
        except UptError as error:
            self._refused(statuses.code_of(error))
            return _refusal(error, method if need == "admin" else None)
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        handler = refusing_undecodable(handler)
        if handler.response_streaming and caller is not None:
            return self._bounded(handler)
        is_audited = need == "admin" and handler.unary_unary
        return _audited(handler, method, caller) if is_audited else handler

    def _bounded(self, handler: _Handler) -> _Handler:
        """Make a handler whose calls hold one of the caller's places for streams."""
        # the types know blocking servers only
        write = cast("Callable[[Any, _Context], Awaitable[None]]", handler.unary_stream)
        answer = cast("Callable[[Any, _Context], AsyncIterator[Any]]", handler.stream_stream)

        async def call_writing(request: Any, context: _Context) -> None:
            async with self._stream(context):
                await write(request, context)

        async def call(requests: AsyncIterator[Any], context: _Context) -> AsyncIterator[Any]:
            async with self._stream(context):
                async for response in answer(requests, context):
                    yield response

        make, behaviour = (
            (grpc.stream_stream_rpc_method_handler, call)
            if handler.request_streaming
            else (grpc.unary_stream_rpc_method_handler, call_writing)
        )
        return cast("Callable[[Any, Any, Any], _Handler]", make)(
            behaviour, handler.request_deserializer, handler.response_serializer
        )

    @asynccontextmanager
    async def _stream(self, context: _Context) -> AsyncIterator[None]:
        with ExitStack() as places:
            async with ending_with_a_status(context):
                try:
                    places.enter_context(self._access.stream())
                except UptError as error:
                    self._refused(statuses.code_of(error))
                    raise
            yield


def _refusal(error: UptError, audited_method: str | None) -> _Handler:
    """Make a handler that ends any call at once; a stream's is not kept waiting for a message."""

    async def refuse(_: AsyncIterator[bytes], context: _Context) -> AsyncIterator[bytes]:
        if audited_method:
            code = statuses.code_of(error).name
            peer = context.peer()
            audit.record(who="?", peer=peer, what=audited_method, adapters=(), result=code)
        async with ending_with_a_status(context):
            raise error
        yield b""  # never: this makes it a stream

    return grpc.stream_stream_rpc_method_handler(refuse)


def _audited(handler: _Handler, method: str, caller: Caller | None) -> _Handler:
    # the types know blocking servers only
    answer = cast("Callable[[Message, _Context], Awaitable[Message]]", handler.unary_unary)

    async def call(request: Message, context: _Context) -> Message:
        result = grpc.StatusCode.CANCELLED.name
        try:
            response = await answer(request, context)
            result = grpc.StatusCode.OK.name
        except grpc.aio.AbortError:
            result = _name_of(context.code())
            raise
        finally:
            audit.record(
                who=caller.name if caller else "?",
                peer=context.peer(),
                what=method,
                adapters=_adapters(request),
                result=result,
            )
        return response

    return grpc.unary_unary_rpc_method_handler(
        call,
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )


def _adapters(request: Message | Undecodable) -> list[str]:
    names: list[str] = []
    for field, value in request.ListFields() if isinstance(request, Message) else ():
        if field.name in _NAMES:
            names.extend([value] if isinstance(value, str) else value)
    return names


def _name_of(code: object) -> str:
    """Spell a code, which the context gives as it was set or as its number."""
    for known in grpc.StatusCode:
        if code in (known, known.value[0]):
            return known.name
    return str(code)
