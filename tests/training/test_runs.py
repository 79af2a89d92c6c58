"""The list of runs, and repeating one from its record."""

import json
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from upt_training.cli import app
from upt_training.recipe import Recipe
from upt_training.records import Machine, Record, record_file, write_record
from upt_training.runs import as_markdown, command_of, listed, unlike
from upt_zoo.errors import Corrupt, InvalidInput, NotFound

FOLDER = Path("records")


def record(
    task: str, method: str, seed: int, *, max_minutes: float | None = None, **keys: object
) -> Record:
    return Record(
        recipe=Recipe.model_validate({"task": task, "method": method, "seed": seed, **keys}),
        train_rows=1,
        files=(),
        metrics={"dev/f1": 80.0 + seed, "test/f1": 70.0},
        holdout=(),
        best_epoch=2,
        steps=1200,
        seconds=90.0,
        max_minutes=max_minutes,
        trained_parameters=1,
        served_parameters=1,
        head_parameters=1,
        adapter=None,
        machine=Machine(processor="p", threads=1, torch="2", python="3"),
    )


RECORDS = [
    record("mrpc", "full", 2),
    record("mrpc", "full", 1, max_minutes=2.5),
    record("mrpc", "unipelt", 1, initial_adapter="embedded/mnli:1.0.0"),
]


def test_runs_are_listed_with_what_they_cost_and_the_command_that_repeats_them() -> None:
    assert as_markdown(listed(RECORDS, FOLDER)).splitlines()[2:] == [
        "| mrpc | unipelt-from-mnli | 1 | 81.0 | 2 of 10 | 32 | 1,200 | 1.5 | auto "
        "| `upt-train run records/mrpc-unipelt-from-mnli-seed1.json --no-publish` |",
        "| mrpc | full | 1 | 81.0 | 2 of 10 | 32 | 1,200 | 1.5 | auto "
        "| `upt-train run records/mrpc-full-seed1.json --no-publish --max-minutes 2.5` |",
        "| mrpc | full | 2 | 82.0 | 2 of 10 | 32 | 1,200 | 1.5 | auto "
        "| `upt-train run records/mrpc-full-seed2.json --no-publish` |",
    ]
    assert [run.figure for run in listed(RECORDS, FOLDER, split="test")] == [70.0] * 3
    assert [run.figure for run in listed(RECORDS, FOLDER, split="dev2")] == [None] * 3
    assert "| 1 |  | 2 of" in as_markdown(listed(RECORDS, FOLDER, split="dev2"))


def test_a_command_names_its_own_record(tmp_path: Path) -> None:
    for each in RECORDS:
        words = shlex.split(command_of(each, tmp_path))
        assert words[2] == str(record_file(tmp_path, each.recipe))


def test_recipes_of_a_row_that_are_not_alike_are_named() -> None:
    assert unlike([RECORDS[0], RECORDS[2]]) == {}
    assert unlike(RECORDS) == {"mrpc": ("max_minutes",)}
    others = [
        record("mrpc", "full", 1, epochs=3, backbone_rate=1e-5),
        record("mrpc", "lora", 1, batch_size=8),
        record("mrpc", "lora", 1, batch_size=4, train_rows=100),
    ]
    assert unlike(others) == {"mrpc": ("epochs", "batch_size")}
    fewer = RECORDS[0].model_copy(update={"train_rows": 2})
    assert unlike([RECORDS[1], RECORDS[2], fewer]) == {"mrpc": ("max_minutes",)}  # another seed
    assert unlike([RECORDS[0], fewer]) == {"mrpc": ("train_rows",)}


def test_the_table_says_where_recipes_are_not_alike(tmp_path: Path) -> None:
    for each in RECORDS:
        write_record(record_file(tmp_path, each.recipe), each)
    shown = CliRunner().invoke(app, ["table", str(tmp_path)]).output
    assert shown.splitlines()[-2:] == ["", "mrpc: recipes differ in max_minutes"]


