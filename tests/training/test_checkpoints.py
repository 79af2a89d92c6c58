"""One process at a time does a run."""

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from upt_training.checkpoints import claimed
from upt_zoo.errors import Unavailable

HOLDS = """
import sys
from pathlib import Path
from upt_training.checkpoints import claimed
with claimed(Path(sys.argv[1])):
    print("holds", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return tmp_path / "sst2.safetensors"


def test_a_run_is_another_processes_until_that_is_done_or_killed(checkpoint: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(checkpoint)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"holds\n"
        with pytest.raises(Unavailable, match="another process does this run"), claimed(checkpoint):
            pass
        other.kill()
    with claimed(checkpoint):
        pass
    assert list(checkpoint.parent.iterdir()) == []


def test_a_claim_whose_file_was_removed_ends_without_a_word(checkpoint: Path) -> None:
    with claimed(checkpoint):
        checkpoint.with_suffix(".lock").unlink()
        with claimed(checkpoint):  # nobody can tell any more
            pass
    assert list(checkpoint.parent.iterdir()) == []


def test_who_comes_when_another_one_leaves_does_not_hold_what_is_gone(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Path.open

    with ExitStack() as first:
        first.enter_context(claimed(checkpoint))

        def open_late(path: Path, mode: str) -> object:
            file = opened(path, mode)
            first.close()  # the first lets go, and its file is removed
            return file

        monkeypatch.setattr(Path, "open", open_late)
        with pytest.raises(Unavailable), claimed(checkpoint):
            pass
    monkeypatch.undo()
    with claimed(checkpoint):
        pass
