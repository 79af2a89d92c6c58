"""Specs of what a method trains."""

from upt_testing.adapters import CLASSIFICATION, tiny_spec
from upt_training.methods import Method, components_of
from upt_zoo.spec import AdapterSpec, BackboneIdentity, Head


def spec_of_method(
    method: Method,
    backbone: BackboneIdentity,
    *,
    head: Head = CLASSIFICATION,
    has_gates: bool = True,
) -> AdapterSpec:
    """Return a small spec with the method's components."""
    parts = components_of(method, backbone, has_gates=has_gates)
    return tiny_spec(
        backbone=backbone,
        lora=parts.lora,
        prefix=parts.prefix,
        bottleneck=parts.bottleneck,
        prompt=parts.prompt,
        head=head,
    )
