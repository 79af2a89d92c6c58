"""A real Chromium for tests of pages, and servers that answer it from another thread."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from shutil import which

from playwright.sync_api import Browser, Page, sync_playwright

from upt_server.runner import Runner
from upt_server.settings import Settings
from upt_testing.serving import TIMEOUT_S, Served, serving
from upt_zoo.backbone import Backbone

CHROMIUM = which("chromium")
ELSEWHERE = "upt.test"  # a name that leads here, and of which Chromium does not know that
_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    f"--host-resolver-rules=MAP {ELSEWHERE} 127.0.0.1",
)
_AXE = files("axe_playwright_python") / "axe.min.js"
_GRAVE = ("serious", "critical")


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start the system's Chromium, headless and with an empty profile."""
    assert CHROMIUM is not None
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=_FLAGS)
        yield browser
        browser.close()


@contextmanager
def serving_beside(settings: Settings, backbone: Backbone, runner: Runner) -> Iterator[Served]:
    """Run a server on a thread and an event loop of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    server = serving(settings, backbone, runner)

    async def stop() -> None:
        await server.__aexit__(None, None, None)

    try:
        started = asyncio.run_coroutine_threadsafe(server.__aenter__(), loop).result(TIMEOUT_S)
        yield started
        asyncio.run_coroutine_threadsafe(stop(), loop).result(TIMEOUT_S)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@contextmanager
def serving_files(folder: Path) -> Iterator[str]:
    """Serve a directory as any server of files does, and yield its address."""
    handler = partial(_Silent, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class _Silent(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def grave_violations(page: Page) -> list[str]:
    """Return what axe-core finds serious or critical in a page, with the elements."""
    page.evaluate(_AXE.read_text(encoding="utf-8"))
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    return [
        f"{each['id']}: {node['html']} {node['failureSummary']}"
        for each in found
        if each["impact"] in _GRAVE
        for node in each["nodes"]
    ]
