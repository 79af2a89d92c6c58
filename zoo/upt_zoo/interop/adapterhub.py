"""AdapterHub's checkpoints: all components of upt, where they stand at the same place.

    adapter_config.json   {"config": one method or a union, "name", "model_type", "version"}
    head_config.json      {"config": the head, or null for transformers' own; "model_class"}
    adapter.safetensors, model_head.safetensors   or pytorch_adapter.bin, pytorch_model_head.bin

The tensors' names are those of ``Names``. A prefix is stored once and again for every layer.

Source: the format as saved by adapters 1.3; the methods are those of ``upt_zoo.nn.layers``.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from upt_zoo import layout
from upt_zoo.errors import InvalidSpec
from upt_zoo.interop.adapterhub_checks import (
    check_bottleneck,
    check_prefix,
    check_prompt,
    lora_targets,
    methods_of,
)
from upt_zoo.interop.adapterhub_heads import read_head
from upt_zoo.interop.adapterhub_names import CONFIG, HEAD_WEIGHTS, WEIGHTS, Names
from upt_zoo.interop.checkpoint import Linear
from upt_zoo.interop.heads import take_linear
from upt_zoo.interop.parts import Delta, FoundHead, Parts, stack_lora
from upt_zoo.interop.settings import Settings
from upt_zoo.interop.weights import ANY, Weights, Wide, narrow
from upt_zoo.spec import (
    Activation,
    BackboneIdentity,
    Bottleneck,
    Family,
    Lora,
    LoraTarget,
    Prefix,
    Prompt,
)
from upt_zoo.tensors import Array

_ACTIVATIONS: dict[str, Activation] = {
    "relu": "relu",
    "gelu": "gelu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}
_FOLDED: dict[str, Callable[[Wide], Wide]] = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
}
_BEFORE_VERSIONS = {"gelu": "gelu_new", "gelu_orig": "gelu"}  # files without a version


def read_adapterhub(
    config: Settings,
    tensors: Mapping[str, Array],
    head_config: Settings,
    head_weights: Mapping[str, Array],
    *,
    backbone: BackboneIdentity,
    pooler: Linear | None,
) -> Parts:
    """Translate a checkpoint; ``pooler`` is the backbone's own.

    Raises:
        Corrupt: a tensor is missing.
        InvalidSpec: something cannot be expressed, or is not of this backbone.
    """
    family = backbone.family
    config.require("model_type", family, f"the backbone is of {family}", default=family)
    head, head_tensors = read_head(
        head_config, _plain(head_weights, HEAD_WEIGHTS, family), backbone, pooler
    )
    parts = _Reader(config, _plain(tensors, WEIGHTS, family), backbone).parts(head, head_tensors)
    if parts.prompt and parts.prompt.position == "before_cls" and head.kind != "span":
        raise InvalidSpec(
            f"{CONFIG}: combine = prefix cannot be imported with this head: the library's heads "
            f"read the first vector, which is then the prompt's and not [CLS]"
        )
    return parts


def _plain(tensors: Mapping[str, Array], source: str, family: Family) -> Weights:
    """Strip the model's prefix."""
    prefix = f"{family}."
    return Weights({name.removeprefix(prefix): each for name, each in tensors.items()}, source)


