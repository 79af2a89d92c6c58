"""The spec: what is refused, and bytes that never change."""

import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from pydantic import ValidationError

from upt_testing.adapters import (
    BOTTLENECK,
    CLASSIFICATION,
    CURVE,
    EMBEDDING,
    LORA,
    MULTI_LABEL,
    PREFIX,
    PROMPT,
    REGRESSION,
    SPAN,
    TOKENS,
    tiny_spec,
    with_curve,
)
from upt_testing.curves import REFUSED
from upt_zoo.errors import InvalidSpec
from upt_zoo.layout import component_shapes, tensor_shapes
from upt_zoo.spec import MAX_POINTS, AdapterSpec, Curve, Example, Head

UNIPELT_PROMPT = tiny_spec(lora=LORA, prefix=PREFIX, bottleneck=BOTTLENECK, prompt=PROMPT)
CANONICAL = (
    '{"backbone":{"digest":"sha256:' + "ab" * 32 + '","family":"bert","heads":2,"hidden":8,'
    '"hub_id":"upt/tiny","intermediate":12,"layers":2,"revision":null},'
    '"bottleneck":{"activation":"relu","gated":true,"size":4},"format":1,'
    '"gate_pooling":"masked_mean","head":{"kind":"classification","labels":["negative","positive"],'
    '"layers":1,"outputs":2,"pooling":"cls","temperature":1.0,"threshold":null},'
    '"lineage":{"backbone_overlap":null,"code_version":"0.1.0","commercial_use":"yes",'
    '"data":"upt/tiny-data","data_licence":"CC0-1.0","files":[{"digest":"sha256:' + "cd" * 32 + '",'
    '"name":"train.tsv","rows":4}],"head_parameters":18,"licence":"Apache-2.0",'
    '"metrics":{"dev/accuracy":75.0},"precision":"fp32","recipe":{"learning_rate":0.001},"seed":1,'
    '"served_parameters":464,"trained_parameters":482},'
    '"lora":{"alpha":4.0,"gated":true,"rank":2,"targets":["q","v"]},'
    '"method":"lora_prefix_bottleneck_prompt",'
    '"prefix":{"gated":true,"gates":"shared","length":3},'
    '"prompt":{"length":2,"position":"before_cls"},'
    '"task":{"description":"","fields":["sentence"],"max_tokens":32,"metric":"accuracy",'
    '"name":"tiny","stride":null}}'
)
Values = dict[str, Any]  # a spec's JSON, to be spoilt


def values_of(spec: AdapterSpec = UNIPELT_PROMPT) -> Values:
    values: Values = json.loads(spec.to_json())
    return values


def parse(values: Values) -> AdapterSpec:
    return AdapterSpec.from_json(json.dumps(values).encode())


# Bytes


def test_the_canonical_bytes_are_pinned() -> None:
    assert UNIPELT_PROMPT.to_json().decode() == CANONICAL


@pytest.mark.parametrize(
    "spec",
    [
        UNIPELT_PROMPT,
        *(tiny_spec(head=head) for head in (CLASSIFICATION, MULTI_LABEL, REGRESSION, SPAN)),
        *(tiny_spec(head=head) for head in (TOKENS, EMBEDDING)),
    ],
    ids=lambda spec: f"{spec.method}-{spec.head.kind}",
)
def test_a_spec_survives_its_bytes(spec: AdapterSpec) -> None:
    again = AdapterSpec.from_json(spec.to_json())
    assert again == spec
    assert again.to_json() == spec.to_json()


def test_only_an_embedding_says_whether_it_is_normalised() -> None:
    assert '"normalised":true' in tiny_spec(head=EMBEDDING).to_json().decode()
    for head in (CLASSIFICATION, MULTI_LABEL, REGRESSION, SPAN, TOKENS):
        assert "normalised" not in tiny_spec(head=head).to_json().decode()


def test_an_embedding_has_no_tensors_of_its_own() -> None:
    spec = tiny_spec(head=EMBEDDING, lora=LORA)
    assert tensor_shapes(spec) == component_shapes(spec)
    assert tensor_shapes(tiny_spec(head=EMBEDDING)) == {}


