"""The one place that every HTTP request comes through."""

from collections.abc import Callable
from contextlib import ExitStack

from grpc import StatusCode
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from upt_server import statuses
from upt_server.access import audit
from upt_server.access.callers import Access, Caller
from upt_server.access.grpc_guard import PRIORITY, REQUEST_KEY
from upt_server.access.scopes import Need, need_of_path
from upt_zoo.errors import Forbidden, UptError


class HttpGuard:
    """Lets requests in that ``access`` admits, before their bodies are read; audits admin calls.

    ``refuse`` writes an error for a path.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        access: Access,
        refuse: Callable[[Exception, str], Response],
    ) -> None:
        self._app, self._access, self._refuse = app, access, refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it on."""
        if scope["type"] != "http":  # no websocket is served
            await self._app(scope, receive, send)
            return
        need = need_of_path(scope["method"], scope["path"])
        with ExitStack() as place:
            try:
                caller = self._admit(need, scope)
                if caller is not None:
                    place.enter_context(self._access.open_call())
            except UptError as error:
                response = self._refuse(error, scope["path"])
                if need == "admin":
                    _record(scope, None, statuses.code_of(error).name)
                await response(scope, receive, send)
                return
            if need == "admin":
                await self._call_audited(caller, scope, receive, send)
            else:
                await self._app(scope, receive, send)

    async def _call_audited(
        self, caller: Caller | None, scope: Scope, receive: Receive, send: Send
    ) -> None:
        result = StatusCode.CANCELLED.name

        async def send_and_note(message: Message) -> None:
            nonlocal result
            if message["type"] == "http.response.start":
                result = str(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        finally:
            _record(scope, caller, result)

    def _admit(self, need: Need, scope: Scope) -> Caller | None:
        headers = Headers(scope=scope)
        keys = headers.getlist(REQUEST_KEY)
        caller = self._access.admit(
            need,
            headers.getlist("authorization"),
            keys[0] if keys else None,
            priority=headers.get(PRIORITY, "normal"),
        )
        is_anybody = caller is not None and caller.token is None
        if need == "admin" and is_anybody and "origin" in headers:
            raise Forbidden("a page in a browser may not ask this; start the server with --tokens")
        if scope["path"] == "/metrics":  # their labels name adapters
            self._access.check_all_adapters()
        return caller


def _record(scope: Scope, caller: Caller | None, result: str) -> None:
    client = scope.get("client")
    audit.record(
        who=caller.name if caller else "?",
        peer=":".join(map(str, client)) if client else "",
        what=f"{scope['method']} {scope['path']}",
        adapters=(),
        result=result,
    )
