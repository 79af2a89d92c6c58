"""Continued pretraining: recipes, texts, and runs of the command from texts to a task."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from upt_testing.rows import sentiment_rows, similarity_rows, write_split
from upt_training import loop
from upt_training.cli import app
from upt_training.corpus import read_corpus, rows_for_masking
from upt_training.masking import read_head
from upt_training.pretrainer import Pretrainer
from upt_training.pretraining import Pretraining, read_pretraining
from upt_zoo.backbone import Backbone, open_backbone
from upt_zoo.errors import (
    Conflict,
    DataNotFound,
    InvalidInput,
    InvalidSpec,
    NotFound,
    WrongBackbone,
)
from upt_zoo.local.store import Store
from upt_zoo.nn.encoder import load_tensors
from upt_zoo.references import Reference
from upt_zoo.tasks import TASKS
from upt_zoo.tokenization import Tokenizer

RUNNER = CliRunner()
SHIPPED = sorted((Path(__file__).parents[2] / "training" / "pretraining").glob("*.yaml"))
KEYS: dict[str, Any] = {
    "name": "tiny-texts",
    "texts": ["texts.txt"],
    "epochs": 3,
    "head_epochs": 4,
    "batch_size": 8,
    "head_rate": 0.01,
    "adapter_rate": 0.01,
    "holdout_rows": 8,
    "max_tokens": 24,
    "precision": "fp32",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lines = [str(row["sentence"]) for row in sentiment_rows(60, seed=4)]
    (tmp_path / "texts.txt").write_text("\n".join(lines) + "\n\n")
    for split, seed in (("train", 1), ("dev", 2)):
        write_split(tmp_path / "data", "sst2", split, sentiment_rows(24, seed=seed))
        write_split(tmp_path / "data", "stsb", split, similarity_rows(24, seed=seed))
    return tmp_path


def write(folder: Path, backbone: Path, **changes: object) -> str:
    keys = KEYS | {"backbone": str(backbone)} | changes
    file = folder / "recipe.yaml"
    file.write_text(
        yaml.safe_dump({key: value for key, value in keys.items() if value is not None})
    )
    return str(file)


def run(folder: Path, *arguments: str) -> str:
    environment = {
        "UPT_ZOO_HOME": str(folder / "home"),
        "UPT_DATA_DIR": str(folder / "data"),
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
    result = RUNNER.invoke(app, list(arguments), env=environment, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


# Recipes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"texts": None}, "expected one of task, tasks and texts, got none"),
        ({"task": "sst2"}, "expected one of task, tasks and texts, got task, texts"),
        ({"tasks": ["sst2"]}, "expected one of task, tasks and texts, got tasks, texts"),
        ({"texts": None, "tasks": ["sst2", "sst2"]}, "expected each one once, got sst2, sst2"),
        ({"method": "bitfit"}, "method bitfit cannot be kept"),
        ({"method": "full", "precision": "int8"}, "learns in the layers"),
        ({"name": "Tiny texts"}, "name"),
        ({"masked_share": 0}, "masked_share"),
        ({"labels": ["a"]}, "labels"),
    ],
)
def test_what_is_wrong_with_a_recipe_is_named(
    folder: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(InvalidSpec, match=message):
        read_pretraining(Path(write(folder, folder, **changes)))


# Texts


def test_texts_come_from_lines_and_columns(tmp_path: Path, backbone: Backbone) -> None:
    (tmp_path / "a.txt").write_text("one film\n\n two books \n")
    (tmp_path / "b.jsonl").write_text('{"text": "three songs"}\n{"text": " "}\n')
    recipe = Pretraining(name="t", texts=("a.txt", "b.jsonl"), licence="CC0", title="All")
    corpus = read_corpus(recipe, tmp_path)
    assert [example.texts for example in corpus.examples] == [
        ("one film",),
        (" two books ",),
        ("three songs",),
    ]
    assert [(file.name, file.rows) for file in corpus.files] == [("a.txt", 2), ("b.jsonl", 1)]
    assert (corpus.title, corpus.licence) == ("All", "CC0")


def test_a_tasks_texts_are_read_with_both_fields(folder: Path, backbone: Backbone) -> None:
    corpus = read_corpus(Pretraining(name="t", task="stsb"), folder / "data")
    assert len(corpus.examples) == 24
    assert len(corpus.examples[0].texts) == 2
    assert corpus.title == "STS-B (GLUE)"
    rows = rows_for_masking(corpus.examples, Tokenizer(backbone.tokenizer_file), 10)
    assert [len(feature.row.ids) for feature in rows] == [10] * 24  # a long pair loses its end
    assert {max(feature.row.type_ids) for feature in rows} == {1}


def test_the_texts_of_several_tasks_are_pooled(folder: Path, backbone: Backbone) -> None:
    recipe = Pretraining(name="t", tasks=("stsb", "sst2"), files=("train", "dev"))
    corpus = read_corpus(recipe, folder / "data")
    alone = [
        read_corpus(Pretraining(name="t", task=task, files=recipe.files), folder / "data")
        for task in recipe.tasks
    ]
    assert corpus.examples == alone[0].examples + alone[1].examples
    assert corpus.files == alone[0].files + alone[1].files
    assert [file.name for file in corpus.files] == [
        "stsb/train",
        "stsb/dev",
        "sst2/train",
        "sst2/dev",
    ]
    assert len({file.digest for file in corpus.files}) == 4
    assert corpus.title == "STS-B (GLUE) + SST-2 (GLUE)"
    assert corpus.licence == f"{alone[0].licence}; {alone[1].licence}"
    rows = rows_for_masking(corpus.examples, Tokenizer(backbone.tokenizer_file), 24)
    assert {max(feature.row.type_ids) for feature in rows} == {0, 1}  # single texts and pairs


@pytest.mark.parametrize(
    ("tasks", "allowed"),
    [
        (("hyperpartisan",), "yes"),
        (("hyperpartisan", "imdb"), "unclear"),
        (("imdb", "ag_news", "hyperpartisan"), "no"),
    ],
)
def test_the_strictest_of_the_pooled_tasks_says_what_is_allowed(
    tmp_path: Path, tasks: tuple[str, ...], allowed: str
) -> None:
    for task in tasks:
        write_split(tmp_path, task, "train", [{"text": "a film", "label": 0}])
    assert read_corpus(Pretraining(name="t", tasks=tasks), tmp_path).commercial_use == allowed


def test_a_pooled_task_that_is_not_there_is_named(folder: Path) -> None:
    with pytest.raises(DataNotFound, match=r"task cola: expected the file .*cola/train"):
        read_corpus(Pretraining(name="t", tasks=("sst2", "cola")), folder / "data")
    with pytest.raises(NotFound, match="no task 'sts2' in the catalogue; did you mean"):
        read_corpus(Pretraining(name="t", tasks=("sst2", "sts2")), folder / "data")


def test_a_long_text_becomes_several_rows_that_together_hold_it(
    tmp_path: Path, backbone: Backbone
) -> None:
    words = random.Random(1).choices(["film", "book", "song"], k=50)
    (tmp_path / "a.txt").write_text(" ".join(words))
    corpus = read_corpus(Pretraining(name="t", texts=("a.txt",)), tmp_path)
    tokenizer = Tokenizer(backbone.tokenizer_file)
    rows = [f.row for f in rows_for_masking(corpus.examples, tokenizer, 22)]
    (whole,) = rows_for_masking(corpus.examples, tokenizer, None)
    assert [len(row.ids) for row in rows] == [22, 22, 12]
    assert [i for row in rows for i in row.ids[1:-1]] == whole.row.ids[1:-1]
    assert {(row.ids[0], row.ids[-1]) for row in rows} == {(2, 3)}


@pytest.mark.parametrize(
    ("name", "data", "error", "message"),
    [
        ("no.txt", None, DataNotFound, r"expected the file .*no\.txt"),
        ("a.txt", b"\n \n", InvalidInput, r"a\.txt: expected texts, got none"),
        ("a.txt", b"\xff", InvalidInput, r"a\.txt: expected UTF-8"),
        ("a.jsonl", b'{"body": "b"}\n', InvalidInput, "row 1, column text.*got the columns body"),
        ("a.jsonl", b'{"text": 5}\n', InvalidInput, "row 1, column text: expected a text, got int"),
    ],
)
def test_what_is_wrong_with_texts_is_named(
    tmp_path: Path, name: str, data: bytes | None, error: type[Exception], message: str
) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(error, match=message):
        read_corpus(Pretraining(name="t", texts=(name,)), tmp_path)


# Runs


def test_an_adapter_is_pretrained_on_a_tasks_text_and_carries_over(
    folder: Path, backbone: Backbone
) -> None:
    """TAPT: the head learns first, then the adapter with it; the task starts from the adapter."""
    recipe = write(folder, backbone.directory, texts=None, task="sst2", name="sst2-tapt")
    printed = run(folder, "pretrain", recipe)
    assert (
        printed.splitlines()[1]
        == "masked-language head: trained first, tied to the word embeddings"
    )
    store = Store(folder / "home")
    stored = store.resolve(Reference.parse("sst2-tapt"))
    store.verify(stored)
    lineage = stored.spec.lineage
    assert set(lineage.metrics) == {"holdout/masked_accuracy"}
    assert lineage.metrics["holdout/masked_accuracy"] > 20  # 48 words by chance: 2
    assert lineage.data == "SST-2 (GLUE)"
    assert lineage.curve is not None  # of the adapter's phase, not of the head's alone
    best = lineage.curve.epochs.index(lineage.curve.best_epoch)
    assert lineage.curve.holdout is not None
    assert lineage.curve.holdout[best] == lineage.metrics["holdout/masked_accuracy"]
    card = store.card(stored)
    assert "trained first, alone, for 4 epochs, tied to the word embeddings" in card
    assert "On rows held out of the training." in card
    task = {
        "task": "sst2",
        "backbone": str(backbone.directory),
        "initial_adapter": "sst2-tapt",
        "epochs": 1,
        "batch_size": 24,
        "adapter_rate": 1e-9,
        "precision": "fp32",
    }
    (folder / "task.yaml").write_text(yaml.safe_dump(task))
    run(folder, "run", str(folder / "task.yaml"))
    after = store.resolve(Reference.parse("sst2"))
    assert after.spec.lineage.recipe["initial_adapter"] == f"sst2-tapt:1.0.0@{stored.digest}"
    (_, before), (_, now) = store.load(stored), store.load(after)
    for name in ("prompt", "prefix.keys", "bottleneck.up.weight", "lora.q.b"):
        assert abs(before[name].astype("f4") - now[name].astype("f4")).max() < 0.02, name


def test_an_adapter_is_pretrained_on_the_pooled_texts_of_the_data_folder(
    folder: Path, backbone: Backbone
) -> None:
    keys = {"texts": None, "tasks": ["sst2", "stsb"], "method": "lora", "epochs": 1}
    run(folder, "pretrain", write(folder, backbone.directory, **keys, head_epochs=1))
    store = Store(folder / "home")
    stored = store.resolve(Reference.parse("tiny-texts"))
    lineage = stored.spec.lineage
    assert [(file.name, file.rows) for file in lineage.files] == [
        ("sst2/train", 24),
        ("stsb/train", 24),
    ]
    assert lineage.recipe["tasks"] == ["sst2", "stsb"]
    assert "stsb/train" in store.card(stored)


def test_a_whole_backbone_is_pretrained_on_texts_and_keeps_its_head(
    folder: Path, backbone: Backbone
) -> None:
    """DAPT, then TAPT on top of it without training a head again."""
    out = folder / "dapt"
    keys = {"method": "full", "backbone_rate": 1e-3, "whole_words": True, "epochs": 12}
    printed = json.loads(
        run(
            folder,
            "pretrain",
            write(folder, backbone.directory, **keys),
            "--out",
            str(out),
            "--json",
        )
    )
    assert (printed["result"], printed["head"]) == (str(out), "trained first")
    assert printed["after"]["masked_accuracy"] > printed["before"]["masked_accuracy"]
    assert list((folder / "cache").rglob("*.safetensors")) == []
    adapted = open_backbone(out, hub_id=str(out))
    assert adapted.identity.digest != backbone.identity.digest
    assert read_head(adapted) is not None
    changed = load_tensors(adapted)
    assert any((changed[n] != tensor).any() for n, tensor in load_tensors(backbone).items())
    facts = json.loads((out / "pretraining.json").read_text())
    assert facts["from"] == backbone.identity.digest
    assert facts["files"][0]["name"] == "texts.txt"
    again = json.loads(run(folder, "pretrain", write(folder, out, method="lora"), "--json"))
    assert again["head"] == "of the backbone"
    store = Store(folder / "home")
    stored = store.resolve(Reference.parse("tiny-texts"))
    assert "the masked-language head came with the backbone" in stored.spec.task.description
    assert stored.spec.backbone.digest == adapted.identity.digest
    other = {"task": "sst2", "method": "lora", "backbone": str(backbone.directory)}
    (folder / "task.yaml").write_text(yaml.safe_dump(other | {"initial_adapter": "tiny-texts"}))
    with pytest.raises(WrongBackbone, match=r"initial_adapter: tiny-texts:1\.0\.0 belongs to"):
        run(folder, "run", str(folder / "task.yaml"))


def test_a_head_alone_leaves_the_backbone_what_it_is(folder: Path, backbone: Backbone) -> None:
    out = folder / "with-head"
    recipe = write(folder, backbone.directory, method="head", holdout_rows=0)
    printed = run(folder, "pretrain", recipe, "--out", str(out))
    assert printed.splitlines()[0] == f"wrote {out}"
    found = open_backbone(out, hub_id=str(out))
    assert found.identity.digest == backbone.identity.digest
    assert read_head(found) is not None
    with pytest.raises(Conflict, match="with-head exists"):
        run(folder, "pretrain", recipe, "--out", str(out))


def test_a_run_that_was_interrupted_ends_with_the_same_tensors(
    folder: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = read_pretraining(Path(write(folder, backbone.directory, dropout=0.1)))

    class Silence:
        def __init__(self, epochs: int) -> None:
            self.left = epochs

        def step(self, progress: loop.Progress, *, steps: int, loss: float) -> None:
            pass

        def epoch(self, progress: loop.Progress, *, holdout: object) -> None:
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt

    whole = Pretrainer(recipe, folder=folder).run(Silence(100))
    file = folder / "run.safetensors"
    for epochs in (2, 4):  # in the head's phase, then in the adapter's
        with pytest.raises(KeyboardInterrupt):
            Pretrainer(recipe, folder=folder).run(Silence(epochs), checkpoint=file)
    found = Pretrainer(recipe, folder=folder).run(Silence(100), checkpoint=file)
    assert (found.steps, found.after) == (whole.steps, whole.after)
    assert all((found.tensors[name] == tensor).all() for name, tensor in whole.tensors.items())


def test_a_dry_run_says_what_is_then_learnt_and_leaves_nothing(
    folder: Path, backbone: Backbone
) -> None:
    recipe = write(folder, backbone.directory, epochs=2, head_epochs=1)
    said = json.loads(run(folder, "pretrain", recipe, "--dry-run", "--json"))
    assert not (folder / "home").exists()
    done = json.loads(run(folder, "pretrain", recipe, "--json"))
    assert (said["run"], said["steps"]) == ("tiny-texts", done["steps"])
    stored = Store(folder / "home").resolve(Reference.parse("tiny-texts"))
    assert said["trained_parameters"] == stored.spec.lineage.trained_parameters
    assert done["was_cut_short"] is False


def test_the_clock_ends_both_phases(folder: Path, backbone: Backbone) -> None:
    recipe = write(folder, backbone.directory, epochs=50_000, head_epochs=50_000)
    done = json.loads(run(folder, "pretrain", recipe, "--max-minutes", "0.02", "--json"))
    assert done["was_cut_short"] is True
    assert 1 < done["seconds"] < 30


@pytest.mark.parametrize(
    ("changes", "arguments", "error", "message"),
    [
        ({"method": "full"}, (), InvalidInput, "--out: method full gives a backbone, name its"),
        ({}, ("--out", "x"), InvalidInput, "--out: method unipelt_prompt gives an adapter"),
        ({"max_tokens": 321}, (), InvalidSpec, "max_tokens: expected at most the 320 tokens"),
        ({"holdout_rows": 60}, (), InvalidSpec, "holdout_rows: 60 of 60 texts held out"),
    ],
)
def test_what_cannot_run_says_why_before_it_trains(
    folder: Path,
    backbone: Backbone,
    changes: dict[str, object],
    arguments: tuple[str, ...],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        run(folder, "pretrain", write(folder, backbone.directory, **changes), *arguments)


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_the_recipes_that_ship_pretrain_an_adapter_for_tasks_of_the_catalogue(file: Path) -> None:
    recipe = read_pretraining(file)
    assert not recipe.is_of_backbone
    assert recipe.is_of_catalogue
    assert recipe.name == file.stem
    if recipe.task is None:
        assert file.stem.endswith("-dapt")
        assert TASKS.keys() > set(recipe.tasks)
    else:
        assert file.stem == f"{recipe.task}-tapt".replace("_", "-")
