"""What learns is what is served: against the slow reference, and from the first step on."""

from collections.abc import Sequence
from typing import get_args

import pytest
import torch
from torch import Tensor

from upt_testing.adapters import CLASSIFICATION, REGRESSION, SPAN, tiny_spec
from upt_testing.reference import reference_hidden_states
from upt_training.learner import AdapterLearner, FullLearner, Learner
from upt_training.methods import METHODS, Method, components_of
from upt_training.recipe import Recipe
from upt_zoo import layout
from upt_zoo.backbone import Backbone
from upt_zoo.errors import InvalidSpec
from upt_zoo.nn.adapter import prepare
from upt_zoo.nn.encoder import Encoder, load_encoder, load_tensors
from upt_zoo.nn.forward import forward
from upt_zoo.nn.packing import Row
from upt_zoo.spec import AdapterSpec, Head

ADAPTERS = [method for method, traits in METHODS.items() if traits.gives_adapter]
START_IDS = list(range(10, 20))
IDS = ([2, 7, 9, 30, 3], [2, 40, 3], [2, *range(5, 30), 3])
# fp32 against float64 on hidden states of size 1 to 10
TOLERANCE = 2e-4


def spec_of(backbone: Backbone, method: Method, head: Head = CLASSIFICATION) -> AdapterSpec:
    parts = components_of(method, backbone.identity)
    return tiny_spec(
        backbone=backbone.identity,
        lora=parts.lora,
        prefix=parts.prefix,
        bottleneck=parts.bottleneck,
        prompt=parts.prompt,
        head=head,
    )


def start(
    backbone: Backbone,
    spec: AdapterSpec,
    recipe: Recipe,
    *,
    target_scale: tuple[float, float] = (0.0, 1.0),
    initial: dict[str, Tensor] | None = None,
) -> AdapterLearner:
    torch.manual_seed(0)
    return AdapterLearner(
        recipe,
        spec,
        load_encoder(backbone),
        start_ids=START_IDS,
        target_scale=target_scale,
        initial=initial,
    )


def disturb(learner: Learner) -> None:
    """Move every weight away from its start."""
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in learner.weights.values():
            weight += 0.1 * torch.randn(weight.shape)


def logits_of(learner: Learner) -> list[Tensor]:
    encoder, adapter = learner.model()
    return forward(encoder, [Row(ids=ids, type_ids=[0] * len(ids), adapter=adapter) for ids in IDS])


def served_logits(encoder: Encoder, spec: AdapterSpec, learner: Learner) -> list[Tensor]:
    adapter = prepare(spec, learner.served_tensors(), dtype=torch.float32)
    return forward(encoder, [Row(ids=ids, type_ids=[0] * len(ids), adapter=adapter) for ids in IDS])


def reference_logits(
    weights: dict[str, Tensor], spec: AdapterSpec, tensors: dict[str, Tensor]
) -> list[Tensor]:
    """Compute hidden states by the slow reference and apply a head of one layer."""
    weight = tensors[layout.weight(layout.HEAD_OUT)].double()
    bias = tensors[layout.bias(layout.HEAD_OUT)].double()
    hidden = [reference_hidden_states(weights, "bert", spec, tensors, ids) for ids in IDS]
    if spec.head.kind != "span":
        hidden = [states[0] for states in hidden]
    return [states @ weight.T + bias for states in hidden]


def assert_close(got: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one.detach().double(), other, rtol=0, atol=TOLERANCE)


# Training equals serving


