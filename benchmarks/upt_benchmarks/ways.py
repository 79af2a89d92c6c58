"""The ways to use the cores of one machine: one server, several with a port each, behind Ray."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal

from upt_benchmarks.ray_app import running_ray
from upt_benchmarks.served import running_server

Way = Literal["one", "ports", "ray"]

_THREADS = 2


@contextmanager
def running(
    way: Way, home: Path, names: Sequence[str], *, precision: str = "exact"
) -> Iterator[Sequence[str]]:
    """Start a way's servers with all adapters in memory, and yield where they are asked.

    ``one`` is one server of two threads, ``ports`` are two of one thread and a port each, ``ray``
    are two replicas of one thread each behind the one port of Ray Serve.
    """
    preload = ",".join(names)
    with ExitStack() as stack:
        if way == "ray":
            app = stack.enter_context(running_ray())
            app.deploy({"home": str(home), "preload": preload, "precision": precision})
            yield [app.target]
            return
        servers = 1 if way == "one" else 2
        threads = str(_THREADS // servers)
        options = ["--precision", precision, "--threads", threads, "--preload", preload]
        yield [stack.enter_context(running_server(home, options)).target for _ in range(servers)]
