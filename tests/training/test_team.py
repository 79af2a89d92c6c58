"""Several processes do one run: on CPUs, as torchrun starts them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from upt_testing.desks import TIMEOUT_S, Desk, make_desk
from upt_training.checkpoints import claimed
from upt_training.records import Record
from upt_training.team import ALONE, Team, joined
from upt_zoo.backbone import Backbone
from upt_zoo.errors import InvalidInput
from upt_zoo.references import Reference
from upt_zoo.tensors import Array

# four batches of the sixteen rows that are learnt from: the last has one, and a process none of it
UNEVEN = {"batch_size": 5}
MAIN = "from upt_training.cli import main\nmain()\n"
THE_FIRST_DIES_IN_EPOCH_2 = """
import os, signal
from upt_training.loop import Trainer
save = Trainer.save
def die(trainer):
    save(trainer)
    if trainer.progress.epoch == 1 and os.environ["RANK"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
Trainer.save = die
"""

THE_SECOND_FORGETS = """
import os
from upt_training.loop import Trainer
if os.environ["RANK"] == "1":
    Trainer._resume = lambda trainer, file: None
"""


@pytest.fixture
def desk(tmp_path: Path, backbone: Backbone) -> Desk:
    return make_desk(tmp_path, backbone)


def torchrun(desk: Desk, *arguments: str, first: str = "") -> "subprocess.CompletedProcess[str]":
    """Run ``upt-train`` in two processes, each of which does something else ``first``."""
    together = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    return subprocess.run(
        [sys.executable, *together, "--no-python", sys.executable, "-c", first + MAIN, *arguments],
        env=os.environ | desk.environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def published(desk: Desk) -> dict[str, Array]:
    (reference,) = desk.store.list()
    _, tensors = desk.store.load(desk.store.resolve(Reference.parse(str(reference))))
    return tensors


def test_two_processes_learn_what_one_does(tmp_path: Path, backbone: Backbone) -> None:
    together, alone = (make_desk(tmp_path / name, backbone) for name in ("together", "alone"))
    records = {}
    for desk in (together, alone):
        recipe = desk.write_recipe("sst2", **UNEVEN, dropout=0.0)
        arguments = ("run", recipe, "--records", str(desk.root / "records"), "--json")
        if desk is together:
            done = torchrun(desk, *arguments)
            assert done.returncode == 0, done.stderr
            records[desk] = Record.model_validate_json(done.stdout)  # one has spoken
        else:
            records[desk] = Record.model_validate_json(desk.run(*arguments).stdout)
        assert len(list((desk.root / "records").iterdir())) == 1
        assert desk.checkpoints() == []
    assert records[together].losses == pytest.approx(records[alone].losses, abs=1e-4)
    assert records[together].steps == records[alone].steps == 8
    assert [records[desk].machine.processes for desk in (together, alone)] == [2, 1]
    wanted = published(alone)
    for name, tensor in published(together).items():
        np.testing.assert_allclose(tensor, wanted[name], atol=1e-3, err_msg=name)


def test_a_team_goes_on_where_it_was_killed_to_the_bit(tmp_path: Path, backbone: Backbone) -> None:
    whole, killed = (make_desk(tmp_path / name, backbone) for name in ("whole", "killed"))
    for desk in (whole, killed):
        recipe = desk.write_recipe("sst2", **UNEVEN, dropout=0.1)
        if desk is killed:
            died = torchrun(desk, "run", recipe, first=THE_FIRST_DIES_IN_EPOCH_2)
            assert died.returncode != 0
            assert desk.store.list() == ()
            assert len(desk.checkpoints()) == 1
        done = torchrun(desk, "run", recipe)
        assert done.returncode == 0, done.stderr
    (one,), (other,) = whole.store.list(), killed.store.list()
    assert one.digest == other.digest


def test_when_one_fails_all_end_and_say_why(desk: Desk) -> None:
    recipe = desk.write_recipe("sst2")
    assert desk.run("run", recipe, "--version", "1.0.0").code == 0
    done = torchrun(desk, "run", desk.write_recipe("sst2", seed=2), "--version", "1.0.0")
    assert done.returncode != 0
    assert "sst2:1.0.0 exists" in done.stderr
    assert "fault of upt-train" not in done.stderr
    assert len(desk.checkpoints()) == 1  # what was learnt is not lost


def test_processes_that_go_on_from_different_steps_do_not_begin(desk: Desk) -> None:
    recipe = desk.write_recipe("sst2")
    died = torchrun(desk, "run", recipe, first=THE_FIRST_DIES_IN_EPOCH_2)
    assert died.returncode != 0
    done = torchrun(desk, "run", recipe, first=THE_SECOND_FORGETS)
    assert done.returncode != 0
    assert "expected all processes to go on from the same checkpoint" in done.stderr
    assert len(desk.checkpoints()) == 1


def test_a_run_of_a_team_is_refused_while_another_process_does_it(desk: Desk) -> None:
    recipe = desk.write_recipe("sst2")
    died = torchrun(desk, "run", recipe, first=THE_FIRST_DIES_IN_EPOCH_2)
    assert died.returncode != 0
    (checkpoint,) = desk.checkpoints()
    with claimed(checkpoint):
        done = torchrun(desk, "run", recipe)
    assert done.returncode != 0
    assert "another process does this run" in done.stderr
    assert "fault of upt-train" not in done.stderr


def test_what_has_a_record_is_skipped_by_all(desk: Desk) -> None:
    queue = ("run", desk.write_recipe("sst2"), "--records", str(desk.root / "records"))
    assert torchrun(desk, *queue).returncode == 0
    again = torchrun(desk, *queue)
    assert (again.returncode, again.stdout) == (0, "")
    assert again.stderr.count("skipped") == 1


def test_a_dry_run_is_told_once(desk: Desk) -> None:
    done = torchrun(desk, "run", desk.write_recipe("sst2"), "--dry-run", "--json")
    assert json.loads(done.stdout)["steps"] == 4


def test_what_does_not_fit_into_a_gpu_names_the_key_that_helps(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.optim.AdamW, "step", fail)
    result = desk.run("run", desk.write_recipe("sst2"))
    assert result.code == 64
    assert "rows_at_once: expected as many rows as fit" in result.stderr
    assert "8 do not" in result.stderr


def test_commands_that_one_process_does_refuse_several(desk: Desk) -> None:
    done = torchrun(desk, "search", desk.write_recipe("sst2"), "--no-publish")
    assert done.returncode != 0
    assert "expected `upt-train run`" in done.stderr
    assert desk.checkpoints() == []


def test_processes_on_several_machines_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"RANK": "2", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "1"}
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InvalidInput, match="all processes on one machine"), joined("cpu"):
        pass


def test_a_device_that_is_missing_is_said_before_any_work(desk: Desk) -> None:
    recipe = desk.write_recipe("sst2")
    for device, says in {
        "cuda:77": "no device cuda:77",
        "meta": "expected cpu, cuda or cuda:NUMBER, got 'meta'",
    }.items():
        result = desk.run("run", recipe, "--device", device)
        assert result.code == 64
        assert f"--device: {says}" in result.stderr


def test_rows_are_shared_out_so_that_each_is_somebodys() -> None:
    batch = list(range(7))
    shares = [Team(rank=rank, size=3).share_of(batch) for rank in range(3)]
    assert sorted(row for share in shares for row in share) == batch
    assert max(map(len, shares)) - min(map(len, shares)) == 1


def test_chance_goes_on_from_step_to_step_alone_and_begins_anew_in_a_team() -> None:
    def draws(team: Team, step: int) -> list[float]:
        torch.manual_seed(0)
        team.seed(1, step)
        drawn: list[float] = torch.rand(3).tolist()
        return drawn

    assert draws(ALONE, 1) == draws(ALONE, 2)
    one, other = Team(rank=0, size=2), Team(rank=1, size=2)
    assert draws(one, 1) == draws(one, 1)
    assert len({tuple(draws(team, step)) for team in (one, other) for step in (1, 2)}) == 4