@pytest.mark.parametrize("head", [CLASSIFICATION, REGRESSION, SPAN], ids=lambda head: head.kind)
@pytest.mark.parametrize("method", ADAPTERS)
def test_what_learns_answers_as_what_is_served(
    backbone: Backbone, method: Method, head: Head
) -> None:
    spec = spec_of(backbone, method, head)
    scale = (2.5, 1.5) if head.kind == "regression" else (0.0, 1.0)
    learner = start(backbone, spec, Recipe(task="sst2", method=method), target_scale=scale)
    disturb(learner)
    tensors = learner.served_tensors()
    layout.check_shapes(spec, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    learning = logits_of(learner)
    served = served_logits(load_encoder(backbone), spec, learner)
    assert all(map(torch.equal, learning, served))
    assert_close(learning, reference_logits(load_tensors(backbone), spec, tensors))


@pytest.mark.parametrize("method", ["prefix", "unipelt", "unipelt_prompt"])
def test_a_reparametrised_prefix_is_served_unfolded(backbone: Backbone, method: Method) -> None:
    spec = spec_of(backbone, method)
    recipe = Recipe(task="sst2", method=method, is_prefix_reparametrised=True)
    learner = start(backbone, spec, recipe)
    disturb(learner)
    tensors = learner.served_tensors()
    layout.check_shapes(spec, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    assert not tensors.keys() - layout.tensor_shapes(spec)
    learning = logits_of(learner)
    assert_close(learning, reference_logits(load_tensors(backbone), spec, tensors))
    # Li and Liang 2021: P = W2 tanh(W1 e + b1) + b2, seen as [length, 2 layers, heads, size]
    w = {name.partition(".")[2]: t for name, t in learner.weights.items() if "reparam" in name}
    inner = torch.tanh(w["embedding"] @ w["in.weight"].T + w["in.bias"])
    flat = (inner @ w["out.weight"].T + w["out.bias"]).detach()
    layers, heads = backbone.identity.layers, backbone.identity.heads
    whole = flat.view(len(flat), 2 * layers, heads, -1)
    for layer in range(layers):
        for offset, name in enumerate((layout.PREFIX_KEYS, layout.PREFIX_VALUES)):
            torch.testing.assert_close(
                tensors[name][layer], whole[:, 2 * layer + offset].flatten(1)
            )


def test_the_factor_on_lora_is_folded_into_b(backbone: Backbone) -> None:
    spec = spec_of(backbone, "lora")
    learner = start(backbone, spec, Recipe(task="sst2", method="lora", lora_factor=3.0))
    disturb(learner)
    tensors = learner.served_tensors()
    for target in ("q", "v"):
        up, down = layout.lora_b(target), layout.lora_a(target)
        assert torch.equal(tensors[up], learner.weights[up] * 3.0)
        assert torch.equal(tensors[down], learner.weights[down])


def test_a_run_starts_from_another_adapters_components_and_a_new_head(backbone: Backbone) -> None:
    source = start(backbone, spec_of(backbone, "unipelt_prompt"), Recipe(task="sst2"))
    disturb(source)
    initial = source.served_tensors()
    spec = spec_of(backbone, "unipelt_prompt", REGRESSION)
    learner = start(backbone, spec, Recipe(task="stsb", lora_factor=8.0), initial=initial)
    served = learner.served_tensors()
    for name in layout.component_shapes(spec):
        torch.testing.assert_close(served[name], initial[name])
    assert served[layout.weight(layout.HEAD_OUT)].shape[0] == 1
    assert all(weight.is_leaf and weight.requires_grad for weight in learner.weights.values())


def test_an_adapter_of_other_components_is_no_start(backbone: Backbone) -> None:
    lora = start(backbone, spec_of(backbone, "lora"), Recipe(task="sst2", method="lora"))
    spec = spec_of(backbone, "unipelt_prompt")
    with pytest.raises(
        InvalidSpec, match=r"expected the tensors of method unipelt_prompt .*prompt"
    ):
        start(backbone, spec, Recipe(task="sst2"), initial=lora.served_tensors())


def test_a_regression_learns_standard_values_and_serves_the_labels_unit(
    backbone: Backbone,
) -> None:
    spec, recipe = spec_of(backbone, "head", REGRESSION), Recipe(task="stsb", method="head")
    plain = start(backbone, spec, recipe)
    scaled = start(backbone, spec, recipe, target_scale=(2.5, 1.5))
    disturb(plain)
    disturb(scaled)
    for raw, value in zip(logits_of(plain), logits_of(scaled), strict=True):
        torch.testing.assert_close(value, raw * 1.5 + 2.5)


def test_served_tensors_are_the_callers_own(backbone: Backbone) -> None:
    spec = spec_of(backbone, "unipelt_prompt")
    learner = start(backbone, spec, Recipe(task="sst2", lora_factor=1.0))
    before = {name: weight.detach().clone() for name, weight in learner.weights.items()}
    for tensor in learner.served_tensors().values():
        assert not tensor.requires_grad
        tensor += 1
    assert all(torch.equal(learner.weights[name], tensor) for name, tensor in before.items())


# Start


@pytest.mark.parametrize("method", ["lora", "bottleneck"])
@pytest.mark.parametrize("is_gated", [False, True])
def test_lora_and_bottleneck_begin_as_no_change(
    backbone: Backbone, method: Method, is_gated: bool
) -> None:
    spec = spec_of(backbone, method)
    changes = {
        name: part.model_copy(update={"gated": is_gated})
        for name, part in (("lora", spec.lora), ("bottleneck", spec.bottleneck))
        if part is not None
    }
    spec = spec.model_copy(update=changes)
    bare = spec.model_copy(update={"lora": None, "bottleneck": None})
    learner = start(backbone, spec, Recipe(task="sst2", method=method))
    fresh = logits_of(learner)
    encoder = load_encoder(backbone)
    assert all(map(torch.equal, fresh, served_logits(encoder, bare, learner)))
    disturb(learner)
    changed = zip(logits_of(learner), served_logits(encoder, bare, learner), strict=True)
    assert not any(torch.equal(one, other) for one, other in changed)


def test_a_prompt_begins_as_the_embeddings_of_words(backbone: Backbone) -> None:
    learner = start(backbone, spec_of(backbone, "prompt"), Recipe(task="sst2", method="prompt"))
    weights = load_tensors(backbone)
    words = weights["embeddings.word_embeddings.weight"][START_IDS]
    weight, bias = (weights[f"embeddings.LayerNorm.{part}"] for part in ("weight", "bias"))
    expected = torch.nn.functional.layer_norm(words, words.shape[1:], weight, bias, 1e-12)
    torch.testing.assert_close(learner.weights[layout.PROMPT].detach(), expected)


def test_a_prefix_begins_as_the_backbones_own_keys_and_values(backbone: Backbone) -> None:
    """In layer 1 they are products of the hidden states that the reference has after layer 0."""
    spec = spec_of(backbone, "prefix")
    tensors = start(backbone, spec, Recipe(task="sst2", method="prefix")).served_tensors()
    weights = load_tensors(backbone)
    one_layer = tiny_spec(backbone=backbone.identity.model_copy(update={"layers": 1}))
    hidden = reference_hidden_states(weights, "bert", one_layer, {}, START_IDS)
    parts = {layout.PREFIX_KEYS: "key", layout.PREFIX_VALUES: "value"}
    for name, part in parts.items():
        linear = f"encoder.layer.1.attention.self.{part}"
        expected = hidden @ weights[f"{linear}.weight"].double().T + weights[f"{linear}.bias"]
        assert_close([tensors[name][1]], [expected])


def test_a_reparametrised_prefix_begins_near_the_mean_of_the_same(backbone: Backbone) -> None:
    spec, recipe = spec_of(backbone, "prefix"), Recipe(task="sst2", method="prefix")
    plain = start(backbone, spec, recipe)
    network = start(backbone, spec, recipe.changed({"is_prefix_reparametrised": True}))
    for name in (layout.PREFIX_KEYS, layout.PREFIX_VALUES):
        mean = plain.served_tensors()[name].mean(1, keepdim=True)
        unfolded = network.served_tensors()[name]
        assert (unfolded.mean(1, keepdim=True) - mean).abs().mean() < 0.5
        assert unfolded.std(1).min() > 0


def test_gates_begin_at_the_recipes_bias(backbone: Backbone) -> None:
    learner = start(backbone, spec_of(backbone, "unipelt"), Recipe(task="sst2", gate_bias=-2.0))
    biases = [weight for name, weight in learner.weights.items() if name.endswith("gate.bias")]
    assert len(biases) == 4
    assert all((bias == -2.0).all() for bias in biases)


# Learning


@pytest.mark.parametrize("is_reparametrised", [False, True])
@pytest.mark.parametrize("method", get_args(Method))
def test_gradients_reach_every_weight_and_the_backbone_only_when_it_learns(
    backbone: Backbone, method: Method, is_reparametrised: bool
) -> None:
    spec = spec_of(backbone, method)
    recipe = Recipe(task="sst2", method=method, is_prefix_reparametrised=is_reparametrised)
    learner: Learner
    if method == "full":
        torch.manual_seed(0)
        learner = FullLearner(recipe, spec, backbone.config, load_tensors(backbone))
    else:
        learner = start(backbone, spec, recipe)
    disturb(learner)
    torch.stack(logits_of(learner)).square().sum().backward()  # type: ignore[no-untyped-call]
    without = {
        name
        for name, weight in learner.weights.items()
        if weight.grad is None or not weight.grad.any()
    }
    # a key's bias moves all of a query's scores alike, which softmax does not see
    assert {name for name in without if "key.bias" not in name} == set()
    encoder, _ = learner.model()
    assert encoder.embeddings.word.requires_grad == (method == "full")


def test_each_kind_of_weight_has_its_own_rate(backbone: Backbone) -> None:
    recipe = Recipe(task="sst2", adapter_rate=0.1, head_rate=0.2, gate_rate_share=0.5)
    rates = start(backbone, spec_of(backbone, "unipelt_prompt"), recipe).rates
    assert {rate for name, rate in rates.items() if name.startswith("head.")} == {0.2}
    assert {rate for name, rate in rates.items() if ".gate." in name} == {0.05}
    others = {name for name in rates if not name.startswith("head.") and ".gate." not in name}
    assert {rates[name] for name in others} == {0.1}
    assert {layout.PROMPT, layout.PREFIX_KEYS, "lora.q.a", "bottleneck.up.bias"} <= others


# Full fine-tuning


@pytest.mark.parametrize("head", [CLASSIFICATION, REGRESSION], ids=lambda head: head.kind)
def test_full_fine_tuning_evaluates_the_encoder_that_it_trained(
    backbone: Backbone, head: Head
) -> None:
    torch.manual_seed(0)
    spec, before = spec_of(backbone, "full", head), load_tensors(backbone)
    learner = FullLearner(
        Recipe(task="stsb", method="full", backbone_rate=0.3, head_rate=0.4),
        spec,
        backbone.config,
        before,
        target_scale=(2.5, 1.5),
    )
    assert learner.weights.keys() == before.keys() | {"head.out.weight", "head.out.bias"}
    assert {learner.rates[name] for name in before} == {0.3}
    assert learner.rates["head.out.weight"] == 0.4
    disturb(learner)
    learning = [logits.detach() for logits in logits_of(learner)]
    encoder = learner.trained_encoder()
    assert not encoder.embeddings.word.requires_grad
    assert_close(served_logits(encoder, spec, learner), [logits.double() for logits in learning])
    trained = {name: learner.weights[name].detach() for name in before}
    assert_close(learning, reference_logits(trained, spec, learner.served_tensors()))
    assert all(torch.equal(before[name], tensor) for name, tensor in load_tensors(backbone).items())
    assert not any(torch.equal(before[name], tensor) for name, tensor in trained.items())
