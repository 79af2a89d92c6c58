"""The application of ``deploy/ray/serve.yaml``, run by a Ray of this machine alone."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import yaml

from upt_benchmarks.ports import free_port

_CLUSTER = Path(__file__).with_name("ray_cluster.py")
_CONFIGURATION = Path(__file__).parents[2] / "deploy" / "ray" / "serve.yaml"
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is sent to anybody
    "RAY_worker_niceness": "0",  # Ray's own is 15: replicas would get what others leave
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120",  # on a busy machine
}


class RayApp:
    """Replicas, two if nothing else is said, behind Ray's proxies on free ports."""

    def __init__(self, folder: Path, process: "subprocess.Popen[str]") -> None:
        self._folder, self._process = folder, process
        self._grpc_port, self._http_port = free_port(), free_port()
        self.target = f"127.0.0.1:{self._grpc_port}"
        self.http = f"127.0.0.1:{self._http_port}"

    def deploy(
        self, args: Mapping[str, object], *, ray_options: Mapping[str, object] | None = None
    ) -> None:
        """Run replicas with these options, in place of those before, and wait for them.

        ``ray_options`` are those of Ray's deployment that shall be other than shipped; without an
        ``autoscaling_config`` there are two replicas.
        """
        _write(self._process.stdin, f"{self._configure(args, ray_options or {})}\n")
        assert self._process.stdout is not None
        while "ready" not in (line := self._process.stdout.readline()):
            assert line, f"Ray ended; see {self._folder / 'log'}"

    def replicas(self) -> set[int]:
        """Return the processes of the replicas (Linux)."""
        return {pid for pid in self.processes() if _is_replica(pid)}

    def processes(self) -> set[int]:
        """Return all of Ray's processes, the replicas among them (Linux)."""
        return {self._process.pid, *_descendants(self._process.pid)}

    def _configure(self, args: Mapping[str, object], ray_options: Mapping[str, object]) -> Path:
        configuration = yaml.safe_load(_CONFIGURATION.read_text())
        configuration["http_options"]["port"] = self._http_port
        configuration["grpc_options"]["port"] = self._grpc_port
        (application,) = configuration["applications"]
        application["args"] = dict(args)
        (deployment,) = application["deployments"]
        deployment["autoscaling_config"]["max_replicas"] = 2
        deployment.update(ray_options)
        file = self._folder / "serve.yaml"
        file.write_text(yaml.safe_dump(configuration), encoding="utf-8")
        return file


@contextmanager
def running_ray() -> Iterator[RayApp]:
    """Start a Ray and, in the end, stop it and all that it started."""
    # Ray's sockets lie below, and their paths must be short
    with tempfile.TemporaryDirectory(prefix="upt-ray-") as name:
        folder = Path(name)
        # Ray ends its processes without giving them time to write down what they covered
        environment = {key: os.environ[key] for key in os.environ if "COVERAGE" not in key}
        environment |= {"RAY_TMPDIR": name, **_ENVIRONMENT}
        with (
            (folder / "log").open("w") as log,
            subprocess.Popen(
                [sys.executable, _CLUSTER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
            ) as process,
        ):
            try:
                yield RayApp(folder, process)
            finally:
                process.communicate()


def _write(stream: IO[str] | None, text: str) -> None:
    assert stream is not None
    stream.write(text)
    stream.flush()


def _descendants(pid: int) -> Iterator[int]:
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, _read(file).split()):
            yield child
            yield from _descendants(child)


def _is_replica(pid: int) -> bool:
    return _read(Path(f"/proc/{pid}/cmdline")).startswith(b"ray::ServeReplica")


def _read(file: Path) -> bytes:
    """Read a file of a process; of one that has ended meanwhile there is nothing."""
    try:
        return file.read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""
