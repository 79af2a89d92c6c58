"""The web page in a real Chromium: what readers do with it, with mouse and keyboard."""

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import ANY

import pytest
from playwright.sync_api import Browser, Page, Response, ViewportSize, expect

from upt_server.access.tokens import Token, add_token
from upt_server.runner import TorchRunner
from upt_testing.adapters import (
    BOTTLENECK,
    CLASSIFICATION,
    CURVE,
    LORA,
    MULTI_LABEL,
    PREFIX,
    PROMPT,
    REGRESSION,
    SPAN,
    random_tensors,
    tiny_spec,
    with_curve,
)
from upt_testing.browsers import (
    CHROMIUM,
    ELSEWHERE,
    chromium,
    grave_violations,
    serving_beside,
    serving_files,
)
from upt_testing.serving import TIMEOUT_S, Publisher, Served, make_settings
from upt_zoo.backbone import Backbone
from upt_zoo.local.store import Store
from upt_zoo.local.tags import move_alias
from upt_zoo.references import Reference
from upt_zoo.site.writing import write_site

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
HEADS = {"sst2": CLASSIFICATION, "topics": MULTI_LABEL, "stsb": REGRESSION, "squad": SPAN}
HOSTILE = "<img src=x onerror=document.title='owned'> [x](javascript:alert(1)) <b>bold</b>"
HOSTILE_FIELD = '"); import os; ("'
NARROW: ViewportSize = {"width": 360, "height": 740}
VIEWS = ("#/", "#/adapters/sst2/1.0.0", "#/try", "#/live")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, backbone: Backbone) -> Store:
    store = Store(tmp_path_factory.mktemp("page") / "home")
    publish = Publisher(store=store, backbone=backbone)
    for seed, (name, head) in enumerate(HEADS.items()):
        publish(name, head, seed=seed)
    publish("sst2", CLASSIFICATION, version="1.1.0", seed=9)
    move_alias(store, Reference.parse("sst2:1.0.0"), "stable")
    spec = tiny_spec(
        backbone=backbone.identity,
        name="hostile",
        lora=LORA,
        prefix=PREFIX,
        bottleneck=BOTTLENECK,
        prompt=PROMPT,
    )
    task = spec.task.model_copy(update={"description": HOSTILE, "fields": (HOSTILE_FIELD,)})
    spec = with_curve(spec.model_copy(update={"task": task}), CURVE)
    store.publish(spec, random_tensors(spec, 5), f"# Card\n\n{HOSTILE}\n", version="1.0.0")
    return store


@pytest.fixture(scope="module")
def served(store: Store, backbone: Backbone, runner: TorchRunner) -> Iterator[Served]:
    with serving_beside(make_settings(store.root), backbone, runner) as started:
        yield started


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


Open = Callable[..., Page]


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    """Open an address in a profile of its own; in the end no page may have broken the policy."""
    faults: list[str] = []
    contexts = []

    def open_at(address: str, **options: object) -> Page:
        context = browser.new_context(**options)  # type: ignore[arg-type]  # as playwright names them
        contexts.append(context)
        context.set_default_timeout(TIMEOUT_S * 1000)
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda said: faults.append(said.text) if _is_fault(said.text) else None)
        page.goto(address)
        page.wait_for_selector("h1")
        return page

    expect.set_options(timeout=TIMEOUT_S * 1000)
    yield open_at
    for context in contexts:
        context.close()
    assert faults == []


def _is_fault(text: str) -> bool:
    return "Content Security Policy" in text or "TrustedHTML" in text


def address_of(served: Served, view: str = "") -> str:
    return f"http://{served.http}/page/{view}"


def test_the_catalogue_is_searched_and_filtered(open_page: Open, served: Served) -> None:
    page = open_page(f"http://{served.http}/")
    cards = page.locator("#adapters article")
    expect(cards).to_have_count(5)
    page.keyboard.press("/")
    page.keyboard.type("SQU")
    expect(cards).to_have_count(1)
    expect(cards.first).to_contain_text("squad")
    assert "q=SQU" in page.url
    page.reload()
    expect(page.locator("#adapters article")).to_have_count(1)
    page.fill("#search", "no such thing")
    page.get_by_role("button", name="Clear search and filters").click()
    expect(cards).to_have_count(5)
    page.select_option("select[name=task]", "a number")
    expect(cards).to_have_count(1)
    expect(cards.first).to_contain_text("stsb")


