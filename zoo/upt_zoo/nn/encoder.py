"""The encoder's weights for BERT and RoBERTa, loaded once and shared by all adapters.

Knows the checkpoint's names and nothing of adapters. ``load_encoder`` gives the frozen form,
``build_encoder`` also the learning form that full fine-tuning needs.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from upt_zoo.backbone import Backbone, EncoderConfig, encoder_tensor_name
from upt_zoo.errors import Corrupt
from upt_zoo.nn.linear import FrozenLinear, Int8Linear, LearningLinear, Linear


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerNorm:
    """(x - mean) / sqrt(var + eps) * weight + bias over the hidden axis."""

    weight: Float[Tensor, "hidden"]
    bias: Float[Tensor, "hidden"]
    eps: float

    def __call__(self, x: Float[Tensor, "token hidden"]) -> Float[Tensor, "token hidden"]:
        """Normalise each token."""
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

    word: Float[Tensor, "word hidden"]
    position: Float[Tensor, "position hidden"]
    type: Float[Tensor, "type hidden"]
    norm: LayerNorm
    first_position: int

    def __call__(
        self,
        ids: Int[Tensor, "real"],
        positions: Int[Tensor, "real"],
        type_ids: Int[Tensor, "real"],
    ) -> Float[Tensor, "real hidden"]:
        """Embed real tokens.

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

    @property
    def device(self) -> torch.device:
        """Where it computes; adapters have to be prepared for the same device."""
        return self.embeddings.word.device


def load_tensors(backbone: Backbone, *, device: str = "cpu") -> dict[str, Tensor]:
    """Read the encoder's tensors from disk, under names without a model prefix."""
    family = backbone.config.model_type
    named = (
        (encoder_tensor_name(name, family), tensor)
        for name, tensor in load_file(backbone.weights_file, device=device).items()
    )
    return {name: tensor for name, tensor in named if name is not None}


def load_encoder(
    backbone: Backbone,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    is_int8: bool = False,
) -> Encoder:
    """Load the frozen encoder in ``dtype``, with ``is_int8`` rounded as int8 serving rounds."""
    tensors = load_tensors(backbone, device=device)
    linear = Int8Linear if is_int8 else FrozenLinear
    return build_encoder(backbone.config, tensors, dtype=dtype, frozen=linear)


def build_encoder(
    config: EncoderConfig,
    tensors: Mapping[str, Tensor],
    *,
    dtype: torch.dtype,
    is_learning: bool = False,
    frozen: type[FrozenLinear] = FrozenLinear,
) -> Encoder:
    """Build from tensors in Hugging Face's names without a model prefix.

    A ``frozen`` encoder casts its linear weights to ``dtype`` once and packs them. A learning one
    refers to the tensors given and casts them in each forward pass; its fused query-key-value
    product is then formed from the three weights each time.

    Raises:
        Corrupt: a tensor of the encoder is missing, or its shape is not the configuration's.
    """
    source = _Checkpoint(config, tensors, dtype, None if is_learning else frozen)
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
        frozen: type[FrozenLinear] | None,
    ) -> None:
        self._config, self._tensors, self._dtype = config, tensors, dtype
        self._frozen = frozen

    def embeddings(self) -> Embeddings:
        config = self._config
        sizes = {
            "word": config.vocab_size,
            "position": config.max_position_embeddings,
            "token_type": config.type_vocab_size,
        }
        tables = {
            name: self._wide(f"embeddings.{name}_embeddings.weight", size, config.hidden_size)
            for name, size in sizes.items()
        }
        return Embeddings(
            word=tables["word"],
            position=tables["position"],
            type=tables["token_type"],
            norm=self._norm("embeddings.LayerNorm"),
            first_position=config.pad_token_id + 1 if config.model_type == "roberta" else 0,
        )

    def layer(self, index: int) -> EncoderLayer:
        name = f"encoder.layer.{index}"
        attention = f"{name}.attention"
        hidden, intermediate = self._config.hidden_size, self._config.intermediate_size
        inputs = [f"{attention}.self.{part}" for part in ("query", "key", "value")]
        return EncoderLayer(
            qkv=self._linear(*inputs, shape=(hidden, hidden)),
            attention_out=self._linear(f"{attention}.output.dense", shape=(hidden, hidden)),
            attention_norm=self._norm(f"{attention}.output.LayerNorm"),
            ffn_up=self._linear(f"{name}.intermediate.dense", shape=(intermediate, hidden)),
            ffn_down=self._linear(f"{name}.output.dense", shape=(hidden, intermediate)),
            ffn_norm=self._norm(f"{name}.output.LayerNorm"),
        )

    def _linear(self, *names: str, shape: tuple[int, int]) -> Linear:
        weights = [self._tensor(f"{name}.weight", *shape) for name in names]
        biases = [self._tensor(f"{name}.bias", shape[0]) for name in names]
        if self._frozen is None:
            return LearningLinear(weights, biases)
        return self._frozen(torch.cat(weights).to(self._dtype), torch.cat(biases).to(self._dtype))

    def _norm(self, name: str) -> LayerNorm:
        return LayerNorm(
            weight=self._wide(f"{name}.weight", self._config.hidden_size),
            bias=self._wide(f"{name}.bias", self._config.hidden_size),
            eps=self._config.layer_norm_eps,
        )

    def _wide(self, name: str, *shape: int) -> Tensor:
        """Keep small tensors at fp32 at least: half precision gains nothing there."""
        tensor = self._tensor(name, *shape)
        return tensor.to(torch.promote_types(self._dtype, torch.float32))

    def _tensor(self, name: str, *shape: int) -> Tensor:
        tensor = self._tensors[name]
        if tensor.shape != shape:
            raise Corrupt(
                f"the backbone's tensor {name}: the configuration says {shape}, "
                f"the weights have {tuple(tensor.shape)}"
            )
        return tensor
