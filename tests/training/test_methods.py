import math
from typing import get_args

import pytest

from upt_testing.adapters import BACKBONE, tiny_spec
from upt_training.methods import METHODS, Components, Method, components_of
from upt_zoo import layout
from upt_zoo.spec import Bottleneck, Lora, Prefix, Prompt

MINILM = BACKBONE.model_copy(update={"layers": 6, "hidden": 384, "heads": 12, "intermediate": 1536})


def test_every_method_has_traits_and_four_give_no_adapter() -> None:
    assert tuple(METHODS) == get_args(Method)
    comparisons = [method for method, traits in METHODS.items() if not traits.gives_adapter]
    assert comparisons == ["stacked_unipelt", "ia3_prefix_bottleneck", "bitfit", "full"]


def test_unipelt_with_a_prompt_is_all_four_and_gated() -> None:
    assert components_of("unipelt_prompt", MINILM) == Components(
        lora=Lora(rank=8, alpha=16.0, targets=("q", "v"), gated=True),
        prefix=Prefix(length=10, gated=True, gates="shared"),
        bottleneck=Bottleneck(size=24, activation="relu", gated=True),
        prompt=Prompt(length=10),
    )


def test_unipelt_has_no_prompt() -> None:
    whole = components_of("unipelt_prompt", MINILM)
    assert components_of("unipelt", MINILM) == Components(
        lora=whole.lora, prefix=whole.prefix, bottleneck=whole.bottleneck
    )


@pytest.mark.parametrize(
    ("method", "components"),
    [
        ("lora", Components(lora=Lora(rank=8, alpha=16.0, targets=("q", "v"), gated=False))),
        ("prefix", Components(prefix=Prefix(length=10, gated=False))),
        ("bottleneck", Components(bottleneck=Bottleneck(size=24, activation="relu", gated=False))),
        ("prompt", Components(prompt=Prompt(length=10))),
        ("head", Components()),
        ("full", Components()),
    ],
)
def test_a_component_alone_has_no_gate(method: Method, components: Components) -> None:
    assert components_of(method, MINILM) == components


@pytest.mark.parametrize("method", get_args(Method))
def test_the_bottleneck_grows_with_the_backbone(method: Method) -> None:
    wide = MINILM.model_copy(update={"hidden": 768})
    narrow_part, wide_part = (components_of(method, each).bottleneck for each in (MINILM, wide))
    assert (narrow_part is None) == (wide_part is None)
    if narrow_part and wide_part:
        assert (narrow_part.size, wide_part.size) == (24, 48)


def test_the_components_and_a_head_of_two_labels_have_246698_parameters() -> None:
    parts = components_of("unipelt_prompt", MINILM)
    spec = tiny_spec(
        backbone=MINILM,
        lora=parts.lora,
        prefix=parts.prefix,
        bottleneck=parts.bottleneck,
        prompt=parts.prompt,
    )
    assert sum(math.prod(shape) for shape in layout.tensor_shapes(spec).values()) == 246_698
