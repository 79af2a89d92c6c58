"""Does training pay for sharing the server's code path? A training step, ours beside a plain one.

    python benchmarks/training_path.py

Ours packs rows and goes through ``upt_zoo.nn.forward``. The plain step computes the same UniPELT+
Prompt adapter over rows padded to the batch's longest, with the same prepacked linear layers and
nothing that several adapters would need. Both run forward and backward on the same random rows,
interleaved; losses and gradients are compared first. Prints JSON: seconds a step and their ratio.
"""

import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict

import torch
from torch import Tensor
from torch.nn import functional

from upt_benchmarks.machine import this_machine
from upt_benchmarks.timing import clocked, measure_rounds, middle
from upt_benchmarks.workloads import UNION, adapter_spec
from upt_zoo.backbone import resolve_backbone
from upt_zoo.layout import tensor_shapes
from upt_zoo.nn.adapter import LowRank, PreparedLayer, prepare
from upt_zoo.nn.encoder import Encoder, EncoderLayer, load_encoder
from upt_zoo.nn.forward import forward
from upt_zoo.nn.packing import Row
from upt_zoo.spec import AdapterSpec

ROWS, STEPS, WARMUP = 32, 20, 5
LENGTHS = {"13": (8, 18), "70": (40, 100)}  # SST-2's and RTE's mean lengths, in real tokens


def main() -> int:
    """Measure and print."""
    backbone = resolve_backbone()
    encoder = load_encoder(backbone)
    spec = adapter_spec(UNION, backbone.identity)
    torch.manual_seed(0)
    weights = {
        name: (0.05 * torch.randn(shape)).requires_grad_()
        for name, shape in tensor_shapes(spec).items()
    }
    result = {
        "machine": asdict(this_machine()),
        "threads": torch.get_num_threads(),
        "rows": ROWS,
        "steps": STEPS,
        "mean_tokens": {name: measure(encoder, spec, weights, *of) for name, of in LENGTHS.items()},
    }
    sys.stdout.write(json.dumps(result, indent=2) + "\n")
    return 0


def measure(
    encoder: Encoder, spec: AdapterSpec, weights: dict[str, Tensor], shortest: int, longest: int
) -> dict[str, float]:
    """Return the median seconds a step of both ways, and packed / plain."""
    lengths = torch.randint(shortest, longest + 1, (ROWS,)).tolist()
    rows = [torch.randint(1000, 30000, (length,)).tolist() for length in lengths]
    labels = torch.randint(0, 2, (ROWS,))
    packed = step(weights, labels, lambda: packed_logits(encoder, spec, weights, rows))
    plain = step(weights, labels, lambda: plain_logits(encoder, spec, weights, rows))
    check_equal(weights, packed, plain)
    ways = {"packed": clocked(packed), "plain": clocked(plain)}
    rounds = measure_rounds(ways, ways, rounds=STEPS, budget_s=0, warm_ups=WARMUP)
    medians = {
        name: round(middle(list(times.values())) / 1000, 5) for name, times in rounds.times.items()
    }
    return {**medians, "packed / plain": round(medians["packed"] / medians["plain"], 3)}


def step(
    weights: dict[str, Tensor], labels: Tensor, logits: Callable[[], Tensor]
) -> Callable[[], float]:
    """Return a function that runs forward and backward and returns the loss."""

    def run() -> float:
        for weight in weights.values():
            weight.grad = None
        loss = functional.cross_entropy(logits(), labels)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return float(loss.detach())

    return run


def check_equal(
    weights: dict[str, Tensor], packed: Callable[[], float], plain: Callable[[], float]
) -> None:
    """Stop if the two ways do not compute the same loss and gradients."""
    losses, gradients = [], []
    for run in (packed, plain):
        losses.append(run())
        gradients.append(
            torch.cat([w.grad.flatten() for w in weights.values() if w.grad is not None])
        )
    difference = (gradients[0] - gradients[1]).abs().max() / gradients[0].abs().max()
    if abs(losses[0] - losses[1]) > 1e-4 or difference > 1e-3:
        raise SystemExit(f"the two ways differ: losses {losses}, gradients {difference:.1e}")


