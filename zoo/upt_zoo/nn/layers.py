"""The layers' maths over a packed batch, adapters included: section 3 of docs/architecture.md.

Sources: Mao et al. 2022 (UniPELT), arXiv 2110.07577, section 3; Houlsby et al. 2019 and Pfeiffer
et al. 2021 (bottleneck); Li and Liang 2021 (prefix); Hu et al. 2022 (LoRA); Lester et al. 2021
(prompt); Chen et al. 2024, arXiv 2405.05493 (UniPELT with a prompt).
"""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from upt_zoo.nn.adapter import LowRank, PreparedLayer
from upt_zoo.nn.dropout import drop
from upt_zoo.nn.encoder import Encoder, EncoderLayer
from upt_zoo.nn.packing import Batch, Bucket, Group, Rectangle

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "tanh": torch.tanh,
    "gelu_new": lambda x: functional.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: functional.gelu(x, approximate="tanh"),
}
# torch's flash attention on CPUs costs more than explicit products below this many keys, and in
# half precision always (docs/decisions/log.md)
_FLASH_FROM_KEYS = 64


def embed(encoder: Encoder, batch: Batch) -> Float[Tensor, "token hidden"]:
    """Return H₀: embedded real tokens with the prompts put in their places.

    Positions and types count real tokens only; prompt vectors are raw.
    """
    real = encoder.embeddings(batch.ids, batch.positions, batch.type_ids).to(encoder.dtype)
    prompts = [
        segment.adapter.prompt
        for group in batch.groups
        for segment in group.segments
        if segment.adapter.prompt is not None
    ]
    return torch.cat([real, *prompts]).index_select(0, batch.sources)


def run_layers(
    encoder: Encoder,
    batch: Batch,
    hidden: Float[Tensor, "token hidden"],
    *,
    dropout: float = 0.0,
    observe: Callable[[int, Float[Tensor, "row gate"]], None] | None = None,
) -> Float[Tensor, "token hidden"]:
    """Run all layers over H₀, the result of ``embed``.

    ``dropout`` drops the outputs of the embeddings, of attention and of the FFN, as the encoders
    were trained; leave it at 0 outside training. ``observe`` is told the index of the layer and the
    gates of each low-rank product, group after group, in the order in which they are computed.
    """
    hidden = drop(hidden, dropout)
    for index, layer in enumerate(encoder.layers):
        part = _LayerOfBatch(encoder, layer, batch, index, dropout)
        part.observe = observe
        hidden = _run_layer(part, hidden)
    return hidden


class _LayerOfBatch:
    """One layer with what the batch brings to it."""

    def __init__(
        self, encoder: Encoder, layer: EncoderLayer, batch: Batch, index: int, dropout: float
    ) -> None:
        self.weights = layer
        self.batch = batch
        self.heads = encoder.config.num_attention_heads
        self.activation = _ACTIVATIONS[encoder.config.hidden_act]
        self._index, self._dropout = index, dropout
        self.observe: Callable[[int, Tensor], None] | None = None

    def note(self, gates: Float[Tensor, "row gate"] | None) -> None:
        if self.observe is not None and gates is not None:
            self.observe(self._index, gates)

    def drop(self, x: Float[Tensor, "token hidden"]) -> Float[Tensor, "token hidden"]:
        return drop(x, self._dropout)

    def of(self, group: Group) -> list[PreparedLayer]:
        """This layer of each of the group's adapters."""
        return [segment.adapter.layers[self._index] for segment in group.segments]


def _run_layer(
    layer: _LayerOfBatch, hidden: Float[Tensor, "token hidden"]
) -> Float[Tensor, "token hidden"]:
    weights = layer.weights
    context = _attend(layer, hidden)
    out = _add_lora(layer, "attention_out", context, weights.attention_out(context))
    x1 = weights.attention_norm(layer.drop(out) + hidden)
    up = _add_lora(layer, "ffn_up", x1, weights.ffn_up(x1))
    inner = layer.activation(up)
    down = layer.drop(_add_lora(layer, "ffn_down", inner, weights.ffn_down(inner)))
    residual = down + x1
    for block in range(max(group.structure.bottlenecks for group in layer.batch.groups)):
        residual = _add_bottleneck(layer, block, weights.ffn_norm(residual), residual)
    return weights.ffn_norm(residual)


def _add_lora(
    layer: _LayerOfBatch,
    site: str,
    x: Float[Tensor, "token input"],
    y: Float[Tensor, "token output"],
) -> Float[Tensor, "token output"]:
    """Add the LoRA of a site with a single target to its linear layer's output."""
    changed = []
    for group in layer.batch.groups:
        parts = _present([getattr(part, site) for part in layer.of(group)])
        if parts:
            product, gates = _low_rank(group, parts, _part(x, group.tokens), _part(y, group.tokens))
            layer.note(gates)
            changed.append((group, product))
    return _replace(y, changed)


