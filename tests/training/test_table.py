import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from upt_training.cli import app
from upt_training.outcomes import Outcomes, PackedOutcomes
from upt_training.recipe import Recipe
from upt_training.records import Machine, Record, record_file, write_record
from upt_training.table import as_markdown, cells_of, read_records
from upt_zoo.errors import Corrupt, InvalidInput, NotFound

HEADS = {"cola": 30}
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
        trained_parameters=1_000_000 if method == "full" else 300 + HEADS.get(task, 10),
        served_parameters=0 if method == "full" else 200,
        head_parameters=HEADS.get(task, 10),
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
        "| cola | matthews_correlation | 35.6 | not run |",
        "| mrpc | f1 | 87.0 ± 1.4 | 88.0 |",
        "| parameters served |  | 200 | 999,990 |",
        "| parameters trained |  | 300 | 999,990 |",
        "| trained, with head |  | 310 to 330 | 1,000,000 |",
    ]


def test_few_rows_and_tasks_of_ones_own_have_rows_of_their_own() -> None:
    own = {"name": "acts", "fields": ["text"], "files": {"train": "a.csv"}, "labels": ["a", "b"]}
    plain = record("cola", "full", 1, dev__matthews_correlation=50.0)
    few = plain.model_copy(update={"recipe": plain.recipe.changed({"train_rows": 1000})})
    acts = record("cola", "full", 1, dev__macro_f1=70.0)
    recipe = Recipe.model_validate({"task": own, "method": "full"})
    acts = acts.model_copy(update={"recipe": recipe})
    lines = as_markdown(cells_of([acts, few, plain])).splitlines()
    assert lines[2:5] == [
        "| cola (1,000 rows) | matthews_correlation | 50.0 |",
        "| cola | matthews_correlation | 50.0 |",
        "| acts | macro_f1 | 70.0 |",
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


def test_the_command_prints_csv_and_draws(tmp_path: Path) -> None:
    for index, each in enumerate(RECORDS):
        write_record(tmp_path / f"{index}.json", each)
    plot = tmp_path / "plots" / "scores.svg"
    result = CliRunner().invoke(app, ["table", str(tmp_path), "--csv", "--plot", str(plot)])
    header, cola, *_ = result.output.splitlines()
    assert header == (
        "task,method,metric,split,values,served_parameters,trained_parameters,head_parameters,"
        "train_rows,mean,deviation"
    )
    assert cola == "cola,unipelt_prompt,matthews_correlation,dev,35.6,200,330,30,,35.6,"
    assert plot.read_text().startswith("<?xml")
    both = CliRunner().invoke(app, ["table", str(tmp_path), "--csv", "--json"])
    assert isinstance(both.exception, InvalidInput)


def test_the_command_prints_differences(tmp_path: Path) -> None:
    outcomes = [
        PackedOutcomes.of(Outcomes(gold=np.array([[0.0], [1.0]]), got=np.array([[given], [1.0]])))
        for given in (0.0, 1.0)
    ]
    for method, each in zip(("lora", "full"), outcomes, strict=True):
        run = record("sst2", method, 1, dev__accuracy=50.0)
        run = run.model_copy(update={"outcomes": {"dev": each}})
        write_record(tmp_path / f"{method}.json", run)
    command = ["table", str(tmp_path), "--against", "full"]
    shown = CliRunner().invoke(app, command).output.splitlines()
    assert shown[0] == "| against full | lora |"
    assert shown[2] == "| sst2 | +50.0 [0.0, 100.0] |"
    (values,) = json.loads(CliRunner().invoke(app, [*command, "--json"]).output)
    assert (values["points"], values["low"]) == (50.0, 0.0)
    assert CliRunner().invoke(app, [*command, "--csv"]).output.splitlines() == [
        "task,train_rows,metric,method,against,points,low,high",
        "sst2,,accuracy,lora,full,50.0,0.0,100.0",
    ]
    theirs, plot = tmp_path / "theirs.csv", tmp_path / "points.svg"
    theirs.write_text("row,method,points,source\nsst2,lora,12,a paper\n")
    drawing = [*command, "--published", str(theirs), "--plot", str(plot)]
    assert CliRunner().invoke(app, drawing).output.splitlines() == shown
    assert "lora, a paper" in plot.read_text()
    alone = CliRunner().invoke(app, ["table", str(tmp_path), "--published", str(theirs)])
    assert isinstance(alone.exception, InvalidInput)


def test_a_variant_has_a_column_and_a_record_of_its_own(tmp_path: Path) -> None:
    ungated = Recipe(task="cola", method="unipelt", has_gates=False)
    stack = Recipe(task="cola", method="stacked_unipelt", blocks=2)
    biases = Recipe(task="cola", method="bitfit")
    started = Recipe(task="acl_arc", method="lora", initial_adapter="embedded/mnli:1.0.0")
    pretrained = started.changed({"initial_adapter": "acl-arc-tapt"})
    assert (started.variant, pretrained.variant) == ("lora-from-mnli", "lora-from-tapt")
    wider = Recipe(task="acl_arc", method="full", backbone="FacebookAI/roberta-base")
    adapted = wider.changed({"backbone": "/models/acl-arc-tapt"})
    assert (wider.variant, adapted.variant) == ("full", "full-on-tapt")
    runs = [
        RECORDS[3].model_copy(update={"recipe": recipe, "served_parameters": 0})
        for recipe in (biases, stack, ungated)
    ]
    head, *_, parameters, _, _ = as_markdown(cells_of(runs)).splitlines()
    assert head == "| task | metric | unipelt-ungated | stacked_unipelt-2blocks | bitfit |"
    assert parameters == "| parameters served |  | 0 | 0 | 300 |"
    names = [record_file(tmp_path, recipe).name for recipe in (biases, stack, ungated)]
    assert names == [
        "cola-bitfit-seed1.json",
        "cola-stacked_unipelt-2blocks-seed1.json",
        "cola-unipelt-ungated-seed1.json",
    ]


def test_a_folder_without_records_or_with_another_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no run records"):
        read_records(tmp_path)
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(Corrupt, match="not a run record"):
        read_records(tmp_path)
