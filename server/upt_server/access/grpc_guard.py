"""The one place that every call of every gRPC service comes through."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any, TypeAlias, cast

import grpc
from google.protobuf.message import Message

from upt_server import statuses
from upt_server.access import audit
from upt_server.access.callers import Access, Caller
from upt_server.access.open_calls import OpenCall
from upt_server.access.scopes import Need, need_of_rpc
from upt_server.calls import code_name, ending_with_a_status
from upt_server.decoding import Undecodable, refusing_undecodable
from upt_server.patience import impatient, pass_over
from upt_server.shedding import TURNED_AWAY, Shedding
from upt_zoo.errors import UptError

REQUEST_KEY, PRIORITY = "upt-request-key", "upt-priority"
_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_MaybeHandler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"
# the types of gRPC know blocking servers only
_Answer = Callable[[AsyncIterator[Any], _Context], Awaitable[Any]]
_AnswerStream = Callable[[AsyncIterator[Any], _Context], AsyncIterator[Any]]
_MAX_CALL_S = 90.0  # its message, the answer, and as long again to read it
_NAMES = ("adapter", "adapters", "model_name")  # the fields of admin calls that hold references
# why the call at hand is refused, and its method if that is audited
_REFUSAL: ContextVar[tuple[UptError, str | None]] = ContextVar("refusal")
# the adapters that the call at hand names, as its caller wrote them
_NAMED: ContextVar[Sequence[str]] = ContextVar("named")


class GrpcGuard(grpc.aio.ServerInterceptor):
    """Lets calls in that ``access`` admits, before their messages are read; audits admin calls.

    It stands before one server. ``refused`` is told the code of every call that is not let in;
    ``need_of`` says what a method needs. Predictions also have to get past ``shedding``.
    """

    def __init__(
        self,
        access: Access,
        refused: Callable[[grpc.StatusCode], None],
        *,
        need_of: Callable[[str], Need] = need_of_rpc,
        shedding: Shedding | None = None,
    ) -> None:
        self._access, self._refused, self._need_of = access, refused, need_of
        self._shedding = shedding
        self._guarded: dict[str, _Handler] = {}  # by method, made once

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_MaybeHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _MaybeHandler:
        """Return the handler of the call, or one that refuses it."""
        method = handler_call_details.method
        need = self._need_of(method)
        handler, call = await continuation(handler_call_details), OpenCall()
        if handler is not None and not handler.response_streaming and need != "admin":
            call.end_after(_MAX_CALL_S)
        try:
            caller = self._admit(need, handler_call_details.invocation_metadata)
            if caller is not None and handler is not None:
                call.hold(self._access.open_call(is_stream=handler.response_streaming))
        except UptError as error:
            self._refused(statuses.code_of(error))
            _REFUSAL.set((error, method if need == "admin" else None))
            return _HEARING_OUT if handler is not None and handler.request_streaming else _AT_ONCE
        if handler is None:
            return None
        if method not in self._guarded:
            self._guarded[method] = self._guard(handler, method)
        return self._guarded[method]

    def _admit(self, need: Need, metadata: Iterable[tuple[str, object]]) -> Caller | None:
        given: dict[str, list[str]] = {}
        for key, value in metadata:
            given.setdefault(key, []).append(str(value))
        return self._access.admit(
            need,
            given.get("authorization", ()),
            given.get(REQUEST_KEY, [None])[0],
            priority=given.get(PRIORITY, ["normal"])[0],
        )

    def _guard(self, handler: _Handler, method: str) -> _Handler:
        need, is_unary = self._need_of(method), handler.unary_unary
        handler = refusing_undecodable(handler)
        if need == "admin" and is_unary:
            handler = _naming_adapters(handler)
        handler = impatient(handler)
        if need == "admin":
            handler = _audited(handler, method, self._access)
        if need == "predict" and is_unary and self._shedding is not None:
            handler = _shed(handler, self._shedding, self._refused)
        return handler


def _refusing(*, hears_out: bool) -> _Handler:
    """Make a handler that ends any call at once, or after what is on its way from the caller."""

    async def refuse(requests: AsyncIterator[bytes], context: _Context) -> AsyncIterator[bytes]:
        error, audited_method = _REFUSAL.get()
        if audited_method:
            code = statuses.code_of(error).name
            peer = context.peer()
            audit.record(who="?", peer=peer, what=audited_method, adapters=(), result=code)
        if hears_out:
            await pass_over(requests)
        async with ending_with_a_status(context):
            raise error
        yield b""  # never: this makes it a stream

    return grpc.stream_stream_rpc_method_handler(refuse)


_AT_ONCE, _HEARING_OUT = _refusing(hears_out=False), _refusing(hears_out=True)


def _shed(
    handler: _Handler, shedding: Shedding, refused: Callable[[grpc.StatusCode], None]
) -> _Handler:
    answer = cast("_Answer", handler.stream_unary)
    code, message = statuses.code_of(TURNED_AWAY), statuses.message_of(TURNED_AWAY)
    # made once, since it has to cost little
    details = (statuses.DETAILS_KEY, statuses.details_of(TURNED_AWAY))

    async def call(requests: AsyncIterator[Any], context: _Context) -> Any:
        if shedding.turns_away(context.time_remaining()):
            refused(code)
            await context.abort(code, message, (*(context.trailing_metadata() or ()), details))
        return await answer(requests, context)

    return grpc.stream_unary_rpc_method_handler(
        call,
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )


def _audited(handler: _Handler, method: str, access: Access) -> _Handler:
    """Leave a line for each call, also for one that ends before its message is there."""

    @asynccontextmanager
    async def leaving_a_line(context: _Context) -> AsyncIterator[None]:
        result = grpc.StatusCode.CANCELLED.name
        try:
            yield
            result = grpc.StatusCode.OK.name
        except grpc.aio.AbortError:
            result = code_name(context.code())
            raise
        finally:
            audit.record(
                who=access.name_at_hand() or "?",
                peer=context.peer(),
                what=method,
                adapters=_NAMED.get(()),
                result=result,
            )

    async def call(requests: AsyncIterator[Any], context: _Context) -> Any:
        async with leaving_a_line(context):
            return await cast("_Answer", handler.stream_unary)(requests, context)

    async def stream(requests: AsyncIterator[Any], context: _Context) -> AsyncIterator[Any]:
        async with leaving_a_line(context):
            async for response in cast("_AnswerStream", handler.stream_stream)(requests, context):
                yield response

    make, behaviour = (
        (grpc.stream_stream_rpc_method_handler, stream)
        if handler.response_streaming
        else (grpc.stream_unary_rpc_method_handler, call)
    )
    return cast("Callable[[Any, Any, Any], _Handler]", make)(
        behaviour, handler.request_deserializer, handler.response_serializer
    )


def _naming_adapters(handler: _Handler) -> _Handler:
    """Note which adapters the call names, for the line that ``_audited`` leaves."""
    answer = cast("Callable[[Any, _Context], Awaitable[Any]]", handler.unary_unary)

    async def call(request: Message | Undecodable, context: _Context) -> Any:
        _NAMED.set(_adapters(request))
        return await answer(request, context)

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
