"""What every call over HTTP comes in with and ends with.

An error's form is that of Google's APIs (AIP-193), with the codes of google/rpc/code.proto; under
``/v2`` it is the Open Inference Protocol's, whose clients read nothing else.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from math import ceil
from typing import cast

from grpc import StatusCode
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from upt_server import statuses
from upt_server.calls import log_fault
from upt_server.telemetry.records import note_status
from upt_zoo.errors import InvalidInput, Overloaded, Unavailable

MAX_BODY_BYTES = 4 * 1024**2  # as gRPC's own bound on a message
_MAX_BODY_S = 30.0  # to send it; as long as a call may take
_MAX_CALL_S = 90.0  # the body, the answer, and as long again to read it
_CODES: dict[StatusCode, HTTPStatus] = {
    StatusCode.INVALID_ARGUMENT: HTTPStatus.BAD_REQUEST,
    StatusCode.FAILED_PRECONDITION: HTTPStatus.BAD_REQUEST,
    StatusCode.UNAUTHENTICATED: HTTPStatus.UNAUTHORIZED,
    StatusCode.PERMISSION_DENIED: HTTPStatus.FORBIDDEN,
    StatusCode.NOT_FOUND: HTTPStatus.NOT_FOUND,
    StatusCode.ALREADY_EXISTS: HTTPStatus.CONFLICT,
    StatusCode.RESOURCE_EXHAUSTED: HTTPStatus.TOO_MANY_REQUESTS,
    StatusCode.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    StatusCode.DEADLINE_EXCEEDED: HTTPStatus.GATEWAY_TIMEOUT,
}
Endpoint = Callable[[Request], Awaitable[Response]]


def ending_with_a_response(endpoint: Endpoint) -> Endpoint:
    """End the call with the response of whatever error comes out. Texts are never logged."""

    async def respond(request: Request) -> Response:
        try:
            return await endpoint(request)
        except Exception as error:  # noqa: BLE001 - the edge: every error becomes a status
            return respond_error(error, request.url.path)

    return respond


def http_code_of(code: StatusCode) -> HTTPStatus:
    """Return the HTTP code of a status; what is not in the table is our fault."""
    return _CODES.get(code, HTTPStatus.INTERNAL_SERVER_ERROR)


def respond_error(error: Exception, path: str) -> Response:
    """Write an error as clients of the path read it; the log has what is our fault."""
    code = statuses.code_of(error)
    note_status(code)
    http_code = http_code_of(code)
    log_fault(error)
    headers = {}
    if isinstance(error, Overloaded | Unavailable):
        headers["retry-after"] = str(ceil(error.retry_after_s))
    if code is StatusCode.UNAUTHENTICATED:
        headers["www-authenticate"] = "Bearer"
    return _write_error(path, http_code, code, statuses.message_of(error), headers)


async def respond_unrouted(request: Request, error: Exception) -> Response:
    """Write what no route takes: a path that is not there, or another method than it has."""
    refusal = cast("HTTPException", error)
    allowed = (refusal.headers or {}).get("Allow", "")
    cause = f"expected {allowed}, got {request.method}" if allowed else "no such path"
    return _write_error(
        request.url.path,
        refusal.status_code,
        StatusCode.UNIMPLEMENTED,
        f"{cause}; /openapi.json shows what there is",
        refusal.headers,
    )


def _write_error(
    path: str, http_code: int, code: StatusCode, message: str, headers: Mapping[str, str] | None
) -> Response:
    body = {"code": int(http_code), "status": code.name, "message": message}
    is_v2 = path == "/v2" or path.startswith("/v2/")
    return JSONResponse(
        {"error": message if is_v2 else body}, status_code=http_code, headers=headers
    )


async def read_body(request: Request) -> bytes:
    """Read the body, bounded before it is parsed.

    Raises:
        InvalidInput: it is too large.
        TimeoutError: it takes too long to come.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(_MAX_BODY_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    raise InvalidInput(
                        f"expected a body of at most {MAX_BODY_BYTES} bytes; split the call"
                    )
    except TimeoutError:
        raise TimeoutError(f"expected the body within {_MAX_BODY_S} s") from None
    return bytes(body)


class CallBound:
    """Turns calls away while ``most`` are inside; operators' questions always come in.

    ``refuse`` writes the error for a path.
    """

    def __init__(
        self, app: ASGIApp, *, most: int, refuse: Callable[[Exception, str], Response]
    ) -> None:
        self._app, self._most, self._refuse = app, most, refuse
        self._inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it on."""
        if not scope.get("path", "").startswith(("/v1/", "/v2/models", "/v2/repository/")):
            await self._app(scope, receive, send)
        elif self._inside >= self._most:
            error = Overloaded(f"{self._most} calls are inside already", retry_after_s=1)
            await self._refuse(error, scope["path"])(scope, receive, send)
        else:
            self._inside += 1
            try:
                await self._app(scope, receive, send)
            finally:
                self._inside -= 1


class LeaverWatch:
    """Cancels a call whose caller has left or does not read, so that it frees what it holds."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request while its caller is there."""
        read: asyncio.Queue[Message] = asyncio.Queue(1)

        async def watch() -> None:
            while (message := await receive())["type"] != "http.disconnect":
                await read.put(message)

        tasks = [
            asyncio.ensure_future(self._app(scope, read.get, send)),
            asyncio.ensure_future(watch()),
        ]
        try:
            await asyncio.wait(tasks, timeout=_MAX_CALL_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if not tasks[0].cancelled():
            tasks[0].result()
