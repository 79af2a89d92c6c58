"""Which components a method trains: the paper's defaults, sized for the backbone.

Source: Mao et al. 2022 (UniPELT), section 4.1, and Chen et al. 2024 (UniPELT with a prompt):
LoRA r = 8 on query and value, prefix and prompt of 10 vectors, bottleneck of hidden / 16.
"""

from dataclasses import dataclass

from upt_training.recipe import UNIONS, Method
from upt_zoo.spec import BackboneIdentity, Bottleneck, Lora, Prefix, Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Components:
    """The optional components of a spec."""

    lora: Lora | None = None
    prefix: Prefix | None = None
    bottleneck: Bottleneck | None = None
    prompt: Prompt | None = None


def components_of(
    method: Method, backbone: BackboneIdentity, *, has_gates: bool = True
) -> Components:
    """Return the components that a method trains on this backbone; of a stack, those of a block.

    ``bitfit``, ``head`` and ``full`` have none. A component has a gate where it is part of a union,
    unless ``has_gates`` is False, and none where it stands alone.
    """
    is_union = method in UNIONS
    gated = is_union and has_gates
    has_lora = method in ("unipelt_prompt", "unipelt", "stacked_unipelt", "lora")
    return Components(
        lora=Lora(rank=8, alpha=16.0, targets=("q", "v"), gated=gated) if has_lora else None,
        prefix=Prefix(length=10, gated=gated) if is_union or method == "prefix" else None,
        bottleneck=Bottleneck(size=backbone.hidden // 16, activation="relu", gated=gated)
        if is_union or method == "bottleneck"
        else None,
        prompt=Prompt(length=10) if method in ("unipelt_prompt", "prompt") else None,
    )
