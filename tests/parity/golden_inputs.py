"""The inputs of the golden cases: backbones, adapters and rows, from formulas instead of files.

Both sides run this module, the foreign library's environment when the goldens are made and ours
when they are checked, so only outputs are stored. It therefore needs numpy and nothing else; that
its tensor shapes are those of ``upt_zoo.layout`` is checked where they are read.

Every tensor is drawn in the order of the sorted names from one legacy ``RandomState``, whose stream
numpy promises never to change, seeded with the CRC-32 of the backbone's or the case's name.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Arrays = dict[str, Array]
Shapes = dict[str, tuple[int, ...]]
Target = Literal["q", "k", "v", "o", "ffn_up", "ffn_down"]

ALL_TARGETS: list[Target] = ["q", "k", "v", "o", "ffn_up", "ffn_down"]
REPARAMETRISATION_WIDTH = 24
LINEARS: dict[Target, str] = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "o": "attention.output.dense",
    "ffn_up": "intermediate.dense",
    "ffn_down": "output.dense",
}


class Lora(TypedDict):
    """As ``upt_zoo.spec.Lora``."""

    rank: int
    alpha: float
    targets: list[Target]
    gated: bool


class Prefix(TypedDict):
    """As ``upt_zoo.spec.Prefix``."""

    length: int
    gated: bool
    gates: Literal["shared", "separate"]


class Bottleneck(TypedDict):
    """As ``upt_zoo.spec.Bottleneck``."""

    size: int
    activation: Literal["relu", "gelu", "silu", "tanh"]
    gated: bool


class Prompt(TypedDict):
    """As ``upt_zoo.spec.Prompt``."""

    length: int
    position: Literal["before_cls", "after_cls"]


class Components(TypedDict, total=False):
    """The components of an adapter; an absent key is an absent component."""

    lora: Lora
    prefix: Prefix
    bottleneck: Bottleneck
    prompt: Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """The configuration of a backbone; ``drawn`` says whether its weights are drawn here."""

    name: str
    family: Literal["bert", "roberta"]
    layers: int
    hidden: int
    heads: int
    intermediate: int
    vocabulary: int
    positions: int
    types: int
    pad_id: int
    eps: float
    drawn: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class InputRow:
    """One unpadded row of token ids."""

    ids: list[int]
    type_ids: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseInputs:
    """One adapter on one backbone, and the rows that go through it.

    With ``reparametrised`` the library computes the prefix by its own MLP, and the adapter's
    tensors hold what that MLP gives.
    """

    encoder: Encoder
    method: str
    components: Components
    rows: list[InputRow]
    reparametrised: bool = False

    @property
    def name(self) -> str:
        """Name the case, ``backbone/method``."""
        return f"{self.encoder.name}/{self.method}"


BERT = Encoder(
    name="bert",
    family="bert",
    layers=3,
    hidden=32,
    heads=4,
    intermediate=64,
    vocabulary=60,
    positions=64,
    types=2,
    pad_id=0,
    eps=1e-12,
    drawn=True,
)
ROBERTA = Encoder(
    name="roberta",
    family="roberta",
    layers=3,
    hidden=32,
    heads=4,
    intermediate=64,
    vocabulary=60,
    positions=64,
    types=1,
    pad_id=1,
    eps=1e-5,
    drawn=True,
)
MINILM = Encoder(
    name="minilm",
    family="bert",
    layers=6,
    hidden=384,
    heads=12,
    intermediate=1536,
    vocabulary=30522,
    positions=512,
    types=2,
    pad_id=0,
    eps=1e-12,
    drawn=False,
)
ROWS = {
    "bert": [
        InputRow(ids=[2, 3], type_ids=[0, 0]),
        InputRow(ids=[2, 17, 41, 8, 3], type_ids=[0] * 5),
        InputRow(ids=[2, 9, 33, 3, 21, 58, 12, 3], type_ids=[0] * 4 + [1] * 4),
    ],
    "roberta": [
        InputRow(ids=[0, 2], type_ids=[0, 0]),
        InputRow(ids=[0, 17, 41, 8, 2], type_ids=[0] * 5),
        InputRow(ids=[0, 9, 33, 2, 2, 21, 58, 2], type_ids=[0] * 8),
    ],
    "minilm": [
        # a gripping, warm-hearted film.
        InputRow(
            ids=[101, 1037, 13940, 1010, 4010, 1011, 18627, 2143, 1012, 102], type_ids=[0] * 10
        ),
        # who wrote fidelio? / beethoven wrote his opera.
        InputRow(
            ids=[101, 2040, 2626, 26000, 12798, 1029, 102, 15461, 2626, 2010, 3850, 1012, 102],
            type_ids=[0] * 7 + [1] * 6,
        ),
    ],
}


def _lora(*, gated: bool, targets: list[Target]) -> Lora:
    return {"rank": 4, "alpha": 6.0, "targets": targets, "gated": gated}


def _prefix(*, gated: bool, gates: Literal["shared", "separate"] = "shared") -> Prefix:
    return {"length": 5, "gated": gated, "gates": gates}


def _bottleneck(
    *, gated: bool, activation: Literal["relu", "gelu", "silu", "tanh"] = "relu"
) -> Bottleneck:
    return {"size": 4, "activation": activation, "gated": gated}


_UNIPELT: Components = {
    "lora": _lora(gated=True, targets=["q", "v"]),
    "prefix": _prefix(gated=True),
    "bottleneck": _bottleneck(gated=True),
}
METHODS: dict[str, Components] = {
    "bare": {},
    "unipelt": _UNIPELT,
    "unipelt_prompt": {**_UNIPELT, "prompt": {"length": 3, "position": "before_cls"}},
    "everything": {
        "lora": _lora(gated=True, targets=ALL_TARGETS),
        "prefix": _prefix(gated=True, gates="separate"),
        "bottleneck": _bottleneck(gated=True, activation="tanh"),
        "prompt": {"length": 3, "position": "after_cls"},
    },
    "lora": {"lora": _lora(gated=False, targets=["q", "v"])},
    "lora_gated": {"lora": _lora(gated=True, targets=["q", "v"])},
    "lora_all": {"lora": _lora(gated=False, targets=ALL_TARGETS)},
    "lora_all_gated": {"lora": _lora(gated=True, targets=ALL_TARGETS)},
    "prefix": {"prefix": _prefix(gated=False)},
    "prefix_gated": {"prefix": _prefix(gated=True)},
    "prefix_two_gates": {"prefix": _prefix(gated=True, gates="separate")},
    "prefix_reparametrised": {"prefix": _prefix(gated=False)},
    "bottleneck": {"bottleneck": _bottleneck(gated=False)},
    "bottleneck_gated_gelu": {"bottleneck": _bottleneck(gated=True, activation="gelu")},
    "bottleneck_gated_silu": {"bottleneck": _bottleneck(gated=True, activation="silu")},
    "prompt": {"prompt": {"length": 3, "position": "before_cls"}},
    "prompt_after_cls": {"prompt": {"length": 3, "position": "after_cls"}},
}
_MINILM_COMPONENTS: Components = {
    "lora": {"rank": 8, "alpha": 16.0, "targets": ["q", "v"], "gated": True},
    "prefix": {"length": 10, "gated": True, "gates": "shared"},
    "bottleneck": {"size": 24, "activation": "relu", "gated": True},
    "prompt": {"length": 10, "position": "before_cls"},
}


def case_inputs() -> Iterator[CaseInputs]:
    """Yield all cases, those of one backbone after another."""
    for encoder in (BERT, ROBERTA):
        for method, components in METHODS.items():
            yield CaseInputs(
                encoder=encoder,
                method=method,
                components=components,
                rows=ROWS[encoder.name],
                reparametrised=method == "prefix_reparametrised",
            )
    yield CaseInputs(
        encoder=MINILM,
        method="unipelt_prompt",
        components=_MINILM_COMPONENTS,
        rows=ROWS[MINILM.name],
    )


def backbone_tensors(encoder: Encoder) -> Arrays:
    """Draw a backbone's weights, under their Hugging Face names without the model prefix."""
    return _draw(_backbone_shapes(encoder), encoder.name)


