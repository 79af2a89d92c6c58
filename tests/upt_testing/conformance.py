"""Makes docs/conformance/forward.json: adapters of every kind, rows, and the logits they give.

All numbers but the logits are multiples of an eighth, which every float type holds exactly. The
logits are those of ``upt_zoo.nn.forward`` in float64. Write the file anew with

    PYTHONPATH=tests python -m upt_testing.conformance
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from upt_testing.adapters import CLASSIFICATION, MULTI_LABEL, REGRESSION, SPAN, tiny_spec
from upt_zoo.backbone import EncoderConfig
from upt_zoo.layout import tensor_shapes
from upt_zoo.nn.adapter import prepare
from upt_zoo.nn.encoder import build_encoder
from upt_zoo.nn.forward import forward
from upt_zoo.nn.packing import Row
from upt_zoo.spec import (
    AdapterSpec,
    BackboneIdentity,
    Bottleneck,
    Family,
    Head,
    Lora,
    LoraTarget,
    Prefix,
    Prompt,
)

FILE = Path(__file__).parents[2] / "docs" / "conformance" / "forward.json"
CONFIG = EncoderConfig(
    model_type="bert",
    num_hidden_layers=2,
    hidden_size=4,
    num_attention_heads=2,
    intermediate_size=6,
    hidden_act="gelu",
    layer_norm_eps=1e-12,
    max_position_embeddings=12,
    type_vocab_size=2,
    vocab_size=10,
    pad_token_id=1,
)
ALONE = ((2, 5, 9, 3), (0, 0, 0, 0))
PAIR = ((2, 4, 7, 3, 8, 8, 3), (0, 0, 0, 0, 1, 1, 1))
ENTITIES = Head(kind="token_classification", outputs=3, labels=("O", "B-X", "I-X"))
EMBEDDING = Head(kind="embedding", outputs=4, pooling="mean", normalised=True)
Numbers = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True)
class Case:
    """An adapter, what its backbone has else than ``CONFIG``, and its rows: ids and types."""

    says: str
    spec: AdapterSpec
    config: dict[str, str | int | float] = field(default_factory=dict)
    rows: tuple[tuple[Sequence[int], Sequence[int]], ...] = (ALONE, PAIR)


def _identity(family: Family = "bert") -> BackboneIdentity:
    return BackboneIdentity(
        hub_id="upt/conformance",
        digest="sha256:" + "ab" * 32,
        family=family,
        layers=CONFIG.num_hidden_layers,
        hidden=CONFIG.hidden_size,
        heads=CONFIG.num_attention_heads,
        intermediate=CONFIG.intermediate_size,
    )


def cases() -> tuple[Case, ...]:
    """Return one case for each choice that the format leaves to an adapter."""
    here = _identity()
    every: tuple[LoraTarget, ...] = ("q", "k", "v", "o", "ffn_up", "ffn_down")
    return (
        Case(
            says="UniPELT with a prompt: every component, each with a gate",
            spec=tiny_spec(
                backbone=here,
                lora=Lora(rank=2, alpha=4.0, targets=("q", "v"), gated=True),
                prefix=Prefix(length=2, gated=True),
                bottleneck=Bottleneck(size=2, activation="relu", gated=True),
                prompt=Prompt(length=2),
                head=CLASSIFICATION,
            ),
        ),
        Case(
            says="every LoRA target, a gate each for keys and values, a head of two layers, mean",
            spec=tiny_spec(
                backbone=here,
                lora=Lora(rank=1, alpha=2.0, targets=every, gated=True),
                prefix=Prefix(length=1, gated=True, gates="separate"),
                bottleneck=Bottleneck(size=2, activation="gelu", gated=False),
                head=CLASSIFICATION.model_copy(update={"layers": 2, "pooling": "mean"}),
            ),
        ),
        Case(
            says="no gates: alpha / rank is 2; a span, one pair of logits a token",
            spec=tiny_spec(
                backbone=here,
                lora=Lora(rank=2, alpha=4.0, targets=every, gated=False),
                prefix=Prefix(length=2, gated=False),
                bottleneck=Bottleneck(size=1, activation="silu", gated=False),
                head=SPAN,
            ),
            rows=(PAIR,),
        ),
        Case(
            says="a prompt behind [CLS] and a gated bottleneck; temperature does not touch logits",
            spec=tiny_spec(
                backbone=here,
                bottleneck=Bottleneck(size=2, activation="tanh", gated=True),
                prompt=Prompt(length=1, position="after_cls"),
                head=MULTI_LABEL.model_copy(update={"temperature": 2.0}),
            ),
            rows=(ALONE,),
        ),
        Case(
            says="RoBERTa: positions from pad_token_id + 1, its epsilon; the tanh form of gelu",
            spec=tiny_spec(backbone=_identity("roberta"), prompt=Prompt(length=1), head=REGRESSION),
            config={"model_type": "roberta", "layer_norm_eps": 1e-5, "hidden_act": "gelu_new"},
        ),
        Case(
            says="tags: logits of every token, the FFN with relu",
            spec=tiny_spec(
                backbone=here,
                lora=Lora(rank=1, alpha=1.0, targets=("ffn_up",), gated=True),
                head=ENTITIES,
            ),
            config={"hidden_act": "relu"},
            rows=(ALONE,),
        ),
        Case(
            says="an embedding, before it is divided by its length; no component, no tensors",
            spec=tiny_spec(backbone=here, head=EMBEDDING),
        ),
    )


def backbone_tensors() -> Numbers:
    """Draw the encoder; every LayerNorm scales by about one."""
    d, wide = CONFIG.hidden_size, CONFIG.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (CONFIG.vocab_size, d),
        "embeddings.position_embeddings.weight": (CONFIG.max_position_embeddings, d),
        "embeddings.token_type_embeddings.weight": (CONFIG.type_vocab_size, d),
    }
    norms = ["embeddings.LayerNorm"]
    for layer in range(CONFIG.num_hidden_layers):
        at = f"encoder.layer.{layer}"
        linears = {f"{at}.attention.self.{part}": (d, d) for part in ("query", "key", "value")} | {
            f"{at}.attention.output.dense": (d, d),
            f"{at}.intermediate.dense": (wide, d),
            f"{at}.output.dense": (d, wide),
        }
        norms += [f"{at}.attention.output.LayerNorm", f"{at}.output.LayerNorm"]
        for name, shape in linears.items():
            shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name in norms:
        shapes |= {f"{name}.weight": (d,), f"{name}.bias": (d,)}
    drawn = _drawn(shapes, 0)
    return {
        name: 1 + numbers / 4 if name.endswith("LayerNorm.weight") else numbers
        for name, numbers in drawn.items()
    }


def adapter_tensors(spec: AdapterSpec, seed: int) -> Numbers:
    """Draw an adapter."""
    return _drawn(tensor_shapes(spec), seed)


def _drawn(shapes: Mapping[str, tuple[int, ...]], seed: int) -> Numbers:
    """Draw multiples of 1/8 between -1 and 1; numpy promises this stream never to change."""
    source = np.random.RandomState(seed)
    return {name: source.randint(-8, 9, shapes[name]) / 8 for name in sorted(shapes)}


def logits_of(case: Case, seed: int) -> list[list[object]]:
    """Compute the logits of each row, to nine decimals."""
    config = EncoderConfig.model_validate(CONFIG.model_dump() | case.config)
    weights = {name: torch.from_numpy(each) for name, each in backbone_tensors().items()}
    encoder = build_encoder(config, weights, dtype=torch.float64)
    tensors = {n: torch.from_numpy(each) for n, each in adapter_tensors(case.spec, seed).items()}
    adapter = prepare(case.spec, tensors, dtype=torch.float64)
    rows = [Row(ids=ids, type_ids=types, adapter=adapter) for ids, types in case.rows]
    with torch.inference_mode():
        return [each.numpy().round(9).tolist() for each in forward(encoder, rows)]


def document() -> dict[str, object]:
    """Return what the file holds."""
    return {
        "backbone": {"config": CONFIG.model_dump(), "tensors": _lists(backbone_tensors())},
        "cases": [
            {
                "says": case.says,
                "config": case.config,
                "spec": json.loads(case.spec.to_json()),
                "tensors": _lists(adapter_tensors(case.spec, seed)),
                "rows": [
                    {"ids": list(ids), "type_ids": list(types), "logits": logits}
                    for (ids, types), logits in zip(case.rows, logits_of(case, seed), strict=True)
                ],
            }
            for seed, case in enumerate(cases(), start=1)
        ],
    }


def _lists(tensors: Numbers) -> dict[str, object]:
    return {name: numbers.tolist() for name, numbers in tensors.items()}


def text() -> str:
    """Spell the file: one line a tensor, a row and each other value."""
    return _spelt(document(), 4) + "\n"


def _spelt(value: object, depth: int) -> str:
    """Spell a value, with a line for each part down to a depth."""
    if depth and isinstance(value, dict) and value:
        parts = (f"{json.dumps(key)}:{_spelt(each, depth - 1)}" for key, each in value.items())
        return "{\n" + ",\n".join(parts) + "\n}"
    if depth and isinstance(value, list):
        return "[\n" + ",\n".join(_spelt(each, depth - 1) for each in value) + "\n]"
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


if __name__ == "__main__":
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(text(), encoding="utf-8")
