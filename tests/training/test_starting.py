"""What is understood of a table: its columns, its faults and its splits."""

import json
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upt_training.row_files import Row
from upt_training.starting.columns import columns_of, value_of
from upt_training.starting.detection import Choice, Layout, detect
from upt_training.starting.rows import Labelled, TaskRow, labelled_rows
from upt_training.starting.splitting import split_off, splits_of
from upt_training.starting.survey import Survey, survey, warnings_of
from upt_zoo.errors import InvalidInput

WORDS = ("the red house is old", "a man wrote this book", "who painted the river", "it was fine")
CONTEXT = "the red man wrote the book in a house"


def texts(count: int) -> list[str]:
    return [f"{WORDS[number % len(WORDS)]} {number}" for number in range(count)]


def table(**columns: Sequence[object]) -> list[Row]:
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


def found_in(rows: list[Row], **choice: object) -> Layout:
    return detect(columns_of(rows), Choice(**choice))  # type: ignore[arg-type]  # as a user says


# Cells


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("3", 3), ("3.0", 3), ("0.5", 0.5), (" 7 ", 7), ("-2", -2), (2.0, 2), (True, "true"),
        ("9007199254740993", 9007199254740993), (9007199254740993, 9007199254740993), ("1e3", 1000),
        ("007", "007"), ("1_000", "1_000"), ("nan", "nan"), ("1e999", "1e999"),
        ("", None), ("  ", None), (None, None), (float("nan"), None), (10**400, None),
        ('["a", "b"]', ["a", "b"]), ("[]", []), ("[sic] he said", "[sic] he said"),
        ('{"text": ["a"]}', {"text": ["a"]}), ("{half", "{half"),
    ],
)  # fmt: skip
def test_a_cell_is_what_it_spells(cell: object, value: object) -> None:
    assert value_of(cell) == value


# What a table is for


