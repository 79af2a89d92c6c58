"""Reads what the documents show, and runs a page of it as a user at a keyboard would.

A block of shell or Python is run, from the top of its page to the end, in one bash. A line before
it says why one is not: ``<!-- not run: REASON -->``. What a page takes for granted (files,
versions) is made by ``tests/documents/PAGE.sh``.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from upt_benchmarks.ports import free_port
from upt_zoo.catalogue import embedded_catalogue

ROOT = Path(__file__).parents[2]
NAMES = sorted(
    str(file.relative_to(ROOT)) for file in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"))
)
PAGES = ROOT / "tests" / "documents"
FENCE = re.compile(
    r"^(?:<!-- not run: ([^\n]+) -->\n)?```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL
)
SHELL = "sh"
PYTHON = "python"
TIMEOUT_S = 600  # a page takes seconds, on a busy machine minutes: only one that hangs meets it
_BACKGROUND = re.compile(r"^(.*\bupt-server run\b(?:\\\n|[^&#\n])*)&", re.MULTILINE)
_PORTS = ("8000", "8001", "8002")
_OUTSIDE = {"0.0.0.0": "127.0.0.1", "/srv/zoo": "$PWD/zoo", "/media/stick": "$PWD"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A fenced block of a document; ``reason`` says why it is not run, if it is not."""

    place: str
    language: str
    text: str
    reason: str | None

    @property
    def is_code(self) -> bool:
        return self.language in (SHELL, PYTHON)


def blocks(name: str) -> Iterator[Block]:
    """Yield the blocks of a document, named by its path from the root, in their order."""
    text = (ROOT / name).read_text(encoding="utf-8")
    for found in FENCE.finditer(text):
        line = text.count("\n", 0, found.start(2)) + 1
        yield Block(
            place=f"{name}:{line}", language=found[2], text=found[3], reason=found[1] or None
        )


def run_page(name: str, folder: Path, environment: Mapping[str, str]) -> str:
    """Run a page in an empty folder, as a user who has nothing but upt; return what was said.

    Raises:
        AssertionError: a command failed, or the page took too long; tells where, and what was said.
    """
    desk = _furnish(folder)
    process = subprocess.Popen(
        ["bash", "-c", script(name)],
        cwd=desk,
        env={**environment, **_surroundings(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)  # bash alone would wait for its command
        said, _ = process.communicate()
        raise AssertionError(f"{name} took more than {TIMEOUT_S} s\n{said}") from None
    assert process.returncode == 0, said
    return said


def script(name: str) -> str:
    """Write a page as one bash script."""
    setup = PAGES / f"{Path(name).stem}.sh"
    parts = [(PAGES / "prelude.sh").read_text(encoding="utf-8")]
    if setup.exists():
        parts.append(setup.read_text(encoding="utf-8"))
    for block in blocks(name):
        if block.is_code and block.reason is None:
            parts += [f"at={block.place}", _commands(block)]
    return _in_here("\n".join(parts))


def _commands(block: Block) -> str:
    if block.language == PYTHON:
        return f"python - <<'PYTHON'\n{block.text}PYTHON"
    # the prelude starts a server and waits until it is ready: behind `&` nobody would
    return _BACKGROUND.sub(r"\1", block.text)


def _in_here(text: str) -> str:
    """Let the script use ports that are free, and nothing outside its folder."""
    for old, new in (*zip(_PORTS, _free_ports(), strict=True), *_OUTSIDE.items()):
        text = re.sub(rf"(?<![\w.]){re.escape(old)}\b", new, text)
    return text


def _free_ports() -> list[str]:
    """Choose ports that no other program gets by chance until the script's servers listen there."""
    ports: set[int] = set()
    while len(ports) < len(_PORTS):
        ports.add(free_port())
    return [str(port) for port in ports]


def _furnish(folder: Path) -> Path:
    """Make the folder that a page runs in: a clone's files as far as pages name them."""
    desk = folder / "desk"
    desk.mkdir(parents=True)
    for name in ("deploy", "training", "protos", "benchmarks"):
        (desk / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "docs", desk / "docs")
    return desk


def _surroundings(folder: Path) -> dict[str, str]:
    """Return the variables of a user whose home is the folder."""
    binaries = Path(sys.executable).parent
    return {
        "PATH": f"{binaries}:/usr/local/bin:/usr/bin:/bin",
        "HOME": str(folder),
        "ROOT": str(ROOT),
        "CATALOGUE": str(embedded_catalogue().root),
        "COLUMNS": "120",
        "NO_COLOR": "1",
        "OMP_NUM_THREADS": "1",
        # of all pages alike: the first server measures its runners, which takes seconds
        "XDG_CACHE_HOME": str(folder.parent / "cache"),
    }
