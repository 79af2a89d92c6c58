"""The heads of AdapterHub's checkpoints: flexible ones, and those of transformers' classes."""

from collections.abc import Mapping

import numpy as np
from pydantic import JsonValue

from upt_zoo import layout
from upt_zoo.interop.checkpoint import Linear
from upt_zoo.interop.heads import (
    NO_POOLER,
    StaticKind,
    check_head,
    head_tensors,
    read_static_head,
    take_linear,
)
from upt_zoo.interop.parts import FoundHead
from upt_zoo.interop.settings import Settings
from upt_zoo.interop.weights import Weights
from upt_zoo.spec import AdapterSpec, BackboneIdentity, HeadKind
from upt_zoo.tensors import Array

_HEAD_KINDS: dict[str, HeadKind] = {
    "classification": "classification",
    "multilabel_classification": "multi_label",
    "question_answering": "span",
}
_STATIC: dict[str, StaticKind] = {
    "BertForSequenceClassification": "sequence",
    "BertForQuestionAnswering": "span",
    "RobertaForSequenceClassification": "sequence",
    "RobertaForQuestionAnswering": "span",
}


def read_head(
    config: Settings, weights: Weights, backbone: BackboneIdentity, pooler: Linear | None
) -> tuple[FoundHead, dict[str, Array]]:
    """Take the head and check that nothing is left.

    Raises:
        Corrupt: a tensor is missing.
        InvalidSpec: upt has no such head.
    """
    if config.values.get("config") is None:
        head, tensors = _read_static(config, weights, backbone, pooler)
    else:
        head, tensors = _read_flexible(config, weights, backbone, pooler)
    weights.refuse_others()
    return head, tensors


def _read_static(
    config: Settings, weights: Weights, backbone: BackboneIdentity, pooler: Linear | None
) -> tuple[FoundHead, dict[str, Array]]:
    kind = _STATIC.get(config.take("model_class", ""))
    if kind is None:
        raise config.refusal("model_class", f"upt reads the heads of {', '.join(_STATIC)}")
    head, tensors = read_static_head(weights, kind, backbone.family, pooler, backbone.hidden)
    if kind == "span":
        return head, tensors
    labels = _labels(config, head.outputs)
    return FoundHead(kind=None, outputs=head.outputs, layers=2, labels=labels), tensors


def _read_flexible(
    config: Settings, weights: Weights, backbone: BackboneIdentity, pooler: Linear | None
) -> tuple[FoundHead, dict[str, Array]]:
    head = config.child("config")
    kind = _HEAD_KINDS.get(head.take("head_type", ""))
    if kind is None:
        raise head.refusal("head_type", f"upt has {', '.join(_HEAD_KINDS)}")
    outputs, layers = head.take("num_labels", 2), head.take("layers", 1)
    is_pooled = head.take("use_pooler", default=False)
    if layers + is_pooled not in (1, 2):
        raise head.refusal("layers", "upt's heads have one layer, or two (a pooler is one)")
    if layers == 2:
        head.require("activation_function", "tanh", "upt's heads have tanh", default="tanh")
    name = f"heads.{config.take('name', '')}"
    dense = pooler if is_pooled else None
    if is_pooled and dense is None:
        raise head.refusal("use_pooler", NO_POOLER)
    if layers == 2:  # dropout, dense, tanh, dropout, out
        dense = take_linear(weights, f"{name}.1", backbone.hidden, backbone.hidden)
    last = f"{name}.{1 if layers == 1 else 4}"
    weight = weights.take(layout.weight(last), outputs, backbone.hidden)
    has_bias = head.take("bias", default=True)
    bias = weights.take(layout.bias(last), outputs) if has_bias else np.zeros(outputs)
    labels = _labels(head, outputs)
    if kind == "classification" and outputs == 1:  # the library trains it with squared errors
        kind = "regression"
    return FoundHead(
        kind=kind,
        outputs=outputs,
        layers=1 if dense is None else 2,
        labels=labels if kind in ("classification", "multi_label") else None,
    ), head_tensors(dense, (weight, bias))


def _labels(config: Settings, outputs: int) -> tuple[str, ...] | None:
    """Return the labels in the order of their numbers; None if they are not 0 to outputs - 1."""
    numbers = config.take("label2id", dict[str, JsonValue]())
    names = {number: label for label, number in numbers.items() if isinstance(number, int)}
    if sorted(names) != list(range(outputs)):
        return None
    return tuple(names[number] for number in range(outputs))


def write_head(
    spec: AdapterSpec, tensors: Mapping[str, Array], name: str
) -> tuple[dict[str, JsonValue], dict[str, Array]]:
    """Return the configuration and the tensors of a flexible head of that name.

    Raises:
        InvalidSpec: the library has no such head.
    """
    check_head(spec)
    head = spec.head
    kinds = {ours: theirs for theirs, ours in _HEAD_KINDS.items()} | {
        "regression": "classification"  # with one output
    }
    labels = {label: number for number, label in enumerate(head.labels or ())}
    config: dict[str, JsonValue] = {
        "head_type": kinds[head.kind],
        "num_labels": head.outputs,
        "layers": head.layers,
        "activation_function": "tanh",
        "label2id": {**labels} or None,
        "dropout_prob": None,
    }
    if head.kind != "span":
        config |= {"use_pooler": False, "bias": True}
    linears = {f"heads.{name}.{1 if head.layers == 1 else 4}": layout.HEAD_OUT}
    if head.layers == 2:
        linears[f"heads.{name}.1"] = layout.HEAD_DENSE
    weights: dict[str, Array] = {}
    for theirs, ours in linears.items():
        for part in (layout.weight, layout.bias):
            weights[part(theirs)] = tensors[part(ours)]
    return config, weights