@pytest.mark.parametrize(
    ("spec", "texts", "logits"),
    [
        (UNIPELT_PROMPT, ("a film",), (0.1, -1e-9)),
        (tiny_spec(head=SPAN), ("who?", "she"), (0.5, 1.0, 2.0, 3.0)),
    ],
)
def test_an_example_survives_its_bytes_and_changes_no_others(
    spec: AdapterSpec, texts: tuple[str, ...], logits: tuple[float, ...]
) -> None:
    example = Example(texts=texts, logits=logits)
    bare, spec = spec.to_json(), spec.model_copy(update={"example": example})
    again = AdapterSpec.from_json(spec.to_json())
    assert again.example == example
    assert again.model_copy(update={"example": None}).to_json() == bare


@pytest.mark.parametrize(
    ("spec", "example", "message"),
    [
        (UNIPELT_PROMPT, {"texts": ["a", "b"], "logits": [0.1, 0.2]}, "2 texts for 1 fields"),
        (UNIPELT_PROMPT, {"texts": ["a"], "logits": [0.1]}, "1 logits for 2 outputs"),
        (UNIPELT_PROMPT, {"texts": ["a"], "logits": [0.1] * 4}, "4 logits for 2 outputs"),
        (tiny_spec(head=SPAN), {"texts": ["a", "b"], "logits": [0.1] * 3}, "3 logits for 2"),
        (UNIPELT_PROMPT, {"texts": ["a" * 1001], "logits": [0.1, 0.2]}, "at most 1000 characters"),
        (UNIPELT_PROMPT, {"texts": ["a"], "logits": []}, "at least 1 item"),
    ],
)
def test_an_example_of_something_else_is_refused(
    spec: AdapterSpec, example: Values, message: str
) -> None:
    with pytest.raises(InvalidSpec, match=message):
        parse({**values_of(spec), "example": example})


@pytest.mark.parametrize(
    "curve",
    [
        CURVE,
        CURVE.model_copy(update={"losses": None}),
        Curve(epochs=(7,), losses=(-0.5,), best_epoch=7),
    ],
)
def test_a_curve_survives_its_bytes_and_changes_no_others(curve: Curve) -> None:
    spec = with_curve(UNIPELT_PROMPT, curve)
    again = AdapterSpec.from_json(spec.to_json())
    assert again.lineage.curve == curve
    assert again.to_json() == spec.to_json()
    values = values_of(spec)
    del values["lineage"]["curve"]
    assert parse(values).to_json().decode() == CANONICAL


def test_a_curve_may_leave_out_what_was_not_measured() -> None:
    values = values_of()
    values["lineage"]["curve"] = {"epochs": [1, 4], "holdout": [50, 7.5e1], "best_epoch": 4}
    curve = parse(values).lineage.curve
    assert curve == Curve(epochs=(1, 4), holdout=(50.0, 75.0), best_epoch=4)


@pytest.mark.parametrize("case", REFUSED)
def test_a_curve_that_is_none_is_refused_and_explained(case: str) -> None:
    curve, message = REFUSED[case]
    values = values_of()
    values["lineage"]["curve"] = curve
    with pytest.raises(InvalidSpec, match=f"(?s){message}"):
        parse(values)


@pytest.mark.parametrize(
    ("epochs", "best"), [(MAX_POINTS, 1), (MAX_POINTS + 1, 2), (1000, 1), (1000, 999), (1000, 1000)]
)
def test_a_curve_holds_the_best_and_the_last_of_any_number_of_epochs(
    epochs: int, best: int
) -> None:
    holdout, losses = range(epochs), [1 / (1 + each) for each in range(epochs)]
    curve = Curve.of_run(holdout=holdout, losses=losses, best_epoch=best)
    assert curve is not None
    assert {1, best, epochs} <= set(curve.epochs)
    assert len(curve.epochs) >= MAX_POINTS - 1
    assert curve.holdout == tuple(epoch - 1 for epoch in curve.epochs)
    assert curve.losses == tuple(round(1 / epoch, 4) for epoch in curve.epochs)
    gaps = {
        after - before for before, after in pairwise(curve.epochs) if best not in (before, after)
    }
    assert max(gaps) - min(gaps) <= 1


def test_a_curve_has_what_was_measured_in_every_epoch() -> None:
    curve = Curve.of_run(holdout=[50.0, 60.0], losses=[0.5], best_epoch=2)
    assert curve == Curve(epochs=(1, 2), holdout=(50.0, 60.0), best_epoch=2)
    curve = Curve.of_run(holdout=[], losses=[0.5], best_epoch=1)
    assert curve == Curve(epochs=(1,), losses=(0.5,), best_epoch=1)
    assert Curve.of_run(holdout=[], losses=[], best_epoch=0) is None


