"""What the three commands have in common: completion, silence, JSON, colours, empty states."""

import importlib
import os
import pty
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from upt_zoo.catalogue import embedded_catalogue
from upt_zoo.terminal import print_table

PROGRAMS = {
    "upt-zoo": "upt_zoo.cli",
    "upt-train": "upt_training.cli",
    "upt-server": "upt_server.cli",
}
# they print nothing on stdout, whatever they do
SILENT = {"upt-zoo login", "upt-zoo logout", "upt-server token revoke", "upt-server admin drain"}


def run(program: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sys.executable).with_name(program), *words],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def complete(line: str, home: Path) -> list[str]:
    """Ask as bash does, what may stand at the end of a line."""
    program, *words = line.split(" ")
    asked = {
        f"_{program.replace('-', '_').upper()}_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words)),
        "UPT_ZOO_HOME": str(home),
    }
    return run(program, **asked).stdout.split()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def test_a_shell_completes_commands_options_tasks_and_adapters(home: Path) -> None:
    assert complete("upt-zoo pul", home) == ["pull"]
    assert complete("upt-server run --grpc", home) == ["--grpc-port"]
    assert complete("upt-train run --task mn", home) == ["mnli"]
    assert complete("upt-server predict sq", home) == ["squad"]  # the catalogue's
    adapter = embedded_catalogue().list()[0]
    run("upt-zoo", "pull", str(adapter), UPT_ZOO_HOME=str(home))
    assert adapter.name in complete("upt-zoo show ", home)


def test_a_store_that_cannot_be_read_completes_what_else_there_is(home: Path) -> None:
    home.mkdir()
    (home / "index.json").write_text("{")
    assert "sst2" in complete("upt-zoo show ss", home)


def test_a_slip_in_a_command_an_option_or_a_task_is_understood() -> None:
    assert "Did you mean 'show'?" in run("upt-zoo", "shwo").stderr
    assert "--grpc-port" in run("upt-server", "run", "--grpc-prot", "1").stderr
    assert "did you mean sst2?" in run("upt-train", "run", "--task", "sst3").stderr
    assert (
        "did you mean lora?" in run("upt-train", "run", "--task", "sst2", "--method", "lra").stderr
    )


def test_quiet_leaves_the_results_and_the_errors(home: Path) -> None:
    environment = {"UPT_ZOO_HOME": str(home)}
    told = run("upt-zoo", "pull", "sst2", **environment)
    assert "pulled sst2" in told.stderr
    quiet = run("upt-zoo", "--quiet", "pull", "sst2", **environment)
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, told.stdout, "")
    missing = run("upt-zoo", "-q", "show", "nobody", **environment)
    assert missing.returncode == 66
    assert missing.stderr.startswith("upt-zoo: no adapter nobody")
    assert "No such command" in run("upt-zoo", "-q", "shwo").stderr


def test_a_quiet_server_still_says_what_is_wrong(home: Path) -> None:
    arguments = ("run", "--runner", "torch-fp32", "--preload", "nobody", "--home", str(home))
    misspelt = {"UPT_SERVER_PRELAOD": "sst2"}
    quiet = run("upt-server", "--quiet", *arguments, "--grpc-port=0", "--http-port=0", **misspelt)
    warning, error = quiet.stderr.splitlines()
    assert "UPT_SERVER_PRELAOD names no option" in warning
    assert error.startswith("upt-server: no adapter nobody")


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_command_that_prints_prints_json_if_asked(program: str) -> None:
    group = get_command(importlib.import_module(PROGRAMS[program]).app)
    assert isinstance(group, TyperGroup)
    without = set()
    for word, command in group.commands.items():
        parts = command.commands if isinstance(command, TyperGroup) else {"": command}
        for part, each in parts.items():
            if "--json" not in {name for option in each.params for name in option.opts}:
                without.add(f"{program} {word} {part}".strip())
    assert without == {name for name in SILENT if name.split()[0] == program}


@pytest.mark.parametrize(
    ("command", "next_step"),
    [
        (("upt-zoo", "ls"), "`upt-zoo pull NAME`"),
        (("upt-zoo", "verify"), "`upt-zoo pull NAME`"),
        (("upt-zoo", "search", "zebra"), "`upt-zoo ls --catalogue`"),
    ],
)
def test_where_there_is_nothing_the_next_step_is_told(
    command: tuple[str, ...], next_step: str, home: Path
) -> None:
    done = run(*command, UPT_ZOO_HOME=str(home))
    assert (done.returncode, done.stdout) == (0, "")
    assert next_step in done.stderr


def test_an_empty_table_is_a_message_and_not_a_result(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("name",), [], empty="no names\x1b[2J; make one")
    assert capsys.readouterr() == ("", "no names[2J; make one\n")
    print_table(("name",), [])
    assert capsys.readouterr() == ("name\n", "")


def test_of_a_table_too_wide_the_widest_column_alone_is_folded(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [("a-long-name:1.0.0", "dev/accuracy 75.0, test/accuracy 74.0", "0.5 MB")]
    monkeypatch.setenv("COLUMNS", "50")
    print_table(("adapter", "metrics", "size"), rows)
    _, first, second = capsys.readouterr().out.splitlines()
    assert first.split() == ["a-long-name:1.0.0", "dev/accuracy", "75.0,", "0.5", "MB"]
    assert second.split() == ["test/accuracy", "74.0"]
    monkeypatch.setenv("COLUMNS", "30")
    print_table(("adapter", "metrics", "size"), rows)
    folded = capsys.readouterr().out.splitlines()
    assert max(map(len, folded)) <= 30
    assert "".join(line[:5].strip() for line in folded[1:]).startswith("a-lon")


@pytest.mark.parametrize(
    ("program", "first"),
    [("upt-zoo", ["pull", "ls", "show", "search"]), ("upt-server", ["run", "predict", "ls"])],
)
def test_the_help_begins_with_what_is_needed_first(program: str, first: list[str]) -> None:
    group = get_command(importlib.import_module(PROGRAMS[program]).app)
    assert isinstance(group, TyperGroup)
    assert [*group.commands][: len(first)] == first


BAR = """
from upt_zoo.commands.bars import progress_bars
with progress_bars() as report:
    report("sst2", 1_000_000, 2_000_000)
"""


def test_no_color_is_respected_on_a_terminal() -> None:
    colour = re.compile(rb"\x1b\[(\d+;)*[349]\d[;m]")
    assert colour.search(on_terminal(BAR, NO_COLOR=""))
    plain = on_terminal(BAR, NO_COLOR="1")
    assert b"sst2" in plain
    assert not colour.search(plain)


def on_terminal(code: str, **environment: str) -> bytes:
    """Return what a program says on a terminal."""
    leader, follower = pty.openpty()
    told = os.environ | {"TERM": "xterm-256color", "COLUMNS": "100"} | environment
    with subprocess.Popen([sys.executable, "-c", code], stderr=follower, env=told):
        os.close(follower)
        shown = b""
        with suppress(OSError):  # what a terminal says whose other side is closed
            while data := os.read(leader, 65536):
                shown += data
    os.close(leader)
    return shown
