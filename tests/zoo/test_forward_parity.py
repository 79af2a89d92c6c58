"""The packed forward pass against others: AdapterHub's library, the slow loop, transformers."""

from functools import cache

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor, nn
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

from parity.goldens import GoldenCase, golden_case, golden_names
from upt_testing.adapters import BOTTLENECK, LORA, PREFIX, PROMPT, tiny_spec
from upt_testing.backbones import write_tiny_backbone
from upt_testing.mixtures import (
    distance,
    last_hidden_states,
    mixed_rows,
    mixed_specs,
    random_row,
    ready,
    torch_tensors,
)
from upt_testing.reference import LAYER_NORM_EPS, reference_hidden_states
from upt_zoo.backbone import Backbone, resolve_backbone
from upt_zoo.errors import Corrupt
from upt_zoo.nn.adapter import prepare
from upt_zoo.nn.encoder import Encoder, LayerNorm, build_encoder, load_encoder, load_tensors
from upt_zoo.nn.forward import forward
from upt_zoo.nn.packing import Row
from upt_zoo.spec import AdapterSpec, Family

EXACT = 1e-10  # float64: 1e-14 is measured, the rest is room for other BLAS libraries
FP32 = 2e-5  # states of size 6 after six layers: 3e-6 is measured, the rest is room as above
FAMILIES: tuple[Family, ...] = ("bert", "roberta")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[Family, Backbone]:
    root = tmp_path_factory.mktemp("backbones")
    return {family: write_tiny_backbone(root / family, family) for family in FAMILIES}


@pytest.fixture(scope="module")
def minilm() -> Backbone:
    return resolve_backbone()


# AdapterHub's library


@cache
def golden_encoder(backbone: str) -> Encoder:
    case = golden_case(next(name for name in golden_names() if name.startswith(f"{backbone}/")))
    return build_encoder(case.config, case.backbone, dtype=torch.float64)


def golden_rows(case: GoldenCase) -> list[Row]:
    adapter = prepare(case.spec, case.tensors, dtype=torch.float64)
    return [Row(ids=row.ids, type_ids=row.type_ids, adapter=adapter) for row in case.rows]


@pytest.mark.parametrize("name", golden_names())
def test_the_engine_equals_the_library(name: str) -> None:
    case = golden_case(name)
    states = last_hidden_states(golden_encoder(name.split("/")[0]), golden_rows(case))
    for row, ours in zip(case.rows, states, strict=True):
        assert distance(ours, row.expected) < EXACT


@pytest.mark.parametrize("backbone", FAMILIES)
def test_every_method_of_the_library_in_one_batch(backbone: str) -> None:
    cases = [golden_case(name) for name in golden_names() if name.startswith(f"{backbone}/")]
    rows = [row for case in cases for row in golden_rows(case)]
    expected = [row.expected for case in cases for row in case.rows]
    for ours, theirs in zip(
        last_hidden_states(golden_encoder(backbone), rows), expected, strict=True
    ):
        assert distance(ours, theirs) < EXACT


# The slow loop


def reference_logits(spec: AdapterSpec, tensors: dict[str, Tensor], states: Tensor) -> Tensor:
    """The head, plain: pool unless it reads each token, then none, one or two linear layers."""
    head = {name: tensor.double() for name, tensor in tensors.items() if name.startswith("head.")}
    x = states
    if spec.head.kind not in ("span", "token_classification"):
        x = states.mean(0) if spec.head.pooling == "mean" else states[0]
    if spec.head.kind == "embedding":
        return x
    if spec.head.layers == 2:
        x = torch.tanh(x @ head["head.dense.weight"].T + head["head.dense.bias"])
    return x @ head["head.out.weight"].T + head["head.out.bias"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mixed_batch_of_all_kinds_equals_the_loop(
    tiny: dict[Family, Backbone], family: Family
) -> None:
    # the reference has each family's own epsilon, the tiny backbone that of BERT
    config = tiny[family].config.model_copy(update={"layer_norm_eps": LAYER_NORM_EPS[family]})
    weights = load_tensors(tiny[family])
    encoder = build_encoder(config, weights, dtype=torch.float64)
    specs = mixed_specs(tiny[family].identity)
    rows = mixed_rows(encoder, specs, dtype=torch.float64)
    states, logits = last_hidden_states(encoder, rows), forward(encoder, rows)
    for index, (spec, row) in enumerate(zip(specs, rows, strict=True)):
        tensors = torch_tensors(spec, index)
        expected = reference_hidden_states(weights, family, spec, tensors, row.ids, row.type_ids)
        assert distance(states[index], expected) < EXACT, spec.method
        assert distance(logits[index], reference_logits(spec, tensors, expected)) < EXACT


# transformers


def foreign_model(backbone: Backbone, hidden_act: str = "gelu") -> nn.Module:
    kinds = {"bert": (BertConfig, BertModel), "roberta": (RobertaConfig, RobertaModel)}
    config_class, model_class = kinds[backbone.config.model_type]
    fields = backbone.config.model_dump() | {"hidden_act": hidden_act}
    del fields["model_type"]
    model: nn.Module = model_class(config_class(**fields), add_pooling_layer=False).eval()
    model.load_state_dict(load_tensors(backbone), strict=True)
    return model


def foreign_states(model: nn.Module, rows: list[Row], pad_id: int) -> list[Tensor]:
    """Run the rows as one padded batch; return the states of the real tokens."""
    longest = max(len(row.ids) for row in rows)

    def padded(values: list[list[int]], filler: int) -> Tensor:
        return torch.tensor([row + [filler] * (longest - len(row)) for row in values])

    with torch.inference_mode():
        states = model(
            input_ids=padded([list(row.ids) for row in rows], pad_id),
            token_type_ids=padded([list(row.type_ids) for row in rows], 0),
            attention_mask=padded([[1] * len(row.ids) for row in rows], 0),
        ).last_hidden_state
    return [states[index, : len(row.ids)] for index, row in enumerate(rows)]


def bare_rows(encoder: Encoder, backbone: Backbone, lengths: tuple[int, ...]) -> list[Row]:
    adapter = ready(tiny_spec(backbone=backbone.identity), seed=0, dtype=encoder.dtype)
    rows = [random_row(encoder, adapter, length, seed=length) for length in lengths]
    # transformers counts RoBERTa's positions from the ids that are not padding: use none inside
    first = encoder.config.pad_token_id + 1
    return [
        Row(ids=[max(id_, first) for id_ in row.ids], type_ids=row.type_ids, adapter=adapter)
        for row in rows
    ]


@pytest.mark.parametrize(
    ("family", "hidden_act"),
    [
        ("bert", "gelu"),
        ("bert", "relu"),
        ("bert", "gelu_new"),
        ("bert", "gelu_pytorch_tanh"),
        ("roberta", "gelu"),
    ],
)
def test_the_bare_tiny_backbone_equals_transformers(
    tiny: dict[Family, Backbone], family: Family, hidden_act: str
) -> None:
    backbone = tiny[family]
    config = backbone.config.model_copy(update={"hidden_act": hidden_act})
    encoder = build_encoder(config, load_tensors(backbone), dtype=torch.float64)
    rows = bare_rows(encoder, backbone, (1, 2, 9, 9, 200))
    theirs = foreign_states(foreign_model(backbone, hidden_act).double(), rows, config.pad_token_id)
    for one, other in zip(last_hidden_states(encoder, rows), theirs, strict=True):
        assert distance(one, other) < EXACT


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, EXACT), (torch.float32, FP32)])
def test_the_bare_embedded_backbone_equals_transformers(
    minilm: Backbone, dtype: torch.dtype, tolerance: float
) -> None:
    encoder = load_encoder(minilm, dtype=dtype)
    rows = bare_rows(encoder, minilm, (3, 12, 70))
    theirs = foreign_states(foreign_model(minilm).to(dtype), rows, minilm.config.pad_token_id)
    for one, other in zip(last_hidden_states(encoder, rows), theirs, strict=True):
        assert distance(one, other) < tolerance


