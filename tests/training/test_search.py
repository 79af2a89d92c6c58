"""The search over rates and epochs: what it tries, and what it may look at."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import yaml
from typer.testing import CliRunner

from upt_testing.rows import sentiment_rows, write_split
from upt_training.batches import Feature
from upt_training.cli import app
from upt_training.data import Split, read_split
from upt_training.losses import TaskLoss
from upt_training.recipe import Recipe
from upt_training.records import read_record
from upt_training.search import MOST_RUNS, trials_of
from upt_zoo.backbone import Backbone
from upt_zoo.errors import Conflict, InvalidSpec
from upt_zoo.local.store import Store
from upt_zoo.references import Reference
from upt_zoo.tasks import Task

RECIPE = Recipe(task="sst2", holdout_rows=8, epochs=4, adapter_rate=0.01)


def test_the_recipe_itself_is_tried_first_and_its_neighbours_before_others() -> None:
    tried = trials_of(RECIPE, 15)
    assert tried[0] == RECIPE
    assert [(each.adapter_rate, each.epochs) for each in tried[:5]] == [
        (0.01, 4),
        (0.01, 2),
        (0.01, 8),
        (0.005, 4),
        (0.02, 4),
    ]
    keys = {(each.adapter_rate, each.epochs) for each in tried}
    assert len(keys) == len(tried) == MOST_RUNS == 15
    assert all(each.head_rate / each.adapter_rate == pytest.approx(0.05) for each in tried)


def test_nothing_is_tried_twice() -> None:
    tried = trials_of(RECIPE.changed({"epochs": 1}), 15)
    keys = {(each.adapter_rate, each.epochs) for each in tried}
    assert len(keys) == len(tried) == 10  # one epoch has no half


def test_a_search_needs_rows_to_decide_on() -> None:
    with pytest.raises(InvalidSpec, match="search: expected holdout_rows"):
        trials_of(Recipe(task="sst2"), 2)


@pytest.fixture
def folder(tmp_path: Path, backbone: Backbone) -> Path:
    for split, seed in (("train", 1), ("dev", 2)):
        write_split(tmp_path / "data", "sst2", split, sentiment_rows(32, seed=seed))
    keys = {
        "task": "sst2",
        "backbone": str(backbone.directory),
        "epochs": 2,
        "batch_size": 8,
        "holdout_rows": 12,
        "adapter_rate": 0.004,
        "head_rate": 0.004,
        "precision": "fp32",
        "method": "lora",
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(keys))
    return tmp_path


def run(folder: Path, *arguments: str) -> str:
    places = {"UPT_ZOO_HOME": "home", "UPT_DATA_DIR": "data", "XDG_CACHE_HOME": "cache"}
    environment = {name: str(folder / place) for name, place in places.items()}
    result = CliRunner().invoke(app, list(arguments), env=environment, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_best_on_the_holdout_is_published_with_all_trials(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def noting(task: Task, split: str, *, folder: Path | None) -> Split:
        read.append(split)
        return read_split(task, split, folder=folder)

    monkeypatch.setattr("upt_training.experiment.read_split", noting)
    recipe = str(folder / "recipe.yaml")
    arguments = ("search", recipe, "--runs", "4", "--records", str(folder / "records"))
    run(folder, *arguments)
    assert read == ["train"] * 5 + ["dev"]  # four trials and the best; dev once, at the end
    store = Store(folder / "home")
    lineage = store.resolve(Reference.parse("sst2")).spec.lineage
    record = read_record(folder / "records" / "sst2-lora-seed1.json")
    trials = record.recipe.search
    assert [(trial.adapter_rate, trial.epochs) for trial in trials] == [
        (0.004, 2),
        (0.004, 1),
        (0.004, 4),
        (0.002, 2),
    ]
    best = max(trials, key=lambda trial: trial.holdout)
    assert (record.recipe.adapter_rate, record.recipe.epochs) == (best.adapter_rate, best.epochs)
    assert max(record.holdout) == best.holdout
    assert Recipe.model_validate(lineage.recipe) == record.recipe
    assert lineage.metrics == record.metrics
    assert list((folder / "cache").rglob("*.safetensors")) == []
    with pytest.raises(Conflict, match="name another folder of records"):
        run(folder, *arguments)
    # the recipe that was found gives the same adapter by itself
    (folder / "found.yaml").write_text(yaml.safe_dump(json.loads(record.recipe.model_dump_json())))
    run(folder, "run", str(folder / "found.yaml"))
    versions = [store.resolve(Reference.parse(f"sst2:1.0.{patch}")) for patch in (0, 1)]
    assert versions[0].manifest.tensors == versions[1].manifest.tensors


def test_a_search_that_was_killed_goes_on_to_the_same_end(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("search", str(folder / "recipe.yaml"), "--runs", "3", "--no-publish", "--records")
    steps: list[int] = []
    dies_after = 0

    class Killed(BaseException):
        pass

    def counted(loss: TaskLoss, batch: Sequence[Feature]) -> torch.Tensor:
        steps.append(len(batch))
        if len(steps) == dies_after:
            raise Killed
        return compute(loss, batch)

    compute = TaskLoss.__call__
    monkeypatch.setattr(TaskLoss, "__call__", counted)
    run(folder, *options, str(folder / "whole"))
    needed = len(steps)
    steps.clear()
    dies_after = 8  # in the second trial; the first takes two epochs of three steps
    with pytest.raises(Killed):
        run(folder, *options, str(folder / "parts"))
    dies_after = 0
    run(folder, *options, str(folder / "parts"))
    whole, parts = (
        read_record(folder / name / "sst2-lora-seed1.json") for name in ("whole", "parts")
    )
    assert parts.recipe == whole.recipe
    assert (parts.metrics, parts.holdout) == (whole.metrics, whole.holdout)
    assert needed < len(steps) <= needed + 3  # an epoch of the trial that was killed, once more
    assert list((folder / "cache").rglob("*.safetensors")) == []


def test_a_dry_run_of_a_search_lists_its_recipes_and_leaves_nothing(folder: Path) -> None:
    options = ("--runs", "3", "--dry-run", "--json", "--records", str(folder / "records"))
    lines = run(folder, "search", str(folder / "recipe.yaml"), *options).splitlines()
    steps = [json.loads(line)["steps"] for line in lines]
    assert steps == [steps[0], steps[0] // 2, steps[0] * 2]
    assert [(folder / name).exists() for name in ("home", "records")] == [False, False]


def test_a_budget_of_time_is_shared_out(folder: Path) -> None:
    recipe = folder / "recipe.yaml"
    keys = yaml.safe_load(recipe.read_text()) | {"epochs": 100_000}
    recipe.write_text(yaml.safe_dump(keys))
    options = ("--runs", "2", "--max-minutes", "0.02", "--no-publish", "--json")
    record = json.loads(run(folder, "search", str(recipe), *options))
    assert record["max_minutes"] == 0.01
    assert record["adapter"] is None
    assert len(record["recipe"]["search"]) == 2


def test_curves_are_written_as_csv(folder: Path) -> None:
    options = ("--curves", str(folder / "curves"), "--no-publish", "--json")
    record = json.loads(run(folder, "run", str(folder / "recipe.yaml"), *options))
    header, *lines = (folder / "curves" / "sst2-lora-seed1.csv").read_text().splitlines()
    assert header == "epoch,step,loss,holdout"
    rows = [line.split(",") for line in lines]
    assert [int(row[1]) for row in rows if row[2]] == list(range(1, record["steps"] + 1))
    metrics = [float(row[3]) for row in rows if row[3]]
    assert metrics == pytest.approx(record["holdout"], abs=1e-4)
    assert [row[0] for row in rows if row[3]] == ["1", "2"]
