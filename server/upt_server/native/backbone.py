"""A backbone laid out for the kernel: weights in panels of outputs, in fp32, bf16 or int8.

For AMX the panels are cut into tiles of 16 words; those of fp32, which are three int8 each, have 16
outputs.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from upt_server.native import library
from upt_server.native.library import ACTIVATIONS, LANES, NUMBERS, TILE_WORDS, Number, floats
from upt_server.native.pages import LargePages
from upt_zoo.backbone import EncoderConfig
from upt_zoo.nn.encoder import Encoder, LayerNorm
from upt_zoo.nn.linear import Linear, round_weight

_INPUTS_OF_WORD: dict[Number, int] = {"fp32": 1, "bf16": 2, "int8": 4}
_SHIFTS = (16, 8, 0)  # of the bytes of an integer that stands for an fp32
_MOST = 127 * sum(1 << shift for shift in _SHIFTS)
_ACTIVATION_NAMES = {"gelu_pytorch_tanh": "gelu_new"}  # two names of one formula


def unsupported_shape(config: EncoderConfig) -> str | None:
    """Say which size of the backbone the kernel has no code for; None if none."""
    head = config.hidden_size // config.num_attention_heads
    sizes = (
        ("head size", head, LANES),
        ("hidden size", config.hidden_size, library.panel()),
        ("intermediate size", config.intermediate_size, LANES),
    )
    wrong = [f"{name} {size} (of {unit})" for name, size, unit in sizes if size % unit]
    return f"multiples are needed, got {', '.join(wrong)}" if wrong else None


class PackedBackbone:
    """The kernel's form of an fp32 encoder; owns every array that ``struct`` points at.

    int8 weights have one scale an output; activations get theirs a token, in the kernel. Everything
    but the linear layers' products, and those of adapters by AMX, is fp32 in every precision.
    """

    def __init__(self, encoder: Encoder, number: Number, *, is_tiled: bool) -> None:
        self._is_tiled = is_tiled
        self._pages = LargePages()
        self._kept: list[NDArray[np.generic]] = []
        config, embeddings = encoder.config, encoder.embeddings
        self.first_position = embeddings.first_position
        self.has_types = embeddings.type.shape[0] > 1
        self.words, self.positions = embeddings.word.shape[0], embeddings.position.shape[0]
        self.types = embeddings.type.shape[0]
        layers = (library.Layer * len(encoder.layers))()
        for packed, layer in zip(layers, encoder.layers, strict=True):
            packed.qkv = self._linear(layer.qkv, number)
            packed.attention_out = self._linear(layer.attention_out, number)
            packed.ffn_up = self._linear(layer.ffn_up, number)
            packed.ffn_down = self._linear(layer.ffn_down, number)
            packed.attention_norm = self._norm(layer.attention_norm)
            packed.ffn_norm = self._norm(layer.ffn_norm)
        activation = _ACTIVATION_NAMES.get(config.hidden_act, config.hidden_act)
        self.struct = library.Encoder(
            word=self._floats(embeddings.word),
            position=self._floats(embeddings.position),
            type=self._floats(embeddings.type),
            embedding_norm=self._norm(embeddings.norm),
            layers=layers,
            eps=config.layer_norm_eps,
            precision=NUMBERS.index(number),
            activation=ACTIVATIONS.index(activation),
            layer_count=len(encoder.layers),
            hidden=config.hidden_size,
            intermediate=config.intermediate_size,
            heads=config.num_attention_heads,
            is_tiled=is_tiled,
        )

    def _linear(self, linear: Linear, number: Number) -> library.Linear:
        weight, bias = linear.parameters()
        outputs, inputs = weight.shape
        width = library.panel()
        padded = -(-outputs // width) * width
        weight = torch.nn.functional.pad(weight, (0, 0, 0, padded - outputs))
        packed = library.Linear(inputs=inputs, outputs=outputs)
        packed.bias = self._floats(torch.nn.functional.pad(bias, (0, padded - outputs)))
        if number == "int8":
            weight, scale = round_weight(weight)
            packed.scale = self._floats(scale)
            packed.sum = self._floats(weight.sum(1, dtype=torch.int32) * scale)
        elif number == "bf16":
            weight = weight.to(torch.bfloat16).view(torch.int16)
        elif self._is_tiled:
            weight, scale = _round_to_24_bits(weight)
            packed.scale = self._floats(scale)
        words = _tiles(weight, number) if self._is_tiled else _panels(weight, number, width)
        packed.weight = self._keep(self._pages.copy(words)).ctypes.data_as(type(packed.weight))
        return packed

    def _norm(self, norm: LayerNorm) -> library.LayerNorm:
        return library.LayerNorm(weight=self._floats(norm.weight), bias=self._floats(norm.bias))

    def _floats(self, tensor: Tensor) -> "library.FloatPointer":
        return floats(self._keep(np.ascontiguousarray(tensor.float().numpy())))

    def _keep(self, array: NDArray[np.generic]) -> NDArray[np.generic]:
        self._kept.append(array)
        return array


def _panels(weight: Tensor, number: Number, width: int) -> NDArray[np.generic]:
    """Lay [output, input] out as [panel, word, output of the panel, input of the word]."""
    outputs, inputs = weight.shape
    of_word = _INPUTS_OF_WORD[number]
    cut = weight.view(outputs // width, width, inputs // of_word, of_word)
    packed: NDArray[np.generic] = cut.permute(0, 2, 1, 3).contiguous().numpy()
    return packed


def _tiles(weight: Tensor, number: Number) -> NDArray[np.generic]:
    """Lay [output, input] out in panels of whole AMX tiles of 16 words.

    Integers that stand for fp32 are [panel of 16, tile, byte, word of the tile, output, input].
    """
    if number != "fp32":
        return _panels(_whole_tiles(weight, number), number, library.TILE_PANEL)
    planes: list[NDArray[np.generic]] = []
    for shift in _SHIFTS:
        # bytes from -128 to 127 whose sum is the integer: those of it + 0x808080, less 128 each
        plane = ((weight + 0x808080 >> shift & 0xFF) - 0x80).to(torch.int8)
        words = _panels(_whole_tiles(plane, "int8"), "int8", TILE_WORDS)
        planes.append(words.reshape(len(words), -1, TILE_WORDS, *words.shape[2:]))
    return np.stack(planes, axis=2)


def _whole_tiles(weight: Tensor, number: Number) -> Tensor:
    return torch.nn.functional.pad(
        weight, (0, -weight.shape[1] % (TILE_WORDS * _INPUTS_OF_WORD[number]))
    )


def _round_to_24_bits(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return integers [output, input] within 127 (2^16 + 2^8 + 1), and scales [output].

    weight ≈ integer * scale / 2^16, as the kernel scales its levels.
    """
    step = weight.double().abs().amax(1, keepdim=True).clamp_min(1e-30) / _MOST
    return torch.round(weight / step).to(torch.int32), step[:, 0] * 2**16
