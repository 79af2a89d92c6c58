"""One forward pass of a mixed batch, for serving and for training."""

from collections.abc import Sequence

from torch import Tensor

from upt_zoo.nn.encoder import Encoder
from upt_zoo.nn.heads import row_logits
from upt_zoo.nn.layers import embed, run_layers
from upt_zoo.nn.packing import Batch, Row, pack

_GPU_BUCKETS = 64  # tokens: on a GPU a kernel more takes longer than a few padded rows


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
    batch = lay_out(encoder, rows, bucket_multiple=bucket_multiple, token_multiple=token_multiple)
    hidden = run_layers(encoder, batch, embed(encoder, batch), dropout=dropout)
    return row_logits(batch, hidden)


def lay_out(
    encoder: Encoder, rows: Sequence[Row], *, bucket_multiple: int = 1, token_multiple: int = 1
) -> Batch:
    """Pack rows for an encoder, on its device; on others than CPUs for as few kernels as can be."""
    is_gpu = encoder.device.type != "cpu"
    packed = pack(
        rows,
        bucket_multiple=max(bucket_multiple, _GPU_BUCKETS) if is_gpu else bucket_multiple,
        token_multiple=token_multiple,
        is_rectangular=is_gpu,
    )
    return packed.to(encoder.device)
