import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from upt_training.cli import app
from upt_training.recipe import Recipe
from upt_training.records import Machine, Record, write_record
from upt_training.table import as_markdown, cells_of, read_records
from upt_zoo.errors import Corrupt, NotFound

MACHINE = Machine(processor="p", threads=1, torch="2", python="3")


def record(task: str, method: str, seed: int, **metrics: float) -> Record:
    return Record(
        recipe=Recipe.model_validate({"task": task, "method": method, "seed": seed}),
        train_rows=1,
        files=(),
        metrics={name.replace("__", "/"): value for name, value in metrics.items()},
        holdout=(),
        best_epoch=1,
        steps=1,
        seconds=1.0,
        max_minutes=None,
        trained_parameters=1_000_000 if method == "full" else 300,
        served_parameters=0 if method == "full" else 200,
        head_parameters=10,
        adapter=None,
        machine=MACHINE,
    )


RECORDS = [
    record("mrpc", "full", 1, dev__f1=88.0, dev__accuracy=80.0, test__f1=87.0),
    record("mrpc", "unipelt_prompt", 1, dev__f1=86.0, test__f1=85.0),
    record("mrpc", "unipelt_prompt", 2, dev__f1=88.0, test__f1=86.0),
    record("cola", "unipelt_prompt", 1, dev__matthews_correlation=35.6),
]


def test_the_table_has_tasks_by_methods_with_their_spread() -> None:
    assert as_markdown(cells_of(RECORDS)).splitlines() == [
        "| task | metric | unipelt_prompt | full |",
        "| --- | --- | --- | --- |",
        "| cola | matthews_correlation | 35.6 |  |",
        "| mrpc | f1 | 87.0 ± 1.4 | 88.0 |",
        "| parameters |  | 200 | 1,000,000 |",
    ]


def test_another_split_leaves_out_what_has_none() -> None:
    cells = cells_of(RECORDS, split="test")
    assert [(cell.task, cell.method, str(cell)) for cell in cells] == [
        ("mrpc", "unipelt_prompt", "85.5 ± 0.7"),
        ("mrpc", "full", "87.0"),
    ]


def test_the_command_prints_markdown_or_json(tmp_path: Path) -> None:
    for index, each in enumerate(RECORDS):
        write_record(tmp_path / f"{index}.json", each)
    shown = CliRunner().invoke(app, ["table", str(tmp_path)])
    assert shown.output.strip() == as_markdown(cells_of(RECORDS))
    values = json.loads(CliRunner().invoke(app, ["table", str(tmp_path), "--json"]).output)
    assert values[1]["values"] == [86.0, 88.0]
    assert values[0]["deviation"] is None


def test_a_folder_without_records_or_with_another_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no run records"):
        read_records(tmp_path)
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(Corrupt, match="not a run record"):
        read_records(tmp_path)