def test_an_adapter_has_a_page_that_is_walked_by_keyboard(open_page: Open, served: Served) -> None:
    page = open_page(address_of(served))
    link = page.get_by_role("link", name="sst2")
    link.focus()
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_have_text("sst2 1.1.0")
    assert page.evaluate("document.activeElement.id") == "main"
    page.get_by_role("tab", name="Python").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tabpanel")).to_contain_text(f"curl -s http://{served.http}/v1/predict")
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tabpanel")).to_contain_text("grpcurl -plaintext")
    page.get_by_role("link", name="1.0.0").click()
    expect(page.locator("h1")).to_have_text("sst2 1.0.0")
    expect(page.get_by_text("tag stable to 1.0.0")).to_be_visible()
    page.get_by_role("button", name="Measure").click()
    expect(page.locator(".heat tbody tr")).to_have_count(4)
    assert all(0 <= float(text) <= 1 for text in measured(page))


def measured(page: Page) -> list[str]:
    page.get_by_text("How far each gate opened").wait_for()
    return page.locator(".heat td").all_inner_texts()


def test_what_publishers_write_stays_text(open_page: Open, served: Served) -> None:
    page = open_page(address_of(served, "#/adapters/hostile/1.0.0"))
    expect(page.locator(".lead")).to_have_text(HOSTILE)
    expect(page.locator(".card-text")).to_contain_text("<img src=x onerror=")
    assert page.locator("main img, main b, .card-text a").count() == 0
    assert page.title() != "owned"
    page.get_by_role("tab", name="tritonclient").click()
    code = page.get_by_role("tabpanel").inner_text()
    assert [each for each in ast.walk(ast.parse(code)) if isinstance(each, ast.Import)] == [
        ANY,  # numpy
        ANY,  # tritonclient
    ]


def test_texts_run_through_many_adapters_in_one_batch(open_page: Open, served: Served) -> None:
    page = open_page(address_of(served, "#/try"))
    question, paragraph = "Who wrote it?", "Naïve 🎻 words: Ada wrote the report, <b>alone</b>."
    page.fill("#text-0", question)
    page.fill("#text-1", paragraph)
    with page.expect_response("**/v1/predict") as answered:
        page.keyboard.press("Control+Enter")
    body = answered.value.json()
    assert len(body["batches"]) == 1
    assert len(body["outputs"]) == 5
    expect(page.locator("#results article")).to_have_count(5)
    expect(page.locator(".summary")).to_contain_text("1 forward pass, 5 rows")
    span = next(each["span"] for each in body["outputs"] if "span" in each)
    squad = page.locator("article[data-adapter=squad]")
    expect(squad.locator("blockquote")).to_have_text(paragraph)
    expect(squad.locator("mark")).to_have_text(span["text"])
    expect(page.locator("article[data-adapter=topics]")).to_contain_text("%")


def test_a_late_answer_does_not_replace_that_to_a_later_text(
    open_page: Open, served: Served
) -> None:
    page = open_page(address_of(served, "#/try?adapters=squad:1.0.0"))
    run, late = page.get_by_role("button", name="Run in one batch"), []
    page.route("**/v1/predict", lambda route: late.append(route), times=1)
    page.fill("#text-1", "The first paragraph.")
    run.click()
    page.fill("#text-1", "The second one.")
    run.click()
    passage = page.locator("#results blockquote")
    expect(passage).to_have_text("The second one.")
    with page.expect_response("**/v1/predict") as answered:
        late[0].continue_()
    answered.value.finished()
    page.wait_for_timeout(300)  # what would be shown is shown by then
    expect(passage).to_have_text("The second one.")


def test_gates_are_drawn_for_each_layer_when_asked_for(open_page: Open, served: Served) -> None:
    page = open_page(address_of(served, "#/try?adapters=sst2:1.0.0"))
    page.get_by_label("gates of every layer").check()
    page.get_by_role("button", name="Run in one batch").click()
    card = page.locator("#results article")
    expect(card).to_have_count(1)
    rows = card.locator(".heat tbody th")
    assert rows.all_inner_texts() == ["lora.q", "lora.v", "prefix", "bottleneck"]
    expect(card.locator(".heat thead th")).to_have_count(1 + 2)


def test_an_error_is_shown_where_it_happened_and_the_page_goes_on(
    open_page: Open, served: Served
) -> None:
    page = open_page(address_of(served, "#/try?adapters=squad:1.0.0"))
    run = page.get_by_role("button", name="Run in one batch")
    page.fill("#text-1", "")
    run.click()
    expect(page.get_by_role("alert")).to_have_text("These adapters need a second text.")
    page.evaluate("text => { document.getElementById('text-1').value = text }", "a " * 60_000)
    run.click()
    expect(page.get_by_role("alert")).to_contain_text("INVALID_ARGUMENT")
    page.context.set_offline(True)
    run.click()
    expect(page.get_by_role("alert")).to_have_text("The server does not answer.")
    page.context.set_offline(False)
    page.fill("#text-1", "Ada wrote it.")
    run.click()
    expect(page.locator("#results mark")).to_have_count(1)
    for address in ("#/adapters/nobody/1.0.0", "#/adapters/%/1.0.0"):
        page.goto(address_of(served, address))
        name = address.split("/")[2]
        expect(page.get_by_role("alert")).to_contain_text(f"no adapter {name}")


