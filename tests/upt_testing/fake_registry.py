"""A registry that misbehaves as a test wants it to, in a thread on loopback."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread

from upt_zoo.local.store import Store
from upt_zoo.manifest import MANIFEST_TYPE, Manifest
from upt_zoo.references import Reference

PIECE = b"x" * 65536


@dataclass(frozen=True)
class Seen:
    """A request as it came in."""

    method: str
    path: str
    authorization: str | None
    range: str | None


class Handler(BaseHTTPRequestHandler):
    """Answers with the route of the path, else with 404."""

    server: "FakeRegistry"
    protocol_version = "HTTP/1.1"

    def answer(self, status: int = 200, body: bytes = b"", **headers: str) -> None:
        """Answer; ``content_type="x"`` is the header Content-Type."""
        given = {name.replace("_", "-").title(): value for name, value in headers.items()}
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | given).items():
            self.send_header(name, value)
        self.end_headers()
        with suppress(OSError):  # the client may have had enough
            self.wfile.write(body)

    def pour(self, piece: bytes = PIECE, *, pause_s: float = 0.0, chunked: bool = False) -> None:
        """Send for ever, or until the client or the test leaves."""
        with suppress(OSError):
            while not self.server.is_over.wait(pause_s):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece)
        self.close_connection = True

    def do(self) -> None:
        path = self.path.partition("?")[0]
        authorization, wanted = self.headers["Authorization"], self.headers["Range"]
        self.server.seen.append(Seen(self.command, self.path, authorization, wanted))
        self.content = self.rfile.read(int(self.headers["Content-Length"] or 0))
        routes = self.server.routes
        route = routes.get(f"{self.command} {path}") or routes.get(path)
        if route is None:
            self.answer(404)
        else:
            route(self)

    do_GET = do_HEAD = do_POST = do_PUT = do

    def log_message(self, format: str, *arguments: object) -> None:
        pass


Route = Callable[[Handler], None]


class FakeRegistry(ThreadingHTTPServer):
    """``routes`` map ``path`` or ``METHOD path`` to what answers."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.routes: dict[str, Route] = {}
        self.seen: list[Seen] = []
        self.is_over = Event()

    @property
    def host(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that leave are no news."""

    def serve_adapter(self, store: Store, name: str, prefix: str = "team") -> Manifest:
        """Answer for an adapter as an honest registry does."""
        data = store.read_manifest(Reference(name=name))
        manifest = Manifest.from_json(data)
        repository = f"/v2/{prefix}/{name}"
        self.routes[f"{repository}/manifests/{manifest.version}"] = manifest_route(data)
        self.routes[f"{repository}/tags/list"] = json_route(
            b'{"tags":["%s"]}' % manifest.version.encode()
        )
        for blob in manifest.blobs:
            content = store.read_blob(name, blob)
            self.routes[f"{repository}/blobs/{blob.digest}"] = blob_route(content)
        return manifest


def in_turn(*routes: Route) -> Route:
    """Answer with each of them once, and then with the last one."""
    left = list(routes)
    return lambda handler: (left.pop(0) if len(left) > 1 else left[0])(handler)


def manifest_route(data: bytes) -> Route:
    return lambda handler: handler.answer(200, data, content_type=MANIFEST_TYPE)


def json_route(data: bytes, **headers: str) -> Route:
    return lambda handler: handler.answer(200, data, content_type="application/json", **headers)


def blob_route(content: bytes) -> Route:
    """Answer with a blob, or with the rest of it that is asked for."""

    def route(handler: Handler) -> None:
        wanted = handler.headers["Range"]
        if not wanted:
            handler.answer(200, content)
            return
        start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        place = f"bytes {start}-{len(content) - 1}/{len(content)}"
        handler.answer(206, content[start:], content_range=place)

    return route


def cut_route(content: bytes, sent: int) -> Route:
    """Announce the whole and break the connection after ``sent`` bytes."""

    def route(handler: Handler) -> None:
        handler.close_connection = True
        handler.answer(200, content[:sent], content_length=str(len(content)))

    return route


@contextmanager
def running_fake() -> Iterator[FakeRegistry]:
    """Run one until the context ends."""
    with FakeRegistry() as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.is_over.set()
            server.shutdown()
            thread.join()
