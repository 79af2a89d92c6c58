"""What a server did between two readings of its metrics. Pure: the clock and the text come in.

Quantiles are estimated from a histogram's buckets, as Prometheus does it: evenly spread within one.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf

from prometheus_client.parser import text_string_to_metric_families

Labels = frozenset[tuple[str, str]]
_OK = "OK"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A server's metrics at a time; ``values`` are by name and labels."""

    at_s: float
    values: Mapping[tuple[str, Labels], float]

    def value(self, name: str, **labels: str) -> float:
        """Return one value; 0 where there is none yet."""
        return self.values.get((name, frozenset(labels.items())), 0.0)

    def label_values(self, name: str, label: str) -> set[str]:
        """Return what a label of a metric has been."""
        return {dict(labels)[label] for key, labels in self.values if key == name}


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterActivity:
    """One adapter: inputs and errors a second, its calls' times, its share of all tokens."""

    adapter: str
    inputs_per_s: float
    errors_per_s: float
    p50_ms: float | None
    p99_ms: float | None
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    """A server over ``seconds``; what is no rate and no time is of the second reading.

    ``batch_fill`` is the share of a batch's tokens that is used, the mean over the batches;
    ``evictions`` are those within these seconds. Times are None where nothing was answered.
    """

    seconds: float
    inputs_per_s: float
    errors_per_s: float
    rejected_per_s: float
    p50_ms: float | None
    p99_ms: float | None
    batches_per_s: float
    batch_fill: float | None
    queue_rows: int
    resident: int
    adapter_bytes: int
    max_adapter_bytes: int
    loads: int
    evictions: int
    adapters: tuple[AdapterActivity, ...]


def read_metrics(text: str, at_s: float) -> Reading:
    """Read metrics in the Prometheus text format.

    Raises:
        ValueError: it is none.
    """
    values = {
        (sample.name, frozenset(sample.labels.items())): float(sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    return Reading(at_s=at_s, values=values)


def compare(before: Reading, after: Reading) -> Activity:
    """Say what a server did in between; adapters with most tokens first."""
    between = _Between(before, after)
    batches = between.count("upt_batch_tokens_count")
    room = batches * after.value("upt_limit", of="batch_tokens")
    return Activity(
        seconds=between.seconds,
        inputs_per_s=between.rate("upt_requests_total", code=_OK),
        errors_per_s=between.errors_per_s(),
        rejected_per_s=between.rate("upt_rejected_total"),
        p50_ms=between.quantile_ms("upt_request_duration_seconds", 0.5),
        p99_ms=between.quantile_ms("upt_request_duration_seconds", 0.99),
        batches_per_s=batches / between.seconds,
        batch_fill=between.count("upt_batch_tokens_sum") / room if room else None,
        queue_rows=int(after.value("upt_queue_depth")),
        resident=int(after.value("upt_adapter_resident", tier="host")),
        adapter_bytes=int(after.value("upt_adapter_bytes")),
        max_adapter_bytes=int(after.value("upt_limit", of="adapter_bytes")),
        loads=int(between.count("upt_adapter_load_duration_seconds_count")),
        evictions=int(between.count("upt_adapter_evictions_total")),
        adapters=_adapters(between, after.label_values("upt_requests_total", "adapter")),
    )


def _adapters(between: "_Between", names: Iterable[str]) -> tuple[AdapterActivity, ...]:
    tokens = between.count("upt_tokens_total")
    activities = [
        AdapterActivity(
            adapter=name,
            inputs_per_s=between.rate("upt_requests_total", adapter=name, code=_OK),
            errors_per_s=between.errors_per_s(adapter=name),
            p50_ms=between.quantile_ms("upt_adapter_request_duration_seconds", 0.5, adapter=name),
            p99_ms=between.quantile_ms("upt_adapter_request_duration_seconds", 0.99, adapter=name),
            share=between.count("upt_tokens_total", adapter=name) / tokens if tokens else 0.0,
        )
        for name in names
    ]
    return tuple(sorted(activities, key=lambda each: (-each.share, each.adapter)))


class _Between:
    """How counters have grown from one reading to the next."""

    def __init__(self, before: Reading, after: Reading) -> None:
        self.seconds = after.at_s - before.at_s
        self._grown = {
            key: _growth(before.values.get(key, 0.0), value) for key, value in after.values.items()
        }

    def count(self, name: str, **labels: str) -> float:
        """Return by how much a counter has grown, summed over the labels that are not given."""
        wanted = labels.items()
        return sum(
            grown
            for (key, present), grown in self._grown.items()
            if key == name and present >= wanted
        )

    def rate(self, name: str, **labels: str) -> float:
        """Return the same a second."""
        return self.count(name, **labels) / self.seconds

    def errors_per_s(self, **labels: str) -> float:
        """Return the inputs a second that got no answer."""
        name = "upt_requests_total"
        return self.rate(name, **labels) - self.rate(name, **labels, code=_OK)

    def quantile_ms(self, name: str, share: float, **labels: str) -> float | None:
        """Estimate the time within which a share of all ended; None where nothing ended."""
        buckets: dict[float, float] = {}
        for (key, present), grown in self._grown.items():
            if key == f"{name}_bucket" and present >= labels.items():
                bound = float(dict(present)["le"])
                buckets[bound] = buckets.get(bound, 0.0) + grown
        seconds = _quantile(sorted(buckets.items()), share)
        return None if seconds is None else seconds * 1000


def _growth(before: float, after: float) -> float:
    """Return by how much a counter has grown; one that fell began anew with its server."""
    return after - before if after >= before else after


def _quantile(buckets: list[tuple[float, float]], share: float) -> float | None:
    """Return a quantile of cumulative buckets; the highest bound where it lies beyond all."""
    if not buckets or not buckets[-1][1]:
        return None
    rank = share * buckets[-1][1]
    low, below = 0.0, 0.0
    for bound, count in buckets:
        if count >= rank:
            return low if bound == inf else low + (bound - low) * (rank - below) / (count - below)
        low, below = bound, count
    return low
