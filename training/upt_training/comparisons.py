"""Methods of the paper's table that change more than a spec can say: trained, never published."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from upt_training.learner import AdapterLearner
from upt_training.recipe import Learning
from upt_zoo.nn.adapter import PreparedAdapter
from upt_zoo.nn.encoder import Encoder, EncoderLayer
from upt_zoo.nn.linear import Linear
from upt_zoo.nn.stacking import stack
from upt_zoo.spec import AdapterSpec

_HEAD = "head."
_Value = TypeVar("_Value")
_KEYS, _VALUES, _INNER = "ia3.keys", "ia3.values", "ia3.inner"


class StackedLearner:
    """Several blocks of the spec's components in each layer, and one head.

    ``start_ids`` are enough for all blocks, which take them one after the other. A block's names
    are led by ``block<number>/``.
    """

    def __init__(
        self,
        recipe: Learning,
        spec: AdapterSpec,
        encoder: Encoder,
        *,
        start_ids: Sequence[int],
        target_scale: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        self._encoder = encoder
        share = len(start_ids) // recipe.blocks
        self._blocks = [
            AdapterLearner(
                recipe,
                spec,
                encoder,
                start_ids=start_ids[block * share :][:share],
                target_scale=target_scale,
            )
            for block in range(recipe.blocks)
        ]
        self.weights = _named([block.weights for block in self._blocks])
        self.rates = _named([block.rates for block in self._blocks])

    def model(self) -> tuple[Encoder, PreparedAdapter]:
        """Return the frozen encoder and the stack, under autograd."""
        return self._encoder, stack([block.model()[1] for block in self._blocks])

    def served_tensors(self) -> dict[str, Tensor]:
        """Return detached fp32 tensors: all blocks', and one head."""
        return _named([block.served_tensors() for block in self._blocks])

    def answering(
        self, frozen: Encoder, tensors: Mapping[str, Tensor]
    ) -> tuple[Encoder, PreparedAdapter]:
        """Return the frozen encoder and the stack of these tensors."""
        head = {name: tensor for name, tensor in tensors.items() if name.startswith(_HEAD)}
        blocks = []
        for number, block in enumerate(self._blocks):
            lead = f"block{number}/"
            own = {n.removeprefix(lead): t for n, t in tensors.items() if n.startswith(lead)}
            blocks.append(block.answering(frozen, own | head)[1])
        return frozen, stack(blocks)


class Ia3Learner:
    """An adapter, and a factor for each key, value and inner state of the encoder.

        k = l_k ⊙ (W_k x + b_k)     v = l_v ⊙ (W_v x + b_v)     f = W_down (l_f ⊙ act(W_up x₁))

    What learns is l - 1, so that weight decay draws to the backbone and not to zero. ``ia3.keys``
    and ``ia3.values`` are [layer, hidden], ``ia3.inner`` [layer, intermediate].

    Source: Liu et al. 2022 (IA3, arXiv 2205.05638), section 3.3.
    """

    def __init__(
        self,
        recipe: Learning,
        spec: AdapterSpec,
        encoder: Encoder,
        *,
        start_ids: Sequence[int],
        target_scale: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        self._encoder = encoder
        self._adapter = AdapterLearner(
            recipe, spec, encoder, start_ids=start_ids, target_scale=target_scale
        )
        backbone = spec.backbone
        self._factors = {
            name: torch.zeros(backbone.layers, size, device=encoder.device, requires_grad=True)
            for name, size in (
                (_KEYS, backbone.hidden),
                (_VALUES, backbone.hidden),
                (_INNER, backbone.intermediate),
            )
        }
        self.weights = self._adapter.weights | self._factors
        self.rates = self._adapter.rates | dict.fromkeys(self._factors, recipe.adapter_rate)

    def model(self) -> tuple[Encoder, PreparedAdapter]:
        """Return the scaled encoder and the adapter, under autograd."""
        return _scaled(self._encoder, self._factors), self._adapter.model()[1]

    def served_tensors(self) -> dict[str, Tensor]:
        """Return detached fp32 tensors: the adapter's and the factors'."""
        factors = {name: tensor.detach().cpu().clone() for name, tensor in self._factors.items()}
        return self._adapter.served_tensors() | factors

    def answering(
        self, frozen: Encoder, tensors: Mapping[str, Tensor]
    ) -> tuple[Encoder, PreparedAdapter]:
        """Return the encoder scaled by these tensors and their adapter."""
        factors = {name: tensors[name].float().to(frozen.device) for name in self._factors}
        own = {name: tensor for name, tensor in tensors.items() if name not in factors}
        return _scaled(frozen, factors), self._adapter.answering(frozen, own)[1]


class ScaledLinear:
    """A linear layer between factors: y = l_out ⊙ (W (l_in ⊙ x) + b)."""

    def __init__(
        self, linear: Linear, *, inputs: Tensor | None = None, outputs: Tensor | None = None
    ) -> None:
        self._linear, self._inputs, self._outputs = linear, inputs, outputs

    def __call__(self, x: Tensor) -> Tensor:
        """Map [token, in] to [token, out]."""
        y = self._linear(x if self._inputs is None else x * self._inputs.to(x.dtype))
        return y if self._outputs is None else y * self._outputs.to(y.dtype)

    def parameters(self) -> tuple[Tensor, Tensor]:
        """Return the weight [out, in] and the bias [out], factors multiplied in."""
        weight, bias = self._linear.parameters()
        if self._inputs is not None:
            weight = weight * self._inputs
        if self._outputs is not None:
            weight, bias = weight * self._outputs[:, None], bias * self._outputs
        return weight, bias


def _scaled(encoder: Encoder, factors: Mapping[str, Tensor]) -> Encoder:
    layers = []
    for index, layer in enumerate(encoder.layers):
        keys, values, inner = (1 + factors[name][index] for name in (_KEYS, _VALUES, _INNER))
        layers.append(_scaled_layer(layer, keys, values, inner))
    return replace(encoder, layers=tuple(layers))


def _scaled_layer(layer: EncoderLayer, keys: Tensor, values: Tensor, inner: Tensor) -> EncoderLayer:
    outputs = torch.cat([torch.ones_like(keys), keys, values])
    return replace(
        layer,
        qkv=ScaledLinear(layer.qkv, outputs=outputs),
        ffn_down=ScaledLinear(layer.ffn_down, inputs=inner),
    )


def _named(blocks: Sequence[Mapping[str, _Value]]) -> dict[str, _Value]:
    """Lead each block's names by its number; the head is the first block's."""
    head = {name: value for name, value in blocks[0].items() if name.startswith(_HEAD)}
    return head | {
        f"block{number}/{name}": value
        for number, block in enumerate(blocks)
        for name, value in block.items()
        if not name.startswith(_HEAD)
    }
