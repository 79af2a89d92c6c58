import subprocess
import sys
from itertools import pairwise
from pathlib import Path

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "half_load.py"


def test_the_dearer_a_batch_the_smaller_the_ratio_and_the_longer_all_wait() -> None:
    command = [sys.executable, str(PROGRAM), "--calls", "4000", "--token-us", "100"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    lines = [[float(each) for each in line.split()] for line in done.stdout.splitlines()[2:]]
    assert len(lines) == 7
    for fixed_ms, p50_ms, p99_ms, ratio in lines:
        assert fixed_ms < p50_ms < p99_ms
        assert abs(ratio - p99_ms / p50_ms) < 0.1
    for cheaper, dearer in pairwise(lines):
        assert cheaper[1] < dearer[1]
    assert lines[0][3] > 2 * lines[-1][3]