CASES: dict[str, tuple[list[Row], tuple[str, ...], str, str]] = {
    "known names": (
        table(id=range(20), text=texts(20), label=["no", "yes"] * 10),
        ("text",), "label", "classification",
    ),
    "unknown names": (
        table(key=range(40), body=texts(40), team=["a", "b", "c", "d"] * 10),
        ("body",), "team", "classification",
    ),
    "a subject of two words beside its body": (
        table(subject=["Invoice 17", "A lamp"] * 20, body=texts(40), team=["a", "b"] * 20),
        ("subject", "body"), "team", "classification",
    ),
    "keys are no answers, even those that repeat": (
        table(user_id=[1, 2] * 20, body=texts(40), team=["a", "b"] * 20),
        ("body",), "team", "classification",
    ),
    "dates are no answers": (
        table(body=texts(40), team=["a", "b"] * 20, sent=["2024-01-02", "2024-01-03"] * 20),
        ("body",), "team", "classification",
    ),
    "moments are no answers, lines of a log are texts": (
        table(
            sent=["2024-01-02 10:00:01.5Z", "1/2/2024 10:00 PM", "2024-01-02T10:00:00 +0100"] * 10,
            line=[f"2024-01-02 10:00:01 {text}" for text in texts(30)], team=["a", "b", "b"] * 10,
        ),
        ("line",), "team", "classification",
    ),
    "a pair": (
        table(premise=texts(20), hypothesis=texts(20), label=[0, 1] * 10),
        ("premise", "hypothesis"), "label", "classification",
    ),
    "numbers with fractions": (
        table(sentence1=texts(20), sentence2=texts(20), score=[0.5, 2.0] * 10),
        ("sentence1", "sentence2"), "score", "regression",
    ),
    "whole numbers that measure": (
        table(review=texts(20), stars=[1, 2, 3, 4, 5] * 4), ("review",), "stars", "regression",
    ),
    "whole numbers that are classes": (
        table(text=texts(40), label=[0, 1, 2, 3] * 10), ("text",), "label", "classification",
    ),
    "too many whole numbers for classes": (
        table(text=texts(40), label=[number // 2 for number in range(40)]),
        ("text",), "label", "regression",
    ),
    "lists of labels": (
        table(text=texts(20), labels=['["a"]', '["a", "b"]'] * 10),
        ("text",), "labels", "multi_label",
    ),
    "labels with something in between": (
        table(text=texts(20), topics=["a|b", "b", "a", "c|a"] * 5),
        ("text",), "topics", "multi_label",
    ),
    "spans as objects": (
        table(
            question=["who wrote it ?"] * 20, context=[CONTEXT] * 20,
            answers=[{"text": ["red man"], "answer_start": [4]}] * 20,
        ),
        ("question", "context"), "answers", "span",
    ),
    "spans as plain texts": (
        table(context=[CONTEXT] * 20, question=["who wrote it ?"] * 20, answer=["red man"] * 20),
        ("question", "context"), "answer", "span",
    ),
    "words and their tags": (
        table(tokens=[["Ada", "in", "Vienna"]] * 20, tags=[["B-PER", "O", "B-LOC"]] * 20),
        ("tokens",), "tags", "token_classification",
    ),
    "words and tags of other names": (
        table(a=[["Ada", "in", "Vienna"]] * 20, b=[["PER", "O", "O"]] * 20),
        ("a",), "b", "token_classification",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_columns_are_understood(name: str) -> None:
    rows, fields, gold, head = CASES[name]
    found = found_in(rows)
    assert (found.fields, found.gold, found.head) == (fields, gold, head)


def test_what_the_user_says_goes_first() -> None:
    rows = table(text=texts(20), note=texts(20), label=[1, 2] * 10, stars=[1, 2, 3, 4] * 5)
    found = found_in(rows, texts=("note",), gold="stars", head="classification")
    assert (found.fields, found.gold, found.head) == (("note",), "stars", "classification")
    assert found.labels == ("1", "2", "3", "4")
    assert found.unused == ("text", "label")


def test_labels_are_in_order_numbers_by_size_and_outside_first() -> None:
    numbers = table(text=texts(40), label=["10", "9", "2", "2"] * 10)
    assert found_in(numbers).labels == ("2", "9", "10")
    tags = table(tokens=[["a", "b"]] * 20, tags=[["B-PER", "O"]] * 20)
    assert found_in(tags).labels == ("O", "B-PER")


@pytest.mark.parametrize(
    ("rows", "choice", "message"),
    [
        (table(a=texts(20), b=texts(20)), {}, "expected a column of answers, got 0.*--label: a, b"),
        (
            table(text=texts(40), a=["x", "y"] * 20, b=["x", "y"] * 20),
            {},
            "got 2 of them; name it with --label: a, b",
        ),
        (
            table(a=texts(20), b=texts(20), c=texts(20), label=[0, 1] * 10),
            {},
            "expected one or two columns of texts, got 3; name those that count with --text: a",
        ),
        (table(label=[0, 1] * 10), {}, "expected a column of texts beside label"),
        ([], {}, "expected a table with rows, got none"),
        (
            table(text=texts(20), label=[0, 1] * 10),
            {"gold": "team"},
            "--label: expected one of text, label, got 'team'",
        ),
        (
            table(text=texts(20), label=[0, 1] * 10),
            {"texts": ("a",)},
            "--text: expected one of text, label, got 'a'",
        ),
        (table(text=texts(20), label=["x"] * 20), {}, "expected two labels or more, got 1"),
        (
            table(text=texts(60), label=[f"name {n}" for n in range(60)]),
            {},
            "expected labels that repeat, got 60 in 60 rows",
        ),
        (
            table(text=texts(20), label=["x", "y"] * 10),
            {"head": "regression"},
            "column label: expected a number in each row for regression, got text",
        ),
        (
            table(text=texts(20), label=[0.5, 1.5] * 10),
            {"head": "embedding"},
            "expected 2 columns of texts for embedding, got text; name them with --text",
        ),
        (
            table(a=[CONTEXT] * 20, b=texts(20), c=texts(20), answer=["red man"] * 20),
            {},
            "expected a question and a context beside answer; name both with --text",
        ),
    ],
)
def test_what_cannot_be_told_says_how_to_tell(
    rows: list[Row], choice: dict[str, object], message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        found_in(rows, **choice)


def headless(name: str, label: str) -> list[Row]:
    return [{name: text, label: ["spam", "ham"][n % 2]} for n, text in enumerate(texts(20))]


def test_a_row_in_place_of_a_header_is_refused() -> None:
    rows = headless("Win a new phone today!", "spam")
    with pytest.raises(InvalidInput, match="put names above it, such as text and label"):
        found_in(rows)
    assert found_in(rows, gold="spam").gold == "spam"
    for name, label in (("message", "spam"), ("text of the message", "kind")):
        assert found_in(headless(name, label)).fields == (name,)


# Rows


def cells_of(rows: list[Row], **choice: object) -> list[dict[str, object]]:
    return [dict(row.cells) for row in labelled_rows(found_in(rows, **choice), "a.csv", rows)]


def test_a_plain_answer_becomes_a_span_where_it_stands() -> None:
    answers, starts = ["the"] * 20 + ["nobody"], ["18"] * 19 + ["", "18"]
    rows = table(question=["who wrote it ?"] * 21, context=[CONTEXT] * 21, answer=answers)
    found = cells_of(rows)
    assert found[0]["answer"] == {"text": ["the"], "answer_start": [0]}
    assert len(found) == 20  # nobody is not found
    with_starts: list[Row] = [
        {**row, "start": start} for row, start in zip(rows, starts, strict=True)
    ]
    found = cells_of(with_starts)
    assert found[0]["answer"] == {"text": ["the"], "answer_start": [18]}
    assert len(found) == 19  # nor does one stand where it is said


def test_labels_in_between_bars_become_lists() -> None:
    rows = table(text=texts(20), topics=["a|b", "b", "a| c", "c"] * 5)
    assert [cells["topics"] for cells in cells_of(rows)[:3]] == [["a", "b"], ["b"], ["a", "c"]]


def test_who_says_that_cells_have_several_labels_needs_no_further_proof() -> None:
    rows = table(text=texts(20), topics=["a", "a;b"] * 10)
    assert found_in(rows).labels == ("a", "a;b")
    assert found_in(rows, head="multi_label").labels == ("a", "b")


def test_what_is_empty_in_a_list_is_no_label() -> None:
    rows = table(text=texts(20), labels=[["a", None, " ", float("nan")], ["b"]] * 10)
    assert found_in(rows).labels == ("a", "b")
    assert [cells["labels"] for cells in cells_of(rows)[:2]] == [["a"], ["b"]]


def test_a_row_with_a_word_or_a_tag_missing_is_left_out() -> None:
    rows = table(
        tokens=[["Ada", "in", "Vienna"], ["Ada", " ", "Vienna"], ["Ada", "in", "Rome"]] * 5,
        tags=[["B-PER", "O", "B-LOC"], ["B-PER", "O", "B-LOC"], ["B-PER", None, "B-LOC"]] * 5,
    )
    assert cells_of(rows) == [rows[0]] * 5


def test_rows_without_a_text_or_an_answer_are_left_out_and_counted_by_place() -> None:
    rows = table(text=["one", " ", "three", None] * 5, label=["a", "b", "", "b"] * 5)
    rows[0] = {"text": "one", "label": "b"}
    found = labelled_rows(found_in(rows), "a.csv", rows)
    assert [row.place for row in found] == [
        f"row {number} of a.csv" for number in (1, 5, 9, 13, 17)
    ]


# The survey


def labelled(place: str, text: str, answer: str) -> Labelled:
    cells: TaskRow = {"text": text, "label": answer}
    return Labelled(place=place, split=None, texts=(text,), answer=answer, cells=cells)


LAYOUT = found_in(table(text=texts(20), label=["a", "b"] * 10))


def surveyed(**splits: list[tuple[str, str]]) -> Survey:
    rows = {
        split: [labelled(f"{split}:{n}", *row) for n, row in enumerate(some, 1)]
        for split, some in splits.items()
    }
    return survey(LAYOUT, rows, left_out={"train.csv": 2})


def test_repeats_contradictions_and_leakage_are_told_by_place() -> None:
    found = surveyed(
        train=[("One text", "a"), ("one  TEXT", "a"), ("One text", "b"), ("another", "b")],
        dev=[("one text", "a"), ("new", "a")],
        test=[("another", "a")],
    )
    assert found.repeated == ("train:2",)
    assert found.contradicting == ("train:3", "test:1")
    assert found.leaked == ("dev:1", "test:1")
    assert found.half_leaked == ()
    assert found.labels == {
        "a": {"train": 2, "dev": 2, "test": 1},
        "b": {"train": 2, "dev": 0, "test": 0},
    }
    said = "\n".join(warnings_of(found))
    assert "rows of train.csv without a text or an answer, which are left out: 2" in said
    assert "rows to measure on that are train rows, which flatters: 2 (dev:1, test:1)" in said
    assert "labels without a row in dev: b" in said
    assert "few dev rows, so figures will be uncertain: 2" in said
    assert "One text" not in said + repr(found)


def test_a_pair_leaks_by_half_where_one_text_is_known() -> None:
    layout = found_in(table(text_a=texts(20), text_b=texts(20), label=["a", "b"] * 10))

    def pair(place: str, *both: str) -> Labelled:
        return Labelled(place=place, split=None, texts=both, answer="a", cells={"label": "a"})

    splits = {"train": [pair("1", "x", "y")], "dev": [pair("2", "x", "z"), pair("3", "x", "y")]}
    found = survey(layout, splits, left_out={})
    assert (found.leaked, found.half_leaked) == (("3",), ("2",))


def test_imbalance_is_the_commonest_label_by_the_rarest() -> None:
    found = surveyed(train=[(str(n), "a") for n in range(30)] + [("x", "b")])
    assert found.imbalance == 30
    said = "\n".join(warnings_of(found))
    assert "30 times the rows of the rarest" in said
    assert "labels of fewer than 10 train rows: b" in said
    assert "there is no dev file: nothing will be measured" in said


# Splits


@settings(deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 40), st.sampled_from("ab")), min_size=10, max_size=80),
    seed=st.integers(0, 3),
)
def test_every_row_is_in_one_split_and_equal_texts_are_together(
    rows: list[tuple[int, str]], seed: int
) -> None:
    keys, strata = [(str(text),) for text, _ in rows], [label for _, label in rows]
    train, dev = split_off(keys, strata, seed=seed)
    assert sorted([*train, *dev]) == list(range(len(rows)))
    assert not {keys[place] for place in train} & {keys[place] for place in dev}
    assert split_off(keys, strata, seed=seed) == (train, dev)


def test_a_fifth_of_each_label_is_for_dev() -> None:
    strata = ["common"] * 200 + ["rare"] * 10 + ["once"]
    _, dev = split_off([(str(place),) for place in range(211)], strata, seed=1)
    counts = {label: sum(strata[place] == label for place in dev) for label in set(strata)}
    assert counts == {"common": 40, "rare": 2, "once": 0}


def test_pairs_that_all_share_a_text_are_split_by_the_whole_pair() -> None:
    keys = [("the same question", str(number // 2)) for number in range(100)]
    train, dev = split_off(keys, ["a"] * 100, seed=1)
    assert len(dev) == 20
    assert not {keys[place] for place in train} & {keys[place] for place in dev}


def test_a_column_of_splits_is_followed() -> None:
    names = ["train", "validation", "train", "test"] * 10
    rows = table(text=texts(40), label=["a", "b"] * 20, split=names)
    layout = found_in(rows)
    assert layout.split == "split"
    found = splits_of(layout, {"train": labelled_rows(layout, "a.csv", rows)}, seed=1)
    assert {split: len(some) for split, some in found.items()} == {
        "train": 20,
        "dev": 10,
        "test": 10,
    }
    rows[3] = {**rows[3], "split": "other"}
    with pytest.raises(
        InvalidInput, match=r"row 4 of a.csv, column split: expected train, dev or test"
    ):
        splits_of(layout, {"train": labelled_rows(layout, "a.csv", rows)}, seed=1)


def test_too_few_rows_are_refused() -> None:
    rows = table(text=texts(4), label=["a", "b"] * 2)
    layout = found_in(rows)
    with pytest.raises(InvalidInput, match="expected 10 rows or more"):
        splits_of(layout, {"train": labelled_rows(layout, "a.csv", rows)}, seed=1)


def test_what_is_written_can_be_read_as_json() -> None:
    rows = table(text=texts(20), label=["1", "0"] * 10)
    (cells, *_) = cells_of(rows)
    assert json.loads(json.dumps(cells)) == {"text": texts(1)[0], "label": "1"}
