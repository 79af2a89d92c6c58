"""A server that is killed under load and started again, as its callers see it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from upt_testing.backbones import write_tiny_backbone

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "restarts.py"


@pytest.mark.slow
def test_callers_with_retries_lose_nothing_when_the_server_is_killed(tmp_path: Path) -> None:
    backbone = write_tiny_backbone(tmp_path / "backbone").directory
    options = ["--kills", "3", "--threads", "6", "--names", "6", "--runner", "torch-fp32"]
    ran = subprocess.run(
        [sys.executable, PROGRAM, *options, "--backbone", backbone],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    result = json.loads(ran.stdout)
    assert result["faults"] == []
    assert result["kills"] == 3
    assert result["calls_at_work_when_killed"] >= 3