def test_order_spaces_and_integer_floats_of_the_source_leave_no_trace() -> None:
    values = values_of()
    values["lora"]["alpha"] = 4
    reordered = {key: values[key] for key in reversed(values)}
    assert parse(reordered).to_json().decode() == CANONICAL


def test_text_beyond_ascii_is_kept_as_it_is() -> None:
    values = values_of()
    values["task"]["description"] = "Zoë 👩"
    assert "Zoë 👩".encode() in parse(values).to_json()


def test_what_a_spec_leaves_out_is_absent() -> None:
    values = values_of()
    for component in ("lora", "prefix", "bottleneck", "prompt"):
        del values[component]
    spec = parse(values)
    assert (spec.lora, spec.prefix, spec.bottleneck, spec.prompt) == (None, None, None, None)


def test_a_spec_does_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        UNIPELT_PROMPT.method = "other"  # type: ignore[misc]  # that is what is tested


# What is refused


PARTS = (
    (),
    ("backbone",),
    ("lora",),
    ("prefix",),
    ("bottleneck",),
    ("prompt",),
    ("head",),
    ("task",),
    ("lineage",),
    ("lineage", "files", 0),
)


def part_of(values: Values, path: tuple[str | int, ...]) -> Values:
    part: Any = values
    for key in path:
        part = part[key]
    found: Values = part
    return found


@pytest.mark.parametrize("path", PARTS, ids=str)
def test_an_unknown_key_is_refused_and_named(path: tuple[str | int, ...]) -> None:
    values = values_of()
    part_of(values, path)["ia3"] = True
    with pytest.raises(InvalidSpec, match="ia3"):
        parse(values)


@pytest.mark.parametrize("path", PARTS, ids=str)
def test_a_missing_key_is_named(path: tuple[str | int, ...]) -> None:
    for key in required(path):
        values = values_of()
        del part_of(values, path)[key]
        with pytest.raises(InvalidSpec, match=f"(?s){key}.*Field required"):
            parse(values)


def required(path: tuple[str | int, ...]) -> list[str]:
    """The keys without a default."""
    optional = {"format", "gate_pooling", "revision", "position", "gates", "labels", "pooling"}
    optional |= {"layers", "threshold", "temperature"} if path == ("head",) else set()
    optional |= {"stride", "description", "licence", "backbone_overlap"}
    optional |= {"lora", "prefix", "bottleneck", "prompt"}
    return [key for key in part_of(values_of(), path) if key not in optional]


