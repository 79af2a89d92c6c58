"""A batch as mixed as it gets: thirty-eight rows, each with an adapter of its own, of all kinds."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from upt_testing.adapters import (
    CLASSIFICATION,
    EMBEDDING,
    MULTI_LABEL,
    REGRESSION,
    SPAN,
    TOKENS,
    random_tensors,
    tiny_spec,
)
from upt_zoo.nn.adapter import PreparedAdapter, prepare
from upt_zoo.nn.encoder import Encoder
from upt_zoo.nn.layers import embed, run_layers
from upt_zoo.nn.packing import Row, pack
from upt_zoo.spec import (
    AdapterSpec,
    BackboneIdentity,
    Bottleneck,
    Head,
    Lora,
    LoraTarget,
    Prefix,
    Prompt,
)

ROWS = 38
ALL_TARGETS: tuple[LoraTarget, ...] = ("q", "k", "v", "o", "ffn_up", "ffn_down")
FIVE = Head(kind="classification", outputs=5, labels=("a", "b", "c", "d", "e"))
MEAN = CLASSIFICATION.model_copy(update={"pooling": "mean"})
DEEP = CLASSIFICATION.model_copy(update={"layers": 2})
DEEP_MEAN = REGRESSION.model_copy(update={"layers": 2, "pooling": "mean"})
DEEP_SPAN = SPAN.model_copy(update={"layers": 2})
DEEP_TOKENS = TOKENS.model_copy(update={"layers": 2})
CLS_EMBEDDING = EMBEDDING.model_copy(update={"pooling": "cls", "normalised": False})


def mixed_specs(backbone: BackboneIdentity) -> list[AdapterSpec]:
    """Return ``ROWS`` specs; some share a structure, so that groups have several segments."""
    specs = _bare(backbone) + _single(backbone) + _unions(backbone)
    assert len(specs) == ROWS
    return specs


def mixed_rows(
    encoder: Encoder, specs: Sequence[AdapterSpec], *, dtype: torch.dtype, longest: int = 256
) -> list[Row]:
    """Give each spec a row of 3 to ``longest`` random tokens and random tensors."""
    source = np.random.RandomState(len(specs))
    lengths = [3, longest, 3, 17, 17, *source.randint(3, longest + 1, len(specs))][: len(specs)]
    return [
        random_row(encoder, ready(spec, seed=index, dtype=dtype), int(length), seed=index)
        for index, (spec, length) in enumerate(zip(specs, lengths, strict=True))
    ]


def random_row(encoder: Encoder, adapter: PreparedAdapter, length: int, *, seed: int) -> Row:
    """Draw token ids; the second half is of type 1 where the backbone has it."""
    source = np.random.RandomState(seed)
    has_types = encoder.config.type_vocab_size > 1
    return Row(
        ids=source.randint(0, encoder.config.vocab_size, length).tolist(),
        type_ids=[int(has_types and place > length // 2) for place in range(length)],
        adapter=adapter,
    )


def ready(spec: AdapterSpec, *, seed: int, dtype: torch.dtype) -> PreparedAdapter:
    """Prepare an adapter of random tensors."""
    return prepare(spec, torch_tensors(spec, seed), dtype=dtype)


def torch_tensors(spec: AdapterSpec, seed: int) -> dict[str, Tensor]:
    """Draw an adapter's tensors for torch."""
    return {name: torch.from_numpy(array) for name, array in random_tensors(spec, seed).items()}


def last_hidden_states(
    encoder: Encoder,
    rows: Sequence[Row],
    *,
    bucket_multiple: int = 1,
    token_multiple: int = 1,
    is_rectangular: bool = False,
) -> list[Float[Tensor, "real hidden"]]:
    """Run one mixed batch; return the states of each row's real tokens, in the rows' order."""
    batch = pack(
        rows,
        bucket_multiple=bucket_multiple,
        token_multiple=token_multiple,
        is_rectangular=is_rectangular,
    )
    hidden = run_layers(encoder, batch, embed(encoder, batch))[batch.real_tokens]
    states = [hidden] * len(rows)
    for packed, place in enumerate(batch.order):
        states[place] = hidden[batch.starts[packed] : batch.starts[packed + 1]]
    return states


