"""Checkpoints of other libraries, and adapters of ours for them.

``foreign/LIBRARY/CASE`` holds what the library saved and, in ``logits.safetensors``, the logits
that it gives for ``foreign_inputs.ROWS`` in float64. ``foreign/exports.json`` says of every export
which bytes it had, and how far from the expected logits the library's were when it had loaded it.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from parity.foreign_inputs import ROWS
from upt_testing.adapters import LORA, PREFIX, PROMPT, SPAN, random_tensors, tiny_spec
from upt_zoo.backbone import Backbone
from upt_zoo.interop.choices import Choices
from upt_zoo.interop.library import Checkpoint, Library, export_checkpoint, import_checkpoint
from upt_zoo.nn.adapter import prepare
from upt_zoo.nn.encoder import load_encoder
from upt_zoo.nn.forward import forward
from upt_zoo.nn.packing import Row
from upt_zoo.spec import AdapterSpec, Bottleneck, Family, Head, Lora, Prefix

CHECKPOINTS = Path(__file__).parent / "foreign"
EXPORTS = CHECKPOINTS / "exports.json"
REFUSED = "bert-span-without-types"  # saved by PEFT's class for questions
ODD_BOTTLENECK = Bottleneck(size=5, activation="relu", gated=True)  # does not divide the width
TWO_LAYERS = Head(kind="classification", outputs=3, labels=("no", "maybe", "yes"), layers=2)


def case_names(library: Library) -> list[str]:
    """Name the checkpoints that can be imported."""
    folders = (CHECKPOINTS / library).iterdir()
    return sorted(folder.name for folder in folders if folder.name != REFUSED)


def family_of(case: str) -> Family:
    """Every case begins with its backbone's family."""
    return "roberta" if case.startswith("roberta") else "bert"


def import_case(library: Library, case: str, backbone: Backbone) -> Checkpoint:
    """Import a checkpoint; where it does not name its labels they are numbers."""
    expected = expected_logits(library, case)
    labels = None
    if library is Library.PEFT or case.endswith("static"):
        labels = tuple(map(str, range(len(expected["0"]))))
    choices = Choices(task="tiny", labels=labels)
    folder = CHECKPOINTS / library / case
    return import_checkpoint(library, folder, choices, backbone=str(backbone.directory))


def expected_logits(library: Library, case: str) -> dict[str, Tensor]:
    """Return the library's own logits of each row."""
    return load_file(CHECKPOINTS / library / case / "logits.safetensors")


def native_adapters(library: Library, backbone: Backbone) -> dict[str, Checkpoint]:
    """Make adapters of ours that the library can express, of random numbers."""
    family = backbone.config.model_type
    if library is Library.PEFT:
        every = Lora(
            rank=3, alpha=3.5, targets=("q", "k", "v", "o", "ffn_up", "ffn_down"), gated=False
        )
        specs = {"native": tiny_spec(backbone=backbone.identity, lora=every, head=TWO_LAYERS)}
    else:
        plain = Lora(rank=3, alpha=3.5, targets=("k", "ffn_up", "ffn_down"), gated=False)
        separate = Prefix(length=3, gated=True, gates="separate")
        specs = {
            "native-unipelt-prompt": tiny_spec(
                backbone=backbone.identity,
                lora=LORA,
                prefix=PREFIX,
                bottleneck=ODD_BOTTLENECK,
                prompt=PROMPT,
            ),
            "native-span": tiny_spec(
                backbone=backbone.identity, lora=plain, prefix=separate, prompt=PROMPT, head=SPAN
            ),
        }
    return {f"{family}-{name}": _random(spec) for name, spec in specs.items()}


def our_logits(checkpoint: Checkpoint, backbone: Backbone, dtype: torch.dtype) -> dict[str, Tensor]:
    """Answer the rows with our engine."""
    tensors = {name: torch.from_numpy(array) for name, array in checkpoint.tensors.items()}
    adapter = prepare(checkpoint.spec, tensors, dtype=dtype)
    rows = [
        Row(ids=ids, type_ids=types, adapter=adapter)
        for ids, types in ROWS[backbone.config.model_type]
    ]
    answers = forward(load_encoder(backbone, dtype=dtype), rows)
    return {str(index): logits.double() for index, logits in enumerate(answers)}


def largest_difference(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    """Return the largest difference of any logit."""
    assert ours.keys() == theirs.keys()
    return max((ours[row] - theirs[row]).abs().max().item() for row in theirs)


def export_digest(library: Library, checkpoint: Checkpoint, directory: Path) -> str:
    """Export, and return the sha256 of all files but the card."""
    export_checkpoint(library, checkpoint, directory)
    digest = hashlib.sha256()
    for file in sorted(directory.iterdir()):
        if file.name != "README.md":
            digest.update(f"{file.name}|".encode() + file.read_bytes())
    return digest.hexdigest()


def _random(spec: AdapterSpec) -> Checkpoint:
    return Checkpoint(spec=spec, tensors=random_tensors(spec, seed=3), card="# Tiny\n")
