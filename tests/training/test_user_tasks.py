"""Tasks of one's own: their descriptions, and the answers in their files."""

import json
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow
import pytest
import yaml
from pyarrow import parquet
from pydantic import ValidationError

from upt_training.data import Example, read_split, splits_in
from upt_training.gold import Gold, GoldSpans, GoldTags, gold_of
from upt_training.recipe import Recipe, read_recipe, task_of
from upt_training.user_tasks import UserTask
from upt_zoo.errors import DataNotFound, InvalidInput, InvalidSpec
from upt_zoo.tasks import FileSource, Task

TICKETS: dict[str, Any] = {
    "name": "tickets",
    "fields": ["subject", "body"],
    "files": {"train": "train.csv", "test": "test.parquet", "dev": "dev.jsonl"},
    "labels": ["billing", "technical"],
    "gold": "team",
}


def described(**changes: object) -> UserTask:
    keys = TICKETS | changes
    return UserTask.model_validate({key: value for key, value in keys.items() if value is not None})


def task_with(labels: tuple[str, ...] | None, head: str) -> Task:
    fields = {"token_classification": ["words"]}.get(head, ["question", "context"])
    return described(labels=labels, head=head, fields=fields).task()


# The description


def test_a_description_fills_in_what_it_leaves_out() -> None:
    task = described().task()
    assert (task.title, task.kind, task.metrics) == (
        "tickets",
        "classification",
        ("macro_f1", "accuracy"),
    )
    assert (task.data_licence, task.commercial_use) == ("not stated", "unclear")
    assert task.adapter_licence == "not stated"
    assert task.head().outputs == 2
    assert described(gold=None).task().files == FileSource(paths=TICKETS["files"], gold="label")
    spans = described(gold=None, labels=None, head="span").task()
    assert spans.files == FileSource(paths=TICKETS["files"], gold="answers")
    tags = described(gold=None, fields=["tokens"], head="token_classification").task()
    assert tags.files == FileSource(paths=TICKETS["files"], gold="tags")
    assert tags.metrics == ("f1", "precision", "recall")
    assert tags.input().fields == ("text",)
    pairs = described(gold=None, labels=None, head="embedding").task()
    assert (pairs.metrics, pairs.input().fields) == (("spearmanr", "pearson"), ("text",))
    assert (pairs.head(32).outputs, pairs.head(32).normalised) == (32, True)


def test_yes_and_numbers_need_no_quotes() -> None:
    assert described(commercial_use=True).commercial_use == "yes"
    assert described(commercial_use=False).commercial_use == "no"
    assert described(labels=[1, 2, 3]).labels == ("1", "2", "3")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "sst2"}, "the catalogue has a task sst2"),
        ({"name": "My tickets"}, "name"),
        ({"fields": []}, "fields"),
        ({"fields": ["a", "b", "c"]}, "fields"),
        ({"fields": ["a", "a"]}, "fields: expected columns that differ from each other"),
        ({"fields": ["a", "b"], "gold": "b"}, "got a, b and b"),
        ({"files": {"dev": "a.csv"}}, "expected a split train, got dev"),
        ({"labels": None}, "a classification head has labels"),
        ({"labels": ["one"]}, "labels"),
        ({"labels": ["one", "one"]}, "expected distinct"),
        ({"labels": [True, False]}, "truth values"),
        ({"head": "regression"}, "a regression head has no labels"),
        ({"head": "span", "labels": None, "fields": ["text"]}, "a span head has two"),
        ({"head": "token_classification"}, "a token classification has one, the words"),
        (
            {"head": "token_classification", "labels": None, "fields": ["words"]},
            "a token_classification head has labels",
        ),
        ({"head": "embedding", "labels": None, "fields": ["text"]}, "the texts to compare"),
        ({"head": "embedding"}, "a embedding head has no labels"),
        ({"metrics": ["pearson"]}, "a classification head has macro_f1, accuracy"),
        ({"metrics": ["f1"], "labels": ["a", "b", "c"]}, "take macro_f1"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_what_is_wrong_with_a_description_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        described(**changes)


def test_a_recipe_takes_a_task_inline_or_from_a_file(tmp_path: Path) -> None:
    inline, beside = tmp_path / "inline.yaml", tmp_path / "beside.yaml"
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "tickets.yml").write_text(yaml.safe_dump(TICKETS))
    inline.write_text(yaml.safe_dump({"task": TICKETS, "epochs": 2}))
    beside.write_text("task: tasks/tickets.yml\nepochs: 2\n")
    recipe = read_recipe(inline)
    assert recipe == Recipe(task=described(), epochs=2)
    assert recipe.task_name == "tickets"
    assert task_of(recipe) == described().task()
    moved = described().moved(PurePosixPath("tasks"))
    assert moved.files["train"] == "tasks/train.csv"
    assert read_recipe(beside) == recipe.model_copy(update={"task": moved})
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
    assert recipe.changed({"seed": 3}).task == recipe.task


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("nowhere.yaml", "nowhere.yaml"),
        ("bad.yaml", r"bad\.yaml: fields: .*; files: "),
        ({"name": "tickets"}, r": task\.own\.fields: "),
        (5, "task"),
    ],
)
def test_what_is_wrong_with_a_recipes_task_is_named(
    tmp_path: Path, task: object, message: str
) -> None:
    (tmp_path / "bad.yaml").write_text("name: tickets\n")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"task": task}))
    with pytest.raises(InvalidSpec, match=message) as caught:
        read_recipe(recipe)
    assert str(recipe) in str(caught.value)


