"""The gates that people ask for against those of the slow reference."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from upt_testing import reference
from upt_testing.adapters import BOTTLENECK, LORA, PREFIX, PROMPT, random_tensors, tiny_spec
from upt_testing.backbones import write_tiny_backbone
from upt_zoo.backbone import Backbone
from upt_zoo.layout import gate_names
from upt_zoo.nn.adapter import prepare
from upt_zoo.nn.encoder import build_encoder, load_tensors
from upt_zoo.nn.gates import mean_gates
from upt_zoo.nn.packing import Row
from upt_zoo.spec import AdapterSpec, LoraTarget

ROWS = [[2, 5, 6, 7, 3], [2, 9, 3]]
TARGETS: tuple[LoraTarget, ...] = ("ffn_down", "ffn_up", "k", "o", "q", "v")
# the order in which the reference computes them in a layer
REFERENCE_ORDER = [
    "lora.q",
    "lora.k",
    "prefix.keys",
    "lora.v",
    "prefix.values",
    "lora.o",
    "lora.ffn_up",
    "lora.ffn_down",
    "bottleneck",
]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return write_tiny_backbone(tmp_path_factory.mktemp("backbone"))


def spec_of_everything(backbone: Backbone, *, is_gated: bool = True) -> AdapterSpec:
    separate = {"gated": is_gated, "gates": "separate" if is_gated else "shared"}
    return tiny_spec(
        backbone=backbone.identity,
        lora=LORA.model_copy(update={"targets": TARGETS, "gated": is_gated}),
        prefix=PREFIX.model_copy(update=separate),
        bottleneck=BOTTLENECK.model_copy(update={"gated": is_gated}),
        prompt=PROMPT,
    )


def gates_of(
    backbone: Backbone, spec: AdapterSpec, rows: Sequence[Sequence[int]]
) -> list[dict[str, float]]:
    encoder = build_encoder(backbone.config, load_tensors(backbone), dtype=torch.float64)
    adapter = prepare(spec, tensors_of(spec), dtype=torch.float64)
    return mean_gates(
        encoder, spec, [Row(ids=ids, type_ids=[0] * len(ids), adapter=adapter) for ids in rows]
    )


def tensors_of(spec: AdapterSpec) -> dict[str, Tensor]:
    return {name: torch.from_numpy(values) for name, values in random_tensors(spec, 3).items()}


def test_every_gate_is_that_of_the_reference(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of_everything(backbone)
    seen: list[float] = []
    compute = reference.gate

    def recording(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        value = compute(x, weight, bias)
        seen.append(float(value))
        return value

    monkeypatch.setattr(reference, "gate", recording)
    reference.reference_hidden_states(
        load_tensors(backbone), "bert", spec, tensors_of(spec), ROWS[0]
    )
    layers = gates_of(backbone, spec, ROWS[:1])
    assert len(seen) == len(layers) * len(REFERENCE_ORDER)
    for index, layer in enumerate(layers):
        first = index * len(REFERENCE_ORDER)
        expected = dict(zip(REFERENCE_ORDER, seen[first:], strict=False))
        assert layer == pytest.approx(expected, abs=1e-10)


def test_several_rows_give_their_mean(backbone: Backbone) -> None:
    spec = spec_of_everything(backbone)
    both = gates_of(backbone, spec, ROWS)
    alone = [gates_of(backbone, spec, [row]) for row in ROWS]
    for layer, one, other in zip(both, *alone, strict=True):
        mean = {name: (one[name] + other[name]) / 2 for name in one}
        assert layer == pytest.approx(mean, abs=1e-10)


@pytest.mark.parametrize("is_bare", [True, False])
def test_what_has_no_gates_names_none(backbone: Backbone, is_bare: bool) -> None:
    spec = tiny_spec(backbone=backbone.identity)
    if not is_bare:
        spec = spec_of_everything(backbone, is_gated=False)
    assert gate_names(spec) == ()
    layers = gates_of(backbone, spec, ROWS)
    assert layers == [{}] * backbone.config.num_hidden_layers


def test_gates_shared_by_keys_and_values_have_one_name(backbone: Backbone) -> None:
    spec = tiny_spec(backbone=backbone.identity, prefix=PREFIX)
    assert gate_names(spec) == ("prefix",)
    assert all(layer.keys() == {"prefix"} for layer in gates_of(backbone, spec, ROWS))
