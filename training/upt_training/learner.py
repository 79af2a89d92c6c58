"""The weights that learn: their start values, their optimiser groups, and their served form.

``AdapterLearner`` trains an adapter on a frozen encoder, ``FullLearner`` the whole encoder with a
head for comparison. Both hand the loop an encoder and an adapter ready for the forward pass.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from upt_training.recipe import Learning
from upt_zoo import layout
from upt_zoo.backbone import EncoderConfig
from upt_zoo.errors import InvalidSpec
from upt_zoo.nn.adapter import PreparedAdapter, prepare
from upt_zoo.nn.encoder import Encoder, build_encoder
from upt_zoo.nn.forward import lay_out
from upt_zoo.nn.layers import embed, run_layers
from upt_zoo.nn.packing import Row
from upt_zoo.spec import AdapterSpec

_REPARAMETRISATION = "reparametrisation"  # trained names that are not part of the served layout
_REPARAMETRISATION_WIDTH = 512
_START_STD = 0.02


class Trainable(Protocol):
    """What the loop needs of whatever learns.

    ``weights`` are the trained tensors by name, changed in place by the optimiser; ``rates`` gives
    each its learning rate.
    """

    weights: dict[str, Tensor]
    rates: dict[str, float]


class Learner(Trainable, Protocol):
    """A model that learns."""

    def model(self) -> tuple[Encoder, PreparedAdapter]:
        """Return encoder and adapter for one forward pass, under autograd."""
        ...

    def served_tensors(self) -> dict[str, Tensor]:
        """Return detached fp32 tensors: those in the served layout, or what stands in for them."""
        ...

    def answering(
        self, frozen: Encoder, tensors: Mapping[str, Tensor]
    ) -> tuple[Encoder, PreparedAdapter]:
        """Return what answers with ``served_tensors``, rounded or not: in ``frozen``'s precision.

        ``frozen`` is the backbone's own encoder; a method that changes it returns another.
        """
        ...


class AdapterLearner:
    """An adapter's weights on a frozen encoder.

    ``target_scale`` (mean, deviation) is folded into a regression head, so that it learns
    standardised targets and serves the labels' own unit. ``initial`` are the served tensors of
    another adapter to start from; its head is left out.

    Raises:
        InvalidSpec: ``initial`` is of other components, or another backbone's size.
    """

    def __init__(
        self,
        recipe: Learning,
        spec: AdapterSpec,
        encoder: Encoder,
        *,
        start_ids: Sequence[int],
        target_scale: tuple[float, float] = (0.0, 1.0),
        initial: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._recipe, self._spec, self._encoder = recipe, spec, encoder
        self._target_scale = target_scale
        self.weights = _start_weights(recipe, spec, encoder, start_ids)
        if initial is not None:
            self._start_from(initial)
        self.rates = {name: _rate(recipe, name) for name in self.weights}

    def model(self) -> tuple[Encoder, PreparedAdapter]:
        """Return the frozen encoder and the adapter, under autograd."""
        return self._encoder, prepare(
            self._spec, self._folded(), dtype=self._encoder.dtype, device=self._encoder.device
        )

    def served_tensors(self) -> dict[str, Tensor]:
        """Return detached fp32 tensors in the served layout."""
        return _copies(self._folded())

    def answering(
        self, frozen: Encoder, tensors: Mapping[str, Tensor]
    ) -> tuple[Encoder, PreparedAdapter]:
        """Return the frozen encoder and the adapter of these tensors."""
        return frozen, prepare(self._spec, tensors, dtype=frozen.dtype, device=frozen.device)

    def _start_from(self, initial: Mapping[str, Tensor]) -> None:
        wanted = layout.component_shapes(self._spec)
        given = {n: tuple(t.shape) for n, t in initial.items() if not n.startswith("head.")}
        if given != wanted:
            other = sorted(dict(given.items() ^ wanted.items()))
            raise InvalidSpec(
                f"initial_adapter: expected the tensors of method {self._recipe.method} on this "
                f"backbone, got others: {', '.join(other)}"
            )
        for name in wanted:
            start = initial[name].detach().clone().float().to(self._encoder.device)
            self.weights[name] = start.requires_grad_()
        with torch.no_grad():
            for target in self._spec.lora.targets if self._spec.lora else ():
                self.weights[layout.lora_b(target)] /= self._recipe.lora_factor

    def _folded(self) -> dict[str, Tensor]:
        served = {
            name: tensor
            for name, tensor in self.weights.items()
            if not name.startswith(_REPARAMETRISATION)
        }
        if self._recipe.is_prefix_reparametrised and self._spec.prefix:
            keys, values = _unfold_prefix(self.weights, self._spec.backbone.layers)
            served |= {layout.PREFIX_KEYS: keys, layout.PREFIX_VALUES: values}
        for target in self._spec.lora.targets if self._spec.lora else ():
            name = layout.lora_b(target)
            served[name] = served[name] * self._recipe.lora_factor
        return served | _scaled_head(served, self._target_scale)


class FullLearner:
    """The whole encoder and a head: full fine-tuning, for comparison only.

    With method ``bitfit`` only the encoder's biases learn, and the head, at the adapter's rate.
    Source: Ben-Zaken et al. 2022 (BitFit, arXiv 2106.10199), section 3.
    """

    def __init__(
        self,
        recipe: Learning,
        spec: AdapterSpec,
        config: EncoderConfig,
        backbone: Mapping[str, Tensor],
        *,
        dtype: torch.dtype = torch.float32,
        target_scale: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        self._config, self._spec, self._target_scale = config, spec, target_scale
        self._backbone = {name: tensor.detach().clone() for name, tensor in backbone.items()}
        self._device = next(iter(self._backbone.values())).device
        self._head = _start_head(spec, self._device)
        is_bitfit = recipe.method == "bitfit"
        learnt = [name for name in backbone if name.endswith(".bias") or not is_bitfit]
        self._dtype = dtype
        self.weights = {name: self._backbone[name].requires_grad_() for name in learnt} | self._head
        rate = recipe.adapter_rate if is_bitfit else recipe.backbone_rate
        self.rates = dict.fromkeys(learnt, rate) | dict.fromkeys(self._head, recipe.head_rate)

    def model(self) -> tuple[Encoder, PreparedAdapter]:
        """Return the learning encoder and its head, under autograd."""
        encoder = build_encoder(self._config, self._backbone, dtype=self._dtype, is_learning=True)
        head = self._head | _scaled_head(self._head, self._target_scale)
        return encoder, prepare(self._spec, head, dtype=self._dtype, device=self._device)

    def trained_encoder(self) -> Encoder:
        """Return the encoder as it stands, frozen, in fp32."""
        weights = {name: tensor.detach() for name, tensor in self._backbone.items()}
        return build_encoder(self._config, weights, dtype=torch.float32)

    def served_tensors(self) -> dict[str, Tensor]:
        """Return the head alone: the encoder is no adapter and is never published."""
        return _copies(self._head | _scaled_head(self._head, self._target_scale))

    def answering(
        self, frozen: Encoder, tensors: Mapping[str, Tensor]
    ) -> tuple[Encoder, PreparedAdapter]:
        """Return the encoder as it was trained and the head of these tensors."""
        head = prepare(self._spec, tensors, dtype=torch.float32, device=self._device)
        return self.trained_encoder(), head


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}


def _rate(recipe: Learning, name: str) -> float:
    if name.startswith("head."):
        return recipe.head_rate
    if ".gate." in name:
        return recipe.adapter_rate * recipe.gate_rate_share
    return recipe.adapter_rate


def _scaled_head(
    tensors: Mapping[str, Tensor], target_scale: tuple[float, float]
) -> dict[str, Tensor]:
    mean, deviation = target_scale
    weight, bias = layout.weight(layout.HEAD_OUT), layout.bias(layout.HEAD_OUT)
    if weight not in tensors:  # an embedding
        return {}
    return {weight: tensors[weight] * deviation, bias: tensors[bias] * deviation + mean}


def _start_weights(
    recipe: Learning, spec: AdapterSpec, encoder: Encoder, start_ids: Sequence[int]
) -> dict[str, Tensor]:
    """Draw start values so that LoRA and the bottleneck begin as no change to the backbone.

    Prompt and prefix begin as the backbone's own embeddings, keys and values of ``start_ids``
    (at least as many as the longer of the two). All numbers are drawn on the CPU, so that they are
    the same for every device.
    """
    weights = {
        name: _start_value(recipe, name, shape)
        for name, shape in layout.component_shapes(spec).items()
    }
    if spec.prompt is not None:
        ids = torch.tensor(start_ids[: spec.prompt.length], device=encoder.device)
        weights[layout.PROMPT] = encoder.embeddings.norm(encoder.embeddings.word[ids]).float()
    if spec.prefix is not None:
        keys, values = _own_keys_and_values(spec, encoder, start_ids[: spec.prefix.length])
        if recipe.is_prefix_reparametrised:
            del weights[layout.PREFIX_KEYS], weights[layout.PREFIX_VALUES]
            weights |= _start_reparametrisation(torch.stack([keys, values], 1).cpu())
        else:
            weights |= {layout.PREFIX_KEYS: keys, layout.PREFIX_VALUES: values}
    moved = {name: w.detach().clone().to(encoder.device) for name, w in weights.items()}
    weights = {name: weight.requires_grad_() for name, weight in moved.items()}
    return weights | _start_head(spec, encoder.device)


def _start_value(recipe: Learning, name: str, shape: layout.Shape) -> Tensor:
    if ".gate." in name and name.endswith("bias"):
        return torch.full(shape, recipe.gate_bias)
    if name.endswith((".b", "bias")) or name == layout.weight(layout.BOTTLENECK_UP):
        return torch.zeros(shape)
    return torch.randn(shape) * _START_STD


def _start_head(spec: AdapterSpec, device: torch.device) -> dict[str, Tensor]:
    shapes = layout.head_shapes(spec.head, spec.backbone.hidden)
    return {
        name: (torch.randn(shape) * _START_STD * (len(shape) > 1)).to(device).requires_grad_()
        for name, shape in shapes.items()
    }


def _own_keys_and_values(
    spec: AdapterSpec, encoder: Encoder, ids: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Return the frozen encoder's own for these tokens, two of [layer, len(ids), hidden]."""
    bare = spec.model_copy(
        update={"lora": None, "prefix": None, "bottleneck": None, "prompt": None}
    )
    head = _start_head(spec, encoder.device)
    adapter = prepare(bare, head, dtype=encoder.dtype, device=encoder.device)
    batch = lay_out(encoder, [Row(ids=ids, type_ids=[0] * len(ids), adapter=adapter)])
    keys, values = [], []
    with torch.no_grad():
        hidden = embed(encoder, batch)
        for layer in encoder.layers:
            _, key, value = layer.qkv(hidden).float().chunk(3, 1)
            keys.append(key)
            values.append(value)
            hidden = run_layers(replace(encoder, layers=(layer,)), batch, hidden)
    return torch.stack(keys), torch.stack(values)