def adapter_tensors(case: CaseInputs) -> Arrays:
    """Draw an adapter's tensors, head included, under the names of ``upt_zoo.layout``."""
    tensors = _draw(_adapter_shapes(case), case.name)
    return tensors | fold_prefix(case) if case.reparametrised else tensors


def reparametrisation(case: CaseInputs) -> Arrays:
    """Draw the prefix's training MLP: embedding [p, d], inner [w, d], outer [2 L d, w]."""
    hidden, width = case.encoder.hidden, REPARAMETRISATION_WIDTH
    outputs = 2 * case.encoder.layers * hidden
    shapes: Shapes = {
        "embedding": (case.components["prefix"]["length"], hidden),
        "inner.weight": (width, hidden),
        "inner.bias": (width,),
        "outer.weight": (outputs, width),
        "outer.bias": (outputs,),
    }
    return _draw(shapes, f"{case.name}/reparametrisation")


def fold_prefix(case: CaseInputs) -> Arrays:
    """Compute PK, PV = W2 tanh(W1 e + b1) + b2, viewed as [p, 2 L, d]: 2l keys, 2l + 1 values."""
    mlp = reparametrisation(case)
    inner = np.tanh(mlp["embedding"] @ mlp["inner.weight"].T + mlp["inner.bias"])
    outer = inner @ mlp["outer.weight"].T + mlp["outer.bias"]
    parts = outer.reshape(len(outer), 2 * case.encoder.layers, case.encoder.hidden).swapaxes(0, 1)
    return {"prefix.keys": parts[0::2].copy(), "prefix.values": parts[1::2].copy()}


