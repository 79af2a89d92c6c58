import asyncio
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from upt_benchmarks.leaks import Held, growth_mb, leaks, memory_leaks
from upt_benchmarks.truth import Truth
from upt_server.results import AdapterIdentity, Output
from upt_zoo.answers import LabelAnswer
from upt_zoo.references import Reference

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "soak.py"
STABLE = Reference.parse("film:stable")


def output(digest: str, *scores: float) -> Output:
    return Output(
        answer=LabelAnswer(label="a", index=0, score=scores[0], scores=scores),
        labels=("a", "b"),
        adapter=AdapterIdentity(name="film", version="1.0.0", digest=digest),
        task="film",
        tokens=3,
        is_truncated=False,
        windows=1,
    )


@pytest.fixture
def truth() -> Truth:
    known = Truth(scores={(digest, "text"): np.array([0.75, 0.25]) for digest in ("old", "new")})
    known.means(STABLE, "old")
    return known


def test_the_answer_of_a_single_run_is_right_up_to_rounding(truth: Truth) -> None:
    assert truth.fault_in(output("old", 0.75001, 0.24999), STABLE, "text", 0.0) is None


def test_another_answer_is_a_fault(truth: Truth) -> None:
    fault = truth.fault_in(output("old", 0.76, 0.24), STABLE, "text", 0.0)
    assert fault == "film:stable: 1.0e-02 from a single run"


def test_the_right_answer_of_another_adapter_is_a_fault(truth: Truth) -> None:
    fault = truth.fault_in(output("new", 0.75, 0.25), STABLE, "text", 0.0)
    assert fault == "film:stable: answered by new, which it did not mean"


def test_an_alias_that_moves_means_both_for_a_while(truth: Truth) -> None:
    truth.moved(STABLE, "new")
    for digest in ("old", "new"):
        assert truth.fault_in(output(digest, 0.75, 0.25), STABLE, "text", 0.0) is None
    much_later_s = 1e9
    assert truth.fault_in(output("old", 0.75, 0.25), STABLE, "text", much_later_s)
    assert truth.fault_in(output("new", 0.75, 0.25), STABLE, "text", much_later_s) is None


def test_memory_that_grows_when_warm_is_a_leak_and_warming_up_is_none() -> None:
    warming = [100.0, 300.0, *[400.0] * 20]
    assert growth_mb(warming) == 0
    assert not memory_leaks(warming)
    assert memory_leaks([400.0 + 5 * step for step in range(40)])


async def test_tasks_that_are_left_are_a_leak() -> None:
    before = Held.now()
    tasks = [asyncio.create_task(asyncio.sleep(60)) for _ in range(9)]
    assert leaks(before, Held.now()) == [f"tasks: {before.tasks} before, {before.tasks + 9} after"]
    for task in tasks:
        task.cancel()


@pytest.mark.slow
def test_twenty_seconds_of_everything_that_can_happen_leave_no_trace() -> None:
    options = ["--minutes", "0.33", "--names", "3", "--runner", "torch-fp32"]
    ran = subprocess.run(
        [sys.executable, PROGRAM, *options], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    result = json.loads(ran.stdout)
    assert result["faults"] == []
    assert result["inputs"]["answered"] > 0
    assert {"alias moves", "runner raises", "load"} <= result["happened"].keys()
