"""What another library cannot express is not exported; an export is whole or is not there."""

from pathlib import Path

import numpy as np
import pytest

from parity.foreign import ODD_BOTTLENECK, TWO_LAYERS
from upt_testing.adapters import (
    LORA,
    MULTI_LABEL,
    PREFIX,
    PROMPT,
    SPAN,
    random_tensors,
    tiny_spec,
)
from upt_testing.backbones import write_tiny_backbone
from upt_zoo.errors import Conflict, InvalidSpec
from upt_zoo.interop import checkpoint as files
from upt_zoo.interop.choices import Choices
from upt_zoo.interop.library import Checkpoint, Library, export_checkpoint, import_checkpoint
from upt_zoo.spec import AdapterSpec, Head, Lora

PLAIN = Lora(rank=2, alpha=4.0, targets=("q", "v"), gated=False)


@pytest.mark.parametrize(
    ("library", "spec", "reason"),
    [
        (Library.PEFT, tiny_spec(lora=PLAIN, prefix=PREFIX, head=TWO_LAYERS), "prefix"),
        (Library.PEFT, tiny_spec(lora=PLAIN, prompt=PROMPT, head=TWO_LAYERS), "prompt"),
        (Library.PEFT, tiny_spec(bottleneck=ODD_BOTTLENECK, head=TWO_LAYERS), "bottleneck"),
        (Library.PEFT, tiny_spec(lora=LORA, head=TWO_LAYERS), "lora.gated"),
        (Library.PEFT, tiny_spec(head=TWO_LAYERS), "without lora"),
        (Library.PEFT, tiny_spec(lora=PLAIN), "head.layers 1"),
        (Library.PEFT, tiny_spec(lora=PLAIN, head=MULTI_LABEL), "head.layers 1"),
        (
            Library.PEFT,
            tiny_spec(lora=PLAIN, head=SPAN.model_copy(update={"layers": 2})),
            "head.layers 2",
        ),
        (
            Library.PEFT,
            tiny_spec(lora=PLAIN, head=TWO_LAYERS.model_copy(update={"pooling": "mean"})),
            "head.pooling mean",
        ),
        (
            Library.ADAPTERHUB,
            tiny_spec(lora=PLAIN, head=TWO_LAYERS.model_copy(update={"pooling": "mean"})),
            "head.pooling mean",
        ),
        (Library.ADAPTERHUB, tiny_spec(), "without components"),
        (
            Library.ADAPTERHUB,
            tiny_spec(lora=PLAIN.model_copy(update={"targets": ("q", "o")})),
            "lora.targets o",
        ),
    ],
)
def test_what_a_library_cannot_express_is_not_exported(
    library: Library, spec: AdapterSpec, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidSpec, match=f"{reason}.*cannot be exported"):
        export_checkpoint(library, random_checkpoint(spec), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def random_checkpoint(spec: AdapterSpec) -> Checkpoint:
    return Checkpoint(spec=spec, tensors=random_tensors(spec, 0), card="# Tiny\n")


def test_an_export_overwrites_nothing(tmp_path: Path) -> None:
    checkpoint = random_checkpoint(tiny_spec(lora=PLAIN, head=TWO_LAYERS))
    (tmp_path / "out").mkdir()
    export_checkpoint(Library.PEFT, checkpoint, tmp_path / "out")
    with pytest.raises(Conflict, match="out exists"):
        export_checkpoint(Library.PEFT, checkpoint, tmp_path / "out")
    (tmp_path / "file").touch()
    with pytest.raises(Conflict, match="file exists"):
        export_checkpoint(Library.PEFT, checkpoint, tmp_path / "file")


def test_an_export_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(tensors: object) -> bytes:
        raise OSError("no space left on device")

    monkeypatch.setattr(files, "write_tensors", fail)
    checkpoint = random_checkpoint(tiny_spec(lora=PLAIN, head=TWO_LAYERS))
    with pytest.raises(OSError, match="no space"):
        export_checkpoint(Library.PEFT, checkpoint, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("head", [Head(kind="regression", outputs=1), MULTI_LABEL, SPAN])
def test_adapterhub_gives_back_what_it_was_given(head: Head, tmp_path: Path) -> None:
    backbone = write_tiny_backbone(tmp_path / "backbone")
    spec = tiny_spec(
        backbone=backbone.identity,
        lora=LORA,
        prefix=PREFIX,
        bottleneck=ODD_BOTTLENECK,
        prompt=PROMPT,
        head=head,
    )
    checkpoint = random_checkpoint(spec)
    export_checkpoint(Library.ADAPTERHUB, checkpoint, tmp_path / "out")
    back = import_checkpoint(
        Library.ADAPTERHUB,
        tmp_path / "out",
        Choices(task="tiny"),
        backbone=str(backbone.directory),
    )
    assert (back.spec.lora, back.spec.prefix, back.spec.bottleneck) == (
        spec.lora,
        spec.prefix,
        spec.bottleneck,
    )
    assert back.spec.head == head.model_copy(update={"threshold": None})
    assert back.spec.method == "unipelt_prompt"
    assert back.tensors.keys() == checkpoint.tensors.keys()
    for name, tensor in checkpoint.tensors.items():
        assert np.array_equal(tensor, back.tensors[name]), name
