"""The golden cases: inputs from ``parity.golden_inputs``, outputs from AdapterHub's library.

``make_goldens.py`` wrote the outputs and says how. An engine is right where, for every row of every
case, its last hidden states equal ``row.expected`` (exact mathematics in float64; the tolerance is
that of the engine's own dtype).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor

from parity.golden_inputs import (
    MINILM,
    CaseInputs,
    Encoder,
    adapter_tensors,
    backbone_tensors,
    case_inputs,
)
from upt_zoo.backbone import EncoderConfig, encoder_tensor_name, resolve_backbone
from upt_zoo.layout import check_shapes
from upt_zoo.spec import AdapterSpec, BackboneIdentity, Family

_OUTPUTS = Path(__file__).parent / "goldens"


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenRow:
    """One unpadded row and the last hidden states of its real tokens, float64."""

    ids: list[int]
    type_ids: list[int]
    expected: Float[Tensor, "token hidden"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenCase:
    """One adapter on one backbone, float64.

    ``backbone`` has Hugging Face names without the model prefix, ``tensors`` those of
    ``upt_zoo.layout``, complete with a regression head that no golden output went through. The
    identity digest of a tiny backbone is all zeros: it has no files.
    """

    name: str
    config: EncoderConfig
    spec: AdapterSpec
    backbone: Mapping[str, Tensor]
    tensors: Mapping[str, Tensor]
    rows: tuple[GoldenRow, ...]

    @property
    def family(self) -> Family:
        """The backbone's family."""
        return self.config.model_type


def golden_names() -> list[str]:
    """Name all cases, ``backbone/method``; nothing is loaded."""
    return [inputs.name for inputs in case_inputs()]


def golden_cases() -> Iterator[GoldenCase]:
    """Yield all cases, one at a time."""
    return map(golden_case, golden_names())


def golden_case(name: str) -> GoldenCase:
    """Load one case.

    Raises:
        BackboneNotFound: a case of the embedded backbone, whose package is not installed.
        Corrupt: the generated tensors are not those of the layout.
    """
    inputs = next(inputs for inputs in case_inputs() if inputs.name == name)
    spec = _spec(inputs)
    tensors = _to_torch(adapter_tensors(inputs))
    check_shapes(spec, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    outputs = _outputs(inputs.encoder.name)
    return GoldenCase(
        name=name,
        config=_config(inputs.encoder),
        spec=spec,
        backbone=_backbone(inputs.encoder),
        tensors=tensors,
        rows=tuple(
            GoldenRow(
                ids=row.ids, type_ids=row.type_ids, expected=outputs[f"{inputs.method}/{index}"]
            )
            for index, row in enumerate(inputs.rows)
        ),
    )


_embedded = cache(resolve_backbone)


@cache
def _outputs(encoder_name: str) -> dict[str, Tensor]:
    return load_file(_OUTPUTS / f"{encoder_name}.safetensors")


@cache
def _backbone(encoder: Encoder) -> dict[str, Tensor]:
    if encoder.drawn:
        return _to_torch(backbone_tensors(encoder))
    stored = load_file(_embedded().weights_file)
    named = ((encoder_tensor_name(name, encoder.family), stored[name]) for name in stored)
    return {name: tensor.double() for name, tensor in named if name is not None}


def _config(encoder: Encoder) -> EncoderConfig:
    return EncoderConfig(
        model_type=encoder.family,
        num_hidden_layers=encoder.layers,
        hidden_size=encoder.hidden,
        num_attention_heads=encoder.heads,
        intermediate_size=encoder.intermediate,
        hidden_act="gelu",
        layer_norm_eps=encoder.eps,
        max_position_embeddings=encoder.positions,
        type_vocab_size=encoder.types,
        vocab_size=encoder.vocabulary,
        pad_token_id=encoder.pad_id,
    )


@cache
def _identity(encoder: Encoder) -> BackboneIdentity:
    if encoder is MINILM:
        return _embedded().identity
    return BackboneIdentity(
        hub_id=f"tiny/{encoder.name}",
        digest=f"sha256:{'0' * 64}",
        family=encoder.family,
        layers=encoder.layers,
        hidden=encoder.hidden,
        heads=encoder.heads,
        intermediate=encoder.intermediate,
    )


def _spec(inputs: CaseInputs) -> AdapterSpec:
    head = {"kind": "regression", "outputs": 1}
    task = {"name": "golden", "fields": ["text"], "max_tokens": 60, "metric": "none"}
    lineage = {
        "data": "none",
        "data_licence": "none",
        "commercial_use": "yes",
        "files": [],
        "recipe": {},
        "seed": 0,
        "code_version": "none",
        "precision": "fp32",
        "metrics": {},
        "trained_parameters": 0,
        "served_parameters": 0,
        "head_parameters": 0,
    }
    return AdapterSpec.model_validate(
        {
            "method": inputs.method,
            "backbone": _identity(inputs.encoder),
            "head": head,
            "task": task,
            "lineage": lineage,
            **inputs.components,
        }
    )


def _to_torch(arrays: Mapping[str, object]) -> dict[str, Tensor]:
    return {name: torch.as_tensor(array) for name, array in arrays.items()}
