"""The seam between serving and computing: rows of any adapters in, logits out."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from upt_zoo.nn.encoder import Encoder
from upt_zoo.nn.forward import forward
from upt_zoo.nn.packing import Row


class Runner(Protocol):
    """Computes a batch; called from one thread, one batch at a time."""

    def run(self, rows: Sequence[Row]) -> list[NDArray[np.float32]]:
        """Return each row's logits, in the rows' order: [output], or [token, 2] for spans."""
        ...


class TorchRunner:
    """Runs the packed forward pass of torch."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder

    def run(self, rows: Sequence[Row]) -> list[NDArray[np.float32]]:
        """Return each row's logits, in the rows' order: [output], or [token, 2] for spans."""
        with torch.inference_mode():
            return [logits.float().numpy() for logits in forward(self._encoder, rows)]
