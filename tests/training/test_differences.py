"""One method against another on the same rows."""

from pathlib import Path

import numpy as np
import pytest

from upt_training.differences import Published, as_markdown, differences_of, read_published
from upt_training.outcomes import Outcomes, PackedOutcomes
from upt_training.recipe import Recipe
from upt_training.records import Machine, Record
from upt_zoo.errors import Conflict, DataNotFound, InvalidInput, NotFound

ROWS = 200


def record(task: str, method: str, seed: int, right: float, **changes: int) -> Record:
    """Make a record of a run that answers about this share of the rows right."""
    gold = np.random.default_rng(changes.pop("data", 0)).integers(0, 2, (ROWS, 1)).astype(float)
    luck = np.random.default_rng(10 * len(task) + seed).random((ROWS, 1))
    outcomes = Outcomes(gold=gold, got=np.where(luck < right, gold, 1 - gold))
    accuracy = 100 * float((outcomes.got == gold).mean())
    recipe = {"task": task, "method": method, "seed": seed, **changes}
    return Record(
        recipe=Recipe.model_validate(recipe),
        train_rows=1,
        files=(),
        metrics={"dev/accuracy": accuracy},
        holdout=(),
        best_epoch=1,
        steps=1,
        seconds=1.0,
        max_minutes=None,
        trained_parameters=1,
        served_parameters=1,
        head_parameters=1,
        adapter=None,
        machine=Machine(processor="p", threads=1, torch="2", python="3"),
        outcomes={"dev": PackedOutcomes.of(outcomes)},
    )


RECORDS = [
    record("sst2", "unipelt_prompt", 1, 0.9),
    record("sst2", "unipelt_prompt", 2, 0.8),
    record("sst2", "full", 1, 0.7),
    record("rte", "unipelt_prompt", 1, 0.6),
    record("rte", "full", 1, 0.6),
    record("rte", "lora", 1, 0.5),
    record("qnli", "lora", 1, 0.5),
]


def test_a_difference_is_the_mean_over_seeds_with_an_interval() -> None:
    first, *_ = differences_of(RECORDS, "full", resamples=200)
    own = [RECORDS[0].metrics["dev/accuracy"], RECORDS[1].metrics["dev/accuracy"]]
    assert (first.row, first.method, first.against) == ("sst2", "unipelt_prompt", "full")
    assert first.points == pytest.approx(np.mean(own) - RECORDS[2].metrics["dev/accuracy"])
    assert 0 < first.interval.low < first.points < first.interval.high
    assert first.as_json().keys() == {
        *("task", "train_rows", "metric", "method", "against", "points", "low", "high")
    }


def test_equal_answers_are_no_difference_on_any_rows() -> None:
    """What pairing does: both are resampled on the same rows."""
    found = differences_of(RECORDS, "full", resamples=50)
    (same,) = (each for each in found if (each.row, each.method) == ("rte", "unipelt_prompt"))
    assert (same.points, same.interval.low, same.interval.high) == (0.0, 0.0, 0.0)


def test_an_average_is_over_the_rows_that_both_have() -> None:
    found = differences_of(RECORDS, "full", resamples=50)
    by_place = {(each.row, each.method): each for each in found}
    average = by_place["average", "unipelt_prompt"]
    assert average.points == pytest.approx(by_place["sst2", "unipelt_prompt"].points / 2, abs=1e-3)
    assert ("average", "lora") not in by_place  # a single row is its own average
    lines = as_markdown(found).splitlines()
    assert lines[0] == "| against full | unipelt_prompt | lora |"
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| sst2", "| rte", "| average"]
    assert lines[3].startswith("| rte | +0.0 [0.0, 0.0] | -")


def test_wnli_is_compared_but_in_no_average() -> None:
    wnli = [record("wnli", "unipelt_prompt", 1, 0.1), record("wnli", "full", 1, 0.9)]
    plain, more = (differences_of(each, "full", resamples=5) for each in (RECORDS, RECORDS + wnli))
    assert [each for each in more if each.row == "wnli"]
    averages = [[each.points for each in found if each.row == "average"] for found in (plain, more)]
    assert averages[0] == averages[1]


def test_few_rows_and_ablations_are_compared_with_their_like() -> None:
    few = [record("rte", method, 1, 0.6, train_rows=100) for method in ("full", "unipelt")]
    bare = record("rte", "unipelt", 1, 0.6).model_copy(
        update={"recipe": Recipe(task="rte", method="unipelt", has_gates=False)}
    )
    found = differences_of([*RECORDS, *few, bare], "full", resamples=5)
    names = {(each.row, each.method) for each in found}
    assert {("rte (100 rows)", "unipelt"), ("rte", "unipelt-ungated")} <= names
    assert ("rte", "unipelt") not in names


def test_an_average_is_apart_for_each_number_of_rows_learnt_from() -> None:
    few = [
        record(task, method, 1, right, train_rows=rows)
        for task, rows in (("sst2", 500), ("rte", 500), ("qnli", 1000))
        for method, right in (("full", 0.6), ("unipelt_prompt", 0.9))
    ]
    plain, more = (differences_of(each, "full", resamples=5) for each in (RECORDS, RECORDS + few))
    by_row = {each.row: each.points for each in more if each.method == "unipelt_prompt"}
    of_500 = [by_row[f"{task} (500 rows)"] for task in ("sst2", "rte")]
    assert by_row["average (500 rows)"] == pytest.approx(np.mean(of_500), abs=1e-3)
    assert [by_row["average"]] == [each.points for each in plain if each.task == "average"]
    assert "average (1,000 rows)" not in by_row
    names = [line.split(" | ")[0] for line in as_markdown(more).splitlines()]
    assert set(names[-2:]) == {"| average", "| average (500 rows)"}


def test_other_data_or_none_cannot_be_compared() -> None:
    other = record("rte", "lora", 2, 0.5, data=1)
    with pytest.raises(Conflict, match="the records of rte are of different data"):
        differences_of([*RECORDS, other], "full", resamples=5)
    old = [each.model_copy(update={"outcomes": {}}) for each in RECORDS]
    with pytest.raises(NotFound, match="no records of full with outcomes"):
        differences_of(old, "full")
    with pytest.raises(NotFound, match="no records of full with outcomes"):
        differences_of(RECORDS, "full", split="test")


def test_published_differences_are_read_from_a_table(tmp_path: Path) -> None:
    file = tmp_path / "theirs.csv"
    file.write_text('row,method,points,source\naverage,unipelt,-1.2,"a paper, 2024"\n')
    assert read_published(file) == [
        Published(row="average", method="unipelt", points=-1.2, source="a paper, 2024")
    ]
    file.write_text("row,method,points\naverage,unipelt,1\n")
    with pytest.raises(InvalidInput, match=r"row 1 of theirs\.csv: .*, got no source"):
        read_published(file)
    file.write_text("row,method,points,source\naverage,unipelt,many,a paper\n")
    with pytest.raises(InvalidInput, match="expected points as a number, got 'many'"):
        read_published(file)
    with pytest.raises(DataNotFound, match=r"none\.csv"):
        read_published(tmp_path / "none.csv")