def test_the_theme_follows_the_system_until_the_reader_chooses(
    open_page: Open, served: Served
) -> None:
    def ground(page: Page) -> str:
        return str(page.evaluate("getComputedStyle(document.documentElement).backgroundColor"))

    light = ground(open_page(address_of(served), color_scheme="light"))
    page = open_page(address_of(served), color_scheme="dark")
    dark = ground(page)
    assert light != dark
    page.get_by_role("button", name="Light / dark").click()
    assert ground(page) == light
    page.reload()
    assert ground(page) == light


def test_the_live_view_shows_what_the_server_does(open_page: Open, served: Served) -> None:
    page = open_page(address_of(served, "#/live"))
    expect(page.locator(".uplot")).to_have_count(4)
    body = {"inputs": [{"adapters": ["sst2", "topics"], "texts": ["a film"]}]}
    rows = page.locator(".tile", has_text="Rows of a batch").locator("strong")
    shown: set[str] = set()
    for _ in range(100):  # a tile shows the last two seconds: calls go on until it has been seen
        page.request.post(f"http://{served.http}/v1/predict", data=body)
        page.wait_for_timeout(200)
        shown.add(rows.inner_text())
        if "2.0" in shown:
            break
    assert "2.0" in shown
    asked = page.locator(".bar-row", has_text="topics").locator(".number")
    expect(asked).to_have_text(re.compile(r"^[\d,]+ \u00d7 [\d.]+ m?s$"))
    expect(page.get_by_role("link", name="topics")).to_be_visible()


def test_an_adapter_is_shown_by_its_newest_version_that_is_not_yanked(
    open_page: Open, served: Served
) -> None:
    page = open_page(address_of(served))
    found = page.evaluate(
        """async () => {
          const { newestOf } = await import("./catalogue.js");
          const of = (name, version, yanked) => ({ name, version, yanked });
          return newestOf([
            of("a", "1.0.0", null), of("a", "1.0.1", "2026-01-01"),
            of("b", "1.0.0", "2026-01-01"), of("b", "1.0.1", null),
            of("c", "1.0.0", "2026-01-01"), of("c", "1.0.1", "2026-01-01"),
          ]).map(({ name, version }) => `${name}:${version}`);
        }"""
    )
    assert found == ["a:1.0.0", "b:1.0.1", "c:1.0.1"]


def test_an_adapter_without_a_description_is_told_by_its_answers(
    open_page: Open, served: Served
) -> None:
    page = open_page(address_of(served))
    found = page.evaluate(
        """async () => {
          const { purpose } = await import("./text.js");
          return [
            purpose("What for.", "classification", ["a", "b"]),
            purpose("", "classification", ["a", "b"]),
            purpose("", "multi_label", [..."abcdefgh"]),
            purpose("", "span", null),
          ];
        }"""
    )
    assert found == [
        "What for.",
        "Answers with one of a, b.",
        "Answers with any of a, b, c, d, e, f and 2 more.",
        "Answers with a span.",
    ]


def test_quantiles_are_taken_from_what_was_counted_between_two_readings(
    open_page: Open, served: Served
) -> None:
    page = open_page(address_of(served))
    found = page.evaluate(
        """async () => {
          const { parseMetrics, quantile, mean, total } = await import("./metrics.js");
          const text = (few, many) => `# TYPE t histogram
t_bucket{le="0.1"} ${few}
t_bucket{le="0.2"} ${many}
t_bucket{le="+Inf"} ${many}
t_count ${many}
t_sum ${many / 8}
n_total{adapter="a\\\\"b",code="OK"} 3`;
          const [before, after] = [parseMetrics(text(5, 5)), parseMetrics(text(5, 15))];
          return [
            quantile(before, after, "t", 0.5), quantile(before, before, "t", 0.5),
            mean(before, after, "t"), total(after, "n_total", { adapter: 'a"b' }),
          ];
        }"""
    )
    assert found == [pytest.approx(0.15), None, pytest.approx(0.125), 3]


