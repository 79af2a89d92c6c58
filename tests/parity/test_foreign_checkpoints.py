"""Checkpoints that PEFT and AdapterHub's library saved: they answer here as they answer there.

``make_foreign`` wrote them and the record of how the libraries loaded our exports; see there.
"""

import json
from pathlib import Path

import pytest
import torch

from parity.foreign import (
    CHECKPOINTS,
    EXPORTS,
    REFUSED,
    case_names,
    expected_logits,
    export_digest,
    family_of,
    import_case,
    largest_difference,
    native_adapters,
    our_logits,
)
from parity.foreign_backbones import write_pooled_backbone
from upt_zoo.backbone import Backbone
from upt_zoo.errors import InvalidSpec
from upt_zoo.interop.library import Library
from upt_zoo.layout import check_shapes
from upt_zoo.spec import AdapterSpec, Family

FP32 = 1e-5  # logits of size 3: 1.5e-6 is measured, the rest is room for other BLAS libraries
FLOAT64 = 1e-6  # what is folded is rounded to fp32 once; 1e-7 is measured
CASES = [(library, case) for library in Library for case in case_names(library)]
FAMILIES: tuple[Family, ...] = ("bert", "roberta")


@pytest.fixture(scope="module")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> dict[Family, Backbone]:
    root = tmp_path_factory.mktemp("backbones")
    return {family: write_pooled_backbone(root / family, family) for family in FAMILIES}


@pytest.mark.parametrize(("library", "case"), CASES)
def test_an_import_answers_as_the_library_does(
    library: Library, case: str, backbones: dict[Family, Backbone]
) -> None:
    backbone = backbones[family_of(case)]
    checkpoint = import_case(library, case, backbone)
    spec = AdapterSpec.from_json(checkpoint.spec.to_json())
    assert spec == checkpoint.spec
    check_shapes(spec, {name: tensor.shape for name, tensor in checkpoint.tensors.items()})
    expected = expected_logits(library, case)
    for dtype, tolerance in ((torch.float32, FP32), (torch.float64, FLOAT64)):
        ours = our_logits(checkpoint, backbone, dtype)
        assert largest_difference(ours, expected) < tolerance, dtype


@pytest.mark.parametrize(("library", "case"), CASES)
def test_the_export_of_an_import_is_the_one_that_the_library_loaded(
    library: Library, case: str, backbones: dict[Family, Backbone], tmp_path: Path
) -> None:
    checkpoint = import_case(library, case, backbones[family_of(case)])
    record = json.loads(EXPORTS.read_text())[library][case]
    assert record["difference"] < FLOAT64
    assert export_digest(library, checkpoint, tmp_path / "export") == record["files"]


@pytest.mark.parametrize("library", list(Library))
def test_the_exports_of_our_own_adapters_are_those_that_the_library_loaded(
    library: Library, backbones: dict[Family, Backbone], tmp_path: Path
) -> None:
    for backbone in backbones.values():
        for case, checkpoint in native_adapters(library, backbone).items():
            record = json.loads(EXPORTS.read_text())[library][case]
            assert record["difference"] < FLOAT64
            assert export_digest(library, checkpoint, tmp_path / case) == record["files"]


def test_a_head_for_questions_that_never_saw_token_types_is_refused(
    backbones: dict[Family, Backbone],
) -> None:
    assert (CHECKPOINTS / "peft" / REFUSED).is_dir()
    with pytest.raises(InvalidSpec, match=r"task_type = QUESTION_ANS .* drops the token types"):
        import_case(Library.PEFT, REFUSED, backbones["bert"])
