"""What must not change a row's answer: batch mates, their order, padding, adapters of other rows.

Each trap that public implementations of these methods fall into has a test here.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypedDict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from upt_testing.adapters import (
    BOTTLENECK,
    LORA,
    PREFIX,
    PROMPT,
    SPAN,
    TOKENS,
    tiny_spec,
)
from upt_testing.backbones import write_tiny_backbone
from upt_testing.mixtures import (
    ALL_TARGETS,
    ROWS,
    distance,
    last_hidden_states,
    mixed_rows,
    mixed_specs,
    random_row,
    ready,
    torch_tensors,
)
from upt_testing.reference import reference_hidden_states
from upt_zoo.backbone import Backbone, resolve_backbone
from upt_zoo.nn.adapter import PreparedAdapter, prepare
from upt_zoo.nn.encoder import Encoder, load_encoder, load_tensors
from upt_zoo.nn.forward import forward
from upt_zoo.nn.layers import embed, run_layers
from upt_zoo.nn.packing import Row, pack
from upt_zoo.spec import AdapterSpec, Bottleneck, Lora, Prefix, Prompt

EXACT = 1e-10  # float64: 1e-14 is measured, the rest is room for other BLAS libraries
FP32 = 1e-4  # logits of size 8: 4e-6 is measured, the rest is room for other BLAS libraries
# bf16 keeps 8 bits: states of size 3 round by 6e-3 in each of a layer's dozen steps. Measured are
# 0.066 against fp32 and 0 between batches here, 0.03 between batches on the embedded backbone
BF16, BF16_MATES = 0.15, 0.06
LENGTHS = (3, 40, 7, 7, 25)
PADDED = {"bucket_multiple": 64, "token_multiple": 256}
PROMPTS = (Prompt(length=4), Prompt(length=4, position="after_cls"))


class Components(TypedDict, total=False):
    lora: Lora
    prefix: Prefix
    bottleneck: Bottleneck
    prompt: Prompt


UNIPELT_PROMPT: Components = {
    "lora": LORA,
    "prefix": PREFIX,
    "bottleneck": BOTTLENECK,
    "prompt": PROMPT,
}
LORA_UNGATED: Components = {"lora": Lora(rank=3, alpha=1.0, targets=ALL_TARGETS, gated=False)}
LORA_GATED: Components = {"lora": Lora(rank=3, alpha=1.0, targets=ALL_TARGETS, gated=True)}
BOTTLENECK_UNGATED: Components = {"bottleneck": Bottleneck(size=6, activation="relu", gated=False)}
BOTTLENECK_GATED: Components = {"bottleneck": Bottleneck(size=6, activation="relu", gated=True)}
LORA_UP = [f"lora.{target}.b" for target in ALL_TARGETS]
UP = ["bottleneck.up.weight", "bottleneck.up.bias"]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return write_tiny_backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="module")
def encoder(backbone: Backbone) -> Encoder:
    return load_encoder(backbone)


@pytest.fixture(scope="module")
def exact_encoder(backbone: Backbone) -> Encoder:
    return load_encoder(backbone, dtype=torch.float64)


@pytest.fixture(scope="module")
def rows(encoder: Encoder, backbone: Backbone) -> list[Row]:
    return mixed_rows(encoder, mixed_specs(backbone.identity), dtype=torch.float32)


@pytest.fixture(scope="module")
def alone(encoder: Encoder, rows: list[Row]) -> list[Tensor]:
    return [forward(encoder, [row])[0] for row in rows]


def worst(ones: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    return max(distance(one, other) for one, other in zip(ones, others, strict=True))


# Batch mates


def test_a_mixed_batch_equals_each_row_alone(
    encoder: Encoder, rows: list[Row], alone: list[Tensor]
) -> None:
    assert len({id(row.adapter) for row in rows}) == ROWS
    assert {min(lengths := [len(row.ids) for row in rows]), max(lengths)} == {3, 256}
    assert worst(forward(encoder, rows), alone) < FP32


@settings(max_examples=5, deadline=None, derandomize=True)
@given(order=st.permutations(range(ROWS)))
def test_permuting_the_rows_permutes_the_answers(
    encoder: Encoder, rows: list[Row], alone: list[Tensor], order: list[int]
) -> None:
    answers = forward(encoder, [rows[index] for index in order])
    assert worst(answers, [alone[index] for index in order]) < FP32


@settings(max_examples=15, deadline=None, derandomize=True)
@given(chosen=st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=ROWS))
def test_neighbours_that_come_leave_or_repeat_change_nothing(
    encoder: Encoder, rows: list[Row], alone: list[Tensor], chosen: list[int]
) -> None:
    answers = forward(encoder, [rows[index] for index in chosen])
    assert worst(answers, [alone[index] for index in chosen]) < FP32


@pytest.mark.parametrize(
    ("bucket_multiple", "token_multiple"), [(8, 1), (100, 1), (256, 1), (1, 64), (32, 4096)]
)
def test_rounding_lengths_up_changes_nothing(
    encoder: Encoder,
    rows: list[Row],
    alone: list[Tensor],
    bucket_multiple: int,
    token_multiple: int,
) -> None:
    answers = forward(encoder, rows, bucket_multiple=bucket_multiple, token_multiple=token_multiple)
    assert worst(answers, alone) < FP32


def test_a_mixed_batch_on_the_embedded_backbone_equals_each_row_alone() -> None:
    backbone = resolve_backbone()
    encoder = load_encoder(backbone)
    rows = mixed_rows(encoder, mixed_specs(backbone.identity), dtype=torch.float32, longest=24)
    with torch.inference_mode():
        alone = [forward(encoder, [row])[0] for row in rows]
        assert worst(forward(encoder, rows), alone) < FP32


def test_rows_of_one_adapter_share_it(encoder: Encoder, backbone: Backbone) -> None:
    adapter = ready(
        tiny_spec(backbone=backbone.identity, **UNIPELT_PROMPT), seed=0, dtype=torch.float32
    )
    rows = [random_row(encoder, adapter, length, seed=length) for length in LENGTHS]
    assert worst(forward(encoder, rows), [forward(encoder, [row])[0] for row in rows]) < FP32


# The peers' traps


def padded_states_against_the_loop(
    backbone: Backbone, exact_encoder: Encoder, spec: AdapterSpec
) -> float:
    """Run rows of several lengths as padded as can be; return the distance to the slow loop."""
    weights, tensors = load_tensors(backbone), torch_tensors(spec, 5)
    adapter = prepare(spec, tensors, dtype=torch.float64)
    rows = [random_row(exact_encoder, adapter, length, seed=length) for length in LENGTHS]
    states = last_hidden_states(exact_encoder, rows, bucket_multiple=64, token_multiple=256)
    return max(
        distance(
            ours,
            reference_hidden_states(weights, "bert", spec, tensors, row.ids, row.type_ids),
        )
        for ours, row in zip(states, rows, strict=True)
    )


@pytest.mark.parametrize(
    "components",
    [
        LORA_GATED,
        {"prefix": Prefix(length=4, gated=True)},
        {"prefix": Prefix(length=4, gated=True, gates="separate")},
        BOTTLENECK_GATED,
        UNIPELT_PROMPT,
    ],
    ids=lambda components: "+".join(components),
)
def test_gates_never_count_padding(
    backbone: Backbone, exact_encoder: Encoder, components: Components
) -> None:
    spec = tiny_spec(backbone=backbone.identity, **components)
    assert padded_states_against_the_loop(backbone, exact_encoder, spec) < EXACT


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda prompt: prompt.position)
@pytest.mark.parametrize("prefix", [None, PREFIX], ids=["alone", "behind a prefix"])
def test_prompt_vectors_never_attend_to_padding(
    backbone: Backbone, exact_encoder: Encoder, prompt: Prompt, prefix: Prefix | None
) -> None:
    spec = tiny_spec(backbone=backbone.identity, prompt=prompt, prefix=prefix)
    assert padded_states_against_the_loop(backbone, exact_encoder, spec) < EXACT


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda prompt: prompt.position)
def test_the_pooled_token_of_a_prompted_row_is_its_first_real_one(
    backbone: Backbone, exact_encoder: Encoder, prompt: Prompt
) -> None:
    spec = tiny_spec(backbone=backbone.identity, prompt=prompt)
    tensors = torch_tensors(spec, 2)
    adapter = prepare(spec, tensors, dtype=torch.float64)
    row = random_row(exact_encoder, adapter, 9, seed=1)
    states = reference_hidden_states(
        load_tensors(backbone), "bert", spec, tensors, row.ids, row.type_ids
    )
    expected = states[0] @ tensors["head.out.weight"].double().T + tensors["head.out.bias"].double()
    (logits,) = forward(exact_encoder, [row])
    assert distance(logits, expected) < EXACT


def test_the_prompt_has_no_answers_of_its_own(encoder: Encoder, backbone: Backbone) -> None:
    for prompt in (None, *PROMPTS):
        for head in (SPAN, TOKENS):
            spec = tiny_spec(backbone=backbone.identity, prompt=prompt, head=head)
            adapter = ready(spec, seed=0, dtype=torch.float32)
            (logits,) = forward(encoder, [random_row(encoder, adapter, 9, seed=1)])
            assert logits.shape == (9, head.outputs)


def test_no_row_is_answered_by_another_rows_adapter(encoder: Encoder, rows: list[Row]) -> None:
    same_text = [Row(ids=[2, 9, 11, 3], type_ids=[0] * 4, adapter=row.adapter) for row in rows]
    answers = forward(encoder, same_text)
    assert worst(answers, [forward(encoder, [row])[0] for row in same_text]) < FP32
    for index, answer in enumerate(answers):
        for other in answers[:index]:
            assert answer.shape != other.shape or distance(answer, other) > 100 * FP32


@pytest.mark.parametrize(
    "name",
    [
        "prompt",
        "prefix.keys",
        "prefix.values",
        "prefix.gate.weight",
        "lora.q.b",
        "lora.v.gate.bias",
        "bottleneck.up.bias",
        "bottleneck.gate.weight",
    ],
)
def test_no_tensor_of_a_row_is_ignored_in_a_mixed_batch_or_seen_by_another_row(
    encoder: Encoder, backbone: Backbone, rows: list[Row], alone: list[Tensor], name: str
) -> None:
    specs = mixed_specs(backbone.identity)
    index = next(
        i for i, spec in enumerate(specs) if spec.method == "lora_prefix_bottleneck_prompt"
    )
    tensors = torch_tensors(specs[index], index)
    tensors[name] = -10.0 * tensors[name]
    changed = list(rows)
    changed[index] = replace(
        rows[index], adapter=prepare(specs[index], tensors, dtype=torch.float32)
    )
    moved = [distance(*pair) for pair in zip(forward(encoder, changed), alone, strict=True)]
    assert moved.pop(index) > 2 * FP32
    assert max(moved) < FP32


# What adds nothing changes nothing


@pytest.mark.parametrize(
    ("components", "zeroed"),
    [
        (LORA_UNGATED, LORA_UP),
        (LORA_GATED, LORA_UP),
        (BOTTLENECK_UNGATED, UP),
        (BOTTLENECK_GATED, UP),
    ],
    ids=["lora", "gated lora", "bottleneck", "gated bottleneck"],
)
def test_a_zero_initialised_adapter_equals_the_bare_backbone(
    encoder: Encoder, backbone: Backbone, components: Components, zeroed: list[str]
) -> None:
    spec = tiny_spec(backbone=backbone.identity, **components)
    tensors = torch_tensors(spec, 3)
    learnt = prepare(spec, tensors, dtype=torch.float32)
    zeros = {name: torch.zeros_like(tensors[name]) for name in zeroed}
    initial = prepare(spec, tensors | zeros, dtype=torch.float32)
    bare = ready(tiny_spec(backbone=backbone.identity), seed=0, dtype=torch.float32)

    def states(adapter: PreparedAdapter) -> list[Tensor]:
        rows = [random_row(encoder, adapter, length, seed=length) for length in LENGTHS]
        return last_hidden_states(encoder, rows)

    assert worst(states(initial), states(bare)) < 1e-6  # adding zero rounds nothing
    assert worst(states(learnt), states(bare)) > 1e-2


# Fusing


def test_rows_are_fused_by_adapter_and_adapters_by_structure(
    encoder: Encoder, backbone: Backbone
) -> None:
    lora = tiny_spec(backbone=backbone.identity, **LORA_GATED)
    other = tiny_spec(backbone=backbone.identity)
    first, second, third = (
        ready(spec, seed=seed, dtype=torch.float32) for seed, spec in enumerate((lora, lora, other))
    )
    adapters = [first, second, third] * 4
    batch = pack([random_row(encoder, a, 3 + i, seed=i) for i, a in enumerate(adapters)])
    segments = [[part.adapter for part in group.segments] for group in batch.groups]
    assert sorted(map(len, segments)) == [1, 2]
    assert {id(adapter) for group in segments for adapter in group} == {*map(id, adapters)}


# As few kernels as can be, for GPUs


def test_one_product_for_all_adapters_gives_what_one_each_gives(
    backbone: Backbone, exact_encoder: Encoder
) -> None:
    specs = mixed_specs(backbone.identity) * 2  # two adapters of each kind
    rows = mixed_rows(exact_encoder, specs, dtype=torch.float64, longest=64)
    rows += rows[::2]  # some have two rows
    groups = pack(rows, is_rectangular=True).groups
    assert all(group.rectangle is not None for group in groups)
    one_each = last_hidden_states(exact_encoder, rows)
    together = last_hidden_states(exact_encoder, rows, bucket_multiple=64, is_rectangular=True)
    assert worst(together, one_each) < EXACT


def test_a_rectangle_of_padding_is_left_out(encoder: Encoder, backbone: Backbone) -> None:
    spec = tiny_spec(backbone=backbone.identity, **LORA_GATED)
    adapters = [ready(spec, seed=seed, dtype=torch.float32) for seed in range(20)]
    lengths = [300] + [3] * 19
    rows = [
        random_row(encoder, adapter, length, seed=0)
        for adapter, length in zip(adapters, lengths, strict=True)
    ]
    assert pack(rows, is_rectangular=True).groups[0].rectangle is None
    assert pack(rows[1:], is_rectangular=True).groups[0].rectangle is not None


class Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Counts what torch is asked for."""

    count = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_more_adapters_are_hardly_more_kernels(encoder: Encoder, backbone: Backbone) -> None:
    spec = tiny_spec(backbone=backbone.identity, **UNIPELT_PROMPT)
    counts = []
    for adapters in (2, 32):
        prepared = [ready(spec, seed=seed, dtype=torch.float32) for seed in range(adapters)]
        rows = [random_row(encoder, prepared[i % adapters], 5 + i, seed=i) for i in range(32)]
        batch = pack(rows, bucket_multiple=64, is_rectangular=True)
        hidden = embed(encoder, batch)
        with torch.inference_mode(), Operators() as operators:  # type: ignore[no-untyped-call]  # as its class
            run_layers(encoder, batch, hidden)
        counts.append(operators.count)
    assert counts[0] == counts[1]


