"""The README's figures against what they come from: the catalogue and the run records."""

import json
import re
from pathlib import Path

import pytest

from upt_training.records import Record
from upt_zoo.catalogue import embedded_catalogue
from upt_zoo.references import Reference

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "training" / "records"
ROW = re.compile(
    r"^\| (?P<task>\w+) \| (?P<metric>\w+) \| (?P<adapter>[\d.]+) \| (?P<full>[\d.]+|n/a) \|",
    re.MULTILINE,
)
ROWS = {found["task"]: found for found in ROW.finditer((ROOT / "README.md").read_text())}


def record(task: str, method: str) -> Record:
    return Record.model_validate(json.loads((RECORDS / f"{task}-{method}-seed1.json").read_text()))


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
    stored = embedded_catalogue().resolve(Reference(name=task))
    run = record(task, "unipelt_prompt")
    assert run.adapter == f"{stored.reference}@{stored.digest}"
    assert run.metrics == stored.spec.lineage.metrics
    assert run.files == stored.spec.lineage.files


@pytest.mark.parametrize("task", ROWS)
def test_the_readme_says_what_full_fine_tuning_reached(task: str) -> None:
    if ROWS[task]["full"] == "n/a":
        assert not (RECORDS / f"{task}-full-seed1.json").exists()
        return
    value = record(task, "full").metrics[f"dev/{ROWS[task]['metric']}"]
    assert ROWS[task]["full"] == f"{value:.1f}"
