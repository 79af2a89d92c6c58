"""Other libraries, each in a virtual environment and a process of its own.

A worker (``benchmarks/peers``) speaks one JSON object a line: ``{"setup": ...}`` is answered by
its versions, ``{"run": true}`` by the milliseconds of one pass over the batch, measured there.
"""

import argparse
import json
import os
import subprocess
import sys
import venv
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

PeerName = Literal["adapterhub", "peft", "onnxruntime"]
PEERS: Mapping[str, PeerName] = {
    "adapters_grouped": "adapterhub",
    "peft_mixed": "peft",
    "onnxruntime_bare": "onnxruntime",
}  # by the name of the variant

PEER_SOURCES = Path(__file__).parents[1] / "peers"
# threads that have nothing to do sleep within a millisecond, so that HF has the cores to itself
QUIET = {"KMP_BLOCKTIME": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}


class PeerFailed(Exception):
    """A peer could not be installed, or its worker ended; it said why on standard error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerSetup:
    """What a worker is told once; row i is answered by adapter i modulo ``adapters``."""

    checkpoint: Path
    rows: Sequence[Sequence[int]]
    adapters: int
    threads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """What a worker that trains is told once: rows of a task with two labels, and how to learn.

    ``is_grouped`` puts rows of like lengths into a batch.
    """

    checkpoint: Path
    rows: Sequence[Sequence[int]]
    type_ids: Sequence[Sequence[int]]
    labels: Sequence[int]
    batch_size: int
    dropout: float
    bf16: bool
    is_grouped: bool
    threads: int


def add_peers_dir(parser: argparse.ArgumentParser) -> None:
    """Add the option that says where the environments are."""
    parser.add_argument(
        "--peers-dir",
        type=Path,
        default=Path.home() / ".cache" / "upt" / "benchmarks",
        metavar="DIR",
        help="where the other libraries' environments are",
    )


def peer_python(name: PeerName, folder: Path) -> Path:
    """Return the interpreter of a peer's environment, made first where it does not exist.

    Raises:
        PeerFailed: pip could not install the pinned requirements.
    """
    requirements = PEER_SOURCES / f"requirements-{name}.txt"
    environment, stamp = folder / name, sha256(requirements.read_bytes()).hexdigest()
    python, mark = environment / "bin" / "python", environment / "requirements.sha256"
    if not mark.is_file() or mark.read_text() != stamp:
        print(f"making the environment of {name} in {environment}", file=sys.stderr)
        venv.create(environment, clear=True, with_pip=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        torch = next(line for line in requirements.read_text().splitlines() if "torch==" in line)
        # torch comes first and alone: a package that asks for any torch then finds this one
        for wanted in ([torch], ["-r", str(requirements)]):
            if subprocess.run([*pip, *wanted]).returncode:
                raise PeerFailed(f"{name}: pip could not install {' '.join(wanted)}")
        mark.write_text(stamp)
    return python


class Peer:
    """A worker process that holds one batch, or a lesson, ready; leave the context to end it."""

    def __init__(self, name: PeerName, folder: Path, setup: PeerSetup | Lesson) -> None:
        kind = "trainer" if isinstance(setup, Lesson) else "worker"
        environment = {**os.environ, **QUIET, "OMP_NUM_THREADS": str(setup.threads)}
        self._process = subprocess.Popen(
            [str(peer_python(name, folder)), "-u", str(PEER_SOURCES / f"{name}_{kind}.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        answer = self._ask({"setup": {**asdict(setup), "checkpoint": str(setup.checkpoint)}})
        self.versions = {str(key): str(value) for key, value in answer.items()}

    def __call__(self) -> float:
        """Run the batch, or the lesson, once; return the worker's milliseconds.

        Raises:
            PeerFailed: the worker ended.
        """
        return float(str(self._ask({"run": True})["ms"]))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):
                self._process.stdin.close()
        self._process.wait(timeout=60)

    def _ask(self, message: Mapping[str, object]) -> Mapping[str, object]:
        if self._process.stdin is None or self._process.stdout is None:
            raise PeerFailed("the worker has no pipes")
        with suppress(BrokenPipeError):  # then there is no answer either
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise PeerFailed(f"the worker ended with status {self._process.wait()}; see above")
        answer: Mapping[str, object] = json.loads(line)
        return answer
