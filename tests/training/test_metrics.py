import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval import metrics as seqeval_metrics
from sklearn import metrics as sklearn_metrics

from upt_testing.adapters import TAGS
from upt_training.data import Example
from upt_training.gold import GoldSpans, GoldTags, join_words
from upt_training.metrics import measure_one, score
from upt_training.outcomes import Numbers, Outcomes
from upt_zoo.answers import (
    Answer,
    EntitiesAnswer,
    LabelAnswer,
    LabelSetAnswer,
    SpanAnswer,
    ValueAnswer,
)
from upt_zoo.entities import Entity, find_runs
from upt_zoo.tasks import Metric, find_task


def label_scores(task: str, gold: list[int], got: list[int]) -> dict[str, float]:
    examples = [Example(texts=("",), gold=label) for label in gold]
    answers: list[Answer] = [
        LabelAnswer(label=str(label), index=label, score=1.0, scores=(1.0,)) for label in got
    ]
    return score(find_task(task), examples, answers)


def value_scores(gold: list[float], got: list[float]) -> dict[str, float]:
    examples = [Example(texts=("", ""), gold=value) for value in gold]
    return score(find_task("stsb"), examples, [ValueAnswer(value=value) for value in got])


def span_scores(*cases: tuple[str, tuple[str, ...]]) -> dict[str, float]:
    """Score pairs of (answer, gold answers)."""
    examples = [
        Example(texts=("", ""), gold=GoldSpans(texts=texts, starts=(0,) * len(texts)))
        for _, texts in cases
    ]
    answers = [SpanAnswer(text=text, start=0, end=0, score=1.0) for text, _ in cases]
    return score(find_task("squad"), examples, answers)


# GLUE and the domain tasks: 2 true and 1 false positives, 4 true and 1 false negatives

GOLD = [1, 1, 1, 0, 0, 0, 0, 0]
GOT = [1, 1, 0, 1, 0, 0, 0, 0]


def test_accuracy_is_the_share_of_right_labels() -> None:
    assert label_scores("sst2", GOLD, GOT) == {"accuracy": 75.0}


def test_f1_is_that_of_label_1_and_decides_before_accuracy() -> None:
    scores = label_scores("mrpc", GOLD, GOT)
    assert list(scores) == ["f1", "accuracy"]
    assert scores["f1"] == pytest.approx(100 * 2 / 3, abs=1e-4)  # precision 2/3, recall 2/3


def test_f1_without_a_positive_is_zero() -> None:
    assert label_scores("mrpc", [0, 0], [0, 0]) == {"f1": 0.0, "accuracy": 100.0}
    assert label_scores("mrpc", [1, 0], [0, 0]) == {"f1": 0.0, "accuracy": 50.0}


def test_matthews_correlation_is_that_of_the_four_counts() -> None:
    expected = 100 * (2 * 4 - 1 * 1) / math.sqrt(3 * 3 * 5 * 5)
    found = label_scores("cola", GOLD, GOT)
    assert found == {"matthews_correlation": pytest.approx(expected, abs=1e-4)}
    assert label_scores("cola", GOLD, [1] * 8) == {"matthews_correlation": 0.0}
    assert label_scores("cola", GOLD, [1 - label for label in GOLD]) == {
        "matthews_correlation": -100.0
    }


def test_macro_f1_weighs_labels_alike_and_micro_f1_weighs_rows() -> None:
    gold, got = [0, 0, 0, 0, 1, 2], [0, 0, 0, 1, 1, 0]
    by_label = (2 * 3 / (2 * 3 + 1 + 1), 2 * 1 / (2 * 1 + 1), 0.0)
    macro = label_scores("acl_arc", gold, got)
    assert macro == {"macro_f1": pytest.approx(100 * sum(by_label) / 3, abs=1e-4)}
    assert label_scores("chemprot", gold, got) == {"micro_f1": pytest.approx(100 * 4 / 6, abs=1e-4)}


def test_pearson_decides_and_spearman_looks_at_ranks_alone() -> None:
    scores = value_scores([0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 8.0, 27.0])
    assert list(scores) == ["pearson", "spearmanr"]
    assert scores["spearmanr"] == 100.0
    # deviations: gold -1.5 -0.5 0.5 1.5, got -9 -8 -1 18
    expected = 100 * (13.5 + 4.0 - 0.5 + 27.0) / math.sqrt(5.0 * (81 + 64 + 1 + 324))
    assert scores["pearson"] == pytest.approx(expected, abs=1e-4)
    assert value_scores([1.0, 2.0], [5.0, 4.0]) == {"pearson": -100.0, "spearmanr": -100.0}


