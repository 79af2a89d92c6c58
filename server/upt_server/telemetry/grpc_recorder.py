"""Records every call of every gRPC service, those that the guard refuses too.

What gRPC itself refuses (messages that are too large, calls beyond its bound) never comes here.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias, cast

import grpc

from upt_server.access.callers import Access
from upt_server.access.scopes import GRPC_NEEDS
from upt_server.calls import code_name
from upt_server.telemetry.recorder import Recorder, response_headers

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_MaybeHandler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"
# the types of gRPC know blocking servers only
_Answer = Callable[[Any, _Context], Awaitable[Any]]
_AnswerStream = Callable[[Any, _Context], AsyncIterator[Any]]


class GrpcRecorder(grpc.aio.ServerInterceptor):
    """Begins and ends the record of each call, but for questions after health.

    It stands before the guard. The response's trailing metadata hold the request's id.
    """

    def __init__(self, recorder: Recorder, access: Access) -> None:
        self._recorder, self._access = recorder, access
        self._made: dict[tuple[str, _Handler], _Handler] = {}  # of a call, around a handler

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_MaybeHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _MaybeHandler:
        """Return the handler of the call with its record around it."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or GRPC_NEEDS.get(method) == "open":
            return handler
        # the guard refuses methods that nobody has, and their names are the caller's words
        call = method.removeprefix("/") if method in GRPC_NEEDS else "unknown"
        recorded = self._made.get((call, handler))
        if recorded is None:  # the guard's are made once, too
            recorded = self._made[call, handler] = self._recorded(handler, call)
        return recorded

    def _recorded(self, handler: _Handler, call: str) -> _Handler:
        if handler.stream_unary:  # see ``upt_server.patience``
            make, behaviour = (
                grpc.stream_unary_rpc_method_handler,
                self._call(cast("_Answer", handler.stream_unary), call),
            )
        else:
            make, behaviour = (
                grpc.stream_stream_rpc_method_handler,
                self._stream(cast("_AnswerStream", handler.stream_stream), call),
            )
        return cast("Callable[[Any, Any, Any], _Handler]", make)(
            behaviour, handler.request_deserializer, handler.response_serializer
        )

    def _call(self, answer: _Answer, call: str) -> _Answer:
        async def recorded(request: Any, context: _Context) -> Any:
            with self._recording(context, call):
                return await answer(request, context)

        return recorded

    def _stream(self, answer: _AnswerStream, call: str) -> Any:
        async def recorded(requests: AsyncIterator[Any], context: _Context) -> AsyncIterator[Any]:
            with self._recording(context, call):
                async for response in answer(requests, context):
                    yield response

        return recorded

    @contextmanager
    def _recording(self, context: _Context, call: str) -> Iterator[None]:
        headers = [(key, str(value)) for key, value in context.invocation_metadata() or ()]
        record = self._recorder.begin(call, headers)
        record.caller = self._access.name_at_hand()
        context.set_trailing_metadata(tuple(response_headers(record)))
        status = grpc.StatusCode.UNKNOWN.name  # what gRPC answers to an error that it does not know
        try:
            yield
            status = grpc.StatusCode.OK.name
        except grpc.aio.AbortError:
            status = code_name(context.code())
            raise
        except (asyncio.CancelledError, GeneratorExit):
            status = grpc.StatusCode.CANCELLED.name
            raise
        finally:
            self._recorder.end(record, status)
