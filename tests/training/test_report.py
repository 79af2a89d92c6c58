"""Reports: what stands on the page and beside it, and beside what a version stands."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from upt_testing.desks import Desk, make_desk
from upt_training.review import rival_of
from upt_zoo.backbone import Backbone
from upt_zoo.local.store import StoredAdapter
from upt_zoo.local.tags import move_alias, yank
from upt_zoo.references import Reference

METRICS = {
    "sst2": ("accuracy",),
    "stsb": ("pearson", "spearmanr"),
    "squad": ("f1", "exact_match"),
}
_PAGES, _OF_ALL = ("report.html", "report.json"), ("gates.svg", "learning.svg")
FILES = {
    "sst2": (*_PAGES, "confusion.svg", "calibration.svg", *_OF_ALL),
    "stsb": (*_PAGES, *_OF_ALL),
    "squad": (*_PAGES, *_OF_ALL),
}


class Page(HTMLParser):
    """What a page loads, and its cells."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, backbone: Backbone) -> Desk:
    """A desk on which the three tasks were trained, and reported as they were."""
    desk = make_desk(tmp_path_factory.mktemp("desk"), backbone)
    recipes = [desk.write_recipe(task) for task in METRICS]
    places = ("--records", str(desk.root / "records"), "--report", str(desk.root / "reports"))
    result = desk.run("run", *recipes, *places)
    assert result.code == 0, result.stderr
    (desk.root / "stdout").write_text(result.stdout)
    return desk


def stored(desk: Desk, reference: str) -> StoredAdapter:
    return desk.store.resolve(Reference.parse(reference))


@pytest.mark.parametrize("task", METRICS)
def test_a_report_has_the_figures_the_plots_and_a_verdict(
    desk: Desk, tmp_path: Path, task: str
) -> None:
    record = desk.root / "records" / f"{task}-unipelt_prompt-seed1.json"
    options = ("--record", str(record), "--worst", "3", "--split", "dev")
    result = desk.run("report", task, "--out", str(tmp_path), *options, "--json")
    assert result.code == 0, result.stderr
    assert json.loads(result.stdout) == [str(tmp_path / name) for name in FILES[task]]
    facts = json.loads((tmp_path / "report.json").read_text())
    lineage = stored(desk, task).spec.lineage.metrics
    assert {f"dev/{name}": value for name, value in facts["metrics"].items()} == lineage
    assert tuple(facts["intervals"]) == tuple(facts["metrics"]) == METRICS[task]
    assert [set(layer) for layer in facts["gates"]] == [
        {"lora.q", "lora.v", "prefix", "bottleneck"}
    ] * 2
    assert all(0 < value < 1 for layer in facts["gates"] for value in layer.values())
    assert 0 < len(facts["mistakes"]) <= 3
    assert facts["mistakes"][0].keys() == {"row", "gold", "given", "weight"}
    assert facts["verdict"]["metric"] == METRICS[task][0]
    assert facts["verdict"]["figure"] == facts["metrics"][METRICS[task][0]]
    page = Page(tmp_path / "report.html")
    assert f"{task}:1.0.0" in page.text
    assert f"{facts['metrics'][METRICS[task][0]]:.2f}" in page.text


def test_a_page_loads_nothing_and_runs_nothing(desk: Desk) -> None:
    for task in METRICS:
        page = Page(desk.root / "reports" / f"{task}-1.0.0" / "report.html")
        assert page.sources
        assert all(source.startswith("data:image/svg+xml;base64,") for source in page.sources)
        assert not page.tags & {"script", "link", "iframe", "object", "base"}


def test_texts_stand_on_the_page_alone_and_can_be_left_out(desk: Desk, tmp_path: Path) -> None:
    folder = desk.root / "reports" / "stsb-1.0.0"
    facts, page = (folder / "report.json").read_text(), Page(folder / "report.html").text
    printed = (desk.root / "stdout").read_text()
    assert "the red " in page
    assert "the red " not in facts + printed
    assert f"report: {folder / 'report.html'}, with the texts of the worst errors" in printed
    result = desk.run("report", "stsb", "--out", str(tmp_path), "--no-texts")
    assert result.code == 0, result.stderr
    assert "the red " not in Page(tmp_path / "report.html").text
    assert "with the texts" not in result.stdout
    assert not (tmp_path / "learning.svg").exists()