def test_the_command_lists_runs(tmp_path: Path) -> None:
    for each in RECORDS:
        write_record(record_file(tmp_path, each.recipe), each)
    shown = CliRunner().invoke(app, ["table", str(tmp_path), "--runs"])
    assert shown.output.strip() == as_markdown(listed(RECORDS, tmp_path))
    values = json.loads(
        CliRunner().invoke(app, ["table", str(tmp_path), "--runs", "--json"]).output
    )
    assert [(each["method"], each["seed"], each["steps"]) for each in values] == [
        ("unipelt-from-mnli", 1, 1200),
        ("full", 1, 1200),
        ("full", 2, 1200),
    ]
    both = CliRunner().invoke(app, ["table", str(tmp_path), "--runs", "--against", "full"])
    assert isinstance(both.exception, InvalidInput)


def test_a_record_is_a_recipe_to_run_again(tmp_path: Path) -> None:
    file = record_file(tmp_path, RECORDS[0].recipe)
    write_record(file, RECORDS[0])
    again = CliRunner().invoke(app, ["run", str(file), "--records", str(tmp_path)])
    assert (again.exit_code, again.stdout) == (0, "")
    assert "exists: skipped" in again.stderr


def test_what_is_no_record_of_the_catalogues_tasks_is_not_run_again(tmp_path: Path) -> None:
    missing = CliRunner().invoke(app, ["run", str(tmp_path / "none.json")])
    assert isinstance(missing.exception, InvalidInput)
    damaged = tmp_path / "damaged.json"
    damaged.write_text("{}")
    assert isinstance(CliRunner().invoke(app, ["run", str(damaged)]).exception, Corrupt)
    own = {"name": "acts", "fields": ["text"], "files": {"train": "a.csv"}, "labels": ["a", "b"]}
    recipe = Recipe.model_validate({"task": own})
    file = record_file(tmp_path, recipe)
    write_record(file, RECORDS[0].model_copy(update={"recipe": recipe}))
    refused = CliRunner().invoke(app, ["run", str(file)])
    assert isinstance(refused.exception, InvalidInput)
    assert "name its recipe" in str(refused.exception)


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        (
            ("--task", "rte", "--task", "mrpc", "--method", "full", "--method", "lora"),
            [
                "| task | metric | full | lora |",
                "| rte | accuracy | not run | not run |",
                "| mrpc | f1 | 81.5 ± 0.7 | not run |",
                "| parameters served |  | 0 | not run |",
                "| parameters trained |  | 0 | not run |",
                "| trained, with head |  | 1 | not run |",
            ],
        ),
        (
            ("--task", "mrpc", "--train-rows", "100", "--train-rows", "500"),
            [
                "| task | metric |",
                "| mrpc (100 rows) | f1 |",
                "| mrpc (500 rows) | f1 |",
                "| parameters served |  |",
                "| parameters trained |  |",
                "| trained, with head |  |",
            ],
        ),
    ],
)
def test_chosen_rows_and_columns_are_shown_whether_run_or_not(
    tmp_path: Path, options: tuple[str, ...], shown: list[str]
) -> None:
    for each in RECORDS:
        write_record(record_file(tmp_path, each.recipe), each)
    lines = CliRunner().invoke(app, ["table", str(tmp_path), *options]).output.splitlines()
    assert [line for line in lines if line.startswith("|") and "---" not in line] == shown


def test_a_choice_that_cannot_be_is_refused(tmp_path: Path) -> None:
    write_record(tmp_path / "one.json", RECORDS[0])
    wrong = [
        (("--method", "adapters"), InvalidInput, "got 'adapters'"),
        (("--train-rows", "100"), InvalidInput, "--task NAME beside it"),
        (("--task", "sst3"), NotFound, "no task 'sst3'"),
        (("--task", "rte", "--plot", str(tmp_path / "a.svg")), NotFound, "no runs"),
    ]
    for options, kind, message in wrong:
        exception = CliRunner().invoke(app, ["table", str(tmp_path), *options]).exception
        assert isinstance(exception, kind)
        assert message in str(exception)
