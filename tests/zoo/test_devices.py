"""No tensor is left on another device: on fake tensors everywhere, with real ones on a GPU."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from upt_testing.backbones import write_tiny_backbone
from upt_testing.mixtures import mixed_specs, random_row, torch_tensors
from upt_zoo.backbone import Backbone
from upt_zoo.nn.adapter import prepare
from upt_zoo.nn.encoder import Encoder, build_encoder, load_encoder, load_tensors
from upt_zoo.nn.forward import forward
from upt_zoo.nn.heads import row_logits
from upt_zoo.nn.layers import embed, run_layers
from upt_zoo.nn.packing import Row, pack

OTHER = "meta"  # the device that every build of torch has beside the CPU


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return write_tiny_backbone(tmp_path_factory.mktemp("backbone"))


def rows_on(encoder: Encoder, backbone: Backbone, *, longest: int = 24) -> list[Row]:
    """One row for each kind of adapter, prepared for the encoder's device."""
    return [
        random_row(
            encoder,
            prepare(spec, torch_tensors(spec, index), dtype=encoder.dtype, device=encoder.device),
            3 + index % longest,
            seed=index,
        )
        for index, spec in enumerate(mixed_specs(backbone.identity))
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_kind_of_adapter_stays_on_the_encoders_device(
    backbone: Backbone, dtype: torch.dtype
) -> None:
    # fake tensors know their device and refuse to meet one of another; they hold no numbers
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    tensors = load_tensors(backbone)
    with fake:
        encoder = fake_encoder(backbone, tensors, dtype)
        rows = rows_on(encoder, backbone)
    packed = pack(rows * 2, is_rectangular=True)  # laid out on the CPU, by numpy
    with fake, torch.inference_mode():
        batch = packed.to(encoder.device)
        for logits in row_logits(batch, run_layers(encoder, batch, embed(encoder, batch))):
            assert logits.device.type == OTHER


def test_a_batch_left_on_the_cpu_is_noticed(backbone: Backbone) -> None:
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    tensors = load_tensors(backbone)
    with fake:
        encoder = fake_encoder(backbone, tensors, torch.float32)
        rows = rows_on(encoder, backbone)
    batch = pack(rows)
    with fake, pytest.raises(RuntimeError, match="device"):
        embed(encoder, batch)


def fake_encoder(backbone: Backbone, tensors: dict[str, Tensor], dtype: torch.dtype) -> Encoder:
    moved = {name: tensor.to(OTHER) for name, tensor in tensors.items()}
    encoder = build_encoder(backbone.config, moved, dtype=dtype)
    assert encoder.device.type == OTHER
    return encoder


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-3), (torch.bfloat16, 0.5)])
def test_a_gpu_answers_as_the_cpu(tmp_path: Path, dtype: torch.dtype, most: float) -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch finds no GPU")
    backbone = write_tiny_backbone(tmp_path)
    on_cpu, on_gpu = load_encoder(backbone), load_encoder(backbone, dtype=dtype, device="cuda")
    with torch.inference_mode():
        expected = forward(on_cpu, rows_on(on_cpu, backbone))
        given = forward(on_gpu, rows_on(on_gpu, backbone))
    for one, other in zip(given, expected, strict=True):
        assert (one.cpu() - other).abs().max() < most
