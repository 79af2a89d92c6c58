"""Take the pictures of the web page that the documents show, of a running server.

    upt-train report imdb --out report --no-texts --record training/records/imdb-...json
    PYTHONPATH=tests python docs/take_pictures.py docs/images --report report

The server's store has to hold the catalogue, and its callers need no token. It prints what each
view loads and how long the first answer takes. ``--report`` takes one of a report of training too.
"""

import argparse
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from time import perf_counter

from PIL import Image
from playwright.sync_api import Browser, Page, ViewportSize

from upt_testing.browsers import chromium

WIDE: ViewportSize = {"width": 1200, "height": 860}
TALL: ViewportSize = {"width": 1200, "height": 1350}
NARROW: ViewportSize = {"width": 390, "height": 844}
_COLOURS = 256  # flat surfaces and text: more cannot be seen, and cost bytes
_ANSWER_MS = 120_000
_LOADED = """(part => ["navigation", "resource"]
  .flatMap(kind => performance.getEntriesByType(kind))
  .filter(each => each.name.includes(part))
  .reduce((sum, each) => sum + each.encodedBodySize, 0))"""
_CALLERS = """(until => Promise.all(Array.from({ length: 12 }, async (_, caller) => {
  const { adapters } = await (await fetch("../v1/adapters")).json();
  const body = ({ identity, fields }) => JSON.stringify({
    inputs: [{
      adapter: `${identity.name}:${identity.version}`,
      texts: fields.map(() => "Profits rose by a tenth, the company said."),
    }],
  });
  for (let turn = caller; performance.now() < until; turn += 1 + (turn % 3)) {
    const asked = body(adapters[turn % adapters.length]);
    const headers = { "content-type": "application/json" };
    await fetch("../v1/predict", { method: "POST", headers, body: asked });
    await new Promise((resolve) => setTimeout(resolve, 40 * (1 + Math.sin(turn / 9))));
  }
})))(performance.now() + 60000)"""
SHOWN = "cola:1.0.1,qnli:1.0.1,squad:1.0.1"


def main() -> None:
    """Take all pictures and print the page's weight."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--server", default="127.0.0.1:8000")
    parser.add_argument("--report", type=Path, metavar="FOLDER")
    asked = parser.parse_args()
    address = f"http://{asked.server}/page/"
    with chromium() as browser:
        print(weigh(browser, address))  # noqa: T201 - the result of a command
        for name, view, scheme, size, act in PICTURES:
            page = browser.new_page(viewport=size, color_scheme=scheme)  # type: ignore[arg-type]  # a literal there
            page.goto(address + view)
            page.locator("main h1").wait_for()
            act(page)
            save(page.screenshot(), asked.out / f"{name}.png")
            page.close()
        if asked.report:
            page = browser.new_page(viewport=TALL)
            page.goto((asked.report / "report.html").absolute().as_uri())
            save(page.screenshot(), asked.out / "report.png")


def weigh(browser: Browser, address: str) -> str:
    """Say how much the first answer and the first chart load, and how soon the former is there."""
    page = browser.new_page()
    began = perf_counter()
    page.goto(f"{address}#/try")
    page.get_by_role("button", name="Run in one batch").click()
    page.locator("#results article").first.wait_for(timeout=_ANSWER_MS)
    answered_s = perf_counter() - began
    of_answer = page.evaluate(f"{_LOADED}('')")
    page.goto(f"{address}#/live")
    page.locator(".uplot").first.wait_for()
    of_chart = page.evaluate(f"{_LOADED}('vendor/')")
    page.close()
    return (
        f"{of_answer / 1024:.0f} KiB until the first answer, {answered_s:.1f} s after the address; "
        f"{of_chart / 1024:.0f} KiB more for charts"
    )


def save(png: bytes, file: Path) -> None:
    """Write a picture with few colours, which a page of documents can carry."""
    image = (
        Image.open(BytesIO(png))
        .convert("RGB")
        .quantize(_COLOURS, method=Image.Quantize.MAXCOVERAGE)
    )
    image.save(file, optimize=True)


def _wait(page: Page) -> None:
    page.locator("#adapters article").first.wait_for()


def _ask(page: Page) -> None:
    page.get_by_label("gates of every layer").check()
    page.get_by_role("button", name="A question about a paragraph").click()
    page.locator("#results mark").wait_for(timeout=_ANSWER_MS)
    page.wait_for_timeout(300)  # what appears does so softly


def _ask_and_scroll(page: Page) -> None:
    _ask(page)
    page.locator("article", has=page.locator("mark")).evaluate("each => each.scrollIntoView()")
    page.mouse.wheel(0, -110)  # from below the bar that stays
    page.wait_for_timeout(300)


def _measure(page: Page) -> None:
    page.get_by_role("button", name="Measure").click()
    page.get_by_text("How far each gate opened").wait_for(timeout=_ANSWER_MS)


def _watch(page: Page) -> None:
    """Look on for a minute while a dozen callers ask all adapters."""
    page.evaluate(_CALLERS)


def _scroll_to_curve(page: Page) -> None:
    heading = page.get_by_role("heading", name="How it learnt")
    heading.evaluate("each => each.scrollIntoView()")
    page.mouse.wheel(0, -110)  # from below the bar that stays
    page.locator(".uplot").first.wait_for()
    page.wait_for_timeout(300)


_Picture = tuple[str, str, str, ViewportSize, Callable[[Page], None]]
PICTURES: tuple[_Picture, ...] = (
    ("page-catalogue", "#/", "light", WIDE, _wait),
    ("page-playground", f"#/try?adapters={SHOWN}", "dark", TALL, _ask),
    ("page-adapter", "#/adapters/squad/1.0.1", "light", WIDE, _measure),
    ("page-curve", "#/adapters/imdb/1.0.0", "light", WIDE, _scroll_to_curve),
    ("page-live", "#/live", "dark", WIDE, _watch),
    ("page-narrow", f"#/try?adapters={SHOWN}", "light", NARROW, _ask_and_scroll),
)


if __name__ == "__main__":
    main()
