"""The seam between serving and computing: rows of any adapters in, logits out."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from upt_server.precision import RunnerName
from upt_zoo.nn.adapter import PreparedAdapter, prepare
from upt_zoo.nn.encoder import Encoder
from upt_zoo.nn.forward import forward
from upt_zoo.nn.packing import Row
from upt_zoo.spec import AdapterSpec


class Runner(Protocol):
    """Computes batches, from one thread, one at a time; prepares adapters from any thread."""

    @property
    def name(self) -> str:
        """Who computes, and in which numbers."""
        ...

    def prepare(self, spec: AdapterSpec, tensors: Mapping[str, Tensor]) -> PreparedAdapter:
        """Make an adapter ready for ``run``: whatever does not depend on the batch."""
        ...

    def run(self, rows: Sequence[Row]) -> list[NDArray[np.float32]]:
        """Return each row's logits, in the rows' order, as ``upt_zoo.nn.heads`` forms them."""
        ...


class TorchRunner:
    """Runs the packed forward pass of torch, in the encoder's dtype and on its device."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self.name: RunnerName = "torch-bf16" if encoder.dtype == torch.bfloat16 else "torch-fp32"

    def prepare(self, spec: AdapterSpec, tensors: Mapping[str, Tensor]) -> PreparedAdapter:
        """Fuse the adapter's tensors in the encoder's dtype, on its device."""
        return prepare(spec, tensors, dtype=self._encoder.dtype, device=self._encoder.device)

    def run(self, rows: Sequence[Row]) -> list[NDArray[np.float32]]:
        """Return each row's logits, in the rows' order, as ``upt_zoo.nn.heads`` forms them."""
        with torch.inference_mode():
            logits = [each.float() for each in forward(self._encoder, rows)]
            flat = torch.cat([each.flatten() for each in logits]).cpu()  # in one go from a GPU
        parts = torch.split(flat, [each.numel() for each in logits])
        return [part.view(each.shape).numpy() for part, each in zip(parts, logits, strict=True)]
