"""The spec (docs/format.md, "The spec"): each field, its check, and its default if it has one."""

import math
from collections.abc import Mapping
from typing import Any

from second_reader.forms import (
    Check,
    distinct,
    is_bool,
    is_count,
    is_digest,
    is_int,
    is_name,
    is_number,
    is_positive,
    is_text,
    is_total,
    list_of,
    map_to,
    need,
    one_of,
    or_null,
    parse_json,
)
from second_reader.tensors import shapes_of

_MUST = object()
_BACKBONE = {
    "hub_id": (is_text, _MUST),
    "revision": (or_null(is_text), None),
    "digest": (is_digest, _MUST),
    "family": (one_of("bert", "roberta"), _MUST),
    "layers": (is_count, _MUST),
    "hidden": (is_count, _MUST),
    "heads": (is_count, _MUST),
    "intermediate": (is_count, _MUST),
}
_LORA = {
    "rank": (is_count, _MUST),
    "alpha": (is_positive, _MUST),
    "targets": (
        distinct(list_of(one_of("q", "k", "v", "o", "ffn_up", "ffn_down"), 1)),
        _MUST,
    ),
    "gated": (is_bool, _MUST),
}
_PREFIX = {
    "length": (is_count, _MUST),
    "gated": (is_bool, _MUST),
    "gates": (one_of("shared", "separate"), "shared"),
}
_BOTTLENECK = {
    "size": (is_count, _MUST),
    "activation": (one_of("relu", "gelu", "silu", "tanh"), _MUST),
    "gated": (is_bool, _MUST),
}
_PROMPT = {
    "length": (is_count, _MUST),
    "position": (one_of("before_cls", "after_cls"), "before_cls"),
}
_HEAD = {
    "kind": (
        one_of(
            "classification",
            "multi_label",
            "regression",
            "span",
            "token_classification",
            "embedding",
        ),
        _MUST,
    ),
    "outputs": (is_count, _MUST),
    "labels": (or_null(distinct(list_of(is_text))), None),
    "pooling": (one_of("cls", "mean"), "cls"),
    "layers": (one_of(1, 2), 1),
    "threshold": (or_null(lambda value: is_number(value) and 0 <= value <= 1), None),
    "temperature": (is_positive, 1.0),
    "normalised": (or_null(is_bool), None),
}
_TASK = {
    "name": (is_name, _MUST),
    "fields": (distinct(list_of(is_text, 1, 2)), _MUST),
    "max_tokens": (lambda value: is_count(value) and value >= 8, _MUST),
    "stride": (or_null(is_count), None),
    "metric": (is_text, _MUST),
    "description": (is_text, ""),
}
_LINEAGE = {
    "data": (is_text, _MUST),
    "data_licence": (is_text, _MUST),
    "commercial_use": (one_of("yes", "no", "unclear"), _MUST),
    "files": (list_of(lambda value: isinstance(value, dict)), _MUST),
    "recipe": (lambda value: isinstance(value, dict), _MUST),
    "seed": (is_int, _MUST),
    "code_version": (is_text, _MUST),
    "precision": (one_of("fp32", "bf16", "int8"), _MUST),
    "metrics": (map_to(is_number), _MUST),
    "trained_parameters": (is_total, _MUST),
    "served_parameters": (is_total, _MUST),
    "head_parameters": (is_total, _MUST),
    "licence": (is_text, "Apache-2.0"),
    "backbone_overlap": (or_null(is_text), None),
    "curve": (or_null(lambda value: isinstance(value, dict)), None),
}
_CURVE = {
    "epochs": (list_of(is_count, 1, 60), _MUST),
    "holdout": (or_null(list_of(is_number)), None),
    "losses": (or_null(list_of(is_number)), None),
    "best_epoch": (is_count, _MUST),
}
_FILE = {"name": (is_text, _MUST), "digest": (is_digest, _MUST), "rows": (is_count, _MUST)}
_EXAMPLE = {
    "texts": (list_of(lambda value: is_text(value) and len(value) <= 1000, 1), _MUST),
    "logits": (list_of(is_number, 1, 2**16), _MUST),
}
_SPEC = {
    "format": (one_of(1), 1),
    "method": (is_text, _MUST),
    "gate_pooling": (one_of("masked_mean"), "masked_mean"),
    "backbone": (lambda value: value is not None, _MUST),
    "head": (lambda value: value is not None, _MUST),
    "task": (lambda value: value is not None, _MUST),
    "lineage": (lambda value: value is not None, _MUST),
} | dict.fromkeys(("lora", "prefix", "bottleneck", "prompt", "example"), (lambda value: True, None))
_PARTS = {
    "backbone": _BACKBONE,
    "lora": _LORA,
    "prefix": _PREFIX,
    "bottleneck": _BOTTLENECK,
    "prompt": _PROMPT,
    "head": _HEAD,
    "task": _TASK,
    "lineage": _LINEAGE,
    "example": _EXAMPLE,
}
_FOR_COMPARISON = ("full", "bitfit", "ia3_prefix_bottleneck", "stacked_unipelt")


