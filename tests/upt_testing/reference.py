"""The forward pass of one adapter over one row, slow and plain: every engine is tested against it.

It follows section 3 ("The maths") of docs/architecture.md step by step and shares no code with the
engine. One unpadded row, float64, no batching, no masks, no fusing. It knows no heads.

Sources: Mao et al. 2022 (UniPELT, arXiv 2110.07577, section 3) for the gates and their union,
Hu et al. 2021 (LoRA, arXiv 2106.09685), Li and Liang 2021 (prefix tuning, arXiv 2101.00190),
He et al. 2021 (arXiv 2110.04366) and Pfeiffer et al. 2020 (arXiv 2005.00247) for the bottleneck,
Lester et al. 2021 (prompt tuning, arXiv 2104.08691), Devlin et al. 2018 (BERT, arXiv 1810.04805).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from upt_zoo.spec import Activation, AdapterSpec, Bottleneck, Family, LoraTarget

Hidden = Float[Tensor, "token hidden"]

LAYER_NORM_EPS: dict[Family, float] = {"bert": 1e-12, "roberta": 1e-5}
FIRST_POSITION: dict[Family, int] = {"bert": 0, "roberta": 2}  # RoBERTa: pad id 1, then plus one
ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,  # the exact one, with erf
    "silu": F.silu,
    "tanh": torch.tanh,
}
LINEARS: dict[LoraTarget, str] = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "o": "attention.output.dense",
    "ffn_up": "intermediate.dense",
    "ffn_down": "output.dense",
}


def reference_hidden_states(
    backbone: Mapping[str, Tensor],
    family: Family,
    spec: AdapterSpec,
    tensors: Mapping[str, Tensor],
    ids: Sequence[int],
    type_ids: Sequence[int] | None = None,
) -> Hidden:
    """Return the last hidden states of the row's real tokens, [len(ids), hidden], float64.

    ``backbone`` has Hugging Face names without the model prefix
    (``encoder.layer.0.attention.self.query.weight``), ``tensors`` those of ``upt_zoo.layout``.
    Steps 1 to 7; a row without ``type_ids`` is all of type 0.
    """
    row = RowReference(
        backbone={name: tensor.double() for name, tensor in backbone.items()},
        spec=spec,
        tensors={name: tensor.double() for name, tensor in tensors.items()},
        eps=LAYER_NORM_EPS[family],
    )
    embedded = row.embed(ids, type_ids or [0] * len(ids), FIRST_POSITION[family])
    x = row.put_prompt(embedded)
    for layer in range(spec.backbone.layers):
        x = row.feed_forward(layer, row.attend(layer, x))
    return row.take_real_tokens(x)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowReference:
    """One row's steps 1 to 7, each a method."""

    backbone: Mapping[str, Tensor]
    spec: AdapterSpec
    tensors: Mapping[str, Tensor]
    eps: float

    def embed(self, ids: Sequence[int], type_ids: Sequence[int], first_position: int) -> Hidden:
        """Step 1: E = LN(word + position + type); positions and types ignore the prompt."""
        table = "embeddings.{}_embeddings.weight"
        word = self.backbone[table.format("word")][torch.tensor(ids)]
        position = self.backbone[table.format("position")][first_position:][: len(ids)]
        token_type = self.backbone[table.format("token_type")][torch.tensor(type_ids)]
        return self.layer_norm("embeddings.LayerNorm", word + position + token_type)

    def put_prompt(self, embedded: Hidden) -> Hidden:
        """Step 2: the prompt vectors, raw, before or after [CLS]."""
        if self.spec.prompt is None:
            return embedded
        cls = 0 if self.spec.prompt.position == "before_cls" else 1
        return torch.cat([embedded[:cls], self.tensors["prompt"], embedded[cls:]])

    def take_real_tokens(self, x: Hidden) -> Hidden:
        """Undo step 2."""
        if self.spec.prompt is None:
            return x
        cls = 0 if self.spec.prompt.position == "before_cls" else 1
        return torch.cat([x[:cls], x[cls + self.spec.prompt.length :]])

    def attend(self, layer: int, h: Hidden) -> Hidden:
        """Steps 4 to 6: x_1 = LN_1(W_o a + b_o + h), a = the attention over [prefix; tokens]."""
        q = self.linear(layer, "q", h)
        k = self.prefix(layer, "keys", h, self.linear(layer, "k", h))
        v = self.prefix(layer, "values", h, self.linear(layer, "v", h))
        size = self.spec.backbone.hidden // self.spec.backbone.heads
        heads = []
        for head in range(self.spec.backbone.heads):
            part = slice(head * size, (head + 1) * size)
            scores = q[:, part] @ k[:, part].T / math.sqrt(size)
            heads.append(scores.softmax(dim=-1) @ v[:, part])
        a = torch.cat(heads, dim=-1)
        norm = f"encoder.layer.{layer}.attention.output.LayerNorm"
        return self.layer_norm(norm, self.linear(layer, "o", a) + h)

    def prefix(self, layer: int, part: str, h: Hidden, own: Hidden) -> Float[Tensor, "key hidden"]:
        """Step 5: [g P; own], where the gate reads the layer input h."""
        if self.spec.prefix is None:
            return own
        learnt = self.tensors[f"prefix.{part}"][layer]
        if self.spec.prefix.gated:
            which = 1 if part == "values" and self.spec.prefix.gates == "separate" else 0
            weight = self.tensors["prefix.gate.weight"][layer, which]
            learnt = gate(h, weight, self.tensors["prefix.gate.bias"][layer, which]) * learnt
        return torch.cat([learnt, own])

    def linear(
        self, layer: int, target: LoraTarget, x: Float[Tensor, "token in"]
    ) -> Float[Tensor, "token out"]:
        """Step 4: y = W x + b + s (x A' B'); s = the gate, which reads x, else alpha / r."""
        name = f"encoder.layer.{layer}.{LINEARS[target]}"
        y = F.linear(x, self.backbone[f"{name}.weight"], self.backbone[f"{name}.bias"])
        lora = self.spec.lora
        if lora is None or target not in lora.targets:
            return y
        a, b = (self.tensors[f"lora.{target}.{factor}"][layer] for factor in "ab")
        scale = self.gate(f"lora.{target}.gate", layer, x) if lora.gated else lora.alpha / lora.rank
        return y + scale * (x @ a.T @ b.T)

    def feed_forward(self, layer: int, x1: Hidden) -> Hidden:
        """Step 7: h' = LN_2(f + g u + x_1), where bottleneck and gate read x_a = LN_2(f + x_1)."""
        f = self.linear(layer, "ffn_down", F.gelu(self.linear(layer, "ffn_up", x1)))
        norm = f"encoder.layer.{layer}.output.LayerNorm"
        plain = self.layer_norm(norm, f + x1)
        if self.spec.bottleneck is None:
            return plain
        u = self.bottleneck(layer, plain, self.spec.bottleneck)
        return self.layer_norm(norm, f + u + x1)

    def bottleneck(self, layer: int, xa: Hidden, spec: Bottleneck) -> Hidden:
        """Return g u, u = W_up act(W_down x_a + b_down) + b_up."""
        down_weight, down_bias, up_weight, up_bias = (
            self.tensors[f"bottleneck.{part}"][layer]
            for part in ("down.weight", "down.bias", "up.weight", "up.bias")
        )
        act = ACTIVATIONS[spec.activation]
        u = F.linear(act(F.linear(xa, down_weight, down_bias)), up_weight, up_bias)
        return self.gate("bottleneck.gate", layer, xa) * u if spec.gated else u

    def gate(self, name: str, layer: int, x: Float[Tensor, "token in"]) -> Float[Tensor, ""]:
        return gate(x, self.tensors[f"{name}.weight"][layer], self.tensors[f"{name}.bias"][layer])

    def layer_norm(self, name: str, x: Hidden) -> Hidden:
        weight, bias = self.backbone[f"{name}.weight"], self.backbone[f"{name}.bias"]
        return F.layer_norm(x, weight.shape, weight, bias, self.eps)


def gate(x: Hidden, weight: Float[Tensor, "hidden"], bias: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """Step 3: g = the mean over all positions, prompt included, of sigmoid(x w + b)."""
    return torch.sigmoid(x @ weight + bias).mean()
