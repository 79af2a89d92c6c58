"""One forward pass of a mixed batch, for serving and for training."""

from collections.abc import Sequence

from torch import Tensor

from upt_zoo.nn.encoder import Encoder
from upt_zoo.nn.heads import row_logits
from upt_zoo.nn.layers import embed, run_layers
from upt_zoo.nn.packing import Row, pack


def forward(
    encoder: Encoder,
    rows: Sequence[Row],
    *,
    bucket_multiple: int = 1,
    token_multiple: int = 1,
    dropout: float = 0.0,
) -> list[Tensor]:
    """Answer rows of any adapters in one pass; logits in the rows' order.

    Logits are those of ``heads.head_logits``, in fp32 or wider. A row's logits do not depend on the
    other rows beyond the rounding of the encoder's dtype. The multiples are those of
    ``packing.pack``; ``dropout`` is for training only.
    """
    packed = pack(rows, bucket_multiple=bucket_multiple, token_multiple=token_multiple)
    batch = packed.to(encoder.device)
    hidden = run_layers(encoder, batch, embed(encoder, batch), dropout=dropout)
    return row_logits(batch, hidden)
