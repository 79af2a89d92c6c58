"""The encoder's linear layers: frozen and prepacked for serving and adapter training, or learning.

oneDNN with prepacked weights runs about twice as fast as the default fp32 product on CPUs with
AVX512, and on others for few tokens (docs/decisions/003-prepacked-linears.md). The operators are
not public API of torch, so they are used where they exist and otherwise the public ``linear``
stands in.
"""

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional

from upt_zoo.nn.devices import is_bf16_fast

_Project = Callable[[Tensor], Tensor]

_MANY_TOKENS = 128  # from here on the default product is the faster one without AVX512


@runtime_checkable  # for the type checks of the tests
class Linear(Protocol):
    """y = x Wᵀ + b over the last axis."""

    def __call__(self, x: Tensor) -> Tensor:
        """Map [token, in] to [token, out]."""
        ...

    def parameters(self) -> tuple[Tensor, Tensor]:
        """Return the weight [out, in] and the bias [out]."""
        ...


class FrozenLinear:
    """A linear layer that passes gradients to its input and has none of its own.

    Holds the packed weight and, from the first backward pass on, the packed transposed weight.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self._weight, self._bias = weight, bias
        self._forward = _pack(weight, bias)
        self._backward: _Project | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Map [token, in] to [token, out]."""
        if torch.is_grad_enabled() and x.requires_grad:
            # torch leaves it untyped
            projected: Tensor = _InputGradientOnly.apply(x, self)  # type: ignore[no-untyped-call]
            return projected
        return self.project(x)

    def parameters(self) -> tuple[Tensor, Tensor]:
        """Return the weight [out, in] and the bias [out]."""
        return self._weight, self._bias

    def project(self, x: Tensor) -> Tensor:
        """Return x Wᵀ + b without recording gradients."""
        return self._forward(x)

    def project_back(self, gradient: Tensor) -> Tensor:
        """Return the gradient W of the input, for a gradient of the output."""
        if self._backward is None:
            self._backward = _pack(self._weight.t(), None)
        return self._backward(gradient)


class Int8Linear(FrozenLinear):
    """A frozen linear layer that computes what int8 serving computes, in its own dtype.

    Weights are rounded per output, inputs per token; the rounding's gradient is taken as 1
    (straight-through, Bengio et al. 2013, arXiv 1308.3432).
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        rounded, scale = round_weight(weight)
        super().__init__(rounded.to(weight.dtype) * scale[:, None], bias)

    def project(self, x: Tensor) -> Tensor:
        """Return round(x) round(W)ᵀ + b without recording gradients."""
        return super().project(_round_tokens(x))


def round_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return int8 [out, in] within ±127 and scales [out]: weight ≈ int8 * scale."""
    scale = weight.abs().amax(1).clamp_min(1e-30) / 127
    return torch.round(weight / scale[:, None]).to(torch.int8), scale


def _round_tokens(x: Tensor) -> Tensor:
    """Round each token's numbers to 256 steps between its smallest and its largest."""
    least = x.amin(1, keepdim=True)
    step = (x.amax(1, keepdim=True) - least).clamp_min(1e-30) / 255
    return torch.round((x - least) / step) * step + least


class LearningLinear:
    """A linear layer whose weights learn; several stacked along the output act as one.

    Masters keep their own dtype, the product is formed in the input's.
    """

    def __init__(self, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> None:
        self._weights, self._biases = weights, biases

    def __call__(self, x: Tensor) -> Tensor:
        """Map [token, in] to [token, out]."""
        weight = torch.cat([weight.to(x.dtype) for weight in self._weights])
        return functional.linear(x, weight, torch.cat(list(self._biases)).to(x.dtype))

    def parameters(self) -> tuple[Tensor, Tensor]:
        """Return the weight [out, in] and the bias [out], as they stand."""
        return torch.cat(list(self._weights)).detach(), torch.cat(list(self._biases)).detach()


class _InputGradientOnly(torch.autograd.Function):
    """x Wᵀ + b whose backward computes the gradient of x alone and saves no activation."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, x: Tensor, linear: FrozenLinear
    ) -> Tensor:
        ctx.linear = linear  # type: ignore[attr-defined]  # a context takes attributes freely
        return linear.project(x)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        linear: FrozenLinear = ctx.linear  # type: ignore[attr-defined]  # set in forward
        return linear.project_back(gradient.contiguous()), None


def _pack(weight: Tensor, bias: Tensor | None) -> _Project:
    def plain(x: Tensor) -> Tensor:
        return functional.linear(x, weight, bias)

    if not _has_prepacked_linear(weight):
        return plain
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
    pointwise = torch.ops.mkldnn._linear_pointwise

    def prepacked(x: Tensor) -> Tensor:
        product: Tensor = pointwise(x, packed, bias, "none", [], "")
        return product

    if torch.backends.cpu.get_cpu_capability() == "AVX512":
        return prepacked
    return lambda x: prepacked(x) if x.shape[0] < _MANY_TOKENS else plain(x)


def _has_prepacked_linear(weight: Tensor) -> bool:
    return (
        weight.device.type == "cpu"
        and (weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and is_bf16_fast()))
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # torch leaves it so
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )
