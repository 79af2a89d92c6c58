"""Make checkpoints with the library ``peft``, and run ours that were exported to it.

It runs in an environment of its own; see ``make_foreign``.

    python -m parity.foreign_peft make BACKBONES CHECKPOINTS
    python -m parity.foreign_peft check BACKBONES EXPORTS RESULT.json EXPECTED
"""

import json
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from parity.foreign_inputs import ROWS, Family

MODELS = {
    "SEQ_CLS": AutoModelForSequenceClassification,
    "QUESTION_ANS": AutoModelForQuestionAnswering,
}
ENCODER = r".*encoder\.layer\.\d+\."


@dataclass(frozen=True, kw_only=True)
class Case:
    """One adapter configuration on one backbone; ``task`` names the model's head.

    The library's own class for questions (``is_typed``) does not hand on the token types.
    """

    name: str
    family: Family
    settings: dict[str, Any]
    task: str = "SEQ_CLS"
    labels: int = 3
    is_typed: bool = True


def cases() -> list[Case]:
    """List what is saved; the names are those of the folders."""
    qv = {"r": 4, "lora_alpha": 6, "target_modules": ["query", "value"]}
    dense = {"r": 3, "lora_alpha": 5, "target_modules": ["query", "key", "value", "dense"]}
    patterns = {
        "r": 4,
        "lora_alpha": 6,
        "target_modules": ["query", "key", "intermediate.dense"],
        "rank_pattern": {"key": 2, r"layer.1.intermediate.dense": 3},
        "alpha_pattern": {"key": 8, r"^.*layer.0.*query": 1},
    }
    return [
        Case(name="bert-qv", family="bert", settings=qv),
        Case(name="bert-dense", family="bert", settings=dense),
        Case(
            name="bert-pooler-saved",
            family="bert",
            settings={**qv, "modules_to_save": ["pooler"], "use_rslora": True},
            labels=1,
        ),
        Case(name="bert-patterns", family="bert", settings=patterns),
        Case(
            name="bert-span",
            family="bert",
            settings={**qv, "modules_to_save": ["qa_outputs"]},
            task="QUESTION_ANS",
            is_typed=False,
        ),
        Case(name="bert-span-without-types", family="bert", settings=qv, task="QUESTION_ANS"),
        Case(
            name="bert-all-linear", family="bert", settings={"r": 2, "target_modules": "all-linear"}
        ),
        Case(name="roberta-qv", family="roberta", settings=qv),
        Case(
            name="roberta-encoder",
            family="roberta",
            settings={**dense, "target_modules": ENCODER + r".*(query|key|value|dense)"},
        ),
        Case(
            name="roberta-last-layer",
            family="roberta",
            settings={**qv, "layers_to_transform": [1]},
            labels=2,
        ),
        Case(name="roberta-span", family="roberta", settings=dense, task="QUESTION_ANS"),
    ]


def make(backbones: Path, checkpoints: Path) -> None:
    """Save every case with random numbers, and the logits that the library gives for it."""
    for case in cases():
        model = get_peft_model(
            base_model(backbones / case.family, case.task, case.labels),
            LoraConfig(task_type=case.task if case.is_typed else None, **case.settings),
        )
        randomise(model, case.name)
        folder = checkpoints / case.name
        model.save_pretrained(folder)
        (folder / "README.md").unlink()
        config = json.loads((folder / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = f"upt/tiny-{case.family}"  # where it lay is nobody's
        config["target_modules"] = in_order(config["target_modules"])
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True))
        save_file(logits(model, case.family), folder / "logits.safetensors", metadata=versions())


def check(backbones: Path, exports: Path, result: Path, expected: Path) -> None:
    """Load every export, and write how far its logits are from the expected ones at most."""
    differences = {}
    for folder in sorted(exports.iterdir()):
        config = json.loads((folder / "adapter_config.json").read_text())
        theirs = load_file(expected / f"{folder.name}.safetensors")
        family: Family = "roberta" if folder.name.startswith("roberta") else "bert"
        labels = max(tensor.shape[-1] for tensor in theirs.values())
        task = config["task_type"] or "QUESTION_ANS"
        base = base_model(backbones / family, task, labels)
        model = PeftModel.from_pretrained(base, folder)
        differences[folder.name] = largest_difference(logits(model, family), theirs)
    result.write_text(json.dumps(differences, indent=2, sort_keys=True) + "\n")


def base_model(folder: Path, task: str, labels: int) -> PreTrainedModel:
    """Load a tiny backbone under a head of the library's own random numbers."""
    choices = {"num_labels": labels} if task == "SEQ_CLS" else {}
    return MODELS[task].from_pretrained(folder, attn_implementation="eager", **choices)


def randomise(model: torch.nn.Module, seed: str) -> None:
    """Draw all that the adapter trains."""
    source = torch.Generator().manual_seed(zlib.crc32(seed.encode()))
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if parameter.requires_grad:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=source))
                if "pooler" in name:
                    parameter.mul_(0.5)


def logits(model: torch.nn.Module, family: Family) -> dict[str, Tensor]:
    """Return each row's logits in float64; [token, 2] for spans."""
    model.double().eval()
    outputs = {}
    for index, (ids, types) in enumerate(ROWS[family]):
        with torch.no_grad():
            out = model(input_ids=torch.tensor([ids]), token_type_ids=torch.tensor([types]))
        pair = (out["start_logits"], out["end_logits"]) if "start_logits" in out else None
        outputs[str(index)] = torch.stack(pair, -1)[0] if pair else out["logits"][0].clone()
    return outputs


def largest_difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """Return the largest difference of any logit."""
    if ours.keys() != theirs.keys():
        raise RuntimeError(f"expected the rows {sorted(theirs)}, got {sorted(ours)}")
    return max((ours[row] - theirs[row]).abs().max().item() for row in theirs)


def in_order(names: str | list[str]) -> str | list[str]:
    """Sort the names of a set."""
    return names if isinstance(names, str) else sorted(names)


def versions() -> dict[str, str]:
    """Say what computed the outputs."""
    modules = (peft, transformers, torch)
    return {"made_with": " ".join(f"{each.__name__}=={each.__version__}" for each in modules)}


if __name__ == "__main__":
    command, *folders = sys.argv[1:]
    {"make": make, "check": check}[command](*map(Path, folders))
