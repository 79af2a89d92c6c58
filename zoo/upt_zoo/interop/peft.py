"""PEFT's checkpoints: LoRA on the encoder's linear layers and the head that was trained with it.

    adapter_config.json         the configuration
    adapter_model.safetensors   base_model.model.{module}.lora_A.weight [r, in], .lora_B [out, r];
                                modules_to_save whole, under base_model.model.{module}

PEFT's prompts and prefixes cannot be expressed: they move the positions of the real tokens.

Source: the format as saved by peft 0.21; Hu et al. 2022 (LoRA); Kalajdzievski 2023, arXiv
2312.03732 (rsLoRA: the product is scaled by alpha / sqrt(r)).
"""

import math
import re
from collections.abc import Mapping

import numpy as np
from pydantic import JsonValue

from upt_zoo import layout
from upt_zoo.errors import InvalidSpec
from upt_zoo.interop.checkpoint import Linear
from upt_zoo.interop.heads import (
    POOLER,
    StaticKind,
    read_static_head,
    static_head_names,
    take_linear,
)
from upt_zoo.interop.parts import LINEARS, Delta, Parts, stack_lora
from upt_zoo.interop.settings import Settings
from upt_zoo.interop.weights import ANY, Weights
from upt_zoo.spec import AdapterSpec, BackboneIdentity, Lora, LoraTarget
from upt_zoo.tensors import Array

CONFIG, WEIGHTS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
_ROOT = "base_model.model."
_A, _B = ".lora_A.weight", ".lora_B.weight"
_LINEAR = "|".join(map(re.escape, LINEARS.values()))
_MODULE = re.compile(rf"encoder\.layer\.(\d{{1,4}})\.({_LINEAR})")
_TARGET_OF: dict[str, LoraTarget] = {linear: target for target, linear in LINEARS.items()}
_PLAIN_PATTERN = re.compile(r"[\w.\\^$*+-]*")
_MAX_REPEATS = 3

_SHIFTED = (
    "its virtual tokens move the positions of the real tokens, which upt leaves where the "
    "backbone was trained to have them; train a prompt or a prefix with upt or AdapterHub"
)
_METHODS = {
    "PROMPT_TUNING": _SHIFTED,
    "PREFIX_TUNING": _SHIFTED,
    "P_TUNING": _SHIFTED,
    "MULTITASK_PROMPT_TUNING": _SHIFTED,
}
_KNOWN = (
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "ensure_weight_tying",
    "eva_config",  # how A was drawn
    "exclude_modules",  # what is adapted is read off the tensors
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "megatron_core",
    "modules_to_save",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",  # ranks are read off the tensors
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "use_rslora",
)
_WITH_BASE = "it changes the backbone's own weights, which all adapters share"
_REASONS = {
    "use_dora": "DoRA scales the backbone's weights by norms that depend on the adapter",
    "lora_bias": "upt's LoRA has no bias",
    "fan_in_fan_out": "BERT's and RoBERTa's linear layers are stored [out, in]",
    "trainable_token_indices": _WITH_BASE,
    "target_parameters": _WITH_BASE,
    "layer_replication": "it repeats layers of the backbone",
    "alora_invocation_tokens": "it switches the adapter on in the middle of a text",
    "corda_config": _WITH_BASE,
    "lora_ga_config": _WITH_BASE,
    "loftq_config": _WITH_BASE,
}
_HARMLESS_INITS = (True, False, None, "gaussian", "eva", "orthogonal")
_TASKS: dict[str, StaticKind] = {"SEQ_CLS": "sequence", "QUESTION_ANS": "span"}
_OTHER_HEAD = (
    f"expected {' or '.join(_TASKS)}, whose heads alone are read; to tag tokens or to embed texts, "
    "train an adapter anew on your rows: `upt-train init --from FILE` makes the recipe"
)
_UNTYPED = (
    "PEFT's class for questions drops the token types, which tell BERT the question from the "
    "context; without a task_type, and with BertForQuestionAnswering in auto_mapping, it keeps them"
)
_CLASSES: dict[str, StaticKind] = {
    "ForSequenceClassification": "sequence",
    "ForQuestionAnswering": "span",
}


