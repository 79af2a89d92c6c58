"""``upt-train init``: from a file to a recipe that trains as it was written."""

import csv
import json
import shutil
from pathlib import Path

import pyarrow
import pytest
import yaml
from pyarrow import parquet

from upt_testing.desks import Desk, Result, make_desk
from upt_testing.rows import question_rows, sentiment_rows, similarity_rows
from upt_training.commands.starting import Kind
from upt_training.recipe import read_recipe
from upt_training.records import Record
from upt_zoo.backbone import Backbone
from upt_zoo.spec import HeadKind

ROWS = Path(__file__).parent / "rows"
TONES = ("unkind", "kind")


@pytest.fixture
def desk(tmp_path: Path, backbone: Backbone) -> Desk:
    return make_desk(tmp_path, backbone)


def init(desk: Desk, file: Path, *options: str) -> Result:
    place = () if "--out" in options else ("--out", str(desk.root / "out"))
    chosen = ("--backbone", str(desk.backbone), *place, *options)
    return desk.run("init", "--from", str(file), *chosen)


def write_csv(file: Path, count: int = 60, seed: int = 1) -> Path:
    rows = sentiment_rows(count, seed=seed)
    with file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(("id", "body", "tone"))
        for number, row in enumerate(rows):
            writer.writerow((number, row["sentence"], TONES[int(str(row["label"]))]))
        writer.writerow((count, "", "kind"))
    return file


def facts_of(result: Result) -> dict[str, object]:
    assert result.code == 0, result.stderr
    facts: dict[str, object] = json.loads(result.stdout)
    return facts


def test_a_csv_file_becomes_a_recipe_and_files(desk: Desk) -> None:
    file = write_csv(desk.root / "My Tones.csv")
    result = init(desk, file)
    assert result.code == 0, result.stderr
    out = desk.root / "out"
    recipe = read_recipe(out / "recipe.yaml")
    assert recipe.task_name == "my-tones"
    keys = yaml.safe_load((out / "recipe.yaml").read_text())
    assert keys["task"] == {
        "name": "my-tones",
        "title": "My Tones.csv",
        "fields": ["body"],
        "gold": "tone",
        "labels": ["kind", "unkind"],
        "files": {"train": "train.jsonl", "dev": "dev.jsonl"},
        "max_tokens": recipe.task.max_tokens if not isinstance(recipe.task, str) else 0,
    }
    splits = [(out / f"{split}.jsonl").read_text().splitlines() for split in ("train", "dev")]
    assert sum(map(len, splits)) == 60  # the row without a text is left out
    assert json.loads(splits[0][0]).keys() == {"body", "tone"}
    assert not set(splits[0]) & set(splits[1])
    for words in (
        "tone    text, 1 words  2          answer: classification, since tone has 2 different",
        "id      number         61         not used",
        f"max_tokens is {keys['task']['max_tokens']}: of 48 train rows 0 are longer, the longest",
        "rows of My Tones.csv without a text or an answer, which are left out: 1",
        f"then: upt-train run {out / 'recipe.yaml'}",
    ):
        assert words in result.stdout
    assert "this " not in result.stdout + (out / "recipe.yaml").read_text()


def test_the_same_seed_gives_the_same_files(desk: Desk) -> None:
    file = write_csv(desk.root / "tones.csv")
    for out, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert init(desk, file, "--out", str(desk.root / out), "--seed", seed).code == 0
    a, b, c = ((desk.root / out / "dev.jsonl").read_bytes() for out in "abc")
    assert a == b != c


def test_a_recipe_that_stands_is_not_written_over(desk: Desk) -> None:
    file = write_csv(desk.root / "tones.csv")
    assert init(desk, file).code == 0
    before = (desk.root / "out" / "train.jsonl").read_bytes()
    result = init(desk, file, "--seed", "2")
    assert result.code == 73
    assert "recipe.yaml exists: name another folder with --out" in result.stderr
    assert (desk.root / "out" / "train.jsonl").read_bytes() == before


def test_the_users_own_file_is_not_written_over(desk: Desk) -> None:
    file = desk.root / "train.jsonl"
    rows = [{"text": f"the house is red {n}", "label": n % 2} for n in range(40)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    before = file.read_bytes()
    result = init(desk, file, "--out", str(desk.root))
    assert result.code == 73
    assert "train.jsonl exists" in result.stderr
    assert file.read_bytes() == before
    assert not (desk.root / "recipe.yaml").exists()


def test_a_column_cannot_write_into_the_recipe(desk: Desk) -> None:
    file = desk.root / "hostile.csv"
    with file.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(("text", "label\nseed: 7"))
        writer.writerows((f"the house is red {n}", "ab"[n % 2]) for n in range(40))
    result = init(desk, file)
    assert result.code == 0, result.stderr
    recipe = read_recipe(desk.root / "out" / "recipe.yaml")
    assert recipe.seed == 1
    assert not isinstance(recipe.task, str)
    assert recipe.task.gold == "label\nseed: 7"


def test_named_files_are_the_splits(desk: Desk) -> None:
    train, dev = write_csv(desk.root / "a.csv"), write_csv(desk.root / "b.csv", 12, seed=2)
    facts = facts_of(init(desk, train, "--dev", str(dev), "--name", "tones", "--json"))
    survey = facts["survey"]
    assert isinstance(survey, dict)
    assert survey["rows"] == {"train": 60, "dev": 12}
    assert survey["left_out"] == {"a.csv": 1, "b.csv": 1}
    assert survey["leaked"]
    assert all(place.endswith(" of b.csv") for place in survey["leaked"])
    assert "this " not in json.dumps(facts)
    assert facts["next"] == f"upt-train run {facts['recipe']}"


def test_where_files_are_the_splits_no_column_is(desk: Desk) -> None:
    rows = [
        {**row, "split": "test" if number % 4 == 0 else "train"}
        for number, row in enumerate(sentiment_rows(40, seed=1))
    ]
    file = desk.root / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = facts_of(init(desk, file, "--json", "--out", str(desk.root / "told")))
    assert isinstance(layout := told["layout"], dict)
    assert (layout["split"], layout["unused"]) == ("split", [])
    named = facts_of(init(desk, file, "--dev", str(file), "--json"))
    assert isinstance(layout := named["layout"], dict)
    assert (layout["split"], layout["unused"]) == (None, ["split"])


def test_files_of_one_name_are_counted_together(desk: Desk) -> None:
    (desk.root / "more").mkdir()
    train, dev = write_csv(desk.root / "a.csv"), write_csv(desk.root / "more" / "a.csv", 12, seed=2)
    survey = facts_of(init(desk, train, "--dev", str(dev), "--json"))["survey"]
    assert isinstance(survey, dict)
    assert survey["left_out"] == {"a.csv": 2}


FORMATS = ("jsonl", "parquet")


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(
    ("rows", "head"), [(question_rows, "span"), (similarity_rows, "regression")]
)
def test_other_formats_and_heads_train_as_they_were_written(
    desk: Desk, suffix: str, rows: object, head: str
) -> None:
    assert callable(rows)
    made = [{"score" if k == "label" else k: v for k, v in r.items()} for r in rows(40, seed=1)]
    file = desk.root / f"rows.{suffix}"
    if suffix == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in made))
    else:
        parquet.write_table(pyarrow.Table.from_pylist(made), file)
    facts = facts_of(init(desk, file, "--json"))
    layout = facts["layout"]
    assert isinstance(layout, dict)
    assert layout["head"] == head
    recipe = desk.root / "out" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("epochs: 20", "epochs: 1"))
    result = desk.run("run", str(recipe))
    assert result.code == 0, result.stderr
    assert "verdict: " in result.stdout


def test_words_with_tags_become_a_recipe(desk: Desk) -> None:
    file = desk.root / "people.conll"
    shutil.copy(ROWS / "people-and-places-train.conll", file)
    facts = facts_of(init(desk, file, "--json"))
    layout = facts["layout"]
    assert isinstance(layout, dict)
    assert (layout["head"], layout["fields"], layout["labels"][0]) == (
        "token_classification",
        ["tokens"],
        "O",
    )
    assert read_recipe(desk.root / "out" / "recipe.yaml").pooling == "cls"


def test_rare_labels_are_weighted_and_long_rows_read_whole(desk: Desk) -> None:
    file = desk.root / "rare.jsonl"
    long = "the old house is red and the river is blue and very " * 5
    rows = [
        {"text": f"{long} {n}", "label": "rare" if n % 20 == 0 else "common"} for n in range(240)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert init(desk, file).code == 0
    recipe = read_recipe(desk.root / "out" / "recipe.yaml")
    assert recipe.class_weights == "balanced"
    assert not isinstance(recipe.task, str)
    assert recipe.task.max_tokens == 64 == min(64, recipe.task.max_tokens)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--dev", "nowhere.csv"), 66, "expected the file nowhere.csv"),
        (("--label", "team"), 64, "--label: expected one of id, body, tone, got 'team'"),
        (("--name", "sst2"), 64, "the catalogue has a task sst2"),
        (("--name", "No Name"), 64, "--name names another"),
        (("--head", "span"), 64, "expected a question and a context"),
        (("--text", "body", "--text", "body"), 64, "expected columns that differ"),
        (("--text", "tone", "--label", "tone"), 64, "expected columns that differ"),
        (("--backbone", "nowhere/at-all"), 66, "nowhere/at-all"),
    ],
)
def test_what_cannot_be_is_one_line_and_a_code_and_leaves_nothing(
    desk: Desk, options: tuple[str, ...], code: int, message: str
) -> None:
    result = init(desk, write_csv(desk.root / "tones.csv"), *options)
    assert (result.code, len(result.stderr.splitlines())) == (code, 1)
    assert message in result.stderr
    assert not (desk.root / "out").exists()


def test_a_second_run_stands_beside_the_first(desk: Desk) -> None:
    assert init(desk, write_csv(desk.root / "tones.csv")).code == 0
    recipe = desk.root / "out" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("epochs: 20", "epochs: 1"))
    first = desk.run("run", str(recipe))
    assert "always giving the commonest label" in first.stdout
    second = desk.run("run", str(recipe), "--seed", "2", "--json")
    record = Record.model_validate_json(second.stdout)  # and not a word beside it
    assert record.adapter is not None
    assert record.adapter.startswith("tones:1.0.1@")
    verdicts = [
        json.loads((desk.root / f"out/reports/tones-1.0.{patch}/report.json").read_text())[
            "verdict"
        ]
        for patch in range(2)
    ]
    assert [each["rival"] for each in verdicts] == [
        "always giving the commonest label",
        "tones:1.0.0",
    ]


def test_the_kinds_are_those_of_heads() -> None:
    assert Kind == HeadKind
