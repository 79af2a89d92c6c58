"""Records every HTTP request, those that the guard refuses too."""

import asyncio

from grpc import StatusCode
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from upt_server.access.callers import Access
from upt_server.access.scopes import need_of_path
from upt_server.telemetry.recorder import Recorder, response_headers

_VERBS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH")
_FIRST_ERROR = 400


class HttpRecorder:
    """Begins and ends the record of each request, but for questions after health and metrics.

    It stands before the guard. The response's headers hold the request's id.
    """

    def __init__(self, app: ASGIApp, *, recorder: Recorder, access: Access) -> None:
        self._app, self._recorder, self._access = app, recorder, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http" or _is_of_operators(scope["method"], scope["path"]):
            await self._app(scope, receive, send)
            return
        record = self._recorder.begin("unknown", Headers(scope=scope).items())
        status = StatusCode.CANCELLED.name

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(dict(response_headers(record)))
                code = message["status"]
                status = str(code) if code >= _FIRST_ERROR else StatusCode.OK.name
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except asyncio.CancelledError:
            raise
        except BaseException:
            status = StatusCode.INTERNAL.name
            raise
        finally:
            record.call = _name_of(scope)
            record.caller = self._access.name_at_hand()
            self._recorder.end(record, status)


def _is_of_operators(verb: str, path: str) -> bool:
    return need_of_path(verb, path) == "open" or path == "/metrics"


def _name_of(scope: Scope) -> str:
    """Spell the request by its route, since its path is the caller's words."""
    route = scope.get("route")
    if route is None:
        return "unknown"
    verb = scope["method"] if scope["method"] in _VERBS else "OTHER"
    return f"{verb} {route.path}"
