"""What each version of an adapter has answered since the start. Pure but for the clock it is given.

There is an entry for every version that answered, so no caller can make one up.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from time import time

from upt_server.results import AdapterIdentity, Prediction


@dataclass(slots=True, kw_only=True)
class AdapterStatistics:
    """Sums over the calls of one version; a call that asks several adapters counts for each.

    ``last_answer_s`` is in seconds since 1970.
    """

    calls: int = 0
    failed_calls: int = 0
    inputs: int = 0
    batches: int = 0
    total_ms: float = 0.0
    tokenize_ms: float = 0.0
    queue_ms: float = 0.0
    forward_ms: float = 0.0
    last_answer_s: float = 0.0


class Statistics:
    """The statistics of all adapters of a server; owned by the event loop."""

    def __init__(self, *, clock: Callable[[], float] = time) -> None:
        self._clock = clock
        self._entries: dict[AdapterIdentity, AdapterStatistics] = {}
        self._last: dict[str, AdapterStatistics] = {}  # by name, of the version that answered last

    def call_answered(self, prediction: Prediction) -> None:
        """Count an answered call."""
        timings = prediction.timings
        for adapter in {output.adapter for output in prediction.outputs}:
            entry = self._entries.setdefault(adapter, AdapterStatistics())
            self._last[adapter.name] = entry
            entry.calls += 1
            entry.inputs += sum(output.adapter == adapter for output in prediction.outputs)
            entry.batches += len(prediction.batches)
            entry.total_ms += timings.total_ms
            entry.tokenize_ms += timings.tokenize_ms
            entry.queue_ms += timings.queue_ms
            entry.forward_ms += timings.forward_ms
            entry.last_answer_s = self._clock()

    def call_failed(self, names: Iterable[str]) -> None:
        """Count a call without an answer for the version of each name that answered last."""
        for name in set(names) & self._last.keys():
            self._last[name].failed_calls += 1

    def of(self, adapter: AdapterIdentity) -> AdapterStatistics:
        """Return an adapter's sums; zeros if it has never answered."""
        return self._entries.get(adapter) or AdapterStatistics()