# Answers

SPANS = {"text": ["Vienna"], "answer_start": [3]}
GOLD: list[tuple[str, tuple[str, ...] | None, object, Gold]] = [
    ("classification", ("a", "b"), "b", 1),
    ("classification", ("a", "b"), 1, 1),
    ("classification", ("a", "b"), 1.0, 1),
    ("classification", ("a", "b"), "1", 1),
    ("classification", ("1", "2"), 1, 0),
    ("classification", ("1", "2"), "2", 1),
    ("classification", ("false", "true"), True, 1),
    ("regression", None, 3, 3.0),
    ("regression", None, "-2.5", -2.5),
    ("multi_label", ("a", "b", "c"), ["c", "a"], frozenset({0, 2})),
    ("multi_label", ("a", "b", "c"), "[1]", frozenset({1})),
    ("multi_label", ("a", "b", "c"), [], frozenset()),
    ("span", None, SPANS, GoldSpans(texts=("Vienna",), starts=(3,))),
    ("span", None, json.dumps(SPANS), GoldSpans(texts=("Vienna",), starts=(3,))),
]


@pytest.mark.parametrize(("head", "labels", "value", "gold"), GOLD)
def test_an_answer_is_read_from_any_format(
    head: str, labels: tuple[str, ...] | None, value: object, gold: Gold
) -> None:
    found = gold_of(task_with(labels, head), value, ("Where?", "in Vienna"))
    assert (found, type(found)) == (gold, type(gold))