def _attend(
    layer: _LayerOfBatch, hidden: Float[Tensor, "token hidden"]
) -> Float[Tensor, "token hidden"]:
    """Return the attention context in packed order."""
    qkv = layer.weights.qkv(hidden)
    changed, prefix_gates = [], {}
    for index, group in enumerate(layer.batch.groups):
        parts = _present([part.attention_in for part in layer.of(group)])
        if parts:
            x, y = _part(hidden, group.tokens), _part(qkv, group.tokens)
            product, gates = _low_rank(group, parts, x, y)
            layer.note(gates)
            changed.append((group, product))
            prefix_gates[index] = _gates_of_prefix(group, gates)
    qkv = _replace(qkv, changed)
    contexts = [
        _attend_bucket(layer.heads, qkv, bucket, prefix)
        for index, group in enumerate(layer.batch.groups)
        for prefix in [_prefix_of_rows(group, layer.of(group), prefix_gates.get(index))]
        for bucket in group.buckets
    ]
    return torch.cat(contexts).index_select(0, layer.batch.unbucket)


def _low_rank(
    group: Group,
    parts: Sequence[LowRank],
    x: Float[Tensor, "token input"],
    y: Float[Tensor, "token output"],
) -> tuple[Float[Tensor, "token output"], Float[Tensor, "row gate"] | None]:
    """Return (y + gated low-rank product, gates or None), LoRA's gates before the prefix's."""
    low, gates = _down(group, parts, x)
    if gates is None:
        return _up(group, parts, y, low), None
    structure = group.structure
    lora_gates = low.shape[1] // structure.lora_rank if structure.is_lora_gated else 0
    if lora_gates:
        per_column = gates[:, :lora_gates].repeat_interleave(structure.lora_rank, 1)
        low = low * per_column.to(low.dtype).index_select(0, group.row_of_token)
    return _up(group, parts, y, low) if low.shape[1] else y, gates


def _gates_of_prefix(
    group: Group, gates: Float[Tensor, "row gate"] | None
) -> Float[Tensor, "row _"] | None:
    count = group.structure.prefix_gates * group.structure.blocks
    return gates[:, -count:] if gates is not None and count else None


def _add_bottleneck(
    layer: _LayerOfBatch,
    block: int,
    adapted: Float[Tensor, "token hidden"],
    residual: Float[Tensor, "token hidden"],
) -> Float[Tensor, "token hidden"]:
    """Return f + g u + x₁ where u = W_up act(W_down x_a + b_down) + b_up and residual = f + x₁."""
    changed = []
    for group in layer.batch.groups:
        parts = _present([part.nth_bottleneck(block) for part in layer.of(group)])
        if parts:
            low, gates = _down(group, parts, _part(adapted, group.tokens))
            layer.note(gates)
            low = _ACTIVATIONS[group.structure.bottleneck_activation](low)
            low = torch.cat([low, low.new_ones(low.shape[0], 1)], 1)
            if gates is not None:
                low = low * gates.to(low.dtype).index_select(0, group.row_of_token)
            changed.append((group, _up(group, parts, _part(residual, group.tokens), low)))
    return _replace(residual, changed)


def _down(
    group: Group, parts: Sequence[LowRank], x: Float[Tensor, "token input"]
) -> tuple[Float[Tensor, "token rank"], Float[Tensor, "row gate"] | None]:
    """Return (x down, gates or None).

    A gate is the mean over the row's own tokens, prompt included, of sigmoid(x w + b).
    """
    if group.rectangle is not None:
        bias = torch.stack([part.bias for part in parts]).index_select(0, group.segment_of_row)
        low = _by_row(group, group.rectangle, x, [part.down for part in parts])
        low = low + bias.index_select(0, group.row_of_token)
    else:
        first = group.tokens.start
        low = _join(
            [
                torch.addmm(part.bias, _part(x, _shift(segment.tokens, first)), part.down)
                for part, segment in zip(parts, group.segments, strict=True)
            ]
        )
    if not parts[0].gates:
        return low, None
    width = low.shape[1] - parts[0].gates
    return low[:, :width], _row_means(group, torch.sigmoid(low[:, width:]))


def _up(
    group: Group,
    parts: Sequence[LowRank],
    y: Float[Tensor, "token output"],
    low: Float[Tensor, "token rank"],
) -> Float[Tensor, "token output"]:
    """Return y + low up, each segment with its own ``up``."""
    if group.rectangle is not None:
        return y + _by_row(group, group.rectangle, low, [part.up for part in parts])
    first = group.tokens.start
    slices = [_shift(segment.tokens, first) for segment in group.segments]
    return _join(
        [
            torch.addmm(_part(y, where), _part(low, where), part.up)
            for part, where in zip(parts, slices, strict=True)
        ]
    )


