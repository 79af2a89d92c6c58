"""Tables of ``datasets`` and pandas, answered by a running server."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

import datasets
import pandas
import pytest

from upt_server.client import Client
from upt_server.columns import ask_columns
from upt_server.runner import TorchRunner
from upt_testing.serving import Served, make_settings, serving
from upt_zoo.answers import LabelAnswer
from upt_zoo.backbone import Backbone
from upt_zoo.errors import InvalidInput
from upt_zoo.local.store import Store

FILMS = ["a gripping , funny film", "the film", "this book is fine"]
Result = TypeVar("Result")


@pytest.fixture
async def served(store: Store, backbone: Backbone, runner: TorchRunner) -> AsyncIterator[Served]:
    async with serving(make_settings(store.root), backbone, runner) as served:
        yield served


async def beside(served: Served, work: Callable[[Client], Result]) -> Result:
    """Do what blocks in a thread, with a client of the server in this loop."""

    def connected() -> Result:
        with Client(served.target) as client:
            return work(client)

    return await asyncio.to_thread(connected)


async def test_a_data_set_gets_columns_of_answers(served: Served) -> None:
    rows = datasets.Dataset.from_dict({"sentence": FILMS, "label": [0, 1, 0]})
    answered, expected = await beside(
        served,
        lambda client: (
            rows.map(ask_columns(client, "sst2", ["sentence"]), batched=True, batch_size=2),
            [client.predict("sst2", film).answer for film in FILMS],
        ),
    )
    assert answered["label"] == [0, 1, 0]
    for row, answer in zip(answered, expected, strict=True):
        assert isinstance(answer, LabelAnswer)
        assert row["answer_label"] == answer.label
        assert row["answer_score"] == pytest.approx(answer.score, rel=1e-6)
        assert row["answer_scores"].keys() == {"negative", "positive"}


async def test_a_frame_keeps_its_rows_and_gets_columns(served: Served) -> None:
    frame = pandas.DataFrame({"left": FILMS, "right": FILMS[::-1]}, index=["a", "b", "c"])
    found = await beside(
        served,
        lambda client: frame.assign(
            **ask_columns(client, "squad", ["left", "right"], prefix="squad_")(frame)
        ),
    )
    assert list(found.index) == ["a", "b", "c"]
    new = ["squad_text", "squad_start", "squad_end", "squad_score"]
    assert list(found.columns) == ["left", "right", *new]
    for row in found.itertuples():
        assert row.right[row.squad_start : row.squad_end] == row.squad_text


async def test_a_table_without_rows_gets_none(served: Served) -> None:
    frame = pandas.DataFrame({"sentence": []})
    assert (
        await beside(served, lambda client: ask_columns(client, "sst2", ["sentence"])(frame)) == {}
    )


async def test_a_cell_that_is_no_text_is_named(served: Served) -> None:
    frame = pandas.DataFrame({"sentence": ["a film", None]})
    with pytest.raises(InvalidInput, match="column sentence, row 1: expected a text"):
        await beside(served, lambda client: ask_columns(client, "sst2", ["sentence"])(frame))


@pytest.mark.parametrize("columns", ["sentence", []])
def test_columns_that_are_no_list_of_names_are_refused(columns: list[str]) -> None:
    with Client("127.0.0.1:1") as client, pytest.raises(InvalidInput, match="a list of the fields"):
        ask_columns(client, "sst2", columns)


def test_it_needs_neither_library() -> None:
    code = (
        "import sys, upt_server.columns;"
        "sys.exit(bool({'pandas', 'datasets', 'torch'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
