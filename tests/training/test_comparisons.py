"""Methods that are trained but not published: against plain loops, and the paper's counts."""

from collections.abc import Mapping, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from upt_testing.backbones import write_tiny_backbone
from upt_testing.learners import spec_of_method
from upt_testing.reference import reference_hidden_states
from upt_training.comparisons import Ia3Learner, StackedLearner
from upt_training.learner import AdapterLearner, FullLearner, Learner
from upt_training.methods import Method
from upt_training.recipe import Recipe
from upt_zoo.backbone import Backbone, EncoderConfig
from upt_zoo.nn.adapter import PreparedAdapter, prepare
from upt_zoo.nn.encoder import Encoder, build_encoder, load_encoder, load_tensors
from upt_zoo.nn.forward import forward
from upt_zoo.nn.packing import Row
from upt_zoo.spec import AdapterSpec, BackboneIdentity

IDS = ([2, 7, 9, 30, 3], [2, 40, 3], [2, *range(5, 30), 3])
START_IDS = list(range(10, 40))
# fp32 against float64 on hidden states of size 1 to 10
TOLERANCE = 2e-4


def spec_of(identity: BackboneIdentity, recipe: Recipe) -> AdapterSpec:
    return spec_of_method(recipe.method, identity, has_gates=recipe.has_gates)


def start(recipe: Recipe, identity: BackboneIdentity, encoder: Encoder) -> Learner:
    torch.manual_seed(0)
    spec = spec_of(identity, recipe)
    if recipe.method == "stacked_unipelt":
        return StackedLearner(recipe, spec, encoder, start_ids=START_IDS)
    if recipe.method == "ia3_prefix_bottleneck":
        return Ia3Learner(recipe, spec, encoder, start_ids=START_IDS)
    return AdapterLearner(recipe, spec, encoder, start_ids=START_IDS)


def disturb(learner: Learner) -> None:
    """Move every weight away from its start."""
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in learner.weights.values():
            weight += 0.1 * torch.randn(weight.shape)


def logits_of(encoder: Encoder, adapter: PreparedAdapter) -> list[Tensor]:
    rows = [Row(ids=ids, type_ids=[0] * len(ids), adapter=adapter) for ids in IDS]
    return [logits.detach() for logits in forward(encoder, rows)]


def assert_close(got: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=0, atol=TOLERANCE)


@pytest.fixture(params=["stacked_unipelt", "ia3_prefix_bottleneck"])
def method(request: pytest.FixtureRequest) -> Method:
    found: Method = request.param
    return found


def test_what_learns_answers_as_what_is_evaluated(backbone: Backbone, method: Method) -> None:
    encoder = load_encoder(backbone)
    learner = start(Recipe(task="sst2", method=method), backbone.identity, encoder)
    disturb(learner)
    answering = learner.answering(load_encoder(backbone), learner.served_tensors())
    learning = logits_of(*learner.model())
    assert all(map(torch.equal, learning, logits_of(*answering)))
    rounded = {name: t.half() for name, t in learner.served_tensors().items()}
    close = logits_of(*learner.answering(load_encoder(backbone), rounded))
    for one, other in zip(learning, close, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0.05)


def test_every_weight_of_a_comparison_learns(backbone: Backbone, method: Method) -> None:
    learner = start(Recipe(task="sst2", method=method), backbone.identity, load_encoder(backbone))
    assert learner.rates.keys() == learner.weights.keys()
    disturb(learner)
    encoder, adapter = learner.model()
    rows = [Row(ids=ids, type_ids=[0] * len(ids), adapter=adapter) for ids in IDS]
    torch.stack(forward(encoder, rows)).square().sum().backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    assert all(w.grad is not None and bool(w.grad.any()) for w in learner.weights.values())


# Stacked UniPELT


def test_blocks_start_apart(backbone: Backbone) -> None:
    recipe = Recipe(task="sst2", method="stacked_unipelt", blocks=2)
    weights = start(recipe, backbone.identity, load_encoder(backbone)).weights
    names = {name.partition("/")[2] for name in weights if name.startswith("block0/")}
    assert names == {name.partition("/")[2] for name in weights if name.startswith("block1/")}
    for name in ("prefix.keys", "lora.q.a", "bottleneck.down.weight"):
        assert not torch.equal(weights[f"block0/{name}"], weights[f"block1/{name}"])
    assert {name for name in weights if "/" not in name} == {"head.out.weight", "head.out.bias"}


def test_a_stack_of_one_block_is_unipelt(backbone: Backbone) -> None:
    encoder = load_encoder(backbone)
    recipe = Recipe(task="sst2", method="stacked_unipelt", blocks=1)
    stacked = start(recipe, backbone.identity, encoder)
    single = start(Recipe(task="sst2", method="unipelt"), backbone.identity, encoder)
    for learner in (stacked, single):
        disturb(learner)
    with torch.no_grad():
        for name, weight in single.weights.items():
            own = name if name.startswith("head.") else f"block0/{name}"
            weight.copy_(stacked.weights[own])
    assert all(map(torch.equal, logits_of(*stacked.model()), logits_of(*single.model())))


# IA3


def test_factors_begin_as_no_change(backbone: Backbone) -> None:
    encoder = load_encoder(backbone)
    recipe = Recipe(task="sst2", method="ia3_prefix_bottleneck")
    learner = start(recipe, backbone.identity, encoder)
    tensors = learner.served_tensors()
    bare = {name: tensor for name, tensor in tensors.items() if not name.startswith("ia3.")}
    adapter = prepare(spec_of(backbone.identity, recipe), bare, dtype=torch.float32)
    assert all(map(torch.equal, logits_of(*learner.model()), logits_of(encoder, adapter)))


