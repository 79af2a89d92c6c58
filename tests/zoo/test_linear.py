"""The frozen linear layer beside torch's own, whichever product multiplies."""

import pytest
import torch
from torch.nn import functional

from upt_zoo.nn.linear import FrozenLinear


@pytest.mark.parametrize("tokens", [1, 7, 127, 128, 300])
def test_a_frozen_layer_and_its_gradient_are_torchs(tokens: int) -> None:
    generator = torch.Generator().manual_seed(tokens)
    weight, bias = torch.randn(48, 32, generator=generator), torch.randn(48, generator=generator)
    x = torch.randn(tokens, 32, generator=generator, requires_grad=True)
    gradient = torch.randn(tokens, 48, generator=generator)
    expected = functional.linear(x, weight, bias)
    frozen = FrozenLinear(weight, bias)

    torch.testing.assert_close(frozen(x.detach()), expected, atol=1e-5, rtol=1e-5)
    projected = frozen(x)
    torch.testing.assert_close(projected, expected, atol=1e-5, rtol=1e-5)
    (found,) = torch.autograd.grad(projected, x, gradient)
    torch.testing.assert_close(found, gradient @ weight, atol=1e-5, rtol=1e-5)
