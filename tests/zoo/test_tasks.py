"""The task catalogue, alone and beside the real data."""

import gzip
import json
import os
from itertools import islice
from pathlib import Path

import pytest

from upt_testing.adapters import tiny_spec
from upt_zoo.errors import NotFound
from upt_zoo.spec import AdapterSpec
from upt_zoo.tasks import TASKS, Task, find_task

GLUE = {"cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"}
DOMAIN = {
    "chemprot",
    "rct",
    "acl_arc",
    "scierc",
    "hyperpartisan",
    "ag_news",
    "amazon_helpfulness",
    "imdb",
}
ALL = sorted(TASKS)


@pytest.fixture
def folder(name: str) -> Path:
    """The folder of the task's real data."""
    folder = Path(os.environ["UPT_DATA_DIR"]) / name
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}")
    return folder


def test_the_catalogue_is_glue_the_eight_domain_tasks_csabstruct_and_squad() -> None:
    assert set(TASKS) == GLUE | DOMAIN | {"csabstruct", "squad"}
    assert len(TASKS) == 9 + 8 + 2


@pytest.mark.parametrize("name", ALL)
def test_a_task_makes_a_valid_spec(name: str) -> None:
    task = find_task(name)
    assert task.name == name
    parts = {"head": task.head(), "task": task.input()}
    spec = AdapterSpec.model_validate(dict(tiny_spec()) | parts)
    assert AdapterSpec.from_json(spec.to_json()) == spec
    assert spec.task.metric == task.metrics[0]
    assert spec.head.labels == task.labels


@pytest.mark.parametrize("name", ALL)
def test_a_tasks_outputs_are_those_of_its_kind(name: str) -> None:
    task = find_task(name)
    head = task.head()
    expected = {"classification": len(task.labels or ()), "regression": 1, "span": 2}
    assert head.outputs == expected[task.kind]
    assert (head.layers, head.pooling) == (1, "cls")


@pytest.mark.parametrize("name", ALL)
def test_a_task_says_what_it_asks_and_what_its_data_allow(name: str) -> None:
    task = find_task(name)
    assert task.title
    assert task.data_licence
    assert task.description.endswith(("?", "."))


def test_the_cards_of_tasks_that_the_embedded_backbone_knows_say_so() -> None:
    said = {name for name, task in TASKS.items() if task.backbone_overlap}
    assert {"qqp", "mnli", "qnli", "squad"} <= said


def test_the_limit_of_tokens_can_be_set_and_is_the_tasks_own_otherwise() -> None:
    squad = find_task("squad")
    assert (squad.input().max_tokens, squad.input().stride) == (384, 128)
    assert squad.input(max_tokens=256).max_tokens == 256


def test_an_unknown_task_names_the_known_ones() -> None:
    with pytest.raises(NotFound, match=r"no task 'sst3' .*; did you mean sst2\? it has cola, sst2"):
        find_task("sst3")


# Beside the real data


@pytest.mark.data
@pytest.mark.parametrize("name", ALL)
def test_labels_fields_and_metrics_are_those_of_the_data(name: str, folder: Path) -> None:
    task, meta = find_task(name), json.loads((folder / "meta.json").read_bytes())
    assert task.labels == (None if meta["label_names"] is None else tuple(meta["label_names"]))
    assert list(task.fields) == meta["fields"]
    assert set(task.metrics) == set(meta["metrics"])


@pytest.mark.data
@pytest.mark.parametrize("name", ALL)
def test_the_first_rows_have_the_fields_and_a_label_of_the_task(name: str, folder: Path) -> None:
    task = find_task(name)
    for file in sorted(folder.glob("*.jsonl.gz")):
        with gzip.open(file) as lines:
            rows = [json.loads(line) for line in islice(lines, 20)]
        assert len(rows) == 20
        for row in rows:
            assert all(isinstance(row[field], str) and row[field] for field in task.fields)
            assert has_gold(task, row), row


def has_gold(task: Task, row: dict[str, object]) -> bool:
    if task.kind == "span":
        answers = row["answers"]
        assert isinstance(answers, dict)
        starts = zip(answers["text"], answers["answer_start"], strict=True)
        return all(str(row["context"])[start:].startswith(text) for text, start in starts)
    if task.kind == "regression":
        return 0 <= float(str(row["label"])) <= 5
    return row["label"] in range(len(task.labels or ()))
