"""Makers of small adapters for tests: any subset of components, any head, any backbone identity.

``tiny_spec()`` alone is a bare head on a backbone that exists nowhere; hand over ``LORA``,
``PREFIX``, ``BOTTLENECK`` and ``PROMPT`` for UniPELT+Prompt.
"""

import math

import numpy as np
from numpy.typing import NDArray

from upt_zoo.layout import component_shapes, head_shapes, tensor_shapes
from upt_zoo.spec import (
    AdapterSpec,
    BackboneIdentity,
    Bottleneck,
    Curve,
    DataFile,
    Head,
    HeadKind,
    Lineage,
    Lora,
    Prefix,
    Prompt,
    TaskInput,
)

BACKBONE = BackboneIdentity(
    hub_id="upt/tiny",
    digest="sha256:" + "ab" * 32,
    family="bert",
    layers=2,
    hidden=8,
    heads=2,
    intermediate=12,
)
LORA = Lora(rank=2, alpha=4.0, targets=("q", "v"), gated=True)
PREFIX = Prefix(length=3, gated=True)
BOTTLENECK = Bottleneck(size=4, activation="relu", gated=True)
PROMPT = Prompt(length=2)
CLASSIFICATION = Head(kind="classification", outputs=2, labels=("negative", "positive"))
MULTI_LABEL = Head(kind="multi_label", outputs=3, labels=("a", "b", "c"), threshold=0.4)
REGRESSION = Head(kind="regression", outputs=1)
SPAN = Head(kind="span", outputs=2)
CURVE = Curve(epochs=(1, 2, 3), holdout=(50.0, 75.5, 71.0), losses=(0.69, 0.4, 0.31), best_epoch=2)
TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
TOKENS = Head(kind="token_classification", outputs=len(TAGS), labels=TAGS)
EMBEDDING = Head(kind="embedding", outputs=BACKBONE.hidden, pooling="mean", normalised=True)
_METRICS: dict[HeadKind, str] = {
    "span": "f1",
    "regression": "pearson",
    "token_classification": "f1",
    "embedding": "spearmanr",
}


def tiny_spec(
    *,
    backbone: BackboneIdentity | None = None,
    name: str = "tiny",
    lora: Lora | None = None,
    prefix: Prefix | None = None,
    bottleneck: Bottleneck | None = None,
    prompt: Prompt | None = None,
    head: Head = CLASSIFICATION,
) -> AdapterSpec:
    """Make a valid spec; ``name`` is the task's and so the adapter's; a span task has two fields.

    An embedding gets the backbone's hidden size. The parameter counts of its lineage are those of
    its tensors.
    """
    if head.kind == "embedding":
        head = head.model_copy(update={"outputs": (backbone or BACKBONE).hidden})
    present = {"lora": lora, "prefix": prefix, "bottleneck": bottleneck, "prompt": prompt}
    spec = AdapterSpec(
        method="_".join(key for key, component in present.items() if component) or "head",
        backbone=backbone or BACKBONE,
        lora=lora,
        prefix=prefix,
        bottleneck=bottleneck,
        prompt=prompt,
        head=head,
        task=_task(name, head),
        lineage=_lineage(0, 0),
    )
    served = sum(math.prod(shape) for shape in component_shapes(spec).values())
    heads = sum(math.prod(shape) for shape in head_shapes(head, spec.backbone.hidden).values())
    return spec.model_copy(update={"lineage": _lineage(served, heads)})


def with_curve(spec: AdapterSpec, curve: Curve) -> AdapterSpec:
    """Return the spec with the curve in its lineage."""
    lineage = spec.lineage.model_copy(update={"curve": curve})
    return spec.model_copy(update={"lineage": lineage})


def random_tensors(spec: AdapterSpec, seed: int) -> dict[str, NDArray[np.float32]]:
    """Draw every tensor of the spec, N(0, 0.2²); equal seeds give equal bytes on any numpy.

    The legacy ``RandomState`` is used because numpy promises never to change its stream.
    """
    source = np.random.RandomState(seed)
    return {
        name: (0.2 * source.standard_normal(shape)).astype(np.float32)
        for name, shape in sorted(tensor_shapes(spec).items())
    }


def _task(name: str, head: Head) -> TaskInput:
    is_span = head.kind == "span"
    return TaskInput(
        name=name,
        fields=("question", "context") if is_span else ("sentence",),
        max_tokens=32,
        stride=8 if head.is_per_token else None,
        metric=_METRICS.get(head.kind, "accuracy"),
    )


def _lineage(served: int, head: int) -> Lineage:
    return Lineage(
        data="upt/tiny-data",
        data_licence="CC0-1.0",
        commercial_use="yes",
        files=(DataFile(name="train.tsv", digest="sha256:" + "cd" * 32, rows=4),),
        recipe={"learning_rate": 0.001},
        seed=1,
        code_version="0.1.0",
        precision="fp32",
        metrics={"dev/accuracy": 75.0},
        trained_parameters=served + head,
        served_parameters=served,
        head_parameters=head,
    )
