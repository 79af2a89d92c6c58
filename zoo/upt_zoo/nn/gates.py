"""Which components each layer let in: the gates of a forward pass, for people who ask why."""

from collections.abc import Sequence

import torch
from torch import Tensor

from upt_zoo.layout import gate_names
from upt_zoo.nn.encoder import Encoder
from upt_zoo.nn.forward import lay_out
from upt_zoo.nn.layers import embed, run_layers
from upt_zoo.nn.packing import Row
from upt_zoo.spec import AdapterSpec


def mean_gates(encoder: Encoder, spec: AdapterSpec, rows: Sequence[Row]) -> list[dict[str, float]]:
    """Return each layer's gates by name, averaged over the rows, which are all of this adapter.

    A row's gate is the mean over its tokens, prompt vectors included
    (docs/architecture.md, section 3).
    """
    layers: list[list[Tensor]] = [[] for _ in encoder.layers]
    with torch.inference_mode():
        batch = lay_out(encoder, rows)
        run_layers(
            encoder,
            batch,
            embed(encoder, batch),
            observe=lambda index, gates: layers[index].append(gates.mean(0)),
        )
    values = [[value for part in parts for value in part.tolist()] for parts in layers]
    return [dict(zip(gate_names(spec), each, strict=True)) for each in values]
