"""Entities and embeddings, from files of one's own to a server that answers as the card says."""

import asyncio
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from upt_server.client import AsyncClient
from upt_server.runner import TorchRunner
from upt_testing.rows import similarity_rows
from upt_testing.serving import make_settings, serving
from upt_training.cli import app
from upt_zoo.answers import EmbeddingAnswer, EntitiesAnswer
from upt_zoo.backbone import Backbone, resolve_backbone
from upt_zoo.errors import InvalidSpec
from upt_zoo.local.store import Store
from upt_zoo.nn.encoder import load_encoder
from upt_zoo.references import Reference

ROWS = Path(__file__).parent / "rows"
RUNNER = CliRunner()


def run(folder: Path, *arguments: str) -> str:
    environment = {
        "UPT_ZOO_HOME": str(folder / "home"),
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
    result = RUNNER.invoke(app, list(arguments), env=environment, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def write_recipe(folder: Path, task: dict[str, object], **keys: object) -> str:
    recipe = {"task": task, "batch_size": 8, "precision": "fp32", "max_tokens": 48, **keys}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return str(folder / "recipe.yaml")


async def measured(folder: Path, backbone: Backbone, recipe: str, name: str) -> dict[str, float]:
    """Evaluate in this process and through a server; both have to say the same."""
    here = json.loads(run(folder, "evaluate", name, "--recipe", recipe, "--json"))["metrics"]
    settings = make_settings(folder / "home")
    async with serving(settings, backbone, TorchRunner(load_encoder(backbone))) as served:
        through = await asyncio.to_thread(
            run, folder, *("evaluate", name, "--recipe", recipe, "--json"),
            *("--server", served.target),
        )  # fmt: skip
    assert json.loads(through)["metrics"] == pytest.approx(here, abs=0.01)
    stored = Store(folder / "home").resolve(Reference.parse(name))
    assert stored.spec.lineage.metrics == {f"dev/{key}": value for key, value in here.items()}
    found: dict[str, float] = here
    return found


async def test_a_conll_file_becomes_an_adapter_that_finds_entities(tmp_path: Path) -> None:
    for split in ("train", "dev"):
        shutil.copy(ROWS / f"people-and-places-{split}.conll", tmp_path)
    task: dict[str, object] = {
        "name": "people-and-places",
        "description": "Who and which places are in this text?",
        "head": "token_classification",
        "fields": ["tokens"],
        "labels": ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"],
        "files": {split: f"people-and-places-{split}.conll" for split in ("train", "dev")},
    }
    recipe = write_recipe(
        tmp_path, task, method="lora", epochs=12, adapter_rate=0.004, head_rate=0.004
    )
    run(tmp_path, "run", recipe, "--records", str(tmp_path / "records"))
    backbone = resolve_backbone()
    metrics = await measured(tmp_path, backbone, recipe, "people-and-places")
    assert set(metrics) == {"f1", "precision", "recall"}
    assert metrics["f1"] > 70
    store = Store(tmp_path / "home")
    stored = store.resolve(Reference.parse("people-and-places"))
    assert "Reads `text` and answers with the entities in it: PER, LOC." in store.card(stored)
    report = tmp_path / "report"
    run(tmp_path, "report", "people-and-places", "--recipe", recipe, "--out", str(report))
    assert "<td>f1</td>" in (report / "report.html").read_text()
    assert "| people-and-places | f1 |" in run(tmp_path, "table", str(tmp_path / "records"))
    text = "A letter of Ada Lovelace reached Vienna."
    settings = make_settings(tmp_path / "home")
    async with (
        serving(settings, backbone, TorchRunner(load_encoder(backbone))) as served,
        AsyncClient(served.target) as client,
    ):
        answer = (await client.predict("people-and-places", text)).answer
    assert isinstance(answer, EntitiesAnswer)
    found = [(each.label, each.text, each.start) for each in answer.entities]
    assert found == [("PER", "Ada Lovelace", 12), ("LOC", "Vienna", 33)]


async def test_pairs_of_texts_become_an_adapter_that_embeds(
    tmp_path: Path, backbone: Backbone
) -> None:
    for split, (count, seed) in {"train": (96, 1), "dev": (32, 2)}.items():
        lines = [json.dumps(row) + "\n" for row in similarity_rows(count, seed=seed)]
        (tmp_path / f"{split}.jsonl").write_text("".join(lines))
    task: dict[str, object] = {
        "name": "alike",
        "head": "embedding",
        "fields": ["sentence1", "sentence2"],
        "files": {"train": "train.jsonl", "dev": "dev.jsonl"},
    }
    keys = {"backbone": str(backbone.directory), "pooling": "mean", "adapter_rate": 0.01}
    recipe = write_recipe(tmp_path, task, epochs=10, rows_at_once=5, **keys)
    run(tmp_path, "run", recipe)
    metrics = await measured(tmp_path, backbone, recipe, "alike")
    assert set(metrics) == {"spearmanr", "pearson"}
    still = write_recipe(
        tmp_path, {**task, "name": "still"}, epochs=1, **keys | {"adapter_rate": 1e-9}
    )
    run(tmp_path, "run", still)
    untaught = await measured(tmp_path, backbone, still, "still")
    assert metrics["spearmanr"] > untaught["spearmanr"] + 10
    recipe = write_recipe(tmp_path, task, epochs=10, rows_at_once=5, **keys)
    store = Store(tmp_path / "home")
    stored = store.resolve(Reference.parse("alike"))
    assert "Reads `text` and answers with a vector of 32 numbers." in store.card(stored)
    assert (stored.spec.head.pooling, stored.spec.lineage.head_parameters) == ("mean", 0)
    run(tmp_path, "report", "alike", "--recipe", recipe, "--out", str(tmp_path / "report"))
    settings = make_settings(tmp_path / "home")
    async with (
        serving(settings, backbone, TorchRunner(load_encoder(backbone))) as served,
        AsyncClient(served.target) as client,
    ):
        texts = ("the red film is good .", "the red film is good .", "the blue house is dull .")
        outputs = (await client.predict_many([("alike", [text]) for text in texts])).outputs
    vectors = [out.answer.vector for out in outputs if isinstance(out.answer, EmbeddingAnswer)]
    one, same, other = np.array(vectors)
    assert one @ same == pytest.approx(1, abs=1e-5)
    assert one @ other < 0.9
    with pytest.raises(InvalidSpec, match="an embedding has no head to learn"):
        run(tmp_path, "run", recipe, "--method", "head")
    full = write_recipe(tmp_path, task, epochs=1, method="full", **keys)
    assert "not published" in run(tmp_path, "run", full)
