"""The encoder's weights for BERT and RoBERTa, loaded once and shared by all adapters.

Knows the checkpoint's names and nothing of adapters. ``load_encoder`` gives the frozen form,
``build_encoder`` also the learning form that full fine-tuning needs.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from upt_zoo.backbone import Backbone, EncoderConfig, encoder_tensor_name
from upt_zoo.errors import Corrupt
from upt_zoo.nn.linear import FrozenLinear, LearningLinear, Linear


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerNorm:
    """(x - mean) / sqrt(var + eps) * weight + bias over the hidden axis."""

    weight: Tensor
    bias: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise [token, hidden]."""
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return functional.layer_norm(x, weight.shape, weight, bias, self.eps)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderLayer:
    """One transformer layer; query, key and value are one fused product [hidden, 3 hidden]."""

    qkv: Linear
    attention_out: Linear
    attention_norm: LayerNorm
    ffn_up: Linear
    ffn_down: Linear
    ffn_norm: LayerNorm


@dataclass(frozen=True, slots=True, kw_only=True)
class Embeddings:
    """Word, position and type tables with the LayerNorm over their sum."""

    word: Tensor
    position: Tensor
    type: Tensor
    norm: LayerNorm
    first_position: int

    def __call__(self, ids: Tensor, positions: Tensor, type_ids: Tensor) -> Tensor:
        """Embed packed tokens: three [token] index tensors to [token, hidden].

        ``positions`` count from 0; RoBERTa's own offset is added here.
        """
        word = functional.embedding(ids, self.word)
        position = functional.embedding(positions + self.first_position, self.position)
        if self.type.shape[0] == 1:
            type_ids = torch.zeros_like(type_ids)
        return self.norm(word + position + functional.embedding(type_ids, self.type))


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """The encoder; hidden states are in ``dtype``, the embeddings are computed in their own."""

    config: EncoderConfig
    dtype: torch.dtype
    embeddings: Embeddings
    layers: tuple[EncoderLayer, ...]


def load_tensors(backbone: Backbone) -> dict[str, Tensor]:
    """Read the encoder's tensors from disk, under names without a model prefix."""
    family = backbone.config.model_type
    named = (
        (encoder_tensor_name(name, family), tensor)
        for name, tensor in load_file(backbone.weights_file).items()
    )
    return {name: tensor for name, tensor in named if name is not None}


def load_encoder(backbone: Backbone, *, dtype: torch.dtype = torch.float32) -> Encoder:
    """Load the frozen encoder in ``dtype``."""
    return build_encoder(backbone.config, load_tensors(backbone), dtype=dtype)


def build_encoder(
    config: EncoderConfig,
    tensors: Mapping[str, Tensor],
    *,
    dtype: torch.dtype,
    is_learning: bool = False,
) -> Encoder:
    """Build from tensors in Hugging Face's names without a model prefix.

    A frozen encoder casts its linear weights to ``dtype`` once and packs them. A learning one
    refers to the tensors given and casts them in each forward pass; its fused query-key-value
    product is then formed from the three weights each time.

    Raises:
        Corrupt: a tensor of the encoder is missing.
    """
    source = _Checkpoint(config, tensors, dtype, is_learning=is_learning)
    try:
        return Encoder(
            config=config,
            dtype=dtype,
            embeddings=source.embeddings(),
            layers=tuple(source.layer(index) for index in range(config.num_hidden_layers)),
        )
    except KeyError as error:
        raise Corrupt(f"the backbone's weights lack the tensor {error}") from error


class _Checkpoint:
    """The checkpoint's names, spelt here only."""

    def __init__(
        self,
        config: EncoderConfig,
        tensors: Mapping[str, Tensor],
        dtype: torch.dtype,
        *,
        is_learning: bool,
    ) -> None:
        self._config, self._tensors, self._dtype = config, tensors, dtype
        self._is_learning = is_learning

    def embeddings(self) -> Embeddings:
        is_roberta = self._config.model_type == "roberta"
        tables = {
            name: self._wide(f"embeddings.{name}_embeddings.weight")
            for name in ("word", "position", "token_type")
        }
        return Embeddings(
            word=tables["word"],
            position=tables["position"],
            type=tables["token_type"],
            norm=self._norm("embeddings.LayerNorm"),
            first_position=self._config.pad_token_id + 1 if is_roberta else 0,
        )

    def layer(self, index: int) -> EncoderLayer:
        name = f"encoder.layer.{index}"
        attention = f"{name}.attention"
        return EncoderLayer(
            qkv=self._linear(*(f"{attention}.self.{part}" for part in ("query", "key", "value"))),
            attention_out=self._linear(f"{attention}.output.dense"),
            attention_norm=self._norm(f"{attention}.output.LayerNorm"),
            ffn_up=self._linear(f"{name}.intermediate.dense"),
            ffn_down=self._linear(f"{name}.output.dense"),
            ffn_norm=self._norm(f"{name}.output.LayerNorm"),
        )

    def _linear(self, *names: str) -> Linear:
        weights = [self._tensors[f"{name}.weight"] for name in names]
        biases = [self._tensors[f"{name}.bias"] for name in names]
        if self._is_learning:
            return LearningLinear(weights, biases)
        return FrozenLinear(torch.cat(weights).to(self._dtype), torch.cat(biases).to(self._dtype))

    def _norm(self, name: str) -> LayerNorm:
        return LayerNorm(
            weight=self._wide(f"{name}.weight"),
            bias=self._wide(f"{name}.bias"),
            eps=self._config.layer_norm_eps,
        )

    def _wide(self, name: str) -> Tensor:
        """Keep small tensors at fp32 at least: half precision gains nothing there."""
        tensor = self._tensors[name]
        return tensor.to(torch.promote_types(self._dtype, torch.float32))