def _draw(shapes: Shapes, seed_name: str) -> Arrays:
    random = np.random.RandomState(zlib.crc32(seed_name.encode()))
    return {name: _scale(name, random.standard_normal(shapes[name])) for name in sorted(shapes)}


def _scale(name: str, normal: Array) -> Array:
    """Scale so that every part shows in the outputs and neither gates nor attention saturate."""
    if name.endswith("LayerNorm.weight"):
        return 1 + 0.2 * normal
    if name.endswith("bias"):
        return 0.3 * normal
    if "embedding" in name or name in ("prompt", "prefix.keys", "prefix.values"):
        return normal
    scaled: Array = normal / np.sqrt(normal.shape[-1])
    return scaled


def _backbone_shapes(encoder: Encoder) -> Shapes:
    hidden = encoder.hidden
    shapes: Shapes = {
        "embeddings.word_embeddings.weight": (encoder.vocabulary, hidden),
        "embeddings.position_embeddings.weight": (encoder.positions, hidden),
        "embeddings.token_type_embeddings.weight": (encoder.types, hidden),
        "embeddings.LayerNorm.weight": (hidden,),
        "embeddings.LayerNorm.bias": (hidden,),
    }
    for layer in range(encoder.layers):
        start = f"encoder.layer.{layer}"
        for target in ALL_TARGETS:
            size_in, size_out = _linear_sizes(encoder, target)
            shapes[f"{start}.{LINEARS[target]}.weight"] = (size_out, size_in)
            shapes[f"{start}.{LINEARS[target]}.bias"] = (size_out,)
        for norm in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes[f"{start}.{norm}.weight"] = shapes[f"{start}.{norm}.bias"] = (hidden,)
    return shapes


def _linear_sizes(encoder: Encoder, target: Target) -> tuple[int, int]:
    size_in = encoder.intermediate if target == "ffn_down" else encoder.hidden
    size_out = encoder.intermediate if target == "ffn_up" else encoder.hidden
    return size_in, size_out


def _adapter_shapes(case: CaseInputs) -> Shapes:
    hidden, layers, components = case.encoder.hidden, case.encoder.layers, case.components
    shapes: Shapes = {"head.out.weight": (1, hidden), "head.out.bias": (1,)}
    if "prompt" in components:
        shapes["prompt"] = (components["prompt"]["length"], hidden)
    if "prefix" in components:
        shapes |= _prefix_shapes(components["prefix"], layers, hidden)
    if "bottleneck" in components:
        shapes |= _bottleneck_shapes(components["bottleneck"], layers, hidden)
    if "lora" in components:
        shapes |= _lora_shapes(components["lora"], case.encoder)
    return shapes


def _prefix_shapes(prefix: Prefix, layers: int, hidden: int) -> Shapes:
    size = (layers, prefix["length"], hidden)
    shapes: Shapes = {"prefix.keys": size, "prefix.values": size}
    if prefix["gated"]:
        gates = {"shared": 1, "separate": 2}[prefix["gates"]]
        shapes["prefix.gate.weight"] = (layers, gates, hidden)
        shapes["prefix.gate.bias"] = (layers, gates)
    return shapes


def _bottleneck_shapes(bottleneck: Bottleneck, layers: int, hidden: int) -> Shapes:
    size = bottleneck["size"]
    shapes: Shapes = {
        "bottleneck.down.weight": (layers, size, hidden),
        "bottleneck.down.bias": (layers, size),
        "bottleneck.up.weight": (layers, hidden, size),
        "bottleneck.up.bias": (layers, hidden),
    }
    if bottleneck["gated"]:
        shapes["bottleneck.gate.weight"] = (layers, hidden)
        shapes["bottleneck.gate.bias"] = (layers,)
    return shapes


def _lora_shapes(lora: Lora, encoder: Encoder) -> Shapes:
    shapes: Shapes = {}
    for target in lora["targets"]:
        size_in, size_out = _linear_sizes(encoder, target)
        shapes[f"lora.{target}.a"] = (encoder.layers, lora["rank"], size_in)
        shapes[f"lora.{target}.b"] = (encoder.layers, size_out, lora["rank"])
        if lora["gated"]:
            shapes[f"lora.{target}.gate.weight"] = (encoder.layers, size_in)
            shapes[f"lora.{target}.gate.bias"] = (encoder.layers,)
    return shapes
