"""Make checkpoints with AdapterHub's library ``adapters``, and run ours that were exported to it.

It runs in an environment of its own; see ``make_foreign``.

    python -m parity.foreign_adapterhub make BACKBONES CHECKPOINTS
    python -m parity.foreign_adapterhub check BACKBONES EXPORTS RESULT.json EXPECTED
"""

import json
import shutil
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import adapters
import torch
import transformers
from adapters import (
    AdapterConfig,
    AutoAdapterModel,
    ConfigUnion,
    LoRAConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    SeqBnConfig,
    UniPELTConfig,
)
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from parity.foreign_inputs import ROWS, Family

LABELS = ("no", "maybe", "yes")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One adapter with one head on one backbone; ``head`` None means transformers' own.

    The library saves a prefix only by pickling: its layers share one tensor.
    """

    name: str
    family: Family
    config: AdapterConfig
    head: Callable[[PreTrainedModel, str], None] | None = field(
        default=lambda model, name: classification(model, name)
    )
    is_pickled: bool = False


def classification(model: PreTrainedModel, name: str, **settings: Any) -> None:
    """Add a head of two layers on [CLS], or as the settings say."""
    labels = dict(enumerate(LABELS))
    model.add_classification_head(name, **{"num_labels": 3, "id2label": labels, **settings})


def multi_label(model: PreTrainedModel, name: str) -> None:
    """Add a head of one layer whose labels do not exclude each other."""
    classification(model, name, multilabel=True, layers=1)


def regression(model: PreTrainedModel, name: str) -> None:
    """Add a head of one output."""
    model.add_classification_head(name, num_labels=1, layers=1)


def pooled(model: PreTrainedModel, name: str) -> None:
    """Add a head of one layer on the backbone's pooler."""
    classification(model, name, layers=1, use_pooler=True)


def span(model: PreTrainedModel, name: str) -> None:
    """Add a head for questions."""
    model.add_qa_head(name)


def cases() -> list[Case]:
    """List what is saved; the names are those of the folders."""
    prompt = PromptTuningConfig(prompt_length=3, combine="prefix_after_bos")
    lora = LoRAConfig(r=4, alpha=6, intermediate_lora=True, output_lora=True)
    unipelt = UniPELTConfig(
        prefix_tuning=PrefixTuningConfig(flat=True, prefix_length=4, use_gating=True),
        adapter=SeqBnConfig(reduction_factor=8, use_gating=True),
        lora=LoRAConfig(r=3, use_gating=True),
    )
    made = PrefixTuningConfig(prefix_length=3, bottleneck_size=8, use_gating=False)
    everything = ConfigUnion(
        LoRAConfig(r=2, alpha=3, attn_matrices=["q", "k", "v"], use_gating=True, leave_out=[0]),
        PrefixTuningConfig(flat=True, prefix_length=2, use_gating=True, shared_gating=False),
        SeqBnConfig(reduction_factor={"0": 8, "default": 16}, non_linearity="swish"),
        prompt,
    )
    return [
        Case(name="bert-unipelt", family="bert", config=unipelt, is_pickled=True),
        Case(name="bert-lora", family="bert", config=lora, head=pooled),
        Case(name="bert-prefix", family="bert", config=made, head=multi_label, is_pickled=True),
        Case(name="bert-prompt", family="bert", config=prompt, head=regression),
        Case(
            name="bert-prompt-span",
            family="bert",
            config=PromptTuningConfig(prompt_length=3),
            head=span,
        ),
        Case(
            name="bert-bottleneck",
            family="bert",
            config=SeqBnConfig(
                reduction_factor=8, non_linearity="gelu", scaling="channel", leave_out=[0]
            ),
            head=span,
        ),
        Case(name="bert-static", family="bert", config=SeqBnConfig(scaling=2.5), head=None),
        Case(name="bert-everything", family="bert", config=everything, is_pickled=True),
        Case(name="roberta-unipelt", family="roberta", config=unipelt, is_pickled=True),
        Case(name="roberta-lora", family="roberta", config=lora, head=regression),
        Case(name="roberta-prefix", family="roberta", config=made, head=span, is_pickled=True),
        Case(
            name="roberta-static",
            family="roberta",
            config=SeqBnConfig(non_linearity="tanh", scaling="learned"),
            head=None,
        ),
        Case(name="roberta-everything", family="roberta", config=everything, is_pickled=True),
    ]


