"""Our adapters as AdapterHub's checkpoints: everything but LoRA on the attention's output layer."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from pydantic import JsonValue

from upt_zoo import layout
from upt_zoo.errors import InvalidSpec
from upt_zoo.interop.adapterhub_heads import write_head
from upt_zoo.interop.adapterhub_names import CONFIG, HEAD_CONFIG, HEAD_WEIGHTS, WEIGHTS, Names
from upt_zoo.spec import AdapterSpec, Bottleneck, Lora, Prefix, Prompt
from upt_zoo.tensors import Array

_VERSION = "adapters.1.3.0"  # whose rules the configuration follows
_MODELS = {"bert": "BertAdapterModel", "roberta": "RobertaAdapterModel"}
Config = dict[str, JsonValue]


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """The files of a checkpoint."""

    configs: dict[str, Config]
    weights: dict[str, dict[str, Array]]


def write_adapterhub(spec: AdapterSpec, tensors: Mapping[str, Array]) -> Written:
    """Return the files of a checkpoint with a flexible head.

    The prompt is written behind [CLS], because the library's heads read the first vector; its place
    changes no answer.

    Raises:
        InvalidSpec: the library cannot express the adapter.
    """
    name = spec.task.name.replace(".", "_")  # a module's name has no dots
    methods = _configs(spec)
    if not methods:
        raise InvalidSpec("an adapter without components cannot be exported to AdapterHub")
    head_config, head_weights = write_head(spec, tensors, name)
    union: Config = {"architecture": "union", "configs": [*methods]}
    facts: Config = {
        "hidden_size": spec.backbone.hidden,
        "model_class": _MODELS[spec.backbone.family],
        "model_name": spec.backbone.hub_id,
        "model_type": spec.backbone.family,
        "name": name,
        "version": _VERSION,
    }
    weights = _weights(spec, tensors, Names(adapter=name))
    prefix = f"{spec.backbone.family}."
    return Written(
        configs={
            CONFIG: {"config": methods[0] if len(methods) == 1 else union, **facts},
            HEAD_CONFIG: {"config": head_config, **facts},
        },
        weights={
            WEIGHTS: {prefix + each: tensor for each, tensor in weights.items()},
            HEAD_WEIGHTS: head_weights,
        },
    )


def _configs(spec: AdapterSpec) -> list[Config]:
    configs = []
    if spec.lora:
        configs.append(_lora_config(spec.lora))
    if spec.prefix:
        configs.append(_prefix_config(spec.prefix))
    if spec.bottleneck:
        configs.append(_bottleneck_config(spec.bottleneck, spec.backbone.hidden))
    if spec.prompt:
        configs.append(_prompt_config(spec.prompt))
    return configs


def _lora_config(lora: Lora) -> Config:
    if "o" in lora.targets:
        raise InvalidSpec(
            "lora.targets o cannot be exported to AdapterHub: it has no LoRA on the attention's "
            "output layer"
        )
    matrices = [target for target in ("q", "k", "v") if target in lora.targets]
    return {
        "architecture": "lora",
        "selfattn_lora": bool(matrices),
        "intermediate_lora": "ffn_up" in lora.targets,
        "output_lora": "ffn_down" in lora.targets,
        "attn_matrices": [*matrices],
        "r": lora.rank,
        "alpha": lora.alpha,
        "composition_mode": "add",
        "use_gating": lora.gated,
        "leave_out": [],
        "dropout": 0.0,
    }


def _prefix_config(prefix: Prefix) -> Config:
    return {
        "architecture": "prefix_tuning",
        "flat": True,
        "prefix_length": prefix.length,
        "use_gating": prefix.gated,
        "shared_gating": prefix.gates == "shared",
        "leave_out": [],
        "dropout": 0.0,
    }


def _bottleneck_config(bottleneck: Bottleneck, hidden: int) -> Config:
    return {
        "mh_adapter": False,
        "output_adapter": True,
        "reduction_factor": _reduction_factor(hidden, bottleneck.size),
        "non_linearity": bottleneck.activation,
        "original_ln_before": True,
        "original_ln_after": True,
        "residual_before_ln": True,
        "scaling": 1.0,
        "use_gating": bottleneck.gated,
        "leave_out": [],
        "dropout": 0.0,
    }


def _reduction_factor(hidden: int, size: int) -> float:
    """Return a factor by which the library, which rounds down, comes to the size."""
    return hidden // size if hidden % size == 0 else hidden / (size + 0.5)


def _prompt_config(prompt: Prompt) -> Config:
    return {
        "architecture": "prompt_tuning",
        "prompt_length": prompt.length,
        "combine": "prefix_after_bos",
    }


def _weights(spec: AdapterSpec, tensors: Mapping[str, Array], names: Names) -> dict[str, Array]:
    weights: dict[str, Array] = {}
    if spec.lora:
        weights |= _lora_weights(spec, spec.lora, tensors, names)
    if spec.prefix:
        weights |= _prefix_weights(spec, tensors, names)
    if spec.bottleneck:
        weights |= _bottleneck_weights(spec, tensors, names)
    if spec.prompt:
        weights[names.prompt()] = tensors[layout.PROMPT]
    return weights


def _lora_weights(
    spec: AdapterSpec, lora: Lora, tensors: Mapping[str, Array], names: Names
) -> dict[str, Array]:
    weights: dict[str, Array] = {}
    for target in lora.targets:
        for layer in range(spec.backbone.layers):
            name = names.lora(layer, target)
            weights[f"{name}.lora_A"] = tensors[layout.lora_a(target)][layer]
            weights[f"{name}.lora_B"] = tensors[layout.lora_b(target)][layer]
            if lora.gated:
                weights |= _gate(tensors, layout.lora_gate(target), layer, f"{name}.gate")
    return weights


def _prefix_weights(
    spec: AdapterSpec, tensors: Mapping[str, Array], names: Names
) -> dict[str, Array]:
    both = np.stack([tensors[layout.PREFIX_KEYS], tensors[layout.PREFIX_VALUES]], axis=1)
    weights: dict[str, Array] = {
        # [L, 2, p, d] to [p, L, 2, d]: 2l keys, 2l + 1 values
        f"{names.prefix()}.control_trans": both.transpose(2, 0, 1, 3).reshape(-1)
    }
    if spec.prefix and spec.prefix.gated:
        for layer in range(spec.backbone.layers):
            for part in (layout.weight, layout.bias):
                weights[part(names.prefix_gate(layer))] = tensors[part(layout.PREFIX_GATE)][layer]
    return weights


def _bottleneck_weights(
    spec: AdapterSpec, tensors: Mapping[str, Array], names: Names
) -> dict[str, Array]:
    linears = {layout.BOTTLENECK_DOWN: "adapter_down.0", layout.BOTTLENECK_UP: "adapter_up"}
    weights: dict[str, Array] = {}
    for layer in range(spec.backbone.layers):
        name = names.bottleneck(layer)
        for ours, theirs in linears.items():
            for part in (layout.weight, layout.bias):
                weights[part(f"{name}.{theirs}")] = tensors[part(ours)][layer]
        if spec.bottleneck and spec.bottleneck.gated:
            weights |= _gate(tensors, layout.BOTTLENECK_GATE, layer, f"{name}.gate")
    return weights


def _gate(tensors: Mapping[str, Array], ours: str, layer: int, theirs: str) -> dict[str, Array]:
    """A gate of one output: ours has no axis for it."""
    return {
        layout.weight(theirs): tensors[layout.weight(ours)][layer][None],
        layout.bias(theirs): tensors[layout.bias(ours)][layer][None],
    }
