"""A server for one job, on loopback: the command's own, as a process of its own."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

from upt_zoo.errors import Unavailable

_PATIENCE_S = 40.0  # it finishes the calls inside first


@contextmanager
def own_server(home: Path | None) -> Iterator[str]:
    """Run a server on a free port and yield its address; it ends with the block.

    Raises:
        Unavailable: it did not start; the message is its last word.
    """
    command = [sys.executable, "-m", "upt_server.cli", "run", "--json"]
    command += ["--grpc-port", "0", "--http-port", "0"]
    command += ["--home", str(home)] if home else []
    with (
        TemporaryFile() as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log) as process,
    ):
        try:
            assert process.stdout is not None  # asked for above
            line = process.stdout.readline()
            if not line:
                log.seek(0)
                words = log.read().decode(errors="replace").splitlines()
                raise Unavailable(f"a server of its own did not start: {(words or ['?'])[-1]}")
            yield f"127.0.0.1:{json.loads(line)['grpc_port']}"
        finally:
            process.terminate()
            try:
                process.wait(_PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
