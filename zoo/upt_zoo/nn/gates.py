"""Which components each layer let in: the gates of a forward pass, for people who ask why."""

from collections.abc import Sequence

import torch
from torch import Tensor

from upt_zoo.nn.encoder import Encoder
from upt_zoo.nn.layers import embed, run_layers
from upt_zoo.nn.packing import Row, pack
from upt_zoo.spec import AdapterSpec, LoraTarget

# in the order in which a layer computes them
_BEFORE_PREFIX: tuple[LoraTarget, ...] = ("q", "k", "v")
_BEHIND_PREFIX: tuple[LoraTarget, ...] = ("o", "ffn_up", "ffn_down")


def gate_names(spec: AdapterSpec) -> tuple[str, ...]:
    """Name the gates of one layer in the order in which it computes them; none: nothing is gated.

    ``lora.q`` and so on by target, ``prefix`` (or ``prefix.keys``, ``prefix.values``),
    ``bottleneck``.
    """
    lora, prefix, bottleneck = spec.lora, spec.prefix, spec.bottleneck
    targets = lora.targets if lora and lora.gated else ()
    names = [f"lora.{target}" for target in _BEFORE_PREFIX if target in targets]
    if prefix and prefix.gated:
        is_shared = prefix.gates == "shared"
        names += ["prefix"] if is_shared else ["prefix.keys", "prefix.values"]
    names += [f"lora.{target}" for target in _BEHIND_PREFIX if target in targets]
    if bottleneck and bottleneck.gated:
        names.append("bottleneck")
    return tuple(names)


def mean_gates(encoder: Encoder, spec: AdapterSpec, rows: Sequence[Row]) -> list[dict[str, float]]:
    """Return each layer's gates by name, averaged over the rows, which are all of this adapter.

    A row's gate is the mean over its tokens, prompt vectors included
    (docs/architecture.md, section 3).
    """
    layers: list[list[Tensor]] = [[] for _ in encoder.layers]
    with torch.inference_mode():
        batch = pack(rows).to(encoder.device)
        run_layers(
            encoder,
            batch,
            embed(encoder, batch),
            observe=lambda index, gates: layers[index].append(gates.mean(0)),
        )
    values = [[value for part in parts for value in part.tolist()] for parts in layers]
    return [dict(zip(gate_names(spec), each, strict=True)) for each in values]