def test_factors_are_those_of_keys_values_and_inner_states(backbone: Backbone) -> None:
    """They equal the reference on a backbone whose rows and columns carry the factors."""
    recipe = Recipe(task="sst2", method="ia3_prefix_bottleneck")
    learner = start(recipe, backbone.identity, load_encoder(backbone))
    disturb(learner)
    tensors = learner.served_tensors()
    scaled = dict(load_tensors(backbone))
    for layer in range(backbone.identity.layers):
        name = f"encoder.layer.{layer}"
        for part, factors in (("key", "ia3.keys"), ("value", "ia3.values")):
            factor = 1 + tensors[factors][layer]
            linear = f"{name}.attention.self.{part}"
            scaled[f"{linear}.weight"] = scaled[f"{linear}.weight"] * factor[:, None]
            scaled[f"{linear}.bias"] = scaled[f"{linear}.bias"] * factor
        inner = 1 + tensors["ia3.inner"][layer]
        scaled[f"{name}.output.dense.weight"] = scaled[f"{name}.output.dense.weight"] * inner
    spec = spec_of(backbone.identity, recipe)
    weight, bias = tensors["head.out.weight"].double(), tensors["head.out.bias"].double()
    states = [reference_hidden_states(scaled, "bert", spec, tensors, ids)[0] for ids in IDS]
    assert_close(logits_of(*learner.model()), [weight @ cls + bias for cls in states])


def test_a_scaled_layer_gives_its_weights_with_the_factors(backbone: Backbone) -> None:
    learner = start(
        Recipe(task="sst2", method="ia3_prefix_bottleneck"),
        backbone.identity,
        load_encoder(backbone),
    )
    disturb(learner)
    encoder, _ = learner.model()
    torch.manual_seed(2)
    for linear, size in ((encoder.layers[0].qkv, 32), (encoder.layers[1].ffn_down, 64)):
        x = torch.randn(3, size)
        torch.testing.assert_close(linear(x), F.linear(x, *linear.parameters()))


# BitFit


def test_bitfit_learns_the_biases_and_the_head(backbone: Backbone) -> None:
    before = load_tensors(backbone)
    recipe = Recipe(task="sst2", method="bitfit", adapter_rate=0.03)
    spec = spec_of(backbone.identity, recipe)
    learner = FullLearner(recipe, spec, backbone.config, before)
    biases = {name for name in before if name.endswith(".bias")}
    assert learner.weights.keys() == biases | {"head.out.weight", "head.out.bias"}
    assert {learner.rates[name] for name in biases} == {0.03}
    assert "embeddings.LayerNorm.bias" in biases
    disturb(learner)
    changed = {name: learner.weights[name].detach() for name in biases}
    plain = build_encoder(backbone.config, before | changed, dtype=torch.float32)
    encoder, adapter = learner.answering(plain, learner.served_tensors())
    assert_close(logits_of(*learner.model()), logits_of(plain, adapter))
    assert_close(logits_of(encoder, adapter), logits_of(plain, adapter))


# The paper's counts

ROBERTA_BASE = EncoderConfig(
    model_type="roberta",
    num_hidden_layers=12,
    hidden_size=768,
    num_attention_heads=12,
    intermediate_size=3072,
    hidden_act="gelu",
    layer_norm_eps=1e-5,
    max_position_embeddings=514,
    type_vocab_size=1,
    vocab_size=100,  # no word is counted
    pad_token_id=1,
)


@pytest.fixture(scope="module")
def roberta_base(tmp_path_factory: pytest.TempPathFactory) -> tuple[BackboneIdentity, Encoder]:
    """An encoder of roberta-base's sizes, all zeros that take no memory."""
    tiny = write_tiny_backbone(tmp_path_factory.mktemp("roberta"), "roberta")
    sizes = {32: 768, 64: 3072, 320: 514, tiny.config.vocab_size: 100}
    tensors: Mapping[str, Tensor] = {
        f"{name.replace('layer.0.', f'layer.{layer}.')}": torch.zeros(1).expand(
            *(sizes.get(size, size) for size in tensor.shape)
        )
        for name, tensor in load_tensors(tiny).items()
        for layer in range(12)
        if "layer.1." not in name
    }
    identity = tiny.identity.model_copy(
        update={"layers": 12, "hidden": 768, "heads": 12, "intermediate": 3072}
    )
    return identity, build_encoder(ROBERTA_BASE, tensors, dtype=torch.float32, is_learning=True)


@pytest.mark.parametrize(
    ("method", "count"),
    [
        ("unipelt", 11_083_376),
        ("unipelt_prompt", 11_091_056),
        ("stacked_unipelt", 33_250_128),
        ("ia3_prefix_bottleneck", 10_852_988 - 3 * 12 * (768 + 1)),  # three more gates a layer
    ],
)
def test_a_reparametrised_prefix_trains_what_the_paper_counts(
    roberta_base: tuple[BackboneIdentity, Encoder], method: Method, count: int
) -> None:
    recipe = Recipe(task="sst2", method=method, is_prefix_reparametrised=True)
    learner = start(recipe, *roberta_base)
    trained = [w.numel() for name, w in learner.weights.items() if not name.startswith("head.")]
    assert sum(trained) == count
