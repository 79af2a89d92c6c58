"""Dropout whose mask is drawn sixteen bits a number.

On CPUs torch draws a mask number by number, which took 18 % of a training step (docs/decisions/
log.md); four numbers to a draw of 64 bits take a third of that.
"""

import torch
from torch import Tensor
from torch.nn import functional

_STEPS = 2**16
_NUMBERS_A_DRAW = 4


def drop(x: Tensor, share: float) -> Tensor:
    """Set this share of x's numbers to 0 by chance and divide the others by what is left of 1.

    The share is met to 1/65,536. Torch's generator is drawn from.
    """
    if not share:
        return x
    if x.device.type != "cpu":
        return functional.dropout(x, share)
    draws = torch.empty(-(-x.numel() // _NUMBERS_A_DRAW), dtype=torch.int64)
    bits = draws.random_(-(2**63), None).view(torch.int16)[: x.numel()].view(x.shape)
    dropped = round(share * _STEPS)
    kept = (bits >= dropped - _STEPS // 2).to(x.dtype)
    return x * kept.mul_(_STEPS / (_STEPS - dropped))
