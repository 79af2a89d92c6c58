"""Stacked blocks against a slow loop over the blocks, and beside other adapters in one batch."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from upt_testing.adapters import BOTTLENECK, LORA, PREFIX, PROMPT, random_tensors, tiny_spec
from upt_testing.backbones import write_tiny_backbone
from upt_testing.reference import Hidden, RowReference
from upt_zoo.backbone import Backbone
from upt_zoo.nn.adapter import PreparedAdapter, prepare
from upt_zoo.nn.encoder import build_encoder, load_tensors
from upt_zoo.nn.forward import forward
from upt_zoo.nn.packing import Row
from upt_zoo.nn.stacking import stack
from upt_zoo.spec import AdapterSpec, LoraTarget

IDS = ([2, 7, 9, 30, 3], [2, 40, 3], [2, *range(5, 30), 3])
UNION = {"lora": LORA, "prefix": PREFIX, "bottleneck": BOTTLENECK}
EVERYWHERE = LORA.model_copy(update={"targets": ("q", "k", "o", "ffn_up", "ffn_down")})
SPECS: dict[str, dict[str, Any]] = {
    "unipelt": UNION,
    "separate gates": UNION | {"prefix": PREFIX.model_copy(update={"gates": "separate"})},
    "no gates": {name: part.model_copy(update={"gated": False}) for name, part in UNION.items()},
    "all linears": UNION | {"lora": EVERYWHERE, "prompt": PROMPT},
    "prefix": {"prefix": PREFIX},
    "bottleneck": {"bottleneck": BOTTLENECK},
}


class _Stack:
    """The formulas in the module's first lines, one block after the other, for one row."""

    def __init__(self, blocks: list[RowReference]) -> None:
        self.blocks, self.first = blocks, blocks[0]
        self.bare = replace(self.first, spec=self.first.spec.model_copy(update={"lora": None}))

    def hidden_states(self, ids: list[int]) -> Hidden:
        x = self.first.put_prompt(self.first.embed(ids, [0] * len(ids), 0))
        for layer in range(self.first.spec.backbone.layers):
            x = self.feed_forward(layer, self.attend(layer, x))
        return self.first.take_real_tokens(x)

    def linear(self, layer: int, target: LoraTarget, x: Hidden) -> Hidden:
        y = self.bare.linear(layer, target, x)
        return y + torch.stack([block.linear(layer, target, x) - y for block in self.blocks]).sum(0)

    def with_prefixes(self, layer: int, part: str, h: Hidden, own: Hidden) -> Hidden:
        prefixes = [block.prefix(layer, part, h, own[:0]) for block in self.blocks]
        return torch.cat([*prefixes, own])

    def attend(self, layer: int, h: Hidden) -> Hidden:
        query = self.linear(layer, "q", h)
        key = self.with_prefixes(layer, "keys", h, self.linear(layer, "k", h))
        value = self.with_prefixes(layer, "values", h, self.linear(layer, "v", h))
        size = self.first.spec.backbone.hidden // self.first.spec.backbone.heads
        heads = zip(*(torch.split(x, size, 1) for x in (query, key, value)), strict=True)
        context = torch.cat([(q @ k.T / size**0.5).softmax(1) @ v for q, k, v in heads], 1)
        norm = f"encoder.layer.{layer}.attention.output.LayerNorm"
        return self.first.layer_norm(norm, self.linear(layer, "o", context) + h)

    def feed_forward(self, layer: int, x1: Hidden) -> Hidden:
        norm = f"encoder.layer.{layer}.output.LayerNorm"
        f = self.linear(layer, "ffn_down", F.gelu(self.linear(layer, "ffn_up", x1)))
        if self.first.spec.bottleneck is not None:
            for block in self.blocks:
                xa = block.layer_norm(norm, f + x1)
                f = f + block.bottleneck(layer, xa, self.first.spec.bottleneck)
        return self.first.layer_norm(norm, f + x1)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return write_tiny_backbone(tmp_path_factory.mktemp("backbone"))


def spec_of(backbone: Backbone, name: str) -> AdapterSpec:
    return tiny_spec(backbone=backbone.identity, **SPECS[name])


def blocks_of(spec: AdapterSpec, count: int) -> list[dict[str, Tensor]]:
    """Draw the tensors of all blocks; only the first one's prompt and head are used."""
    drawn = [random_tensors(spec, seed) for seed in range(count)]
    return [{name: torch.from_numpy(t).double() for name, t in each.items()} for each in drawn]


def prepared(spec: AdapterSpec, blocks: list[dict[str, Tensor]]) -> PreparedAdapter:
    return stack([prepare(spec, tensors, dtype=torch.float64) for tensors in blocks])


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("name", SPECS)
def test_stacked_blocks_compute_what_a_loop_over_them_does(
    backbone: Backbone, name: str, count: int
) -> None:
    spec, weights = spec_of(backbone, name), load_tensors(backbone)
    blocks = blocks_of(spec, count)
    encoder = build_encoder(backbone.config, weights, dtype=torch.float64)
    adapter = prepared(spec, blocks)
    got = forward(encoder, [Row(ids=i, type_ids=[0] * len(i), adapter=adapter) for i in IDS])
    wide = {name: tensor.double() for name, tensor in weights.items()}
    slow = _Stack([RowReference(backbone=wide, spec=spec, tensors=t, eps=1e-12) for t in blocks])
    for ids, logits in zip(IDS, got, strict=True):
        cls = slow.hidden_states(ids)[0]
        expected = cls @ blocks[0]["head.out.weight"].T + blocks[0]["head.out.bias"]
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)


def test_one_block_is_the_adapter_itself(backbone: Backbone) -> None:
    spec = spec_of(backbone, "unipelt")
    encoder = build_encoder(backbone.config, load_tensors(backbone), dtype=torch.float64)
    (tensors,) = blocks_of(spec, 1)
    alone, single = prepare(spec, tensors, dtype=torch.float64), prepared(spec, [tensors])
    assert single.structure == alone.structure
    rows = [Row(ids=IDS[0], type_ids=[0] * 5, adapter=each) for each in (alone, single)]
    assert torch.equal(*(forward(encoder, [row])[0] for row in rows))


def test_a_stack_beside_other_adapters_answers_as_alone(backbone: Backbone) -> None:
    encoder = build_encoder(backbone.config, load_tensors(backbone), dtype=torch.float64)
    specs = [spec_of(backbone, name) for name in ("unipelt", "prefix", "bottleneck")]
    adapters = [prepared(specs[0], blocks_of(specs[0], 3))]
    adapters += [prepared(spec, blocks_of(spec, 1)) for spec in specs]
    rows = [Row(ids=i, type_ids=[0] * len(i), adapter=a) for a in adapters for i in IDS]
    for row, mixed in zip(rows, forward(encoder, rows), strict=True):
        torch.testing.assert_close(mixed, forward(encoder, [row])[0], rtol=0, atol=1e-10)


def test_a_stack_holds_what_its_blocks_hold(backbone: Backbone) -> None:
    spec = spec_of(backbone, "unipelt")
    parts = [prepare(spec, tensors, dtype=torch.float64) for tensors in blocks_of(spec, 3)]
    heads = sum(tensor.nbytes for part in parts[1:] for tensor in part.head.out)
    assert stack(parts).size_bytes() == sum(part.size_bytes() for part in parts) - heads