def _start_reparametrisation(target: Tensor) -> dict[str, Tensor]:
    """Draw the prefix's training network; its output bias carries the start [L, 2, p, d].

    Source: Li and Liang 2021, section 4.3: P = W₂ tanh(W₁ e + b₁) + b₂. The bias b₂ holds the mean
    over the prefix's positions, since it is shared by them.
    """
    length, hidden = target.shape[2:]
    width, outputs = _REPARAMETRISATION_WIDTH, target[:, :, 0].numel()
    return {
        f"{_REPARAMETRISATION}.embedding": torch.randn(length, hidden),
        f"{_REPARAMETRISATION}.in.weight": torch.randn(width, hidden) / hidden**0.5,
        f"{_REPARAMETRISATION}.in.bias": torch.zeros(width),
        f"{_REPARAMETRISATION}.out.weight": torch.randn(outputs, width) * _START_STD,
        f"{_REPARAMETRISATION}.out.bias": target.mean(2).flatten(),
    }


def _unfold_prefix(weights: Mapping[str, Tensor], layers: int) -> tuple[Tensor, Tensor]:
    """Return keys and values [layer, prefix, hidden] of the training network."""
    embedding, *rest = (
        weights[f"{_REPARAMETRISATION}.{name}"]
        for name in ("embedding", "in.weight", "in.bias", "out.weight", "out.bias")
    )
    inner = torch.tanh(torch.nn.functional.linear(embedding, rest[0], rest[1]))
    flat = torch.nn.functional.linear(inner, rest[2], rest[3])
    length, hidden = embedding.shape
    stacked = flat.view(length, layers, 2, hidden).permute(2, 1, 0, 3)
    return stacked[0], stacked[1]
