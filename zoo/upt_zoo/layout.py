"""The tensors of an adapter: the one place where their names and shapes are spelt.

All layers of a component are stacked: axis 0 is the layer. With L layers, hidden size d, rank r,
prefix length p, prompt length P, bottleneck size m, C outputs, and for a LoRA target t the sizes
in(t) and out(t) of the linear layer it adapts:

    prompt                    [P, d]
    prefix.keys, .values      [L, p, d]
    prefix.gate.weight/bias   [L, G, d] / [L, G]      G = 1 (shared) or 2 (keys, values)
    lora.{t}.a / .b           [L, r, in(t)] / [L, out(t), r]
    lora.{t}.gate.weight/bias [L, in(t)] / [L]
    bottleneck.down.weight    [L, m, d]    .bias [L, m]
    bottleneck.up.weight      [L, d, m]    .bias [L, d]
    bottleneck.gate.weight    [L, d]       .bias [L]
    head.dense.weight         [d, d]       .bias [d]  only with head.layers = 2
    head.out.weight           [C, d]       .bias [C]  not of an embedding
"""

import math
from collections.abc import Mapping

from upt_zoo.errors import Corrupt
from upt_zoo.spec import AdapterSpec, BackboneIdentity, Head, LoraTarget

Shape = tuple[int, ...]

PROMPT = "prompt"
PREFIX_KEYS = "prefix.keys"
PREFIX_VALUES = "prefix.values"
PREFIX_GATE = "prefix.gate"
BOTTLENECK_DOWN = "bottleneck.down"
BOTTLENECK_UP = "bottleneck.up"
BOTTLENECK_GATE = "bottleneck.gate"
HEAD_DENSE = "head.dense"
HEAD_OUT = "head.out"
# in the order in which a layer computes them
_BEFORE_PREFIX: tuple[LoraTarget, ...] = ("q", "k", "v")
_BEHIND_PREFIX: tuple[LoraTarget, ...] = ("o", "ffn_up", "ffn_down")


def weight(name: str) -> str:
    """Name the weight tensor of a linear layer or gate."""
    return f"{name}.weight"


def bias(name: str) -> str:
    """Name the bias tensor of a linear layer or gate."""
    return f"{name}.bias"


def lora_a(target: LoraTarget) -> str:
    """Name the down factor A of a LoRA target."""
    return f"lora.{target}.a"


def lora_b(target: LoraTarget) -> str:
    """Name the up factor B of a LoRA target."""
    return f"lora.{target}.b"


def lora_gate(target: LoraTarget) -> str:
    """Name the gate of a LoRA target."""
    return f"lora.{target}.gate"


def lora_sizes(backbone: BackboneIdentity, target: LoraTarget) -> tuple[int, int]:
    """Return (in, out) of the linear layer that a LoRA target adapts."""
    sizes = {
        "ffn_up": (backbone.hidden, backbone.intermediate),
        "ffn_down": (backbone.intermediate, backbone.hidden),
    }
    return sizes.get(target, (backbone.hidden, backbone.hidden))


def tensor_shapes(spec: AdapterSpec) -> dict[str, Shape]:
    """Return every tensor that an adapter of this spec must have, and its shape."""
    return component_shapes(spec) | head_shapes(spec.head, spec.backbone.hidden)


def component_shapes(spec: AdapterSpec) -> dict[str, Shape]:
    """Return the tensors of all components without the head."""
    return _prompt(spec) | _prefix(spec) | _lora(spec) | _bottleneck(spec)


def head_shapes(head: Head, hidden: int) -> dict[str, Shape]:
    """Return the tensors of the head; an embedding has none."""
    if head.kind == "embedding":
        return {}
    shapes: dict[str, Shape] = {}
    if head.layers == 2:
        shapes |= {weight(HEAD_DENSE): (hidden, hidden), bias(HEAD_DENSE): (hidden,)}
    return shapes | {weight(HEAD_OUT): (head.outputs, hidden), bias(HEAD_OUT): (head.outputs,)}


def parameter_counts(spec: AdapterSpec) -> tuple[int, int]:
    """Return how many numbers the tensors hold, those of the components and those of the head."""
    components, head = component_shapes(spec), head_shapes(spec.head, spec.backbone.hidden)
    return sum(map(math.prod, components.values())), sum(map(math.prod, head.values()))


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


def check_shapes(spec: AdapterSpec, shapes: Mapping[str, Shape]) -> None:
    """Check that the tensors are exactly those of the spec.

    Raises:
        Corrupt: a tensor is missing, unknown, or of another shape.
    """
    expected = tensor_shapes(spec)
    missing, unknown = sorted(expected.keys() - shapes), sorted(shapes.keys() - expected)
    if missing or unknown:
        raise Corrupt(f"the tensors do not match the spec: missing {missing}, unknown {unknown}")
    for name, shape in expected.items():
        if tuple(shapes[name]) != shape:
            raise Corrupt(f"tensor {name}: expected shape {shape}, got {tuple(shapes[name])}")


def _prompt(spec: AdapterSpec) -> dict[str, Shape]:
    return {PROMPT: (spec.prompt.length, spec.backbone.hidden)} if spec.prompt else {}


def _prefix(spec: AdapterSpec) -> dict[str, Shape]:
    if spec.prefix is None:
        return {}
    layers, hidden = spec.backbone.layers, spec.backbone.hidden
    shapes: dict[str, Shape] = dict.fromkeys(
        (PREFIX_KEYS, PREFIX_VALUES), (layers, spec.prefix.length, hidden)
    )
    if spec.prefix.gated:
        gates = 1 if spec.prefix.gates == "shared" else 2
        shapes[weight(PREFIX_GATE)] = (layers, gates, hidden)
        shapes[bias(PREFIX_GATE)] = (layers, gates)
    return shapes


def _lora(spec: AdapterSpec) -> dict[str, Shape]:
    if spec.lora is None:
        return {}
    layers, rank = spec.backbone.layers, spec.lora.rank
    shapes: dict[str, Shape] = {}
    for target in spec.lora.targets:
        size_in, size_out = lora_sizes(spec.backbone, target)
        shapes[lora_a(target)] = (layers, rank, size_in)
        shapes[lora_b(target)] = (layers, size_out, rank)
        if spec.lora.gated:
            shapes[weight(lora_gate(target))] = (layers, size_in)
            shapes[bias(lora_gate(target))] = (layers,)
    return shapes


def _bottleneck(spec: AdapterSpec) -> dict[str, Shape]:
    if spec.bottleneck is None:
        return {}
    layers, hidden, size = spec.backbone.layers, spec.backbone.hidden, spec.bottleneck.size
    shapes: dict[str, Shape] = {
        weight(BOTTLENECK_DOWN): (layers, size, hidden),
        bias(BOTTLENECK_DOWN): (layers, size),
        weight(BOTTLENECK_UP): (layers, hidden, size),
        bias(BOTTLENECK_UP): (layers, hidden),
    }
    if spec.bottleneck.gated:
        shapes[weight(BOTTLENECK_GATE)] = (layers, hidden)
        shapes[bias(BOTTLENECK_GATE)] = (layers,)
    return shapes