def packed_logits(
    encoder: Encoder, spec: AdapterSpec, weights: dict[str, Tensor], rows: Sequence[list[int]]
) -> Tensor:
    """The path of training and serving, with the multiples that training uses."""
    adapter = prepare(spec, weights, dtype=encoder.dtype)
    batch = [Row(ids=ids, type_ids=[0] * len(ids), adapter=adapter) for ids in rows]
    return torch.stack(forward(encoder, batch, bucket_multiple=512, token_multiple=64))


def plain_logits(
    encoder: Encoder, spec: AdapterSpec, weights: dict[str, Tensor], rows: Sequence[list[int]]
) -> Tensor:
    """One adapter over padded rows, [row, token, hidden] all the way."""
    adapter = prepare(spec, weights, dtype=encoder.dtype)
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    embedded = encoder.embeddings(ids, positions, torch.zeros_like(ids))
    prompt = adapter.prompt
    if prompt is None:
        raise SystemExit("the benchmark's adapter has a prompt")
    hidden = torch.cat([prompt.expand(len(rows), -1, -1), embedded], 1)
    lengths = torch.tensor([len(row) for row in rows])
    is_there = torch.arange(hidden.shape[1]) < (lengths + adapter.prompt_length)[:, None]
    for layer, part in zip(encoder.layers, adapter.layers, strict=True):
        hidden = plain_layer(encoder, layer, part, hidden, is_there)
    return functional.linear(hidden[:, adapter.prompt_length], *adapter.head.out)


def plain_layer(
    encoder: Encoder, layer: EncoderLayer, part: PreparedLayer, hidden: Tensor, is_there: Tensor
) -> Tensor:
    """One layer with gated LoRA on q and v, gated prefix and gated bottleneck."""
    low_rank, bottleneck = part.attention_in, part.bottleneck
    if low_rank is None or bottleneck is None:
        raise SystemExit("the benchmark's adapter has all components")
    if part.prefix_keys is None or part.prefix_values is None:
        raise SystemExit("the benchmark's adapter has all components")
    low, gates = down(low_rank, hidden, is_there)
    low = low * gates[:, :2].repeat_interleave(low.shape[2] // 2, 1)[:, None]
    qkv = layer.qkv(hidden) + low @ low_rank.up
    heads = encoder.config.num_attention_heads
    query, key, value = (split_heads(x, heads) for x in qkv.chunk(3, 2))
    gate = gates[:, 2, None, None]
    key = torch.cat([split_heads(gate * part.prefix_keys, heads), key], 2)
    value = torch.cat([split_heads(gate * part.prefix_values, heads), value], 2)
    mask = functional.pad(is_there, (part.prefix_keys.shape[0], 0), value=True)[:, None, None]
    scores = query @ key.transpose(2, 3) / math.sqrt(query.shape[3])
    context = torch.softmax(scores.masked_fill(~mask, -math.inf), 3) @ value
    out = layer.attention_out(context.transpose(1, 2).flatten(2))
    x1 = layer.attention_norm(out + hidden)
    residual = layer.ffn_down(functional.gelu(layer.ffn_up(x1))) + x1
    low, gates = down(bottleneck, layer.ffn_norm(residual), is_there)
    raised = torch.relu(low) @ bottleneck.up[:-1] + bottleneck.up[-1]
    return layer.ffn_norm(residual + gates[:, :, None] * raised)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[row, token, hidden] to [row, heads, token, head size]."""
    return x.view(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


def down(part: LowRank, x: Tensor, is_there: Tensor) -> tuple[Tensor, Tensor]:
    """Return [row, token, R] and the gates [row, gate], averaged over what is there."""
    low = x @ part.down + part.bias
    width = low.shape[2] - part.gates
    values = torch.sigmoid(low[:, :, width:]) * is_there[:, :, None]
    return low[:, :, :width], values.sum(1) / is_there.sum(1, keepdim=True)


if __name__ == "__main__":
    sys.exit(main())