def distance(one: Tensor, other: Tensor) -> float:
    """Return the largest absolute difference of two tensors of one shape; never NaN."""
    assert one.shape == other.shape
    difference = (one - other).abs().max().item()
    assert math.isfinite(difference)
    return difference


def _bare(backbone: BackboneIdentity) -> list[AdapterSpec]:
    heads = (CLASSIFICATION, REGRESSION, SPAN, MEAN, DEEP, TOKENS, EMBEDDING)
    return [tiny_spec(backbone=backbone, head=head) for head in heads]


def _single(backbone: BackboneIdentity) -> list[AdapterSpec]:
    """Adapters of one component."""
    loras = [
        (_lora(8, "q", "v", gated=True), CLASSIFICATION),
        (_lora(4, "q", "v", gated=False), SPAN),
        (_lora(2, *ALL_TARGETS, gated=True), FIVE),
        (_lora(3, *ALL_TARGETS, gated=False), MEAN),
        (_lora(4, "o", gated=True), CLASSIFICATION),
        (_lora(4, "ffn_up", gated=False), REGRESSION),
        (_lora(4, "ffn_down", gated=True), DEEP),
        (_lora(1, "v", "k", "q", gated=True), CLASSIFICATION),
    ]
    prefixes = [
        (Prefix(length=5, gated=True), CLASSIFICATION),
        (Prefix(length=3, gated=True, gates="separate"), SPAN),
        (Prefix(length=20, gated=False), DEEP_MEAN),
    ]
    prompts = [
        (Prompt(length=4), CLASSIFICATION),
        (Prompt(length=4, position="after_cls"), MULTI_LABEL),
        (Prompt(length=10), DEEP_SPAN),
    ]
    bottlenecks = [
        (Bottleneck(size=2, activation="relu", gated=True), CLASSIFICATION),
        (Bottleneck(size=4, activation="gelu", gated=False), SPAN),
        (Bottleneck(size=8, activation="silu", gated=True), MEAN),
        (Bottleneck(size=3, activation="tanh", gated=False), MULTI_LABEL),
    ]
    return [
        *(tiny_spec(backbone=backbone, lora=lora, head=head) for lora, head in loras),
        *(tiny_spec(backbone=backbone, prefix=prefix, head=head) for prefix, head in prefixes),
        *(tiny_spec(backbone=backbone, prompt=prompt, head=head) for prompt, head in prompts),
        *(tiny_spec(backbone=backbone, bottleneck=part, head=head) for part, head in bottlenecks),
    ]


def _unions(backbone: BackboneIdentity) -> list[AdapterSpec]:
    """UniPELT, UniPELT+Prompt, and unions that nobody would train."""
    lora, prefix = _lora(8, "q", "v", gated=True), Prefix(length=10, gated=True)
    bottleneck = Bottleneck(size=6, activation="relu", gated=True)

    def union(head: Head, prompt: Prompt | None) -> AdapterSpec:
        return tiny_spec(
            backbone=backbone,
            lora=lora,
            prefix=prefix,
            bottleneck=bottleneck,
            prompt=prompt,
            head=head,
        )

    odd = [
        tiny_spec(
            backbone=backbone,
            lora=_lora(4, "o", "k", gated=False),
            prefix=Prefix(length=2, gated=True, gates="separate"),
            prompt=Prompt(length=3, position="after_cls"),
            head=SPAN,
        ),
        tiny_spec(
            backbone=backbone,
            lora=_lora(2, *ALL_TARGETS, gated=True),
            prefix=Prefix(length=4, gated=False),
            bottleneck=Bottleneck(size=5, activation="tanh", gated=False),
            prompt=Prompt(length=1),
            head=DEEP,
        ),
    ]
    with_prompt = [
        union(head, Prompt(length=10)) for head in (CLASSIFICATION, SPAN, MEAN, CLASSIFICATION)
    ]
    return [
        union(CLASSIFICATION, None),
        union(DEEP_SPAN, None),
        *with_prompt,
        union(MEAN, Prompt(length=5, position="after_cls")),
        union(TOKENS, Prompt(length=10)),
        union(DEEP_TOKENS, None),
        union(EMBEDDING, Prompt(length=10)),
        union(CLS_EMBEDDING, None),
        *odd,
    ]


def _lora(rank: int, *targets: LoraTarget, gated: bool) -> Lora:
    return Lora(rank=rank, alpha=3.0 * rank, targets=targets, gated=gated)
