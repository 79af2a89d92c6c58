import os
import subprocess
import sys
from pathlib import Path

import pytest

from upt_testing.crashes import OPERATIONS


def run(folder: Path, operation: str) -> int:
    program = [sys.executable, "-m", "upt_testing.crashes", str(folder), operation]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(program, env=environment, capture_output=True, check=False, text=True)
    assert result.returncode == 0, result.stderr
    return int(result.stdout)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_writer_killed_at_any_moment_leaves_a_whole_store_and_can_be_repeated(
    tmp_path: Path, operation: str
) -> None:
    assert run(tmp_path, operation) > 10


def test_of_two_processes_that_want_one_version_one_wins_and_nothing_is_lost(
    tmp_path: Path,
) -> None:
    assert run(tmp_path, "race") == 11
