"""The methods that train: what each learns, and its components at the size of a backbone.

Source: Mao et al. 2022 (UniPELT), section 4.1, and Chen et al. 2024 (UniPELT with a prompt):
LoRA r = 8 on query and value, prefix and prompt of 10 vectors, bottleneck of hidden / 16.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from upt_zoo.spec import BackboneIdentity, Bottleneck, Lora, Prefix, Prompt

Method = Literal[
    "unipelt_prompt",
    "unipelt",
    "unipelt_ap",
    "stacked_unipelt",
    "ia3_prefix_bottleneck",
    "lora",
    "prefix",
    "bottleneck",
    "prompt",
    "bitfit",
    "head",
    "full",
]
_Part = Literal["lora", "prefix", "bottleneck", "prompt"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What a method learns beside a head: components, of a stack those of a block, or the backbone.

    The components of a union have gates. What ``gives_adapter`` is published; the rest is more than
    an adapter's spec can say, trained and recorded for comparison.
    """

    parts: frozenset[_Part] = frozenset()
    is_union: bool = False
    learns_backbone: bool = False
    gives_adapter: bool = True


def _union(*parts: _Part, gives_adapter: bool = True) -> Traits:
    return Traits(parts=frozenset(parts), is_union=True, gives_adapter=gives_adapter)


def _alone(part: _Part) -> Traits:
    return Traits(parts=frozenset([part]))


_BACKBONE = Traits(learns_backbone=True, gives_adapter=False)
METHODS: Mapping[Method, Traits] = {
    "unipelt_prompt": _union("lora", "prefix", "bottleneck", "prompt"),
    "unipelt": _union("lora", "prefix", "bottleneck"),
    "unipelt_ap": _union("prefix", "bottleneck"),
    "stacked_unipelt": _union("lora", "prefix", "bottleneck", gives_adapter=False),
    "ia3_prefix_bottleneck": _union("prefix", "bottleneck", gives_adapter=False),
    "lora": _alone("lora"),
    "prefix": _alone("prefix"),
    "bottleneck": _alone("bottleneck"),
    "prompt": _alone("prompt"),
    "bitfit": _BACKBONE,
    "head": Traits(),
    "full": _BACKBONE,
}


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

    A component has a gate where it is part of a union, unless ``has_gates`` is False, and none
    where it stands alone.
    """
    traits = METHODS[method]
    parts, gated = traits.parts, traits.is_union and has_gates
    return Components(
        lora=Lora(rank=8, alpha=16.0, targets=("q", "v"), gated=gated) if "lora" in parts else None,
        prefix=Prefix(length=10, gated=gated) if "prefix" in parts else None,
        bottleneck=Bottleneck(size=backbone.hidden // 16, activation="relu", gated=gated)
        if "bottleneck" in parts
        else None,
        prompt=Prompt(length=10) if "prompt" in parts else None,
    )