@pytest.mark.parametrize(
    ("head", "labels", "value", "message"),
    [
        ("classification", ("a", "b"), "c", "expected one of a, b, or its number, got 'c'"),
        ("classification", ("a", "b"), 2, "got 2"),
        ("classification", ("a", "b"), -1, "got -1"),
        ("classification", ("a", "b"), None, "got None"),
        ("classification", ("1", "2"), 0, "got 0"),
        ("regression", None, "much", "expected a number, got 'much'"),
        ("regression", None, "nan", "expected a number"),
        ("regression", None, None, "expected a number"),
        ("multi_label", ("a", "b"), "a", "expected JSON in the cell, got 'a'"),
        ("multi_label", ("a", "b"), '"a"', "expected a list of labels"),
        ("multi_label", ("a", "b"), ["a", "c"], "expected one of a, b"),
        ("span", None, "[]", "expected an object"),
    ],
)
def test_what_is_no_answer_is_said(
    head: str, labels: tuple[str, ...] | None, value: object, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        gold_of(task_with(labels, head), value, ("Where?", "in Vienna"))


# Words and their tags


TAGGED: dict[str, Any] = {
    "name": "people",
    "fields": ["words"],
    "gold": "marks",
    "labels": ["O", "B-PER", "I-PER"],
    "head": "token_classification",
}


def read_tagged(folder: Path, row: object) -> tuple[Example, ...]:
    (folder / "rows.jsonl").write_text(json.dumps(row) + "\n")
    task = described(**TAGGED, files={"train": "rows.jsonl"}).task()
    return read_split(task, "train", folder=folder).examples


@pytest.mark.parametrize(
    ("words", "marks"),
    [
        (["Zoë", "of", "New York"], ["B-PER", "O", "I-PER"]),
        ('["Zoë", "of", "New York"]', '["B-PER", 0, "2"]'),
    ],
)
def test_words_become_a_text_that_knows_where_they_stand(
    tmp_path: Path, words: object, marks: object
) -> None:
    (example,) = read_tagged(tmp_path, {"words": words, "marks": marks})
    assert example.texts == ("Zoë of New York",)
    assert example.gold == GoldTags(words=((0, 3), (4, 6), (7, 15)), tags=(1, 0, 2))


@pytest.mark.parametrize(
    ("words", "marks", "message"),
    [
        ("Zoë of", [], "row 1, column words: expected JSON in the cell"),
        (["Zoë", 3], [], "row 1, column words: expected a list of words"),
        (["Zoë", " "], [], "row 1, column words: expected a list of words"),
        (["Zoë"], "B-PER", "row 1, column marks: expected JSON in the cell"),
        (["Zoë"], {}, "row 1, column marks: expected a list of 1 tags, one a word, got {}"),
        (["Zoë"], ["O", "O"], "expected a list of 1 tags, one a word, got 2 of them"),
        (["Zoë"], ["B-LOC"], "expected one of O, B-PER, I-PER, or its number, got 'B-LOC'"),
    ],
)
def test_words_without_their_tags_are_named(
    tmp_path: Path, words: object, marks: object, message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        read_tagged(tmp_path, {"words": words, "marks": marks})


def test_words_are_read_from_parquet_and_conll_too(tmp_path: Path) -> None:
    table = pyarrow.table({"tokens": [["Zoë", "met"]], "tags": [["B-PER", "O"]]})
    parquet.write_table(table, tmp_path / "rows.parquet")
    (tmp_path / "rows.conll").write_text("Zoë NNP B-PER\nmet VBD O\n\n")
    files = {"train": "rows.parquet", "dev": "rows.conll"}
    task = described(**TAGGED | {"fields": ["tokens"], "gold": None}, files=files).task()
    one, other = (read_split(task, split, folder=tmp_path).examples for split in files)
    assert one == other
    assert one[0].gold == GoldTags(words=((0, 3), (4, 7)), tags=(1, 0))


# Files


def write_files(folder: Path) -> None:
    (folder / "train.csv").write_text("id,team,body,subject\n1,billing,b,s\n2,technical,d,c\n")
    (folder / "dev.jsonl").write_text('{"subject": "s", "body": "b", "team": 1}\n')
    table = pyarrow.table({"subject": ["s"], "body": ["b"], "team": ["billing"]})
    parquet.write_table(table, folder / "test.parquet")


def test_splits_are_read_from_a_file_each(tmp_path: Path) -> None:
    write_files(tmp_path)
    task = described().task()
    assert splits_in(task, folder=tmp_path) == ("dev", "test")
    train, dev, test = (read_split(task, s, folder=tmp_path) for s in ("train", "dev", "test"))
    assert train.examples == (
        Example(texts=("s", "b"), gold=0),
        Example(texts=("c", "d"), gold=1),
    )
    assert (train.file.name, train.file.rows) == ("tickets/train", 2)
    assert [dev.examples[0].gold, test.examples[0].gold] == [1, 0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("3,support,b,s", r"train\.csv, row 3, column team: expected one of billing, technical"),
        ("3,,b,s", r"train\.csv, row 3, column team: .*got ''"),
    ],
)
def test_a_bad_cell_is_named_by_file_row_and_column(
    tmp_path: Path, line: str, message: str
) -> None:
    write_files(tmp_path)
    with (tmp_path / "train.csv").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(InvalidInput, match=message):
        read_split(described().task(), "train", folder=tmp_path)


def test_a_missing_column_and_a_cell_that_is_no_text_are_named(tmp_path: Path) -> None:
    write_files(tmp_path)
    wanted = r"train\.csv, row 1: expected the columns title, body, team, got id, team, body, subj"
    with pytest.raises(InvalidInput, match=wanted):
        read_split(described(fields=["title", "body"]).task(), "train", folder=tmp_path)
    (tmp_path / "dev.jsonl").write_text('{"subject": "s", "body": 5, "team": 1}\n')
    with pytest.raises(InvalidInput, match=r"dev\.jsonl, row 1, column body: expected a text, got"):
        read_split(described().task(), "dev", folder=tmp_path)


def test_a_split_or_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    task = described().task()
    with pytest.raises(DataNotFound, match="no file for train_extra; did you mean train"):
        read_split(task, "train_extra", folder=tmp_path)
    with pytest.raises(DataNotFound, match=r"expected the file .*train\.csv"):
        read_split(task, "train", folder=tmp_path)
