"""What a replica is told: options of ``upt-server run``, by the same keys.

Where callers are listened to, how many replicas there are, and on how many CPUs each computes, is
Ray's to say.
"""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from upt_server.precision import CheckedLoads, Precision, RunnerChoice
from upt_server.routes import Route
from upt_server.run_defaults import (
    ADAPTER_MEMORY_MB,
    BATCH_TOKENS,
    QUEUE_TOKENS,
    runner_cache_file,
)
from upt_server.scheduling import Budget, parse_weight
from upt_server.settings import Settings
from upt_server.telemetry.choices import LoggedCalls
from upt_zoo.backbone import EMBEDDED_HUB_ID
from upt_zoo.references import Reference

_HOST = "0.0.0.0"  # where Ray's proxies listen: callers are not on this machine alone


class ReplicaOptions(BaseModel):
    """The ``args`` of the application; what they mean is what ``upt-server run --help`` says.

    Raises:
        ValidationError: an option is unknown, or its value is of another kind.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, alias_generator=lambda name: name.replace("_", "-")
    )

    home: Path | None = None
    backbone: str = EMBEDDED_HUB_ID
    preload: str = ""
    precision: Precision = "exact"
    runner: RunnerChoice = "auto"
    device: str = "cpu"
    max_batch_tokens: int = BATCH_TOKENS
    max_queue_tokens: int = QUEUE_TOKENS
    adapter_memory_mb: int = ADAPTER_MEMORY_MB
    tokens: Path | None = None
    route: tuple[str, ...] = ()
    weight: tuple[str, ...] = ()
    self_check: CheckedLoads = "start"
    log_calls: LoggedCalls = "none"

    def settings(self) -> Settings:
        """Return a replica's settings.

        Raises:
            InvalidSpec: a reference, route or weight is none.
        """
        return Settings(
            home=self.home,
            backbone=self.backbone,
            host=_HOST,
            grpc_port=0,
            http_port=0,
            preload=tuple(Reference.parse(name) for name in self.preload.split(",") if name),
            precision=self.precision,
            runner=self.runner,
            device=self.device,
            runner_cache=runner_cache_file(),
            threads=None,  # torch takes OMP_NUM_THREADS, which Ray sets to the replica's CPUs
            budget=Budget(tokens=self.max_batch_tokens),
            max_queue_tokens=self.max_queue_tokens,
            max_adapter_bytes=self.adapter_memory_mb * 1024**2,
            drain_timeout_s=0.0,
            tokens=self.tokens,
            routes=tuple(map(Route.parse, self.route)),
            weights=dict(map(parse_weight, self.weight)),
            self_check=self.self_check,
            has_reflection=False,  # the proxy's
            has_metrics=False,  # of whichever replica was asked: of no use
            has_page=False,
            logged_calls=self.log_calls,
        )
