import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from peers.waiting_calls import WaitingCalls
from upt_benchmarks.peer_servers import calling_peer, peer_server
from upt_benchmarks.peers import PeerFailed
from upt_benchmarks.side_by_side import Turn, summed_up
from upt_zoo.backbone import resolve_backbone


class Models:
    """Label a text by its model's number and the text's length; note each batch."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, Sequence[str]]] = []

    def label(self, model: int, texts: Sequence[str]) -> list[int]:
        self.batches.append((model, texts))
        return [100 * model + len(text) for text in texts]


async def test_calls_that_wait_are_answered_together_model_by_model() -> None:
    models = Models()
    calls = WaitingCalls(models.label, models=2)
    asked = [(0, "a"), (1, "bb"), (2, "ccc"), (3, "dddd"), (1, "eeeee")]
    async with asyncio.TaskGroup() as group:
        answers = [group.create_task(calls.ask(task, text)) for task, text in asked]
        await asyncio.sleep(0)  # all wait before anybody answers
        answering = asyncio.create_task(calls.answer())
    assert [answer.result() for answer in answers] == [1, 102, 3, 104, 105]
    assert models.batches == [(0, ["a", "ccc"]), (1, ["bb", "dddd", "eeeee"])]
    answering.cancel()


async def test_a_call_that_its_caller_left_keeps_nobody_from_an_answer() -> None:
    calls = WaitingCalls(Models().label, models=2)
    leaving = asyncio.create_task(calls.ask(1, "a"))
    staying = asyncio.create_task(calls.ask(1, "bb"))
    await asyncio.sleep(0)
    leaving.cancel()
    answering = asyncio.create_task(calls.answer())
    assert await staying == 102
    answering.cancel()


async def test_models_that_fail_end_the_server() -> None:
    def fail(model: int, texts: Sequence[str]) -> list[int]:
        raise RuntimeError("out of memory")

    calls = WaitingCalls(fail, models=2)
    asking = asyncio.create_task(calls.ask(0, "a"))
    with pytest.raises(RuntimeError, match="out of memory"):
        await calls.answer()
    asking.cancel()


async def test_a_plain_server_answers_each_task_by_its_own_full_model() -> None:
    names = [f"task{index}" for index in range(16)]  # of 8 models: two tasks each
    texts = ["a gripping, funny film", "dull", "the sea is calm and nobody is here"]
    python, checkpoint = Path(sys.executable), resolve_backbone().directory
    with peer_server("full_models", python, checkpoint) as server:
        async with calling_peer(server.target, names) as predict:
            answers = [tuple([await predict(name, text) for text in texts]) for name in names]
    assert answers[:8] == answers[8:]
    assert len(set(answers)) > 1
    assert {label for labels in answers for label in labels} == {0, 1}


def test_a_server_that_does_not_start_is_an_error(tmp_path: Path) -> None:
    with (
        pytest.raises(PeerFailed, match="full_models: the server ended with 1"),
        peer_server("full_models", Path(sys.executable), tmp_path),
    ):
        pass


def test_our_rate_is_compared_turn_by_turn() -> None:
    waited_s = [0.01, 0.02, 0.03]
    turns = {
        "ours": [Turn(rows_per_s=rate, waited_s=waited_s) for rate in (100.0, 60.0, 90.0)],
        "other": [Turn(rows_per_s=rate, waited_s=waited_s) for rate in (50.0, 20.0, 22.5)],
    }
    other = summed_up(turns)["other"]
    assert other["ours_is_by_turn"] == [2.0, 3.0, 4.0]
    assert (other["ours_is"], other["rows_per_s"]) == (3.0, 22.5)
    assert (other["p50_ms"], other["p99_ms"]) == (20.0, 30.0)