@pytest.mark.parametrize(
    ("gold", "got"),
    [([0.0, 1.0, 2.0], [4.0, 4.0, 4.0]), ([3.0, 3.0], [0.0, 1.0]), ([1.0], [2.0])],
)
def test_a_correlation_with_constants_is_zero(gold: list[float], got: list[float]) -> None:
    assert value_scores(gold, got) == {"pearson": 0.0, "spearmanr": 0.0}


# SQuAD: the cases follow the official evaluation script of version 1.1


@pytest.mark.parametrize(
    ("got", "gold", "exact_match", "f1"),
    [
        ("Denver Broncos", ("Denver Broncos",), 100, 100),
        ("denver broncos", ("Denver Broncos",), 100, 100),
        ("The Denver Broncos!", ("Denver Broncos",), 100, 100),
        ("a  Denver\tBroncos", ("an Denver Broncos",), 100, 100),
        ("well-known", ("well known",), 0, 0),  # punctuation goes without leaving a space
        ("U.S.", ("us",), 100, 100),
        ("Athena", ("thena",), 0, 0),  # an article is a whole word
        ("the", ("a",), 100, 0),  # nothing is left of both: equal, without a shared word
        ("the", ("man",), 0, 0),
        ("", ("man",), 0, 0),
        ("the red red man", ("red man",), 0, 100 * 2 * (2 / 3) * 1 / (2 / 3 + 1)),
        ("red red man", ("red red house",), 0, 100 * 2 * 2 / (3 + 3)),  # twice counts twice
        ("old river city", ("the city of the river", "sea"), 0, 100 * 2 * 2 / (3 + 3)),
        ("green", ("blue", "the green house", "Green"), 100, 100),
    ],
)
def test_spans_are_scored_as_squad_does(
    got: str, gold: tuple[str, ...], exact_match: float, f1: float
) -> None:
    scores = span_scores((got, gold))
    assert list(scores) == ["f1", "exact_match"]
    assert scores == pytest.approx({"f1": f1, "exact_match": exact_match}, abs=1e-4)


def test_the_best_gold_answer_counts_for_each_metric_and_questions_count_alike() -> None:
    scores = span_scores(("red man", ("red", "man at sea", "red man")), ("blue", ("green",)))
    assert scores == {"f1": 50.0, "exact_match": 50.0}


# Answers of another kind


def test_sets_of_labels_are_scored_by_label_and_as_a_whole() -> None:
    names = ("a", "b", "c")
    task = replace(
        find_task("cola"),
        kind="multi_label",
        labels=names,
        metrics=("micro_f1", "macro_f1", "accuracy"),
    )
    gold = [frozenset({0, 1}), frozenset({1}), frozenset[int]()]
    examples = [Example(texts=("t",), gold=each) for each in gold]
    answers = [
        LabelSetAnswer(labels=labels, scores=(0.0, 0.0, 0.0))
        for labels in (("a", "b"), ("b", "c"), ())
    ]
    found = score(task, examples, answers)
    # label a: 1 of 1, b: 2 of 2, c: 1 wrong; 3 right, 1 wrong, none missed
    assert found["micro_f1"] == pytest.approx(100 * 6 / 7, abs=1e-4)
    assert found["macro_f1"] == pytest.approx(200 / 3, abs=1e-4)
    assert found["accuracy"] == pytest.approx(200 / 3, abs=1e-4)
    with pytest.raises(TypeError, match="no answer of cola"):
        score(task, examples[:1], [ValueAnswer(value=1.0)])


def test_an_answer_of_another_kind_is_refused() -> None:
    span = SpanAnswer(text="a", start=0, end=1, score=1.0)
    with pytest.raises(TypeError, match="no answer of sst2"):
        score(find_task("sst2"), [Example(texts=("a",), gold=1)], [span])
    with pytest.raises(TypeError, match="no answer of squad"):
        score(find_task("squad"), [Example(texts=("a", "b"), gold=1)], [span])


# Entities

PEOPLE = replace(
    find_task("cola"),
    name="people",
    kind="token_classification",
    labels=TAGS,
    metrics=("f1", "precision", "recall"),
)
rows_of_tags = st.lists(
    st.lists(st.tuples(st.sampled_from(TAGS), st.sampled_from(TAGS)), min_size=1, max_size=8),
    min_size=1,
    max_size=4,
)