# Learning


def gradients(encoder: Encoder, spec: AdapterSpec, lengths: tuple[int, ...]) -> dict[str, Tensor]:
    tensors = {name: t.double().requires_grad_() for name, t in torch_tensors(spec, 1).items()}
    adapter = prepare(spec, tensors, dtype=torch.float64)
    rows = [random_row(encoder, adapter, length, seed=length) for length in lengths]
    loss = torch.stack([logits.square().sum() for logits in forward(encoder, rows)]).sum()
    found = torch.autograd.grad(loss, list(tensors.values()))
    return dict(zip(tensors, found, strict=True))


def test_gradients_through_the_frozen_encoder_are_those_of_autograd(
    tiny: dict[Family, Backbone],
) -> None:
    weights = load_tensors(tiny["bert"])
    config = tiny["bert"].config
    frozen = build_encoder(config, weights, dtype=torch.float64)
    learning = build_encoder(config, weights, dtype=torch.float64, is_learning=True)
    spec = tiny_spec(
        backbone=tiny["bert"].identity,
        lora=LORA,
        prefix=PREFIX,
        bottleneck=BOTTLENECK,
        prompt=PROMPT,
    )
    ours, plain = gradients(frozen, spec, (4, 9)), gradients(learning, spec, (4, 9))
    assert min(gradient.abs().max() for gradient in ours.values()) > 1e3 * EXACT
    assert max(distance(ours[name], plain[name]) for name in ours) < EXACT


def test_the_encoders_own_weights_learn_only_where_asked(tiny: dict[Family, Backbone]) -> None:
    weights = {name: t.requires_grad_() for name, t in load_tensors(tiny["bert"]).items()}
    encoder = build_encoder(tiny["bert"].config, weights, dtype=torch.float32, is_learning=True)
    (logits,) = forward(encoder, bare_rows(encoder, tiny["bert"], (7,)))
    found = torch.autograd.grad(logits.sum(), list(weights.values()))
    assert all(gradient.abs().max() > 0 for gradient in found)


# Loading


def test_a_missing_tensor_of_the_backbone_is_named(tiny: dict[Family, Backbone]) -> None:
    weights = load_tensors(tiny["bert"])
    del weights["encoder.layer.1.intermediate.dense.bias"]
    with pytest.raises(Corrupt, match=r"encoder\.layer\.1\.intermediate\.dense\.bias"):
        build_encoder(tiny["bert"].config, weights, dtype=torch.float32)


@pytest.mark.parametrize(
    "change",
    [{"vocab_size": 7}, {"hidden_size": 16}, {"intermediate_size": 65}, {"type_vocab_size": 1}],
    ids=str,
)
def test_weights_of_another_shape_than_the_configuration_says_are_corrupt(
    tiny: dict[Family, Backbone], change: dict[str, int]
) -> None:
    config = tiny["bert"].config.model_copy(update=change)
    with pytest.raises(Corrupt, match="the configuration says"):
        build_encoder(config, load_tensors(tiny["bert"]), dtype=torch.float32)


def test_tensor_signatures_are_checked_in_tests() -> None:
    norm = LayerNorm(weight=torch.ones(4), bias=torch.ones(4), eps=1e-5)
    with pytest.raises(TypeCheckError, match="token hidden"):
        norm(torch.ones(2, 3, 4))
    with pytest.raises(TypeCheckError, match="hidden"):
        LayerNorm(weight=torch.ones(4), bias=torch.ones(5), eps=1e-5)
