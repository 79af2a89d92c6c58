"""``upt-server`` as a user runs it: a process of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from upt_testing.serving import TIMEOUT_S

_COMMAND = (sys.executable, "-m", "upt_server.cli")


def upt_server(*arguments: str | Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end."""
    return subprocess.run(
        [*_COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=3 * TIMEOUT_S,
        check=False,
        env=os.environ | {"COLUMNS": "200"} | environment,
    )


@dataclass(frozen=True)
class Running:
    """A server that is ready; ``event`` is what it said then."""

    process: "subprocess.Popen[str]"
    event: dict[str, object]

    @property
    def target(self) -> str:
        """Where callers ask."""
        return f"127.0.0.1:{self.event['grpc_port']}"

    @property
    def admin(self) -> str:
        """Where operators ask."""
        return f"127.0.0.1:{self.event['admin_port']}"


@contextmanager
def running_server(*arguments: str, **environment: str) -> Iterator[Running]:
    """Run a server of one thread on free ports, and kill it in the end."""
    ports = ("--grpc-port", "0", "--http-port", "0", "--threads", "1", "--json")
    with subprocess.Popen(
        [*_COMMAND, "run", *ports, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, process.communicate()[1]
            yield Running(process, json.loads(line))
        finally:
            process.kill()