class _Reader:
    """Reads the components of one checkpoint; each method takes its tensors away."""

    def __init__(self, config: Settings, weights: Weights, backbone: BackboneIdentity) -> None:
        self._config, self._weights, self._backbone = config, weights, backbone
        self._names = Names(adapter=config.take("name", ""))

    def parts(self, head: FoundHead, head_tensors: Mapping[str, Array]) -> Parts:
        """Read the method or the union of methods; the head has been read before."""
        methods = methods_of(self._config.child("config"))
        lora, prefix = methods.get("lora"), methods.get("prefix_tuning")
        bottleneck, prompt = methods.get(""), methods.get("prompt_tuning")
        tensors = dict(head_tensors)
        parts = Parts(
            head=head,
            tensors=tensors,
            lora=self._lora(lora, tensors) if lora else None,
            prefix=self._prefix(prefix, tensors) if prefix else None,
            bottleneck=self._bottleneck(bottleneck, tensors) if bottleneck else None,
            prompt=self._prompt(prompt, tensors) if prompt else None,
        )
        self._weights.refuse_others()
        return parts

    def _lora(self, config: Settings, tensors: dict[str, Array]) -> Lora:
        targets, left_out = lora_targets(config), config.layers("leave_out", self._backbone.layers)
        is_gated = config.take("use_gating", default=False)
        deltas = {
            (layer, target): self._delta(layer, target, self._alpha(config), is_gated=is_gated)
            for layer in range(self._backbone.layers)
            if layer not in left_out
            for target in targets
        }
        if not deltas:
            raise config.refusal("leave_out", "no linear layer is adapted")
        lora, named = stack_lora(self._backbone, deltas)
        tensors.update(named)
        return lora

    def _alpha(self, config: Settings) -> float:
        """Return alpha; versions before 1.1.0 did not apply it, and the library mends that."""
        version = re.fullmatch(r"adapters\.(\d+)\.(\d+)\..*", self._config.take("version", ""))
        is_alone = self._config.child("config").values.get("architecture") == "lora"
        if version and is_alone and (int(version[1]), int(version[2])) < (1, 1):
            return float(config.take("r", 8))
        return config.number("alpha", 8)

    def _delta(self, layer: int, target: LoraTarget, alpha: float, *, is_gated: bool) -> Delta:
        name = self._names.lora(layer, target)
        size_in, size_out = layout.lora_sizes(self._backbone, target)
        a = self._weights.take(f"{name}.lora_A", ANY, size_in)
        b = self._weights.take(f"{name}.lora_B", size_out, len(a))
        gate = take_linear(self._weights, f"{name}.gate", 1, size_in) if is_gated else None
        return Delta(
            a=a,
            b=b,
            scale=alpha / len(a),
            gate=None if gate is None else (gate[0][0], gate[1][0]),
        )

    def _prefix(self, config: Settings, tensors: dict[str, Array]) -> Prefix:
        layers, hidden = self._backbone.layers, self._backbone.hidden
        is_gated = config.take("use_gating", default=False)
        is_shared = config.take("shared_gating", default=True)
        values = self._prefix_values(config)  # [p, 2 L, d]: 2l keys, 2l + 1 values
        parts = values.reshape(len(values), layers, 2, hidden).transpose(2, 1, 0, 3)
        tensors[layout.PREFIX_KEYS] = narrow(parts[0])
        tensors[layout.PREFIX_VALUES] = narrow(parts[1])
        if is_gated:
            names = [self._names.prefix_gate(layer) for layer in range(layers)]
            count = 1 if is_shared else 2
            gates = [take_linear(self._weights, name, count, hidden) for name in names]
            tensors[layout.weight(layout.PREFIX_GATE)] = narrow(np.stack([w for w, _ in gates]))
            tensors[layout.bias(layout.PREFIX_GATE)] = narrow(np.stack([b for _, b in gates]))
        gates_are_shared = is_shared or not is_gated
        return Prefix(
            length=len(values), gated=is_gated, gates="shared" if gates_are_shared else "separate"
        )

    def _prefix_values(self, config: Settings) -> Wide:
        check_prefix(config)
        name = self._names.prefix()
        self._drop_copies(name)
        length = config.take("prefix_length", 30)
        hidden, outputs = self._backbone.hidden, 2 * self._backbone.layers * self._backbone.hidden
        if config.take("flat", default=False):
            flat = self._weights.take(f"{name}.control_trans", length * outputs)
            return flat.reshape(length, outputs)
        activation = config.take("non_linearity", "tanh").lower()
        if activation not in _FOLDED:
            raise config.refusal("non_linearity", f"upt folds networks with {', '.join(_FOLDED)}")
        embedding = self._weights.take(f"{name}.wte.weight", length, hidden)
        weight, bias = take_linear(self._weights, f"{name}.control_trans.0", ANY, hidden)
        inner = _FOLDED[activation](embedding @ weight.T + bias)
        weight, bias = take_linear(self._weights, f"{name}.control_trans.2", outputs, len(weight))
        return np.asarray(inner @ weight.T + bias)

    def _drop_copies(self, name: str) -> None:
        for layer in range(self._backbone.layers):
            copy = f"{self._names.prefix_copy(layer)}."
            for found in [each for each in self._weights.names() if each.startswith(copy)]:
                self._weights.drop_copies(found, f"{name}.{found.removeprefix(copy)}")

    def _bottleneck(self, config: Settings, tensors: dict[str, Array]) -> Bottleneck:
        check_bottleneck(config)
        left_out = config.layers("leave_out", self._backbone.layers)
        is_gated = config.take("use_gating", default=False)
        blocks = {
            layer: self._block(layer, config, is_gated=is_gated)
            for layer in range(self._backbone.layers)
            if layer not in left_out
        }
        if not blocks:
            raise config.refusal("leave_out", "no layer has a bottleneck")
        activation = self._activation(config)
        tensors.update(_stack_blocks(blocks, self._backbone))
        size = max(len(block.down[0]) for block in blocks.values())
        return Bottleneck(size=size, activation=activation, gated=is_gated)

    def _activation(self, config: Settings) -> Activation:
        name = config.take("non_linearity", "relu").lower()
        if "version" not in self._config.values:
            name = _BEFORE_VERSIONS.get(name, name)
        if name not in _ACTIVATIONS:
            raise config.refusal(
                "non_linearity", f"it means {name}, and upt has {', '.join(_ACTIVATIONS)}"
            )
        return _ACTIVATIONS[name]

    def _block(self, layer: int, config: Settings, *, is_gated: bool) -> "_Block":
        name, hidden = self._names.bottleneck(layer), self._backbone.hidden
        down = take_linear(self._weights, f"{name}.adapter_down.0", ANY, hidden)
        weight, bias = take_linear(self._weights, f"{name}.adapter_up", hidden, len(down[0]))
        scale = self._scale(config, f"{name}.scaling")
        gate = take_linear(self._weights, f"{name}.gate", 1, hidden) if is_gated else None
        return _Block(down=down, up=(weight * scale[:, None], bias * scale), gate=gate)

    def _scale(self, config: Settings, name: str) -> Wide:
        """Return the factor on each output: a number, or learnt as one or one an output."""
        sizes = {"learned": 1, "channel": self._backbone.hidden}
        kind = config.values.get("scaling")
        if isinstance(kind, str) and kind in sizes:
            return np.broadcast_to(self._weights.take(name, sizes[kind]), (self._backbone.hidden,))
        return np.full(self._backbone.hidden, config.number("scaling", 1.0))

    def _prompt(self, config: Settings, tensors: dict[str, Array]) -> Prompt:
        check_prompt(config)
        combine = config.take("combine", "prefix")
        length = config.take("prompt_length", 10)
        vectors = self._weights.take(self._names.prompt(), length, self._backbone.hidden)
        tensors[layout.PROMPT] = narrow(vectors)
        return Prompt(length=length, position="before_cls" if combine == "prefix" else "after_cls")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Block:
    """The bottleneck of one layer, its scale folded into the up projection."""

    down: Linear
    up: Linear
    gate: Linear | None