def read_peft(
    config: Settings,
    tensors: Mapping[str, Array],
    backbone: BackboneIdentity,
    pooler: Linear | None,
) -> Parts:
    """Translate a checkpoint; ``pooler`` is the backbone's own.

    Raises:
        Corrupt: a tensor is missing.
        InvalidSpec: something cannot be expressed, or is not of this backbone.
    """
    _check(config)
    kind = _head_kind(config, backbone)
    _check_family(tensors, backbone)
    weights = Weights({_plain(name, backbone): each for name, each in tensors.items()}, WEIGHTS)
    deltas = {
        module: _delta(weights, module, _alpha(config, module, backbone), config)
        for module in [name.removesuffix(_A) for name in weights.names() if name.endswith(_A)]
    }
    if layout.weight(POOLER) in weights:
        pooler = take_linear(weights, POOLER, backbone.hidden, backbone.hidden)
    pooler = _with_delta(pooler, deltas.pop(POOLER, None), weights)
    head, head_tensors = read_static_head(weights, kind, backbone.family, pooler, backbone.hidden)
    weights.refuse_others()
    placed = {_place(module, backbone): delta for module, delta in deltas.items()}
    if not placed:
        raise config.refusal("target_modules", "no linear layer of the encoder is adapted")
    for (_, target), delta in placed.items():
        _check_sizes(delta, target, backbone)
    lora, lora_tensors = stack_lora(backbone, placed)
    return Parts(head=head, tensors=lora_tensors | head_tensors, lora=lora)


def write_peft(
    spec: AdapterSpec, tensors: Mapping[str, Array]
) -> tuple[dict[str, JsonValue], dict[str, Array]]:
    """Return the configuration and the tensors of a checkpoint.

    Raises:
        InvalidSpec: PEFT cannot express the adapter.
    """
    lora = _only_lora(spec)
    heads = static_head_names(spec)
    family = spec.backbone.family
    weights: dict[str, Array] = {}
    for target in lora.targets:
        for layer in range(spec.backbone.layers):
            module = f"{_ROOT}{family}.encoder.layer.{layer}.{LINEARS[target]}"
            weights[module + _A] = tensors[layout.lora_a(target)][layer]
            weights[module + _B] = tensors[layout.lora_b(target)][layer]
    for ours, theirs in heads.items():
        for name in (layout.weight, layout.bias):
            weights[_ROOT + name(theirs)] = tensors[name(ours)]
    linears = "|".join(re.escape(LINEARS[target]) for target in lora.targets)
    config: dict[str, JsonValue] = {
        **_task_settings(spec),
        "peft_type": "LORA",
        "base_model_name_or_path": spec.backbone.hub_id,
        "revision": spec.backbone.revision,
        "inference_mode": True,
        "r": lora.rank,
        "lora_alpha": int(lora.alpha) if lora.alpha.is_integer() else lora.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": rf".*encoder\.layer\.\d+\.({linears})",
    }
    return config, weights


def _task_settings(spec: AdapterSpec) -> dict[str, JsonValue]:
    """Say which head is saved; BERT's for questions by its class, see ``_UNTYPED``."""
    family = spec.backbone.family
    if spec.head.kind != "span":
        saved: list[JsonValue] = ["classifier", "pooler"] if family == "bert" else ["classifier"]
        return {"task_type": "SEQ_CLS", "modules_to_save": saved}
    if family == "roberta":
        return {"task_type": "QUESTION_ANS", "modules_to_save": ["qa_outputs"]}
    return {
        "task_type": None,
        "modules_to_save": ["qa_outputs"],
        "auto_mapping": {
            "base_model_class": "BertForQuestionAnswering",
            "parent_library": "transformers.models.bert.modeling_bert",
        },
    }


def _check(config: Settings) -> None:
    """Check every setting but those that only the tensors need."""
    method = config.take("peft_type", "")
    if method != "LORA":
        reason = _METHODS.get(method, "of PEFT's methods upt has LoRA")
        raise config.refusal("peft_type", reason)
    config.require("bias", "none", _WITH_BASE, default="none")
    init = config.values.get("init_lora_weights")
    if init not in _HARMLESS_INITS:
        raise config.refusal("init_lora_weights", _WITH_BASE)
    config.refuse_others(_KNOWN, _REASONS)


def _head_kind(config: Settings, backbone: BackboneIdentity) -> StaticKind:
    """Say which of transformers' heads the checkpoint was trained with."""
    task = config.take("task_type", "")
    if task == "QUESTION_ANS" and backbone.family == "bert":
        raise config.refusal("task_type", _UNTYPED)
    if task in _TASKS:
        return _TASKS[task]
    if task:
        raise config.refusal("task_type", _OTHER_HEAD)
    mapping = Settings(config.take("auto_mapping", dict[str, JsonValue]()), CONFIG)
    name = mapping.take("base_model_class", "")
    for ending, kind in _CLASSES.items():
        if name.endswith(ending):
            return kind
    raise config.refusal("task_type", f"it does not say which head; expected {', '.join(_TASKS)}")


