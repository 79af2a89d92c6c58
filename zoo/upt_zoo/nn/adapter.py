"""An adapter made ready for the forward pass: its tensors fused into few products per layer.

Preparation is done once at load when serving, and once a step, under autograd, when training; so
both run the same maths. Scales, biases and concatenations that do not depend on the batch are
folded in here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from upt_zoo import layout
from upt_zoo.spec import Activation, AdapterSpec, Head, Lora, LoraTarget

_ATTENTION_INPUTS: tuple[LoraTarget, ...] = ("q", "k", "v")


@dataclass(frozen=True, slots=True, kw_only=True)
class LowRank:
    """y += (g * (x down)) up for one or several targets that read the same x.

    ``down`` holds the rank's columns and behind them the ``gates`` columns. Where LoRA is gated,
    gate i scales the i-th of the T targets' equal blocks of columns; gates beyond the T targets
    belong to the prefix, which reads the same input. While all layers are prepared at once they
    are one more axis in front.
    """

    down: Float[Tensor, "*layer input column"]
    bias: Float[Tensor, "*layer column"]
    up: Float[Tensor, "*layer rank output"]
    gates: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedLayer:
    """The components of one layer; None where the adapter does not have one.

    The last row of the bottleneck's ``up`` is the up bias. ``more_bottlenecks`` come behind it
    where blocks are stacked, each reading what the ones before it gave.
    """

    attention_in: LowRank | None
    attention_out: LowRank | None
    ffn_up: LowRank | None
    ffn_down: LowRank | None
    bottleneck: LowRank | None
    prefix_keys: Float[Tensor, "prefix hidden"] | None
    prefix_values: Float[Tensor, "prefix hidden"] | None
    more_bottlenecks: tuple[LowRank, ...] = ()

    def nth_bottleneck(self, block: int) -> LowRank | None:
        """Return the bottleneck of a block, the first being block 0."""
        if block == 0:
            return self.bottleneck
        return self.more_bottlenecks[block - 1] if block <= len(self.more_bottlenecks) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Structure:
    """What two adapters must share for their rows to go through the same small operators.

    With ``blocks`` stacked, ``prefix_length`` counts the vectors of all of them, ``prefix_gates``
    the gates of one.
    """

    lora_targets: tuple[LoraTarget, ...]
    lora_rank: int
    is_lora_gated: bool
    prefix_length: int
    prefix_gates: int
    bottleneck_size: int
    bottleneck_activation: Activation
    is_bottleneck_gated: bool
    blocks: int = 1

    @property
    def bottlenecks(self) -> int:
        """Number of bottlenecks a layer."""
        return self.blocks if self.bottleneck_size else 0

    @classmethod
    def bare(cls) -> "Structure":
        """Return the structure of a head without any component."""
        return cls(
            lora_targets=(),
            lora_rank=0,
            is_lora_gated=False,
            prefix_length=0,
            prefix_gates=0,
            bottleneck_size=0,
            bottleneck_activation="relu",
            is_bottleneck_gated=False,
        )

    @classmethod
    def of(cls, spec: AdapterSpec) -> "Structure":
        """Read the structure off a spec; the prompt and the head do not matter to it."""
        lora, prefix, bottleneck = spec.lora, spec.prefix, spec.bottleneck
        targets = lora.targets if lora else ()
        return cls(
            lora_targets=tuple(sorted(targets)),
            lora_rank=lora.rank if lora else 0,
            is_lora_gated=lora.gated if lora else False,
            prefix_length=prefix.length if prefix else 0,
            prefix_gates=_prefix_gates(spec),
            bottleneck_size=bottleneck.size if bottleneck else 0,
            bottleneck_activation=bottleneck.activation if bottleneck else "relu",
            is_bottleneck_gated=bottleneck.gated if bottleneck else False,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedHead:
    """The head's weights; ``dense`` is None where the head has one layer.

    ``out`` has no output where the head only pools, for an embedding.
    """

    spec: Head
    dense: tuple[Float[Tensor, "hidden hidden"], Float[Tensor, "hidden"]] | None
    out: tuple[Float[Tensor, "output hidden"], Float[Tensor, "output"]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, weakref_slot=True)
class PreparedAdapter:
    """All that the forward pass needs of one adapter; immutable, shared by any number of rows.

    A batch keeps its adapters alive by holding them; dropping the last reference frees one. Whether
    the prompt stands before or after [CLS] does not matter: attention sees no order, and what gives
    the real tokens one are their positions, which ignore the prompt.
    """

    structure: Structure
    prompt: Float[Tensor, "prompt hidden"] | None
    layers: tuple[PreparedLayer, ...]
    head: PreparedHead

    @property
    def prompt_length(self) -> int:
        """Number of prompt vectors, 0 without a prompt."""
        return 0 if self.prompt is None else self.prompt.shape[0]

    def size_bytes(self) -> int:
        """Memory that the tensors take."""
        held = [self.prompt, *self.head.out, *(self.head.dense or ())]
        for layer in self.layers:
            held += [layer.prefix_keys, layer.prefix_values]
            for part in (
                layer.attention_in,
                layer.attention_out,
                layer.ffn_up,
                layer.ffn_down,
                layer.bottleneck,
                *layer.more_bottlenecks,
            ):
                held += [part.down, part.bias, part.up] if part else []
        return sum(tensor.nbytes for tensor in held if tensor is not None)


def prepare(
    spec: AdapterSpec,
    tensors: Mapping[str, Tensor],
    *,
    dtype: torch.dtype,
    device: torch.device | None = None,
) -> PreparedAdapter:
    """Fuse an adapter's tensors (``layout.tensor_shapes``) for hidden states of ``dtype``.

    They stay on their device unless one is named. The head stays in fp32 (or wider): it is small
    and decides the answer.
    """
    if device is not None:
        tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
    cast = {name: tensor.to(dtype) for name, tensor in tensors.items() if "head." not in name}
    prompt = cast.get(layout.PROMPT)
    return PreparedAdapter(
        structure=Structure.of(spec),
        prompt=prompt,
        layers=_prepare_layers(spec, cast),
        head=_prepare_head(spec, tensors, torch.promote_types(dtype, torch.float32), device),
    )


def _prepare_head(
    spec: AdapterSpec,
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype,
    device: torch.device | None,
) -> PreparedHead:
    def pair(name: str) -> tuple[Tensor, Tensor]:
        return tensors[layout.weight(name)].to(dtype), tensors[layout.bias(name)].to(dtype)

    head = spec.head
    if head.kind == "embedding":
        nothing = torch.empty(0, spec.backbone.hidden, dtype=dtype, device=device)
        return PreparedHead(spec=head, dense=None, out=(nothing, nothing[:, 0]))
    dense = pair(layout.HEAD_DENSE) if head.layers == 2 else None
    return PreparedHead(spec=head, dense=dense, out=pair(layout.HEAD_OUT))


def _prepare_layers(spec: AdapterSpec, tensors: Mapping[str, Tensor]) -> tuple[PreparedLayer, ...]:
    count = spec.backbone.layers
    attention_in = _split(_attention_in(spec, tensors), count)
    attention_out = _split(_single_target(spec, tensors, "o"), count)
    ffn_up = _split(_single_target(spec, tensors, "ffn_up"), count)
    ffn_down = _split(_single_target(spec, tensors, "ffn_down"), count)
    bottleneck = _split(_bottleneck(spec, tensors), count)
    keys, values = tensors.get(layout.PREFIX_KEYS), tensors.get(layout.PREFIX_VALUES)
    return tuple(
        PreparedLayer(
            attention_in=attention_in[index],
            attention_out=attention_out[index],
            ffn_up=ffn_up[index],
            ffn_down=ffn_down[index],
            bottleneck=bottleneck[index],
            prefix_keys=None if keys is None else keys[index],
            prefix_values=None if values is None else values[index],
        )
        for index in range(count)
    )


def _split(stacked: LowRank | None, count: int) -> Sequence[LowRank | None]:
    """Cut tensors whose axis 0 is the layer into one ``LowRank`` a layer."""
    if stacked is None:
        return [None] * count
    parts = zip(stacked.down.unbind(0), stacked.bias.unbind(0), stacked.up.unbind(0), strict=True)
    return [LowRank(down=down, bias=bias, up=up, gates=stacked.gates) for down, bias, up in parts]


def _prefix_gates(spec: AdapterSpec) -> int:
    if spec.prefix is None or not spec.prefix.gated:
        return 0
    return 1 if spec.prefix.gates == "shared" else 2


def _attention_in(spec: AdapterSpec, tensors: Mapping[str, Tensor]) -> LowRank | None:
    """Fuse what reads the layer's input: LoRA on q, k, v, their gates and the prefix's gates."""
    lora = spec.lora
    targets = tuple(t for t in _ATTENTION_INPUTS if lora and t in lora.targets)
    parts = [_lora_part(lora, targets, tensors)] if lora and targets else []
    if _prefix_gates(spec):
        weight = tensors[layout.weight(layout.PREFIX_GATE)].transpose(1, 2)
        layers, hidden, gates = weight.shape
        no_up = weight.new_empty(layers, 0, 3 * hidden)
        bias = tensors[layout.bias(layout.PREFIX_GATE)]
        parts.append(LowRank(down=weight, bias=bias, up=no_up, gates=gates))
    if len(parts) < 2:
        return parts[0] if parts else None
    return LowRank(
        down=torch.cat([part.down for part in parts], 2),
        bias=torch.cat([part.bias for part in parts], 1),
        up=parts[0].up,
        gates=sum(part.gates for part in parts),
    )


def _single_target(
    spec: AdapterSpec, tensors: Mapping[str, Tensor], target: LoraTarget
) -> LowRank | None:
    if spec.lora is None or target not in spec.lora.targets:
        return None
    return _lora_part(spec.lora, (target,), tensors)


def _lora_part(
    lora: Lora, targets: tuple[LoraTarget, ...], tensors: Mapping[str, Tensor]
) -> LowRank:
    """Fuse the targets that share an input; alpha / r applies where there is no gate."""
    scale = 1.0 if lora.gated else lora.alpha / lora.rank
    columns = [tensors[layout.lora_a(target)].transpose(1, 2) for target in targets]
    biases = [columns[0].new_zeros(columns[0].shape[0], len(targets) * lora.rank)]
    if lora.gated:
        gates = [layout.lora_gate(target) for target in targets]
        columns += [tensors[layout.weight(gate)].unsqueeze(2) for gate in gates]
        biases += [tensors[layout.bias(gate)].unsqueeze(1) for gate in gates]
    ups = [tensors[layout.lora_b(target)].transpose(1, 2) * scale for target in targets]
    return LowRank(
        down=torch.cat(columns, 2).contiguous(),
        bias=torch.cat(biases, 1),
        up=(
            _block_diagonal(ups, targets)
            if targets[0] in _ATTENTION_INPUTS
            else ups[0].contiguous()
        ),
        gates=len(targets) if lora.gated else 0,
    )


def _block_diagonal(
    ups: list[Float[Tensor, "layer rank hidden"]], targets: tuple[LoraTarget, ...]
) -> Float[Tensor, "layer ranks 3*hidden"]:
    """Place each target's columns in its third of the fused product, one below the other."""
    zeros = torch.zeros_like(ups[0])
    rows = [
        torch.cat([up if part == target else zeros for part in _ATTENTION_INPUTS], 2)
        for up, target in zip(ups, targets, strict=True)
    ]
    return torch.cat(rows, 1)


def _bottleneck(spec: AdapterSpec, tensors: Mapping[str, Tensor]) -> LowRank | None:
    if spec.bottleneck is None:
        return None
    down = tensors[layout.weight(layout.BOTTLENECK_DOWN)].transpose(1, 2).contiguous()
    bias = tensors[layout.bias(layout.BOTTLENECK_DOWN)]
    if spec.bottleneck.gated:
        gate = tensors[layout.weight(layout.BOTTLENECK_GATE)].unsqueeze(2)
        down = torch.cat([down, gate], 2)
        bias = torch.cat([bias, tensors[layout.bias(layout.BOTTLENECK_GATE)].unsqueeze(1)], 1)
    up = tensors[layout.weight(layout.BOTTLENECK_UP)].transpose(1, 2)
    up_bias = tensors[layout.bias(layout.BOTTLENECK_UP)].unsqueeze(1)
    gates = 1 if spec.bottleneck.gated else 0
    return LowRank(down=down, bias=bias, up=torch.cat([up, up_bias], 1), gates=gates)