def read_spec(data: bytes) -> dict[str, Any]:
    """Return a spec with every key, defaults filled in."""
    spec = _filled(parse_json(data, "spec"), _SPEC, "spec")
    for key, form in _PARTS.items():
        if spec[key] is not None:
            spec[key] = _filled(spec[key], form, key)
    lineage = spec["lineage"]
    lineage["files"] = [_filled(each, _FILE, "file") for each in lineage["files"]]
    if lineage["curve"] is not None:
        lineage["curve"] = _filled(lineage["curve"], _CURVE, "curve")
        _check_curve(lineage["curve"])
    _check_backbone_and_prefix(spec)
    _check_head(spec["head"], spec["backbone"]["hidden"], len(spec["task"]["fields"]))
    _check_example(spec)
    need(spec["method"] not in _FOR_COMPARISON, f"method {spec['method']}")
    sizes = {name: math.prod(shape) for name, shape in shapes_of(spec).items()}
    in_head = sum(size for name, size in sizes.items() if name.startswith("head."))
    counted = (spec["lineage"]["served_parameters"], spec["lineage"]["head_parameters"])
    need(counted == (sum(sizes.values()) - in_head, in_head), "parameter counts")
    return spec


def _filled(values: Any, form: Mapping[str, tuple[Check, Any]], what: str) -> dict[str, Any]:
    need(isinstance(values, dict), f"{what}: no object")
    need(values.keys() <= form.keys(), f"{what}: unknown {sorted(values.keys() - form.keys())}")
    filled = {}
    for key, (check, default) in form.items():
        value = values.get(key, default)
        need(value is not _MUST, f"{what}: no {key}")
        need(check(value), f"{what}: {key} is {value!r}")
        filled[key] = value
    return filled


def _check_backbone_and_prefix(spec: dict[str, Any]) -> None:
    backbone, prefix = spec["backbone"], spec["prefix"]
    need(backbone["hidden"] % backbone["heads"] == 0, "heads do not divide hidden")
    if prefix is not None:
        need(prefix["gated"] or prefix["gates"] == "shared", "separate gates without gates")


def _check_head(head: dict[str, Any], hidden: int, fields: int) -> None:
    kind, labels, outputs = head["kind"], head["labels"], head["outputs"]
    if kind in ("classification", "multi_label", "token_classification"):
        need(labels is not None and len(labels) == outputs, "labels")
    else:
        need(labels is None, "labels")
        need(outputs == {"regression": 1, "span": 2, "embedding": hidden}[kind], "outputs")
    need(kind == "multi_label" or head["threshold"] is None, "threshold")
    need((kind == "embedding") == (head["normalised"] is not None), "normalised")
    if kind == "embedding":
        need((head["layers"], head["temperature"]) == (1, 1), "an embedding only pools")
    if kind == "span":
        need(fields == 2, "a span has two fields")
    if kind in ("token_classification", "embedding"):
        need(fields == 1, "one field")


def _check_curve(curve: dict[str, Any]) -> None:
    epochs = curve["epochs"]
    need(epochs == sorted(set(epochs)), "the curve's epochs ascend")
    need(curve["best_epoch"] in epochs, "the curve's best epoch")
    measured = [curve[key] for key in ("holdout", "losses") if curve[key] is not None]
    need(measured, "a curve of nothing")
    need(all(len(values) == len(epochs) for values in measured), "the curve's values")


def _check_example(spec: dict[str, Any]) -> None:
    example, outputs = spec["example"], spec["head"]["outputs"]
    if example is None:
        return
    logits = len(example["logits"])
    reads_tokens = spec["head"]["kind"] in ("span", "token_classification")
    need(len(example["texts"]) == len(spec["task"]["fields"]), "the example's texts")
    need(logits % outputs == 0 if reads_tokens else logits == outputs, "the example's logits")