def _stack_blocks(blocks: Mapping[int, _Block], backbone: BackboneIdentity) -> dict[str, Array]:
    """Stack by layer; narrow ones are filled up with units, and layers with blocks, of zeros."""
    layers, hidden = backbone.layers, backbone.hidden
    size = max(len(block.down[0]) for block in blocks.values())
    down, down_bias = np.zeros((layers, size, hidden)), np.zeros((layers, size))
    up, up_bias = np.zeros((layers, hidden, size)), np.zeros((layers, hidden))
    gate, gate_bias = np.zeros((layers, hidden)), np.zeros(layers)
    for layer, block in blocks.items():
        own = len(block.down[0])
        down[layer, :own], down_bias[layer, :own] = block.down
        up[layer, :, :own], up_bias[layer] = block.up
        if block.gate is not None:
            gate[layer], gate_bias[layer] = block.gate[0][0], block.gate[1][0]
    stacked: dict[str, Linear] = {
        layout.BOTTLENECK_DOWN: (down, down_bias),
        layout.BOTTLENECK_UP: (up, up_bias),
    }
    if any(block.gate is not None for block in blocks.values()):
        stacked[layout.BOTTLENECK_GATE] = (gate, gate_bias)
    tensors: dict[str, Array] = {}
    for name, (weight, bias) in stacked.items():
        tensors |= {layout.weight(name): narrow(weight), layout.bias(name): narrow(bias)}
    return tensors
