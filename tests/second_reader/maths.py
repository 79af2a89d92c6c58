"""What an adapter computes, and which backbone it belongs to: lists of numbers, one row at a time.

The sections "What an adapter computes" and "The backbone's identity" of docs/format.md, line by
line, in binary64.
"""

import hashlib
import json
import math
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from second_reader.tensors import Tensor

Vector = list[float]
Matrix = list[Vector]  # [out][in], or one vector a position
CONFIG_FIELDS = (
    "model_type",
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "layer_norm_eps",
    "max_position_embeddings",
    "type_vocab_size",
    "vocab_size",
    "pad_token_id",
)


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def _tanh_gelu(z: float) -> float:
    return z * (1 + math.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))) / 2


ACTIVATIONS: dict[str, Callable[[float], float]] = {
    "relu": lambda z: max(0.0, z),
    "gelu": lambda z: z * (1 + math.erf(z / math.sqrt(2))) / 2,
    "silu": lambda z: z * sigmoid(z),
    "tanh": math.tanh,
    "gelu_new": _tanh_gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
}


def dot(a: Sequence[float], b: Sequence[float]) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def plus(*vectors: Sequence[float]) -> Vector:
    return [math.fsum(numbers) for numbers in zip(*vectors, strict=True)]


def times(scale: float, vector: Sequence[float]) -> Vector:
    return [scale * number for number in vector]


def apply(matrix: Iterable[Sequence[float]], x: Sequence[float]) -> Vector:
    return [dot(row, x) for row in matrix]


def softmax(scores: Sequence[float]) -> Vector:
    powers = [math.exp(score - max(scores)) for score in scores]
    return times(1 / math.fsum(powers), powers)


def mean(vectors: Sequence[Sequence[float]]) -> Vector:
    return times(1 / len(vectors), plus(*vectors))


def gate(x: Matrix, weight: Sequence[float], bias: float) -> float:
    """The mean over all positions of the sigmoids."""
    return math.fsum(sigmoid(dot(weight, each) + bias) for each in x) / len(x)


def nested(tensor: Tensor) -> Any:
    """Return the numbers as lists of lists, one level an axis."""
    values: list[Any] = list(tensor.numbers)
    for size in reversed(tensor.shape[1:]):
        values = [values[first : first + size] for first in range(0, len(values), size)]
    return values