def make(backbones: Path, checkpoints: Path) -> None:
    """Save every case with random numbers, and the logits that the library gives for it."""
    for case in cases():
        model = load_model(backbones / case.family, is_static=case.head is None)
        model.add_adapter("tiny", config=case.config)
        if case.head is not None:
            case.head(model, "tiny")
        model.train_adapter("tiny")
        randomise(model, case.name)
        folder = checkpoints / case.name
        shutil.rmtree(folder, ignore_errors=True)
        checkpoints.mkdir(parents=True, exist_ok=True)
        model.save_adapter(str(folder), "tiny", use_safetensors=not case.is_pickled)
        name_backbone(folder, f"upt/tiny-{case.family}")  # where it lay is nobody's
        save_file(logits(model, case.family), folder / "logits.safetensors", metadata=versions())


def check(backbones: Path, exports: Path, result: Path, expected: Path) -> None:
    """Load every export, and write how far its logits are from the expected ones at most."""
    differences = {}
    for folder in sorted(exports.iterdir()):
        family: Family = "roberta" if folder.name.startswith("roberta") else "bert"
        model = load_model(backbones / family, is_static=False)
        info: dict[str, Any] = {}
        name = model.load_adapter(
            str(folder), use_safetensors=True, set_active=True, loading_info=info
        )
        missing = [each for each in info["missing_keys"] if ".prefix_tuning.pool." not in each]
        if missing or info["unexpected_keys"]:  # a layer's prefix is the one of all layers
            raise RuntimeError(f"{folder.name}: {name}: {info}")
        theirs = load_file(expected / f"{folder.name}.safetensors")
        differences[folder.name] = largest_difference(logits(model, family), theirs)
    result.write_text(json.dumps(differences, indent=2, sort_keys=True) + "\n")


def load_model(folder: Path, *, is_static: bool) -> PreTrainedModel:
    """Load a tiny backbone, under one of transformers' heads or none yet."""
    if is_static:
        model = AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=3, attn_implementation="eager"
        )
        adapters.init(model)
        return model
    return AutoAdapterModel.from_pretrained(folder, attn_implementation="eager")


def randomise(model: torch.nn.Module, seed: str) -> None:
    """Draw all that the adapter trains."""
    source = torch.Generator().manual_seed(zlib.crc32(seed.encode()))
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if parameter.requires_grad:
                scale = 1.0 if ".scaling" in name else 0.0
                drawn = scale + 0.2 * torch.randn(parameter.shape, generator=source)
                parameter.copy_(drawn)


def name_backbone(folder: Path, hub_id: str) -> None:
    """Write the backbone's name over its place in all configurations."""
    for file in folder.glob("*_config.json"):
        config = json.loads(file.read_text())
        file.write_text(json.dumps({**config, "model_name": hub_id}, indent=2, sort_keys=True))


def logits(model: torch.nn.Module, family: Family) -> dict[str, Tensor]:
    """Return each row's logits in float64; [token, 2] of the real tokens for spans."""
    model.double().eval()
    outputs = {}
    for index, (ids, types) in enumerate(ROWS[family]):
        row = torch.tensor([ids])
        with torch.no_grad():
            out = model(
                input_ids=row,
                attention_mask=torch.ones_like(row),
                token_type_ids=torch.tensor([types]),
            )
        if "start_logits" in out:
            both = torch.stack([out["start_logits"], out["end_logits"]], -1)[0]
            outputs[str(index)] = real_tokens(model, both, len(ids))
        else:
            outputs[str(index)] = out["logits"][0].clone()
    return outputs


def real_tokens(model: torch.nn.Module, values: Tensor, count: int) -> Tensor:
    """Leave out the prompt's vectors, wherever they stand."""
    prompt = len(values) - count
    if not prompt:
        return values
    (module,) = (each for each in model.modules() if hasattr(each, "prompt_tuning_config"))
    first = 1 if module.prompt_tuning_config.combine == "prefix_after_bos" else 0
    return torch.cat([values[:first], values[first + prompt :]])


def largest_difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """Return the largest difference of any logit."""
    if ours.keys() != theirs.keys():
        raise RuntimeError(f"expected the rows {sorted(theirs)}, got {sorted(ours)}")
    return max((ours[row] - theirs[row]).abs().max().item() for row in theirs)


def versions() -> dict[str, str]:
    """Say what computed the outputs."""
    modules = (adapters, transformers, torch)
    return {"made_with": " ".join(f"{each.__name__}=={each.__version__}" for each in modules)}


if __name__ == "__main__":
    command, *folders = sys.argv[1:]
    {"make": make, "check": check}[command](*map(Path, folders))
