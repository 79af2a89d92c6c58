"""The heads of transformers' own classes, under the names that its checkpoints give them.

    class                             tensors                            ours
    BertForSequenceClassification     pooler.dense, classifier           two layers
    RobertaForSequenceClassification  classifier.dense, .out_proj        two layers
    ...ForQuestionAnswering           qa_outputs                         one layer, span

BERT's pooler is dense and tanh on [CLS], so it is the first of our two layers. Checkpoints of
adapters leave it out where it was not trained: then it is the backbone's.
"""

from typing import Literal

from upt_zoo import layout
from upt_zoo.errors import InvalidSpec
from upt_zoo.interop.checkpoint import Linear
from upt_zoo.interop.parts import FoundHead
from upt_zoo.interop.weights import ANY, Weights, narrow
from upt_zoo.spec import AdapterSpec, Family, HeadKind
from upt_zoo.tensors import Array

StaticKind = Literal["sequence", "span"]
POOLER = "pooler.dense"
NO_POOLER = (
    "the head reads the backbone's pooler, and neither the checkpoint nor the backbone's "
    "model.safetensors has one"
)


_OURS_ALONE: tuple[HeadKind, ...] = ("token_classification", "embedding")


def take_linear(weights: Weights, name: str, size_out: int, size_in: int) -> Linear:
    """Remove a linear layer, weight [out, in] and bias [out]."""
    weight = weights.take(layout.weight(name), size_out, size_in)
    return weight, weights.take(layout.bias(name), len(weight))


def read_static_head(
    weights: Weights, kind: StaticKind, family: Family, pooler: Linear | None, hidden: int
) -> tuple[FoundHead, dict[str, Array]]:
    """Take a head of transformers; ``pooler`` is the one that BERT's classifier reads.

    Raises:
        Corrupt: a tensor is missing.
        InvalidSpec: there is no pooler, or a tensor has another shape.
    """
    if kind == "span":
        out = take_linear(weights, "qa_outputs", 2, hidden)
        return FoundHead(kind="span", outputs=2, layers=1), head_tensors(None, out)
    if family == "roberta":
        dense = take_linear(weights, "classifier.dense", hidden, hidden)
        out = take_linear(weights, "classifier.out_proj", ANY, hidden)
    else:
        out = take_linear(weights, "classifier", ANY, hidden)
        if pooler is None:
            raise InvalidSpec(f"{weights.source}: {NO_POOLER}")
        dense = pooler
    return FoundHead(kind=None, outputs=len(out[0]), layers=2), head_tensors(dense, out)


def head_tensors(dense: Linear | None, out: Linear) -> dict[str, Array]:
    """Name the tensors of a head."""
    named = {layout.HEAD_OUT: out} | ({layout.HEAD_DENSE: dense} if dense else {})
    tensors: dict[str, Array] = {}
    for name, (weight, bias) in named.items():
        tensors |= {layout.weight(name): narrow(weight), layout.bias(name): narrow(bias)}
    return tensors


def static_head_names(spec: AdapterSpec) -> dict[str, str]:
    """Map our linear layers of the head to those of transformers' class.

    Raises:
        InvalidSpec: transformers has no such head.
    """
    head, family = spec.head, spec.backbone.family
    if head.kind == "span":
        if head.layers != 1:
            raise InvalidSpec("head.layers 2 of a span cannot be exported: transformers has 1")
        return {layout.HEAD_OUT: "qa_outputs"}
    check_head(spec)
    if head.layers != 2:
        raise InvalidSpec(
            "head.layers 1 cannot be exported: transformers' class puts a dense tanh layer in "
            "front, which no weights make the identity"
        )
    if family == "roberta":
        return {layout.HEAD_DENSE: "classifier.dense", layout.HEAD_OUT: "classifier.out_proj"}
    return {layout.HEAD_DENSE: f"bert.{POOLER}", layout.HEAD_OUT: "classifier"}


def check_head(spec: AdapterSpec) -> None:
    """Check that the libraries' heads have this kind and, if it pools, read what it does.

    Raises:
        InvalidSpec: it reads the mean, or is of a kind that is not exported.
    """
    if spec.head.kind in _OURS_ALONE:
        raise InvalidSpec(
            f"a head of kind {spec.head.kind} is not exported: upt writes sequence and span heads"
        )
    if spec.head.kind != "span" and spec.head.pooling != "cls":
        raise InvalidSpec(
            f"head.pooling {spec.head.pooling} cannot be exported: the library's heads read [CLS]"
        )
