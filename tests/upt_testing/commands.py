"""Runs ``upt-zoo`` in the test's own process."""

import io
import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from upt_zoo import cli


@dataclass(frozen=True)
class Result:
    """How a command ended, and what it said."""

    code: int
    stdout: str
    stderr: str


Run = Callable[..., Result]


def runner(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return what runs a command line: ``run("pull", "sst2", stdin="")``."""

    def run(*arguments: str, stdin: str = "") -> Result:
        monkeypatch.setattr(sys, "argv", ["upt-zoo", *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        with pytest.raises(SystemExit) as caught:
            cli.main()
        output = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return Result(code=caught.value.code, stdout=output.out, stderr=output.err)

    return run
