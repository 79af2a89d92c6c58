"""What a caller gets: predictions and descriptions of adapters, for the engine and the client.

Frozen values only; how they travel is said in ``upt_server.wire``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self

from upt_server.precision import Precision
from upt_zoo.answers import Answer, SpanAnswer
from upt_zoo.local.store import StoredAdapter
from upt_zoo.spec import HeadKind

Gates = Mapping[str, float]  # one layer's, by the names of ``upt_zoo.layout.gate_names``


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterIdentity:
    """Which bytes answered; ``digest`` is the manifest's and covers the whole adapter."""

    name: str
    version: str
    digest: str

    @classmethod
    def of(cls, stored: StoredAdapter) -> Self:
        """Take it from the store's entry."""
        return cls(name=stored.name, version=stored.version, digest=stored.digest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """The answer to one input.

    ``labels`` names the answer's ``scores``, in their order; it is empty where there are none.
    ``tokens`` counts real tokens over all ``windows`` (rows) that the input was split into.
    The rest is there if asked for: ``logits``, from before temperature, in the order of the
    adapter's labels, or those of a span's start and end, of every word of a text with entities, or
    an embedding before it is normalised; ``candidates``, a span task's best spans, best first;
    ``gates``, one for each layer.
    """

    answer: Answer
    labels: tuple[str, ...]
    adapter: AdapterIdentity
    task: str
    tokens: int
    is_truncated: bool
    windows: int
    logits: tuple[float, ...] = ()
    candidates: tuple[SpanAnswer, ...] = ()
    gates: tuple[Gates, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Where a call's time went in the server; the parts follow each other."""

    load_ms: float
    tokenize_ms: float
    queue_ms: float
    forward_ms: float
    total_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchFacts:
    """One forward pass; ``tokens`` counts prompt vectors too, other calls' rows included."""

    rows: int
    tokens: int
    distinct_adapters: int
    forward_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """The answer to one call: an output for each input, in their order.

    ``batches`` are the forward passes that the call's rows took part in, usually one.
    """

    outputs: tuple[Output, ...]
    backbone_digest: str
    precision: Precision
    timings: Timings
    batches: tuple[BatchFacts, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStatus:
    """How an engine is at the moment; ``calls`` are those inside."""

    state: Literal["starting", "open", "draining"]
    backbone_digest: str
    precision: Precision
    calls: int
    queue_rows: int
    adapter_bytes: int
    max_adapter_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterDescription:
    """What a client needs to know of an adapter before it asks it.

    ``metric`` is the one that decides between versions; ``metrics`` maps ``split/metric`` to
    percent. Parameter counts are those of ``upt_zoo.spec.Lineage``. ``outputs`` is the head's; of
    an embedding, its length.
    """

    identity: AdapterIdentity
    task: str
    description: str
    method: str
    fields: tuple[str, ...]
    max_tokens: int
    head: HeadKind
    labels: tuple[str, ...]
    outputs: int
    metric: str
    metrics: Mapping[str, float]
    backbone_hub_id: str
    backbone_digest: str
    trained_parameters: int
    served_parameters: int
    head_parameters: int
    licence: str
    data: str
    data_licence: str
    commercial_use: str
    is_resident: bool

    @classmethod
    def of(cls, stored: StoredAdapter, *, is_resident: bool) -> Self:
        """Take it from the store's entry."""
        spec, lineage = stored.spec, stored.spec.lineage
        return cls(
            identity=AdapterIdentity.of(stored),
            task=spec.task.name,
            description=spec.task.description,
            method=spec.method,
            fields=spec.task.fields,
            max_tokens=spec.task.max_tokens,
            head=spec.head.kind,
            labels=spec.head.labels or (),
            outputs=spec.head.outputs,
            metric=spec.task.metric,
            metrics=lineage.metrics,
            backbone_hub_id=spec.backbone.hub_id,
            backbone_digest=spec.backbone.digest,
            trained_parameters=lineage.trained_parameters,
            served_parameters=lineage.served_parameters,
            head_parameters=lineage.head_parameters,
            licence=lineage.licence,
            data=lineage.data,
            data_licence=lineage.data_licence,
            commercial_use=lineage.commercial_use,
            is_resident=is_resident,
        )