# Precision


def test_batch_mates_move_an_answer_in_bf16_only_by_its_rounding(
    backbone: Backbone, alone: list[Tensor]
) -> None:
    halves = load_encoder(backbone, dtype=torch.bfloat16)
    rows = mixed_rows(halves, mixed_specs(backbone.identity), dtype=torch.bfloat16)
    half_alone = [forward(halves, [row])[0] for row in rows]
    assert {logits.dtype for logits in half_alone} == {torch.float32}
    assert worst(forward(halves, rows), half_alone) < BF16_MATES
    assert worst(forward(halves, rows, **PADDED), half_alone) < BF16_MATES
    assert worst(half_alone, alone) < BF16


# Memory


def test_an_adapter_knows_its_size(backbone: Backbone) -> None:
    bare = ready(tiny_spec(backbone=backbone.identity), seed=0, dtype=torch.float32)
    assert bare.size_bytes() == 4 * (2 * 32 + 2)
    for components in (LORA_GATED, BOTTLENECK_GATED, {"prefix": PREFIX}, {"prompt": PROMPT}):
        spec = tiny_spec(backbone=backbone.identity, **components)
        stored_bytes = sum(tensor.nbytes for tensor in torch_tensors(spec, 0).values())
        assert ready(spec, seed=0, dtype=torch.float32).size_bytes() >= stored_bytes