CONTRADICTIONS: dict[str, tuple[Callable[[Values], object], str]] = {
    "a span of one output": (
        lambda v: v.update(head={"kind": "span", "outputs": 1}),
        "a span head has 2 outputs",
    ),
    "a span with labels": (
        lambda v: v.update(head={"kind": "span", "outputs": 2, "labels": ["a", "b"]}),
        "a span head has no labels",
    ),
    "tags without labels": (
        lambda v: v.update(head={"kind": "token_classification", "outputs": 2}),
        "token_classification with 2 outputs needs as many labels",
    ),
    "tags of two texts": (
        lambda v: (
            v.update(head={"kind": "token_classification", "outputs": 1, "labels": ["O"]}),
            v["task"].update(fields=["a", "b"]),
        ),
        "a task of kind token_classification has one field",
    ),
    "an embedding of two texts": (
        lambda v: (
            v.update(head={"kind": "embedding", "outputs": 8, "normalised": True}),
            v["task"].update(fields=["a", "b"]),
        ),
        "a task of kind embedding has one field",
    ),
    "an embedding that is perhaps normalised": (
        lambda v: v.update(head={"kind": "embedding", "outputs": 8}),
        "says whether it is normalised",
    ),
    "a normalised label": (
        lambda v: v["head"].update(normalised=True),
        "a head of kind classification has no normalised",
    ),
    "an embedding of another size": (
        lambda v: v.update(head={"kind": "embedding", "outputs": 7, "normalised": True}),
        "an embedding has the hidden size 8",
    ),
    "an embedding of two layers": (
        lambda v: v.update(
            head={"kind": "embedding", "outputs": 8, "normalised": True, "layers": 2}
        ),
        "layers 1 and temperature 1",
    ),
    "an embedding with a temperature": (
        lambda v: v.update(
            head={"kind": "embedding", "outputs": 8, "normalised": True, "temperature": 0.5}
        ),
        "layers 1 and temperature 1",
    ),
    "a span of one text": (
        lambda v: v.update(head={"kind": "span", "outputs": 2}),
        "a span task needs two fields",
    ),
    "a regression of two outputs": (
        lambda v: v.update(head={"kind": "regression", "outputs": 2}),
        "a regression head has 1 output",
    ),
    "fewer labels than outputs": (
        lambda v: v["head"].update(outputs=3),
        "classification with 3 outputs needs as many labels",
    ),
    "no labels": (lambda v: v["head"].update(labels=None), "needs as many labels"),
    "a label twice": (lambda v: v["head"].update(labels=["a", "a"]), "labels repeat"),
    "a threshold nobody reads": (
        lambda v: v["head"].update(threshold=0.5),
        "a classification head has no threshold",
    ),
    "a target twice": (lambda v: v["lora"].update(targets=["q", "q"]), "targets repeat"),
    "a field twice": (lambda v: v["task"].update(fields=["a", "a"]), "fields repeat"),
    "two gates without gates": (
        lambda v: v["prefix"].update(gated=False, gates="separate"),
        "separate gates in a prefix without gates",
    ),
    "heads that do not divide": (
        lambda v: v["backbone"].update(heads=3),
        "hidden 8 is not a multiple of heads 3",
    ),
}
WRONG_VALUES: dict[str, Callable[[Values], object]] = {
    "another format": lambda v: v.update(format=2),
    "rank zero": lambda v: v["lora"].update(rank=0),
    "rank in words": lambda v: v["lora"].update(rank="8"),
    "a fractional rank": lambda v: v["lora"].update(rank=2.5),
    "alpha zero": lambda v: v["lora"].update(alpha=0),
    "alpha infinite": lambda v: v["lora"].update(alpha=float("inf")),
    "alpha not a number": lambda v: v["lora"].update(alpha=float("nan")),
    "no targets": lambda v: v["lora"].update(targets=[]),
    "an unknown target": lambda v: v["lora"].update(targets=["query"]),
    "gated in numbers": lambda v: v["lora"].update(gated=1),
    "a prefix of nothing": lambda v: v["prefix"].update(length=0),
    "a prompt of nothing": lambda v: v["prompt"].update(length=0),
    "a prompt elsewhere": lambda v: v["prompt"].update(position="behind"),
    "an unknown activation": lambda v: v["bottleneck"].update(activation="elu"),
    "another pooling of gates": lambda v: v.update(gate_pooling="mean"),
    "another family": lambda v: v["backbone"].update(family="t5"),
    "a digest that is none": lambda v: v["backbone"].update(digest="sha256:abc"),
    "a path as the task's name": lambda v: v["task"].update(name="../tiny"),
    "three fields": lambda v: v["task"].update(fields=["a", "b", "c"]),
    "no fields": lambda v: v["task"].update(fields=[]),
    "rows too short for words": lambda v: v["task"].update(max_tokens=7),
    "a threshold above one": lambda v: v["head"].update(threshold=1.5),
    "a temperature of zero": lambda v: v["head"].update(temperature=0),
    "three head layers": lambda v: v["head"].update(layers=3),
    "a negative count": lambda v: v["lineage"].update(served_parameters=-1),
    "a metric not a number": lambda v: v["lineage"].update(metrics={"dev/f1": float("nan")}),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_a_contradiction_is_refused_and_explained(case: str) -> None:
    spoil, message = CONTRADICTIONS[case]
    values = values_of()
    spoil(values)
    with pytest.raises(InvalidSpec, match=message):
        parse(values)


@pytest.mark.parametrize("case", WRONG_VALUES)
def test_a_wrong_value_is_refused(case: str) -> None:
    values = values_of()
    WRONG_VALUES[case](values)
    with pytest.raises(InvalidSpec, match="not valid"):
        parse(values)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 2**20])
def test_bytes_that_are_no_spec_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidSpec, match="not valid"):
        AdapterSpec.from_json(data)


def test_a_multi_label_head_may_have_a_threshold() -> None:
    head = Head(kind="multi_label", outputs=1, labels=("a",), threshold=0.0)
    assert head.threshold == 0.0
