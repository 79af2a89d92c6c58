"""What is said of answers: figures by hand, and no word of the texts."""

from dataclasses import replace

import pytest

from upt_testing.adapters import TAGS
from upt_training.calibration import calibration_of
from upt_training.data import Example
from upt_training.gold import Gold, GoldSpans, GoldTags
from upt_training.inspection import Mistake, inspect
from upt_zoo.answers import (
    Answer,
    EntitiesAnswer,
    LabelAnswer,
    LabelSetAnswer,
    SpanAnswer,
    ValueAnswer,
)
from upt_zoo.entities import Entity
from upt_zoo.tasks import find_task


def label(index: int, score: float) -> LabelAnswer:
    names = find_task("sst2").labels or ()
    return LabelAnswer(label=names[index], index=index, score=score, scores=(score, 1 - score))


def examples(*golds: Gold) -> list[Example]:
    return [Example(texts=("secret",), gold=gold) for gold in golds]


def test_labels_have_a_confusion_and_a_calibration() -> None:
    answers: list[Answer] = [label(0, 0.9), label(1, 0.6), label(1, 0.8), label(0, 0.7)]
    found = inspect(find_task("sst2"), examples(0, 0, 1, 1), answers, worst=1, resamples=50)
    assert found.rows == 4
    assert found.metrics == {"accuracy": 50.0}
    assert found.confusion == ((1, 1), (1, 1))
    assert found.intervals["accuracy"].low < 50 < found.intervals["accuracy"].high
    assert found.calibration is not None
    # each in a bin of its own: 0.9 and 0.8 right, 0.6 and 0.7 wrong
    assert found.calibration.error == pytest.approx(100 * (0.1 + 0.6 + 0.2 + 0.7) / 4)
    assert found.mistakes == (Mistake(row=4, gold="positive", given="negative", weight=0.7),)
    assert "secret" not in repr(found)


def test_rows_of_one_bin_are_taken_together() -> None:
    found = calibration_of([0.95, 0.97, 1.0, 0.0], [True, False, True, True])
    assert [each.rows for each in found.bins] == [1, 3]
    assert found.bins[1].accuracy == pytest.approx(2 / 3)
    assert found.bins[1].confidence == pytest.approx(2.92 / 3)
    assert found.error == pytest.approx(100 * (0.75 * (2.92 - 2) / 3 + 0.25), abs=1e-3)


def test_the_farthest_values_are_the_worst() -> None:
    answers = [ValueAnswer(value=value) for value in (1.0, 2.0, 4.5)]
    found = inspect(find_task("stsb"), examples(1.5, 4.0, 4.0), answers, worst=2, resamples=5)
    assert (found.confusion, found.calibration) == (None, None)
    assert [(m.row, m.gold, m.given, m.weight) for m in found.mistakes] == [
        (2, "4", "2.00", 2.0),
        (1, "1.5", "1.00", 0.5),
    ]


def test_a_span_is_told_by_its_characters() -> None:
    gold = GoldSpans(texts=("red house", "house"), starts=(4, 8))
    answers = [
        SpanAnswer(text="house", start=8, end=13, score=0.5),
        SpanAnswer(text="red river", start=0, end=9, score=0.5),
    ]
    found = inspect(find_task("squad"), examples(gold, gold), answers, worst=9, resamples=5)
    (mistake,) = found.mistakes
    assert (mistake.row, mistake.gold, mistake.given) == (2, "[4, 13)", "[0, 9)")
    assert mistake.weight == pytest.approx(0.5)


def test_a_set_is_as_wrong_as_it_has_wrong_labels() -> None:
    task = replace(
        find_task("cola"), kind="multi_label", labels=("a", "b", "c"), metrics=("micro_f1",)
    )
    sets = [("a",), ("b",), ("a", "b", "c")]
    answers = [LabelSetAnswer(labels=labels, scores=(0.0,) * 3) for labels in sets]
    golds = examples(frozenset({0}), frozenset({0}), frozenset({0, 1}))
    found = inspect(task, golds, answers, worst=9, resamples=5)
    assert [(m.row, m.gold, m.given, m.weight) for m in found.mistakes] == [
        (2, "a", "b", 2.0),
        (3, "a, b", "a, b, c", 1.0),
    ]


def test_entities_are_told_by_their_characters() -> None:
    task = replace(
        find_task("cola"), kind="token_classification", labels=TAGS, metrics=("f1", "recall")
    )
    words = ((0, 3), (4, 8), (9, 12))
    gold = GoldTags(words=words, tags=(TAGS.index("B-PER"), TAGS.index("I-PER"), 0))

    def answer(*places: tuple[str, int, int]) -> EntitiesAnswer:
        return EntitiesAnswer(
            entities=tuple(
                Entity(label=label, text="secret", start=start, end=end, score=0.5)
                for label, start, end in places
            )
        )

    answers = [answer(("PER", 0, 8)), answer(("PER", 0, 3), ("LOC", 4, 12)), answer()]
    found = inspect(task, examples(gold, gold, gold), answers, worst=9, resamples=5)
    assert [(m.row, m.gold, m.given, m.weight) for m in found.mistakes] == [
        (2, "PER [0, 8)", "LOC [4, 12), PER [0, 3)", 3.0),
        (3, "PER [0, 8)", "", 1.0),
    ]
    assert found.metrics == {"f1": 33.3333, "recall": 33.3333}
    assert "secret" not in repr(found)


def test_cosines_have_no_mistakes_beside_their_gold() -> None:
    task = replace(find_task("stsb"), kind="embedding")
    answers = [ValueAnswer(value=value) for value in (0.1, 0.3, 0.2)]
    found = inspect(task, examples(1.0, 5.0, 2.0), answers, worst=9, resamples=5)
    assert found.mistakes == ()
    assert found.metrics["spearmanr"] == pytest.approx(100)
