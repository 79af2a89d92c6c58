"""A task without code: from a CSV file to an adapter that a server answers with."""

import asyncio
import csv
import json
from pathlib import Path

import pyarrow
import pytest
import yaml
from pyarrow import parquet
from typer.testing import CliRunner

from upt_server.client import AsyncClient
from upt_server.runner import TorchRunner
from upt_testing.rows import JsonRow, sentiment_rows
from upt_testing.serving import make_settings, serving
from upt_training.cli import app
from upt_training.records import read_record
from upt_zoo.answers import LabelAnswer
from upt_zoo.backbone import Backbone
from upt_zoo.errors import InvalidInput
from upt_zoo.local.store import Store
from upt_zoo.nn.encoder import load_encoder
from upt_zoo.references import Reference

LABELS = ("unkind", "kind")
RUNNER = CliRunner()


def named(rows: list[JsonRow]) -> list[dict[str, str]]:
    return [{"text": str(r["sentence"]), "tone": LABELS[int(str(r["label"]))]} for r in rows]


def write_csv(file: Path, rows: list[dict[str, str]]) -> None:
    with file.open("w", newline="") as out:
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def folder(tmp_path: Path, backbone: Backbone) -> Path:
    """A recipe, a task in its own file, and its rows in three formats."""
    rows = tmp_path / "rows"
    rows.mkdir()
    write_csv(rows / "train.csv", named(sentiment_rows(40, seed=1)))
    dev, test = named(sentiment_rows(12, seed=2)), named(sentiment_rows(12, seed=3))
    (rows / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in dev))
    parquet.write_table(pyarrow.Table.from_pylist(test), rows / "test.parquet")
    task = {
        "name": "tone",
        "title": "Tones of 2024",
        "description": "Is this sentence kind?",
        "fields": ["text"],
        "gold": "tone",
        "labels": list(LABELS),
        "licence": "CC BY 4.0",
        "commercial_use": True,
        "adapter_licence": "MIT",
        "files": {"train": "train.csv", "dev": "dev.jsonl", "test": "test.parquet"},
    }
    (rows / "task.yaml").write_text(yaml.safe_dump(task))
    recipe = {
        "task": "rows/task.yaml",
        "backbone": str(backbone.directory),
        "epochs": 8,
        "batch_size": 8,
        "rows_at_once": 3,
        "adapter_rate": 0.01,
        "head_rate": 0.01,
        "max_tokens": 48,
        "precision": "fp32",
        "class_weights": "balanced",
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path


def run(folder: Path, *arguments: str) -> str:
    environment = {
        "UPT_ZOO_HOME": str(folder / "home"),
        "UPT_DATA_DIR": str(folder),  # of the catalogue, not of this task
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
    result = RUNNER.invoke(app, list(arguments), env=environment, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


async def test_a_csv_file_becomes_an_adapter_that_a_server_answers_with(
    folder: Path, backbone: Backbone
) -> None:
    recipe = str(folder / "recipe.yaml")
    run(folder, "run", recipe, "--records", str(folder / "records"))
    store = Store(folder / "home")
    stored = store.resolve(Reference.parse("tone"))
    metrics = stored.spec.lineage.metrics
    assert set(metrics) == {f"{s}/{m}" for s in ("dev", "test") for m in ("macro_f1", "accuracy")}
    assert metrics["test/accuracy"] > 90
    assert (stored.spec.lineage.data, stored.spec.lineage.licence) == ("Tones of 2024", "MIT")
    card = store.card(stored)
    assert card.startswith("# tone\n\nIs this sentence kind?\n")
    assert (
        "Licence of the data: CC BY 4.0. Commercial use: yes. Licence of the adapter: MIT." in card
    )
    assert "Reads `text` and answers with one of unkind, kind." in card
    assert "| task | tone |" in card
    assert str(folder) not in stored.spec.to_json().decode().replace(str(backbone.directory), "")
    record = read_record(folder / "records" / "tone-unipelt_prompt-seed1.json")
    assert record.metrics == metrics
    assert "| tone | macro_f1 |" in run(folder, "table", str(folder / "records"))
    printed = json.loads(run(folder, "evaluate", "tone", "--recipe", recipe, "--json"))
    assert printed["metrics"]["accuracy"] == metrics["dev/accuracy"]
    settings = make_settings(folder / "home")
    async with serving(settings, backbone, TorchRunner(load_encoder(backbone))) as served:
        through = await asyncio.to_thread(
            run, folder, *("evaluate", "tone", "--recipe", recipe, "--split", "test"),
            *("--server", served.target, "--json"),
        )  # fmt: skip
        async with AsyncClient(served.target) as client:
            found = await client.predict("tone", "this song is gripping .")
    assert json.loads(through)["metrics"]["accuracy"] == metrics["test/accuracy"]
    assert isinstance(found.answer, LabelAnswer)
    assert found.answer.label == "kind"


def test_a_tasks_recipe_is_asked_for_and_has_to_be_the_adapters_own(
    folder: Path, backbone: Backbone
) -> None:
    recipe = folder / "recipe.yaml"
    run(folder, "run", str(recipe))
    with pytest.raises(InvalidInput, match="tone is no task of the catalogue: name its recipe"):
        run(folder, "evaluate", "tone")
    keys = yaml.safe_load((folder / "rows" / "task.yaml").read_text())
    cases: tuple[tuple[dict[str, object], str], ...] = (
        ({"name": "voice"}, r"is for the task tone \(classification\), the recipe for voice"),
        ({"labels": ["kind", "unkind"]}, "they cannot be compared"),
    )
    for changes, message in cases:
        (folder / "rows" / "task.yaml").write_text(yaml.safe_dump(keys | changes))
        with pytest.raises(InvalidInput, match=message):
            run(folder, "evaluate", "tone", "--recipe", str(recipe))


def test_sets_of_labels_are_learnt_and_measured(folder: Path, backbone: Backbone) -> None:
    rows = [
        {"text": f"the {colour} {thing} .", "marks": json.dumps(marks)}
        for colour in ("red", "green", "blue")
        for thing in ("book", "song", "house", "river")
        for marks in [[m for m in ("red", "song") if m in (colour, thing)]]
    ]
    write_csv(folder / "marks.csv", rows * 6)
    task = {
        "name": "marks",
        "fields": ["text"],
        "gold": "marks",
        "labels": ["red", "song"],
        "head": "multi_label",
        "files": {"train": "marks.csv", "dev": "marks.csv"},
    }
    keys = yaml.safe_load((folder / "recipe.yaml").read_text())
    keys |= {"task": task}  # and class_weights: balanced
    (folder / "marks.yaml").write_text(yaml.safe_dump(keys))
    run(folder, "run", str(folder / "marks.yaml"))
    store = Store(folder / "home")
    stored = store.resolve(Reference.parse("marks"))
    assert stored.spec.lineage.metrics["dev/micro_f1"] > 90
    assert "answers with any of red, song." in store.card(stored)


def test_a_task_with_a_train_file_alone_is_published_unmeasured(folder: Path) -> None:
    keys = yaml.safe_load((folder / "rows" / "task.yaml").read_text())
    keys["files"] = {"train": "train.csv"}
    (folder / "rows" / "task.yaml").write_text(yaml.safe_dump(keys))
    assert run(folder, "run", str(folder / "recipe.yaml")).startswith("published tone:1.0.0@")
    store = Store(folder / "home")
    stored = store.resolve(Reference.parse("tone"))
    assert stored.spec.lineage.metrics == {}
    assert "Not measured" in store.card(stored)
    with pytest.raises(InvalidInput, match="no dev file of tone"):
        run(folder, "evaluate", "tone", "--recipe", str(folder / "recipe.yaml"))
