"""Runs ``upt-train`` at a user's desk: in the test's own process, or in one that is killed."""

import io
import json
import os
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from upt_testing.rows import write_tasks
from upt_training import cli
from upt_zoo.backbone import Backbone
from upt_zoo.local.store import Store

TIMEOUT_S = 120.0  # far beyond what anything here takes; only a hanging test meets it


@dataclass(frozen=True)
class Result:
    """How a command ended, and what it said."""

    code: int
    stdout: str
    stderr: str

    def events(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.stderr.splitlines()]


@dataclass(frozen=True)
class Desk:
    """A user's folders, and the command that works on them."""

    root: Path
    backbone: Path

    @property
    def environment(self) -> dict[str, str]:
        places = {"UPT_ZOO_HOME": "home", "UPT_DATA_DIR": "data", "XDG_CACHE_HOME": "cache"}
        return {name: str(self.root / place) for name, place in places.items()}

    @property
    def store(self) -> Store:
        return Store(self.root / "home")

    def checkpoints(self) -> list[Path]:
        return list((self.root / "cache").rglob("*.safetensors"))

    def write_recipe(self, task: str, **changes: object) -> str:
        """Write a recipe of two short epochs."""
        keys: dict[str, object] = {
            "task": task,
            "backbone": str(self.backbone),
            "epochs": 2,
            "batch_size": 8,
            "holdout_rows": 8,
            "max_tokens": 48,
            "precision": "fp32",
            "dropout": 0.1,
        }
        file = self.root / f"{task}.yaml"
        file.write_text(yaml.safe_dump(keys | changes))
        return str(file)

    def run(self, *arguments: str) -> Result:
        """Run the command in this process."""
        # bytes are written too, as to a terminal
        out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            for name, value in self.environment.items():
                patch.setenv(name, value)
            patch.setenv("COLUMNS", "200")
            patch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "1024")
            patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
            patch.setattr(sys, "argv", ["upt-train", *arguments])
            with pytest.raises(SystemExit) as caught:
                cli.main()
        assert isinstance(caught.value.code, int)
        said = [stream.buffer.getvalue().decode() for stream in (out, err)]
        return Result(code=caught.value.code, stdout=said[0], stderr=said[1])

    def evaluate(self, *arguments: str) -> dict[str, float]:
        result = self.run("evaluate", *arguments, "--json")
        assert result.code == 0, result.stderr
        metrics: dict[str, float] = json.loads(result.stdout)["metrics"]
        return metrics


def make_desk(root: Path, backbone: Backbone) -> Desk:
    write_tasks(root / "data")
    return Desk(root=root, backbone=backbone.directory)


def kill_in(desk: Desk, moment: str, *arguments: str) -> None:
    """Run the command in a process that kills itself at a moment."""
    program = "import os, signal, sys\ndie = lambda: os.kill(os.getpid(), signal.SIGKILL)\n"
    program += f"{moment}\nfrom upt_training.cli import main\nmain()\n"
    result = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=os.environ | desk.environment,
        capture_output=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert result.returncode == -signal.SIGKILL, result.stderr
