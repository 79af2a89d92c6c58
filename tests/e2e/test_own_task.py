"""The four commands of the tutorial as a user types them: from a CSV file to an answer."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from upt_testing.rows import sentiment_rows

TIMEOUT_S = 240  # far beyond what anything here takes; only a hanging test meets it


def environment(folder: Path) -> dict[str, str]:
    places = {"UPT_ZOO_HOME": str(folder / "home"), "XDG_CACHE_HOME": str(folder / "cache")}
    return os.environ | places | {"COLUMNS": "200"}


def command(folder: Path, program: str, *arguments: str) -> str:
    result = subprocess.run(
        [sys.executable, "-m", f"{program}.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        cwd=folder,
        env=environment(folder),
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
def test_a_csv_file_becomes_a_served_adapter_in_four_commands(tmp_path: Path) -> None:
    with (tmp_path / "tones.csv").open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(("sentence", "tone"))
        for row in sentiment_rows(60, seed=1):
            writer.writerow((row["sentence"], ("unkind", "kind")[int(str(row["label"]))]))
    told = command(tmp_path, "upt_training", "init", "--from", "tones.csv")
    assert "upt-train run tones/recipe.yaml" in told
    trained = command(tmp_path, "upt_training", "run", "tones/recipe.yaml")
    assert "upt-zoo tag tones:1.0.0 stable" in trained
    assert (tmp_path / "tones/reports/tones-1.0.0/report.html").exists()
    ports = ("--grpc-port", "0", "--http-port", "0", "--json")
    with subprocess.Popen(
        [sys.executable, "-m", "upt_server.cli", "run", *ports],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment(tmp_path),
    ) as server:
        try:
            assert server.stdout is not None
            target = f"127.0.0.1:{json.loads(server.stdout.readline())['grpc_port']}"
            asked = ("tones", "this film is gripping .", "--server", target)
            answer = command(tmp_path, "upt_server", "predict", *asked)
        finally:
            server.terminate()
    assert answer.startswith("kind")
