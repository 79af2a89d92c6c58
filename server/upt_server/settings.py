"""Every setting of the server, in one frozen value; the command line knows the defaults."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from upt_server.inputs import Limits
from upt_server.precision import CheckedLoads, Precision, RunnerChoice
from upt_server.routes import Route
from upt_server.run_defaults import ADAPTER_LABELS
from upt_server.scheduling import Budget
from upt_server.telemetry.choices import LoggedCalls
from upt_server.telemetry.traces import Traces
from upt_server.tls import ServerTls
from upt_zoo.references import Reference


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminAddress:
    """Where operators are listened to."""

    host: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What to serve, where, and within which bounds.

    ``home`` None is the user's data directory; ``backbone`` is a hub id or a directory; a port of 0
    takes a free one. Adapters in ``preload`` are loaded before the server is ready and are never
    evicted. ``device`` is a name of torch's. ``runner`` auto is the fastest of the precision there;
    ``runner_cache`` is the file that remembers which one that was, None to measure at each start.
    ``threads`` None is the computing library's own choice. Without ``tls`` both ports speak in the
    clear. ``weights`` are by adapters' names, 1 where none stands. Without ``tokens`` callers are
    not told apart; ``admin`` needs them. ``warm_start`` is the file that remembers what is in
    memory. With ``has_model_control`` callers with the scope ``admin`` load and unload by the Open
    Inference Protocol. ``self_check`` says which loads run the adapter's example first: ``start``
    means those at start and those that somebody asks for by name, ``all`` those for callers too.
    ``max_adapter_labels`` is how many adapters' names metrics have; the rest is counted together.
    ``traces`` says where spans are sent, and ``logged_calls`` which calls leave a line in the log.
    """

    home: Path | None
    backbone: str
    host: str
    grpc_port: int
    http_port: int
    preload: tuple[Reference, ...]
    precision: Precision
    runner: RunnerChoice
    device: str
    runner_cache: Path | None
    threads: int | None
    budget: Budget
    max_queue_tokens: int
    max_adapter_bytes: int
    drain_timeout_s: float
    tls: ServerTls | None = None
    limits: Limits = field(default_factory=Limits)
    max_concurrent_calls: int = 1024
    tokens: Path | None = None
    admin: AdminAddress | None = None
    routes: tuple[Route, ...] = ()
    weights: Mapping[str, int] = field(default_factory=dict)
    warm_start: Path | None = None
    self_check: CheckedLoads = "start"
    has_reflection: bool = True
    has_model_control: bool = False
    has_metrics: bool = True
    max_adapter_labels: int = ADAPTER_LABELS
    has_page: bool = True
    traces: Traces | None = None
    logged_calls: LoggedCalls = "none"
