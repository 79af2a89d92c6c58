"""The HTTP edge for operators: metrics, liveness, readiness."""

from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from upt_server.gate import Gate
from upt_server.metrics import Metrics


def build_application(gate: Gate, metrics: Metrics) -> Starlette:
    """Route ``/metrics``, ``/healthz`` (the process lives) and ``/readyz`` (calls are admitted)."""

    async def show_metrics(_: Request) -> Response:
        return Response(metrics.text(), headers={"content-type": CONTENT_TYPE_LATEST})

    async def show_life(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def show_readiness(_: Request) -> Response:
        if gate.is_open:
            return PlainTextResponse("ok\n")
        return PlainTextResponse(f"{gate.state}\n", status_code=503)

    routes = {"/metrics": show_metrics, "/healthz": show_life, "/readyz": show_readiness}
    return Starlette(routes=[Route(path, endpoint) for path, endpoint in routes.items()])


class HttpServer(uvicorn.Server):
    """uvicorn inside an event loop that is not its own: signals are left to the loop's owner."""

    def __init__(self, application: Starlette) -> None:
        super().__init__(
            uvicorn.Config(application, lifespan="off", log_config=None, access_log=False)
        )

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield
