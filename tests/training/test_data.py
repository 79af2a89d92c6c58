import gzip
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from upt_testing.rows import JsonRow, question_rows, write_split
from upt_training.data import Example, hold_out, read_split, splits_in
from upt_training.gold import GoldSpans
from upt_zoo.errors import DataNotFound, InvalidInput, InvalidSpec
from upt_zoo.manifest import digest_of
from upt_zoo.tasks import TASKS, find_task

ANSWERS = {"text": ["Vienna", "in Vienna"], "answer_start": [11, 8]}
SPAN_ROW: JsonRow = {"question": "Where?", "context": "🎵 heard in Vienna", "answers": ANSWERS}
CASES: dict[str, tuple[JsonRow, Example]] = {
    "sst2": (
        {"idx": 0, "label": 1, "sentence": "a film"},
        Example(texts=("a film",), gold=1),
    ),
    "qnli": (
        {"sentence": "It is.", "question": "Is it?", "label": 0},
        Example(texts=("Is it?", "It is."), gold=0),
    ),
    "stsb": (
        {"sentence2": "b", "sentence1": "a", "label": 3.5},
        Example(texts=("a", "b"), gold=3.5),
    ),
    "squad": (
        SPAN_ROW,
        Example(
            texts=("Where?", "🎵 heard in Vienna"),
            gold=GoldSpans(texts=("Vienna", "in Vienna"), starts=(11, 8)),
        ),
    ),
}


def with_answers(**answers: object) -> JsonRow:
    return {**SPAN_ROW, "answers": answers}


@pytest.mark.parametrize("name", CASES)
def test_texts_come_in_the_order_of_the_tasks_fields(tmp_path: Path, name: str) -> None:
    row, example = CASES[name]
    write_split(tmp_path, name, "dev", [row, row])
    assert read_split(find_task(name), "dev", folder=tmp_path).examples == (example, example)


def test_a_split_is_identified_by_its_files_bytes(tmp_path: Path) -> None:
    file = write_split(tmp_path, "sst2", "train", [CASES["sst2"][0]] * 3)
    found = read_split(find_task("sst2"), "train", folder=tmp_path).file
    assert (found.name, found.rows) == ("sst2/train", 3)
    assert found.digest == digest_of(file.read_bytes())


@pytest.mark.parametrize("character", ["\u0085", "\u2028", "\u2029"])
def test_only_a_line_feed_ends_a_row(tmp_path: Path, character: str) -> None:
    write_split(tmp_path, "sst2", "dev", [{"sentence": f"a{character}b", "label": 0}])
    (example,) = read_split(find_task("sst2"), "dev", folder=tmp_path).examples
    assert example.texts == (f"a{character}b",)


BAD_ROWS: dict[str, tuple[str, object]] = {
    "no such field": ("sst2", {"text": "a", "label": 1}),
    "no label": ("sst2", {"sentence": "a"}),
    "no text": ("sst2", {"sentence": None, "label": 1}),
    "a label out of range": ("sst2", {"sentence": "a", "label": 2}),
    "no gold label": ("sst2", {"sentence": "a", "label": -1}),
    "half a label": ("sst2", {"sentence": "a", "label": 0.5}),
    "an unknown label": ("sst2", {"sentence": "a", "label": "neutral"}),
    "no number": ("stsb", {"sentence1": "a", "sentence2": "b", "label": float("nan")}),
    "a list": ("sst2", ["a", 1]),
    "a number": ("sst2", 5),
    "no answers": ("squad", {"question": "a", "context": "b"}),
    "answers in a list": ("squad", {**SPAN_ROW, "answers": ["Vienna"]}),
    "no answer": ("squad", with_answers(text=[], answer_start=[])),
    "answers without a start": ("squad", with_answers(text=["Vienna"])),
    "answers with too few starts": ("squad", with_answers(**ANSWERS | {"answer_start": [11]})),
    "a start in bytes": ("squad", with_answers(text=["Vienna"], answer_start=[14])),
    "a start in words": ("squad", with_answers(text=["Vienna"], answer_start=["three"])),
}


@pytest.mark.parametrize(("name", "row"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_bad_row_is_named_by_file_and_number(tmp_path: Path, name: str, row: JsonRow) -> None:
    write_split(tmp_path, name, "train", [CASES[name][0], CASES[name][0], row])
    with pytest.raises(InvalidInput, match=rf"{name}/train.*, row 3.*expected"):
        read_split(find_task(name), "train", folder=tmp_path)


def test_a_line_that_is_no_json_is_named_by_file_and_number(tmp_path: Path) -> None:
    file = write_split(tmp_path, "sst2", "train", [CASES["sst2"][0]])
    file.write_bytes(gzip.compress(gzip.decompress(file.read_bytes()) + b'{"sentence": "\xff"}\n'))
    with pytest.raises(InvalidInput, match=r"sst2/train\.jsonl\.gz, row 2: expected a JSON object"):
        read_split(find_task("sst2"), "train", folder=tmp_path)


@pytest.mark.parametrize(
    "damage",
    [lambda data: b"", lambda data: data[:-9], lambda data: gzip.decompress(data)],
    ids=["empty", "truncated", "not compressed"],
)
def test_a_damaged_file_is_named(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    file = write_split(tmp_path, "sst2", "train", [CASES["sst2"][0]])
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(InvalidInput, match=r"sst2/train.*expected"):
        read_split(find_task("sst2"), "train", folder=tmp_path)


def test_a_file_without_rows_is_named(tmp_path: Path) -> None:
    write_split(tmp_path, "sst2", "train", [])
    with pytest.raises(InvalidInput, match=r"sst2/train.*: expected rows, got none"):
        read_split(find_task("sst2"), "train", folder=tmp_path)


def test_a_missing_file_is_said_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(DataNotFound) as caught:
        read_split(find_task("sst2"), "train", folder=tmp_path)
    assert str(tmp_path / "sst2" / "train.jsonl.gz") in str(caught.value)


def test_every_file_but_the_train_files_is_evaluated_and_test_files_last(tmp_path: Path) -> None:
    names = ("test", "train_extra", "dev_natural", "train", "dev", "test_hard")
    for name in names:
        write_split(tmp_path, "sst2", name, [CASES["sst2"][0]])
    (tmp_path / "sst2" / "meta.json").write_text("{}")
    (tmp_path / "sst2" / "vectors.npz.gz").write_bytes(b"")
    found = splits_in(find_task("sst2"), folder=tmp_path)
    assert found == ("dev", "dev_natural", "test", "test_hard")
    assert splits_in(find_task("cola"), folder=tmp_path) == ()


# The hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str | None, str], list[JsonRow]]:
    """Stand in for the hub's library: what is in the dict, by path, name and split."""
    rows: dict[tuple[str, str | None, str], list[JsonRow]] = {}

    def load_dataset(path: str, name: str | None, *, split: str) -> list[JsonRow]:
        return rows[path, name, split]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    return rows


def test_without_a_folder_the_rows_come_from_the_hub(
    hub: dict[tuple[str, str | None, str], list[JsonRow]],
) -> None:
    row, example = CASES["stsb"]
    hub["nyu-mll/glue", "stsb", "validation"] = [row]
    task = find_task("stsb")
    (split,) = (read_split(task, name, folder=None) for name in splits_in(task, folder=None))
    assert split.examples == (example,)
    assert split.file.name == "stsb/dev"
    hub["nyu-mll/glue", "stsb", "validation"] = [{**row, "label": 1.0}]
    assert read_split(task, "dev", folder=None).file.digest != split.file.digest


def test_what_the_hub_does_not_have_is_asked_for_as_a_file(
    hub: dict[tuple[str, str | None, str], list[JsonRow]],
) -> None:
    with pytest.raises(DataNotFound, match=r"nyu-mll/glue could not be read.*UPT_DATA_DIR"):
        read_split(find_task("sst2"), "train", folder=None)
    with pytest.raises(DataNotFound, match=r"UPT_DATA_DIR.*csabstruct/train\.jsonl\.gz"):
        read_split(find_task("csabstruct"), "train", folder=None)
    assert splits_in(find_task("csabstruct"), folder=None) == ()


# Holding out


def examples_of(paragraphs: list[int]) -> list[Example]:
    """One example an entry: a question on the paragraph of that number."""
    return [
        Example(texts=(f"question {number}", f"paragraph {paragraph}"), gold=0)
        for number, paragraph in enumerate(paragraphs)
    ]


@given(
    paragraphs=st.lists(st.integers(0, 9), min_size=1, max_size=40),
    rows=st.integers(0, 50),
    seed=st.integers(0, 5),
)
def test_a_holdout_keeps_paragraphs_whole_and_loses_no_example(
    paragraphs: list[int], rows: int, seed: int
) -> None:
    examples = examples_of(paragraphs)
    if 0 < rows < min(map(paragraphs.count, paragraphs)):
        with pytest.raises(InvalidSpec, match=f"holdout_rows: .* got {rows}"):
            hold_out(examples, rows, seed=seed)
        return
    train, holdout = hold_out(examples, rows, seed=seed)
    assert sorted([*train, *holdout], key=examples.index) == examples
    assert train == sorted(train, key=examples.index)
    assert not {example.texts[1] for example in train} & {example.texts[1] for example in holdout}
    fitting = sum(paragraphs.count(each) <= rows for each in paragraphs)
    assert min(rows, fitting) <= len(holdout) < max(2 * rows, 1)


@given(
    pairs=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=40),
    rows=st.integers(0, 40),
)
def test_no_text_of_a_holdout_is_learnt_from(pairs: list[tuple[int, int]], rows: int) -> None:
    examples = [Example(texts=(str(one), str(other)), gold=0) for one, other in pairs]
    try:
        train, holdout = hold_out(examples, rows, seed=1)
    except InvalidSpec:
        assume(False)
    learnt, held = ({text for e in part for text in e.texts} for part in (train, holdout))
    assert not learnt & held
    assert len(train) + len(holdout) == len(examples)


def test_a_holdout_depends_on_the_seed_and_nothing_else() -> None:
    examples = examples_of([*range(20)] * 2)
    first = hold_out(examples, 10, seed=1)
    assert hold_out(list(examples), 10, seed=1) == first
    assert hold_out(examples, 10, seed=2) != first
    train, holdout = hold_out(examples, 0, seed=1)
    assert (train, holdout) == (examples, [])


# The real data


@pytest.mark.data
@pytest.mark.parametrize("name", TASKS)
def test_every_row_of_a_real_train_file_is_read(name: str) -> None:
    folder = Path(os.environ["UPT_DATA_DIR"])
    if not (folder / name).is_dir():
        pytest.skip(f"{folder} has no {name}")
    facts = json.loads((folder / name / "meta.json").read_bytes())
    split = read_split(find_task(name), "train", folder=folder)
    assert len(split.examples) == split.file.rows == facts["splits"]["train"]["rows"]


def test_the_tests_own_questions_point_at_their_answers(tmp_path: Path) -> None:
    write_split(tmp_path, "squad", "train", question_rows(20))
    assert len(read_split(find_task("squad"), "train", folder=tmp_path).examples) == 20
