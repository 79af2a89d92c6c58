"""The figures of README and results page against the catalogue and the run records."""

import re
import runpy
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from upt_training.cli import app
from upt_training.differences import AVERAGE, read_published
from upt_training.records import read_record, record_file
from upt_training.table import place_of, read_records, row_name
from upt_zoo.catalogue import embedded_catalogue
from upt_zoo.errors import UptError
from upt_zoo.references import Reference
from upt_zoo.tasks import TASKS

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "training" / "records"
SHIPPED = RECORDS / "shipped"  # runs whose adapters ship, where the table has another one
ROW = re.compile(
    r"^\| (?P<task>\w+) \| (?P<metric>\w+) \| (?P<adapter>[\d.]+) \| (?P<full>[\d.]+|n/a) \|",
    re.MULTILINE,
)
ROWS = {found["task"]: found for found in ROW.finditer((ROOT / "README.md").read_text())}


RUNS = read_records(RECORDS) + read_records(SHIPPED)


def test_the_readme_lists_the_whole_catalogue() -> None:
    assert ROWS.keys() == {reference.name for reference in embedded_catalogue().list()}


@pytest.mark.parametrize("task", ROWS)
def test_the_readme_says_what_the_adapter_of_the_catalogue_reached(task: str) -> None:
    stored = embedded_catalogue().resolve(Reference(name=task))
    value = stored.spec.lineage.metrics[f"dev/{ROWS[task]['metric']}"]
    assert ROWS[task]["adapter"] == f"{value:.1f}"
    assert stored.spec.task.metric == ROWS[task]["metric"]


@pytest.mark.parametrize("task", ROWS)
def test_every_adapter_of_the_catalogue_has_its_run_record(task: str) -> None:
    catalogue = embedded_catalogue()
    stored = catalogue.resolve(Reference(name=task))
    versions = (
        catalogue.resolve(Reference(name=task, tag=tag)) for tag in catalogue.versions(task)
    )
    # a run published one of them; later ones say more of the same tensors
    tensors = {f"{each.reference}@{each.digest}": each.manifest.tensors.digest for each in versions}
    ((run, published),) = ((run, run.adapter) for run in RUNS if run.adapter in tensors)
    assert published is not None
    assert tensors[published] == stored.manifest.tensors.digest
    assert run.metrics == stored.spec.lineage.metrics
    assert run.files == stored.spec.lineage.files


@pytest.mark.parametrize("task", ROWS)
def test_every_adapter_of_the_catalogue_has_its_example_and_its_curve(task: str) -> None:
    spec = embedded_catalogue().resolve(Reference(name=task)).spec
    assert spec.example is not None
    assert spec.lineage.curve is not None


@pytest.mark.parametrize("task", ROWS)
def test_the_readme_says_what_full_fine_tuning_reached(task: str) -> None:
    file = RECORDS / f"{task}-full-seed1.json"
    if ROWS[task]["full"] == "n/a":
        assert not file.exists()
        return
    value = read_record(file).metrics[f"dev/{ROWS[task]['metric']}"]
    assert ROWS[task]["full"] == f"{value:.1f}"


def test_the_page_of_results_is_what_its_commands_print(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`make results` writes it; plots are compared to the byte too."""
    monkeypatch.chdir(ROOT)
    drawn: list[Path] = []

    def run(words: Sequence[str]) -> str:
        given = list(words[1:])
        if "--plot" in given:
            at = given.index("--plot") + 1
            drawn.append(Path(given[at]))
            given[at] = str(tmp_path / drawn[-1].name)
        result = CliRunner().invoke(app, given)
        if isinstance(result.exception, UptError):
            return f"*upt-train: {result.exception}*"
        assert result.exit_code == 0, result.output
        return result.output

    page = (ROOT / "docs" / "results.md").read_text()
    assert page == runpy.run_path("training/render_page.py")["render"](page, run)
    for file in drawn:
        assert file.read_text() == (tmp_path / file.name).read_text()


@pytest.mark.parametrize("file", sorted((ROOT / "training" / "published").iterdir()))
def test_published_points_are_of_rows_and_methods_that_there_can_be(file: Path) -> None:
    rows = {row_name(AVERAGE, count) for count in (None, 100, 500, 1000)} | TASKS.keys()
    published = read_published(file)
    assert {each.row for each in published} <= rows
    assert all(place_of(each.method) for each in published)  # it knows the methods alone


def test_published_points_are_differences_of_the_figures_on_the_page() -> None:
    page = (ROOT / "docs" / "results.md").read_text()
    start = page.index("## What the paper reports")
    tables = page[start : page.index("\n## ", start + 1)]
    pairs = re.findall(r"^\| [^|]+ \| ([\d.]+) \| ([\d.]+) \|$", tables, re.MULTILINE)
    gains = [round(float(second) - float(first), 2) for first, second in pairs]
    folder = ROOT / "training" / "published"
    domain, few = (
        [each.points for each in read_published(folder / name)]
        for name in ("domain.csv", "few-rows.csv")
    )
    assert gains == [*domain, *few, 0.83]  # the last is in glue.csv


def test_every_record_stands_where_a_repeated_run_looks_for_it() -> None:
    for folder in (RECORDS, SHIPPED):
        runs = read_records(folder)
        assert sorted(folder.glob("*.json")) == sorted(record_file(folder, r.recipe) for r in runs)