def test_a_text_cannot_write_the_page(desk: Desk, tmp_path: Path) -> None:
    rows = [
        {"sentence": f"<script>good</script> & {number}", "label": number % 2}
        for number in range(12)
    ]
    recipe = tmp_path / "hostile.yaml"
    keys = {"name": "sst2-own", "fields": ["sentence"], "labels": ["<b>", "no"]}
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    for split in ("train", "dev"):
        (tmp_path / f"{split}.jsonl").write_text(lines)
    files = {split: f"{split}.jsonl" for split in ("train", "dev")}
    whole = {"task": {**keys, "files": files}, "backbone": str(desk.backbone), "epochs": 1}
    recipe.write_text(json.dumps(whole))  # JSON is YAML
    result = desk.run("run", str(recipe))
    assert result.code == 0, result.stderr
    page = Page(tmp_path / "reports" / "sst2-own-1.0.0" / "report.html")
    assert not page.tags & {"script", "b"}
    assert "<script>good</script> & " in page.text


def test_the_terminal_shows_figures_and_a_verdict(desk: Desk) -> None:
    printed = (desk.root / "stdout").read_text()
    for words in (
        "sst2:1.0.0 on sst2/dev, 12 rows",
        "confusion: gold label down, given label across",
        "calibration: ",
        "mean gates by layer",
        "worst errors",
        "verdict: ",
        "stsb:1.0.0 on stsb/dev, 12 rows",
    ):
        assert words in printed


def test_catalogue_tasks_are_reported_on_demand_only(tmp_path: Path, backbone: Backbone) -> None:
    other = make_desk(tmp_path, backbone)
    result = other.run("run", other.write_recipe("sst2", epochs=1))
    assert result.code == 0, result.stderr
    assert "verdict: " not in result.stdout
    assert not list(tmp_path.rglob("report.html"))


def test_a_version_stands_beside_the_promoted_one_else_the_one_before(
    tmp_path: Path, backbone: Backbone
) -> None:
    other = make_desk(tmp_path, backbone)
    recipe = other.write_recipe("sst2", epochs=1)
    for _ in range(3):
        assert other.run("run", recipe).code == 0
    store = other.store
    first, third = (stored(other, f"sst2:1.0.{patch}") for patch in (0, 2))

    def rival() -> str:
        found = rival_of(store, third)
        assert found is not None
        return found.version

    assert rival_of(store, first) is None
    assert rival() == "1.0.1"
    yank(store, Reference.parse("sst2:1.0.1"))
    assert rival() == "1.0.0"
    move_alias(store, Reference.parse("sst2:1.0.1"), "stable")
    assert rival() == "1.0.1"
    move_alias(store, Reference.parse("sst2:1.0.2"), "stable")
    assert rival() == "1.0.0"
    out = tmp_path / "report"
    result = other.run("report", "sst2:1.0.2", "--out", str(out), "--against", "sst2:1.0.1")
    assert result.code == 0, result.stderr
    verdict = json.loads((out / "report.json").read_text())["verdict"]
    assert (verdict["adapter"], verdict["rival"]) == ("sst2:1.0.2", "sst2:1.0.1")
    assert (verdict["points"], verdict["decision"]) == (0.0, "undecided")  # the same run, again
    assert "12 rows do not tell it from sst2:1.0.1" in result.stdout


def test_only_like_is_compared_with_like(desk: Desk, tmp_path: Path) -> None:
    options = ("--out", str(tmp_path), "--against", "stsb")
    result = desk.run("report", "sst2", *options)
    assert result.code == 64
    assert "--against: stsb:1.0.0 has other fields, labels or another backbone" in result.stderr
    result = desk.run("report", "sst2", "--out", str(tmp_path), "--against", "sst2:1.0.0")
    assert result.code == 64
    assert "--against: sst2:1.0.0 stands beside itself" in result.stderr
    assert not list(tmp_path.iterdir())