def answer_of(tags: Sequence[str], words: Sequence[tuple[int, int]]) -> EntitiesAnswer:
    entities = [
        Entity(label=label, text="", start=words[first][0], end=words[behind - 1][1], score=1.0)
        for label, first, behind in find_runs(tags, TAGS)
    ]
    return EntitiesAnswer(entities=tuple(entities))


def entity_scores(*rows: Sequence[tuple[str, str]]) -> dict[str, float]:
    """Score rows of (gold tag, given tag) of each word."""
    examples, answers = [], []
    for row in rows:
        text, words = join_words(["word"] * len(row))
        gold = GoldTags(words=words, tags=tuple(TAGS.index(tag) for tag, _ in row))
        examples.append(Example(texts=(text,), gold=gold))
        answers.append(answer_of([tag for _, tag in row], words))
    return score(PEOPLE, examples, answers)


def test_entities_are_right_as_a_whole_or_not_at_all() -> None:
    scores = entity_scores(
        [("B-PER", "B-PER"), ("I-PER", "I-PER"), ("O", "O"), ("B-LOC", "B-PER")],
        [("B-LOC", "B-LOC"), ("I-LOC", "O"), ("O", "B-LOC")],
    )
    # of 3 entities 1 is found; 4 are given
    assert scores == {
        "f1": pytest.approx(100 * 2 / 7, abs=1e-4),
        "precision": 25.0,
        "recall": pytest.approx(100 / 3, abs=1e-4),
    }


def test_rows_without_entities_score_0() -> None:
    nothing = dict.fromkeys(PEOPLE.metrics, 0.0)
    assert entity_scores([("O", "O")]) == nothing
    assert entity_scores([("O", "B-PER")]) == nothing
    assert entity_scores([("B-PER", "O")]) == nothing


@given(rows=rows_of_tags)
def test_entities_score_as_seqeval_says(rows: list[list[tuple[str, str]]]) -> None:
    gold, got = ([[pair[side] for pair in row] for row in rows] for side in (0, 1))
    theirs = {
        "f1": seqeval_metrics.f1_score(gold, got, zero_division=0),
        "precision": seqeval_metrics.precision_score(gold, got, zero_division=0),
        "recall": seqeval_metrics.recall_score(gold, got, zero_division=0),
    }
    expected = {name: pytest.approx(100 * value, abs=1e-4) for name, value in theirs.items()}
    assert entity_scores(*rows) == expected


# Our counts against a library's


LIBRARY: dict[str, Callable[..., float]] = {
    "accuracy": sklearn_metrics.accuracy_score,
    "f1": partial(sklearn_metrics.f1_score, zero_division=0.0),
    "macro_f1": partial(sklearn_metrics.f1_score, average="macro", zero_division=0.0),
    "micro_f1": partial(sklearn_metrics.f1_score, average="micro", zero_division=0.0),
    "matthews_correlation": sklearn_metrics.matthews_corrcoef,
}


def columns(rows: list[list[int]]) -> Numbers:
    return np.array(rows, dtype=np.float64)


@pytest.mark.filterwarnings("ignore:A single label was found")
@pytest.mark.parametrize("metric", LIBRARY)
@settings(deadline=None)
@given(data=st.data(), rows=st.integers(1, 12))
def test_metrics_of_labels_are_those_of_scikit_learn(
    metric: Metric, data: st.DataObject, rows: int
) -> None:
    most = 1 if metric == "f1" else 3
    labels = st.lists(st.integers(0, most), min_size=rows, max_size=rows)
    gold, got = data.draw(labels), data.draw(labels)
    task = replace(find_task("sst2"), metrics=(metric,))
    outcomes = Outcomes(gold=columns([gold]).T, got=columns([got]).T)
    expected = LIBRARY[metric](gold, got)
    assert measure_one(task, metric, outcomes) == pytest.approx(100 * expected)


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "micro_f1"])
@settings(deadline=None)
@given(data=st.data(), rows=st.integers(1, 12))
def test_metrics_of_sets_are_those_of_scikit_learn(
    metric: Metric, data: st.DataObject, rows: int
) -> None:
    marks = st.lists(st.integers(0, 1), min_size=3, max_size=3)
    sets = st.lists(marks, min_size=rows, max_size=rows)
    gold, got = data.draw(sets), data.draw(sets)
    task = replace(find_task("sst2"), kind="multi_label", metrics=(metric,))
    outcomes = Outcomes(gold=columns(gold), got=columns(got))
    expected = LIBRARY[metric](columns(gold), columns(got))
    assert measure_one(task, metric, outcomes) == pytest.approx(100 * expected)