def test_a_token_is_asked_for_and_kept_in_memory_alone(
    open_page: Open, store: Store, backbone: Backbone, runner: TorchRunner, tmp_path: Path
) -> None:
    token, secret = Token.create(name="web", scopes=("predict", "metadata"))
    add_token(tmp_path / "tokens.json", token)
    settings = make_settings(store.root, tokens=tmp_path / "tokens.json")
    with serving_beside(settings, backbone, runner) as guarded:
        page = open_page(address_of(guarded))
        dialog = page.get_by_role("dialog")
        page.get_by_label("Token", exact=True).fill("a token that no header takes: ключ")
        page.keyboard.press("Enter")
        assert page.locator("#token-field:invalid").count() == 1
        page.get_by_label("Token", exact=True).fill(" upt_wrong ")
        page.keyboard.press("Enter")
        expect(dialog).to_contain_text("The server does not know this token.")
        page.get_by_label("Token", exact=True).fill(secret)
        page.keyboard.press("Enter")
        expect(page.locator("#adapters article")).to_have_count(5)
        page.get_by_role("link", name="Playground").click()
        page.get_by_role("button", name="A film review").click()
        expect(page.locator("#results article")).not_to_have_count(0)
        kept = page.evaluate("JSON.stringify([localStorage, sessionStorage, document.cookie])")
        assert secret not in kept
        assert secret not in page.url
        page.get_by_role("button", name="Forget the token").click()
        expect(dialog).to_contain_text("This server asks who you are")
        page.get_by_role("button", name="Cancel").click()
        expect(page.get_by_role("alert")).to_contain_text("UNAUTHENTICATED")
        page.reload()
        expect(dialog).to_be_visible()


def test_a_token_is_not_asked_for_where_it_would_travel_in_the_clear(
    open_page: Open, store: Store, backbone: Backbone, runner: TorchRunner, tmp_path: Path
) -> None:
    token, _ = Token.create(name="web", scopes=("metadata",))
    add_token(tmp_path / "tokens.json", token)
    settings = make_settings(store.root, tokens=tmp_path / "tokens.json")
    with serving_beside(settings, backbone, runner) as guarded:
        page = open_page(address_of(guarded).replace("127.0.0.1", ELSEWHERE))
        expect(page.get_by_role("alert")).to_contain_text("by TLS only")
        assert page.get_by_role("dialog").count() == 0
        assert page.locator("#token").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_view_can_be_read_by_everybody_and_asks_nobody_else(
    open_page: Open, served: Served, scheme: str
) -> None:
    asked: list[str] = []
    # without motion: what fades in has less contrast for a moment
    page = open_page(address_of(served), color_scheme=scheme, reduced_motion="reduce")
    page.on("response", lambda response: asked.append(host_of(response)))
    for view in VIEWS:
        page.goto(address_of(served, view))
        page.locator("main h1").wait_for()
        if view == "#/try":
            page.get_by_label("gates of every layer").check()
            page.get_by_role("button", name="A question about a paragraph").click()
            page.locator("#results[aria-busy=false] mark").wait_for()
        assert grave_violations(page) == [], view
    assert set(asked) == {served.http}


def host_of(response: Response) -> str:
    return response.url.split("/")[2]


@pytest.mark.parametrize("view", VIEWS)
def test_a_narrow_screen_shows_all_without_scrolling_sideways(
    open_page: Open, served: Served, view: str
) -> None:
    page = open_page(address_of(served, view), viewport=NARROW)
    page.locator("main h1").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]


def expect_curve(page: Page) -> None:
    """Expect what ``CURVE`` holds to be drawn."""
    for said in ("the best was epoch 2 with 75.5", "Mean loss on train rows by epoch"):
        drawing = page.get_by_role("img", name=said)
        expect(drawing).to_be_visible()
        expect(drawing.locator("canvas")).to_be_visible()


def test_the_page_draws_the_curve_that_an_adapter_carries(open_page: Open, served: Served) -> None:
    page = open_page(address_of(served, "#/adapters/hostile/1.0.0"))
    expect_curve(page)
    page.goto(address_of(served, "#/adapters/sst2/1.0.0"))
    expect(page.locator("h1")).to_contain_text("sst2")
    expect(page.get_by_role("heading", name="How it learnt")).to_have_count(0)


def test_a_page_of_files_shows_the_catalogue_and_curves(
    open_page: Open, store: Store, tmp_path: Path
) -> None:
    digest = store.resolve(Reference.parse("sst2:1.1.0")).digest
    write_site(store, tmp_path / "out", {digest: CURVE})
    with serving_files(tmp_path) as address:
        page = open_page(f"{address}/out/")
        expect(page.locator("#adapters article")).to_have_count(5)
        expect(page.get_by_role("link", name="Playground")).to_have_count(0)
        page.get_by_role("link", name="sst2").click()
        expect_curve(page)
        assert grave_violations(page) == []
        page.goto(f"{address}/out/#/try")
        expect(page.locator("main")).to_contain_text("upt-server run")
