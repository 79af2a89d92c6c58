"""What operators see: every metric's name, labels and buckets, in a registry of its own.

The adapter label is an adapter's name. Only names that answered have one, and only a fixed number
of them; the rest is ``other``, so that no caller can grow the registry.
"""

from collections.abc import Callable, Iterable

from grpc import StatusCode
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from upt_server.results import BatchFacts, Prediction
from upt_server.run_defaults import ADAPTER_LABELS
from upt_server.statistics import Statistics

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SIZES = tuple(float(2**power) for power in range(15))
_OTHER = "other"
_REJECTIONS = {
    StatusCode.RESOURCE_EXHAUSTED: "overloaded",
    StatusCode.UNAVAILABLE: "unavailable",
    StatusCode.UNAUTHENTICATED: "unauthenticated",
    StatusCode.PERMISSION_DENIED: "forbidden",
}


class Metrics:
    """The server's metrics; each method is one event. ``statistics`` are told of calls too."""

    def __init__(self, *, max_adapter_labels: int = ADAPTER_LABELS) -> None:
        self.statistics = Statistics()
        self._registry = CollectorRegistry()
        self._max_adapter_labels = max_adapter_labels
        self._tasks: dict[str, str] = {}  # by the adapters that have a label of their own
        self._requests = self._counter(
            "upt_requests",
            "Inputs, by how they ended; a call with n inputs counts n.",
            ("adapter", "task", "code"),
        )
        self._tokens = self._counter("upt_tokens", "Tokens of answered inputs.", ("adapter",))
        self._rejected = self._counter("upt_rejected", "Calls turned away.", ("reason",))
        self._request_s = self._histogram("upt_request_duration_seconds", "Answered calls.")
        self._adapter_s = self._histogram(
            "upt_adapter_request_duration_seconds",
            "Answered calls, by each adapter that they asked.",
            labels=("adapter",),
        )
        self._queue_s = self._histogram("upt_queue_duration_seconds", "Waiting for the encoder.")
        self._tokenize_s = self._histogram("upt_tokenize_duration_seconds", "Tokenising a call.")
        self._forward_s = self._histogram("upt_forward_duration_seconds", "Computing a batch.")
        self._batch_rows = self._histogram("upt_batch_rows", "Rows of a batch.", _SIZES)
        self._batch_tokens = self._histogram(
            "upt_batch_tokens", "Tokens of a batch, prompt vectors included.", _SIZES
        )
        self._batch_adapters = self._histogram(
            "upt_batch_distinct_adapters", "Distinct adapters of a batch.", _SIZES
        )
        self._queue_depth = self._gauge("upt_queue_depth", "Rows that wait.")
        self._shed = self._gauge(
            "upt_shed_share", "Of calls with short deadlines, what is turned away unread."
        )
        self._resident = self._gauge("upt_adapter_resident", "Adapters in memory.", ("tier",))
        self._bytes = self._gauge("upt_adapter_bytes", "Memory of the adapters that are loaded.")
        self._limit = self._gauge(
            "upt_limit", "How many tokens of a batch, tokens that wait, bytes of adapters.", ("of",)
        )
        self._load_s = self._histogram(
            "upt_adapter_load_duration_seconds",
            "Reading, checking and preparing an adapter.",
            labels=("source",),
        )
        self._evictions = self._counter(
            "upt_adapter_evictions", "Adapters dropped from memory to make room."
        )
        self._build = self._gauge(
            "upt_build_info",
            "Always 1; the labels say what runs.",
            ("version", "backbone", "precision", "runner"),
        )

    def text(self) -> bytes:
        """Return everything in the Prometheus text format."""
        return generate_latest(self._registry)

    def server_built(
        self, *, version: str, backbone_digest: str, precision: str, runner: str
    ) -> None:
        """Say what runs."""
        self._build.labels(version, backbone_digest, precision, runner).set(1)

    def queue_built(self, depth: Callable[[], int]) -> None:
        """Read the queue's depth in rows from ``depth`` from here on."""
        self._queue_depth.set_function(depth)

    def shedding_built(self, share: Callable[[], float]) -> None:
        """Read which share of the calls with short deadlines is turned away from here on."""
        self._shed.set_function(share)

    def memory_built(self, size_bytes: Callable[[], int]) -> None:
        """Read how much memory adapters take from ``size_bytes`` from here on."""
        self._bytes.set_function(size_bytes)

    def limits_set(self, *, batch_tokens: int, queue_tokens: int, adapter_bytes: int) -> None:
        """Say what the server takes."""
        self._limit.labels("batch_tokens").set(batch_tokens)
        self._limit.labels("queue_tokens").set(queue_tokens)
        self._limit.labels("adapter_bytes").set(adapter_bytes)

    def batch_computed(self, facts: BatchFacts) -> None:
        """Count one forward pass."""
        self._forward_s.observe(facts.forward_ms / 1000)
        self._batch_rows.observe(facts.rows)
        self._batch_tokens.observe(facts.tokens)
        self._batch_adapters.observe(facts.distinct_adapters)

    def adapter_loaded(self, seconds: float, resident: int) -> None:
        """Count an adapter read from the local store; ``resident`` are in memory."""
        self._load_s.labels("store").observe(seconds)
        self._resident.labels("host").set(resident)

    def adapter_evicted(self, resident: int) -> None:
        """Count an adapter dropped from memory; ``resident`` are left."""
        self._evictions.inc()
        self._resident.labels("host").set(resident)

    def adapter_unloaded(self, resident: int) -> None:
        """Count an adapter dropped from memory because an operator asked; ``resident`` are left."""
        self._resident.labels("host").set(resident)

    def call_answered(self, prediction: Prediction) -> None:
        """Count an answered call."""
        self.statistics.call_answered(prediction)
        timings = prediction.timings
        self._request_s.observe(timings.total_ms / 1000)
        self._queue_s.observe(timings.queue_ms / 1000)
        self._tokenize_s.observe(timings.tokenize_ms / 1000)
        for output in prediction.outputs:
            if len(self._tasks) < self._max_adapter_labels:
                self._tasks[output.adapter.name] = output.task
            self._count_request(output.adapter.name, StatusCode.OK)
            self._tokens.labels(self._label(output.adapter.name)).inc(output.tokens)
        for name in {output.adapter.name for output in prediction.outputs}:
            self._adapter_s.labels(self._label(name)).observe(timings.total_ms / 1000)

    def call_failed(self, adapters: Iterable[str], code: StatusCode) -> None:
        """Count a call that got no answer; ``adapters`` are the names it asked for."""
        if code in _REJECTIONS:
            self._rejected.labels(_REJECTIONS[code]).inc()
        adapters = tuple(adapters)
        self.statistics.call_failed(adapters)
        for adapter in adapters:
            self._count_request(adapter, code)

    def _label(self, adapter: str) -> str:
        return adapter if adapter in self._tasks else _OTHER

    def _count_request(self, adapter: str, code: StatusCode) -> None:
        task = self._tasks.get(adapter)
        labels = (_OTHER, _OTHER) if task is None else (adapter, task)
        self._requests.labels(*labels, code.name).inc()

    def _counter(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(name, text, labels, registry=self._registry)

    def _gauge(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
        return Gauge(name, text, labels, registry=self._registry)

    def _histogram(
        self,
        name: str,
        text: str,
        buckets: tuple[float, ...] = _SECONDS,
        *,
        labels: tuple[str, ...] = (),
    ) -> Histogram:
        return Histogram(name, text, labels, buckets=buckets, registry=self._registry)