class Network:
    """A backbone with one adapter in it.

    ``config`` has the fields of ``config.json``, ``backbone`` the checkpoint's tensors without a
    model prefix, ``spec`` every key.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        backbone: Mapping[str, Any],
        spec: Mapping[str, Any],
        tensors: Mapping[str, Any],
    ) -> None:
        self.config, self.backbone = config, backbone
        self.spec, self.tensors = spec, tensors
        self.act = ACTIVATIONS[config["hidden_act"]]

    def logits(self, ids: Sequence[int], types: Sequence[int]) -> Any:
        """[output], or [token][output] for heads that read each token; an embedding's vector."""
        head = self.spec["head"]
        states = self.last_states(ids, types)
        if head["kind"] in ("span", "token_classification"):
            return [self.head(state) for state in states]
        pooled = states[0] if head["pooling"] == "cls" else mean(states)
        return pooled if head["kind"] == "embedding" else self.head(pooled)

    def head(self, x: Vector) -> Vector:
        if self.spec["head"]["layers"] == 2:
            dense = apply(self.tensors["head.dense.weight"], x)
            x = [math.tanh(z) for z in plus(dense, self.tensors["head.dense.bias"])]
        out = apply(self.tensors["head.out.weight"], x)
        return plus(out, self.tensors["head.out.bias"])

    def last_states(self, ids: Sequence[int], types: Sequence[int]) -> Matrix:
        """Return the last states of the real tokens."""
        is_roberta = self.config["model_type"] == "roberta"
        first = self.config["pad_token_id"] + 1 if is_roberta else 0
        word, position, kind = (
            self.backbone[f"embeddings.{name}_embeddings.weight"]
            for name in ("word", "position", "token_type")
        )
        one_type = self.config["type_vocab_size"] == 1
        embedded = [
            self.norm(
                "embeddings.LayerNorm",
                plus(word[token], position[first + place], kind[0 if one_type else types[place]]),
            )
            for place, token in enumerate(ids)
        ]
        prompt = self.tensors["prompt"] if self.spec["prompt"] else []
        x = [*prompt, *embedded]
        for layer in range(self.config["num_hidden_layers"]):
            x = self.feed_forward(layer, self.attend(layer, x))
        return x[len(prompt) :]

    def norm(self, name: str, x: Vector) -> Vector:
        middle = math.fsum(x) / len(x)
        variance = math.fsum((each - middle) ** 2 for each in x) / len(x)
        scale = 1 / math.sqrt(variance + self.config["layer_norm_eps"])
        weight, bias = self.backbone[f"{name}.weight"], self.backbone[f"{name}.bias"]
        return [(each - middle) * scale * w + b for each, w, b in zip(x, weight, bias, strict=True)]

    def linear(self, layer: int, name: str, target: str, x: Matrix) -> Matrix:
        """The backbone's linear layer, with the LoRA of its target."""
        where = f"encoder.layer.{layer}.{name}"
        weight, bias = self.backbone[f"{where}.weight"], self.backbone[f"{where}.bias"]
        y = [plus(apply(weight, each), bias) for each in x]
        lora = self.spec["lora"]
        if lora is None or target not in lora["targets"]:
            return y
        a, b = (self.tensors[f"lora.{target}.{part}"][layer] for part in "ab")
        scale = lora["alpha"] / lora["rank"]
        if lora["gated"]:
            weights, biases = (
                self.tensors[f"lora.{target}.gate.{part}"] for part in ("weight", "bias")
            )
            scale = gate(x, weights[layer], biases[layer])
        return [
            plus(own, times(scale, apply(b, apply(a, each))))
            for own, each in zip(y, x, strict=True)
        ]

    def attend(self, layer: int, x: Matrix) -> Matrix:
        query = self.linear(layer, "attention.self.query", "q", x)
        keys = self.prefix(layer, "keys", 0, x)
        keys += self.linear(layer, "attention.self.key", "k", x)
        values = self.prefix(layer, "values", -1, x)
        values += self.linear(layer, "attention.self.value", "v", x)
        heads = self.config["num_attention_heads"]
        size = self.config["hidden_size"] // heads
        context: Matrix = [[] for _ in x]
        for part in (slice(head * size, (head + 1) * size) for head in range(heads)):
            for place, asking in enumerate(query):
                scores = [dot(asking[part], key[part]) / math.sqrt(size) for key in keys]
                shares = zip(softmax(scores), values, strict=True)
                context[place] += plus(*(times(share, value[part]) for share, value in shares))
        out = self.linear(layer, "attention.output.dense", "o", context)
        norm = f"encoder.layer.{layer}.attention.output.LayerNorm"
        return [self.norm(norm, plus(own, each)) for own, each in zip(out, x, strict=True)]

    def prefix(self, layer: int, part: str, which: int, x: Matrix) -> Matrix:
        if self.spec["prefix"] is None:
            return []
        scale = 1.0
        if self.spec["prefix"]["gated"]:
            weights = self.tensors["prefix.gate.weight"][layer]
            biases = self.tensors["prefix.gate.bias"][layer]
            scale = gate(x, weights[which], biases[which])
        return [times(scale, each) for each in self.tensors[f"prefix.{part}"][layer]]

    def feed_forward(self, layer: int, y: Matrix) -> Matrix:
        up = self.linear(layer, "intermediate.dense", "ffn_up", y)
        inner = [[self.act(z) for z in each] for each in up]
        down = self.linear(layer, "output.dense", "ffn_down", inner)
        f = [plus(own, each) for own, each in zip(down, y, strict=True)]
        norm = f"encoder.layer.{layer}.output.LayerNorm"
        z = [self.norm(norm, each) for each in f]
        if self.spec["bottleneck"] is None:
            return z
        return [
            self.norm(norm, plus(own, added))
            for own, added in zip(f, self.bottleneck(layer, z), strict=True)
        ]

    def bottleneck(self, layer: int, z: Matrix) -> Matrix:
        """What the bottleneck adds to F."""

        def part(name: str) -> Any:
            return self.tensors[f"bottleneck.{name}"][layer]

        act = ACTIVATIONS[self.spec["bottleneck"]["activation"]]
        is_gated = self.spec["bottleneck"]["gated"]
        scale = gate(z, part("gate.weight"), part("gate.bias")) if is_gated else 1.0
        added = []
        for each in z:
            inner = [act(u) for u in plus(apply(part("down.weight"), each), part("down.bias"))]
            added.append(times(scale, plus(apply(part("up.weight"), inner), part("up.bias"))))
        return added


# Section "The backbone's identity"


def backbone_digest(directory: Path) -> str:
    """Compute the identity of the backbone in a directory."""
    config = json.loads((directory / "config.json").read_bytes())
    values = {name: config[name] for name in CONFIG_FIELDS}
    values["position_embedding_type"] = config.get("position_embedding_type", "absolute")
    parts = [f'"{name}":{_spelt(value)}' for name, value in values.items()]
    digest = hashlib.sha256(f"{{{','.join(parts)}}}".encode())
    tokenizer = json.loads((directory / "tokenizer.json").read_bytes())
    kept = {name: tokenizer[name] for name in tokenizer if name not in ("truncation", "padding")}
    digest.update(json.dumps(kept, sort_keys=True, ensure_ascii=False).encode())
    for name, kind, shape, data in _encoder_tensors(directory / "model.safetensors"):
        digest.update(f"{name}|{kind}|[{', '.join(map(str, shape))}]|".encode())
        digest.update(data)
    return f"sha256:{digest.hexdigest()}"


def _spelt(value: str | float) -> str:
    if not isinstance(value, float):
        return json.dumps(value)
    if 0.00001 <= value < 0.0001:
        return format(Decimal(repr(value)), "f")
    return repr(value).replace("e-0", "e-")


def _encoder_tensors(path: Path) -> Iterator[tuple[str, str, list[int], bytes]]:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    plain = {name.removeprefix("bert.").removeprefix("roberta."): name for name in header}
    for name in sorted(plain):
        if not name.startswith(("embeddings.", "encoder.layer.")):
            continue
        if name.endswith(("position_ids", "token_type_ids")):
            continue
        entry = header[plain[name]]
        first, last = (8 + length + offset for offset in entry["data_offsets"])
        yield name, entry["dtype"], entry["shape"], data[first:last]