def _check_family(tensors: Mapping[str, Array], backbone: BackboneIdentity) -> None:
    other = "roberta" if backbone.family == "bert" else "bert"
    if any(name.startswith(f"{_ROOT}{other}.") for name in tensors):
        raise InvalidSpec(
            f"{WEIGHTS}: expected tensors of a {backbone.family} model, got those of a {other} one"
        )


def _plain(name: str, backbone: BackboneIdentity) -> str:
    """Strip PEFT's and the model's prefixes."""
    return name.removeprefix(_ROOT).removeprefix(f"{backbone.family}.")


def _alpha(config: Settings, module: str, backbone: BackboneIdentity) -> float:
    """Return the alpha of a module: the first pattern that its full name ends with decides.

    Patterns are regular expressions from a file of unknown origin: those that could take long are
    refused.
    """
    patterns = Settings(config.take("alpha_pattern", dict[str, JsonValue]()), CONFIG)
    full = module if module.startswith("classifier") else f"{backbone.family}.{module}"
    for pattern in patterns.values:
        repeats = sum(pattern.count(letter) for letter in "*+")
        if not _PLAIN_PATTERN.fullmatch(pattern) or repeats > _MAX_REPEATS:
            raise config.refusal("alpha_pattern", f"{pattern} is more than a name with wildcards")
        try:
            if re.match(rf"(.*\.)?({pattern})$", full):
                return patterns.number(pattern, 0)
        except re.error as error:
            raise config.refusal("alpha_pattern", f"{pattern}: {error}") from error
    return config.number("lora_alpha", 8)


def _delta(weights: Weights, module: str, alpha: float, config: Settings) -> Delta:
    a = weights.take(module + _A, ANY, ANY)
    b = weights.take(module + _B, ANY, len(a))
    rank = math.sqrt(len(a)) if config.take("use_rslora", default=False) else len(a)
    return Delta(a=a, b=b, scale=alpha / rank)


def _with_delta(pooler: Linear | None, delta: Delta | None, weights: Weights) -> Linear | None:
    """Fold a LoRA on the pooler into its weight."""
    if pooler is None or delta is None:
        return pooler
    weight, bias = pooler
    product = delta.b @ delta.a
    if product.shape != weight.shape:
        raise InvalidSpec(
            f"{weights.source}: {POOLER}: expected LoRA of {list(weight.shape)}, got "
            f"{list(product.shape)}"
        )
    return np.asarray(weight + delta.scale * product), bias


def _place(module: str, backbone: BackboneIdentity) -> tuple[int, LoraTarget]:
    match = _MODULE.fullmatch(module)
    if match is None:
        raise InvalidSpec(
            f"{WEIGHTS}: LoRA on {module} cannot be imported: upt adapts the linear layers of the "
            f"encoder ({', '.join(LINEARS.values())})"
        )
    layer = int(match[1])
    if layer >= backbone.layers:
        raise InvalidSpec(f"{WEIGHTS}: {module}: the backbone has {backbone.layers} layers")
    return layer, _TARGET_OF[match[2]]


def _check_sizes(delta: Delta, target: LoraTarget, backbone: BackboneIdentity) -> None:
    expected = layout.lora_sizes(backbone, target)
    got = delta.a.shape[1], len(delta.b)
    if got != expected:
        raise InvalidSpec(
            f"{WEIGHTS}: LoRA on {LINEARS[target]}: the backbone has (in, out) {expected}, the "
            f"tensors {got}"
        )


def _only_lora(spec: AdapterSpec) -> Lora:
    others = {"prefix": spec.prefix, "bottleneck": spec.bottleneck, "prompt": spec.prompt}
    for name, component in others.items():
        if component is not None:
            raise InvalidSpec(
                f"{name} cannot be exported to PEFT: it has no component with the same answers"
            )
    if spec.lora is None:
        raise InvalidSpec("an adapter without lora cannot be exported to PEFT")
    if spec.lora.gated:
        raise InvalidSpec("lora.gated cannot be exported to PEFT: its LoRA has no gates")
    return spec.lora
