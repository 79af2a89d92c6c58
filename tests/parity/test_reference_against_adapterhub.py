"""The slow reference against AdapterHub's ``adapters`` 1.3.0, and what the goldens can tell."""

from collections.abc import Mapping

import pytest
from torch import Tensor

from parity.goldens import GoldenCase, GoldenRow, golden_case, golden_names
from upt_testing.reference import reference_hidden_states

TOLERANCE = 1e-10  # float64; 1e-13 is measured, the rest is room for other BLAS libraries
TINY = [name for name in golden_names() if not name.startswith("minilm/")]


@pytest.mark.parametrize("name", golden_names())
def test_the_reference_equals_the_library(name: str) -> None:
    case = golden_case(name)
    for row in case.rows:
        assert distance(run(case, row, case.tensors), row.expected) < TOLERANCE


@pytest.mark.parametrize("name", TINY)
def test_every_adapter_tensor_shows_in_the_outputs(name: str) -> None:
    case = golden_case(name)
    for changed in case.tensors:
        if changed.startswith("head."):
            continue
        tensors = {**case.tensors, changed: 1.01 * case.tensors[changed]}
        seen = max(distance(run(case, row, tensors), row.expected) for row in case.rows)
        assert seen > 1e5 * TOLERANCE, changed


def run(case: GoldenCase, row: GoldenRow, tensors: Mapping[str, Tensor]) -> Tensor:
    return reference_hidden_states(
        case.backbone, case.family, case.spec, tensors, row.ids, row.type_ids
    )


def distance(one: Tensor, other: Tensor) -> float:
    return (one - other).abs().max().item()