def _by_row(
    group: Group, rectangle: Rectangle, x: Float[Tensor, "token input"], weights: Sequence[Tensor]
) -> Float[Tensor, "token output"]:
    """Return x W with the W of each row's own segment, as one product."""
    own = torch.stack(list(weights)).index_select(0, group.segment_of_row)
    padded = x.index_select(0, rectangle.tokens).view(own.shape[0], rectangle.length, -1)
    return torch.bmm(padded, own).flatten(0, 1).index_select(0, rectangle.places)


def _row_means(group: Group, values: Float[Tensor, "token gate"]) -> Float[Tensor, "row gate"]:
    """Average over each row's tokens, in fp32 at least."""
    wide = values.to(torch.promote_types(values.dtype, torch.float32))
    sums = wide.new_zeros(group.row_lengths.shape[0], wide.shape[1])
    return sums.index_add(0, group.row_of_token, wide) / group.row_lengths


# keys and values, gates applied
_Prefix = tuple[Float[Tensor, "row prefix hidden"], Float[Tensor, "row prefix hidden"]]


def _prefix_of_rows(
    group: Group, parts: Sequence[PreparedLayer], gates: Float[Tensor, "row gate"] | None
) -> _Prefix | None:
    keys = [part.prefix_keys for part in parts if part.prefix_keys is not None]
    values = [part.prefix_values for part in parts if part.prefix_values is not None]
    if not keys:
        return None
    row_keys = torch.stack(keys).index_select(0, group.segment_of_row)
    row_values = torch.stack(values).index_select(0, group.segment_of_row)
    if gates is None:
        return row_keys, row_values
    # [row, block, gate, 1], the gates of a block being one for keys and values, or one each
    gates = gates.to(row_keys.dtype).view(len(gates), group.structure.blocks, -1, 1)
    return _scale_blocks(row_keys, gates[:, :, :1]), _scale_blocks(row_values, gates[:, :, -1:])


def _scale_blocks(
    vectors: Float[Tensor, "row prefix hidden"], gates: Float[Tensor, "row block 1 1"]
) -> Float[Tensor, "row prefix hidden"]:
    """Scale each block's equal share of the prefix by its gate."""
    rows, blocks = gates.shape[:2]
    return (vectors.view(rows, blocks, -1, vectors.shape[2]) * gates).view(vectors.shape)


def _attend_bucket(
    heads: int, qkv: Float[Tensor, "token fused"], bucket: Bucket, prefix: _Prefix | None
) -> Float[Tensor, "place hidden"]:
    """Return the context of one bucket's rows, in the order of ``bucket.tokens``."""
    rows, length = bucket.rows.shape[0], bucket.length
    fused = qkv.index_select(0, bucket.tokens).view(rows, length, 3, heads, -1)
    query, key, value = fused.permute(2, 0, 3, 1, 4)
    mask = bucket.mask
    if prefix is not None:
        key, value = (
            torch.cat([_split_heads(part.index_select(0, bucket.rows), heads), own], 2)
            for part, own in zip(prefix, (key, value), strict=True)
        )
        if mask is not None:
            mask = functional.pad(mask, (key.shape[2] - length, 0))
    context = _attention(query, key, value, None if mask is None else mask.to(qkv.dtype))
    return context.transpose(1, 2).reshape(rows * length, -1)


def _attention(
    query: Float[Tensor, "row head token size"],
    key: Float[Tensor, "row head key size"],
    value: Float[Tensor, "row head key size"],
    mask: Float[Tensor, "row 1 1 key"] | None,
) -> Float[Tensor, "row head token size"]:
    """Softmax(q kᵀ / √size + mask) v."""
    is_cpu = query.device.type == "cpu"
    if not is_cpu or (query.dtype == torch.float32 and key.shape[2] >= _FLASH_FROM_KEYS):
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    scores = torch.matmul(query / math.sqrt(query.shape[3]), key.transpose(2, 3))
    if mask is not None:
        scores = scores + mask
    return torch.matmul(torch.softmax(scores, 3), value)


def _split_heads(
    x: Float[Tensor, "row token hidden"], heads: int
) -> Float[Tensor, "row {heads} token size"]:
    """Cut the hidden axis into heads."""
    return x.view(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


def _replace(
    y: Float[Tensor, "token output"], changed: Sequence[tuple[Group, Tensor]]
) -> Float[Tensor, "token output"]:
    """Return y with the given groups' tokens replaced, without writing into it."""
    if not changed:
        return y
    parts, done = [], 0
    for group, product in changed:
        parts += [y[done : group.tokens.start], product]
        done = group.tokens.stop
    parts.append(y[done:])
    return _join([part for part in parts if part.shape[0]])


def _part(x: Float[Tensor, "token input"], where: slice) -> Float[Tensor, "part input"]:
    """Return some of the tokens; x itself for all, since a slice costs a copy on the way back."""
    return x if where == slice(0, x.shape[0]) else x[where]


def _join(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _shift(where: slice, first: int) -> slice:
    return slice(where.start - first, where.stop - first)


def _present(parts: Sequence[LowRank | None]) -> list[LowRank]:
    return [part for part in parts if part is not None]
