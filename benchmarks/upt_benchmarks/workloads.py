"""What is computed: lengths, token rows, adapters of random numbers, who asks for which adapter.

Seeds are fixed: every variant of every run gets the same rows.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor

from upt_training.methods import Components, components_of
from upt_zoo.backbone import EMBEDDED_HUB_ID, Backbone, open_backbone, resolve_backbone
from upt_zoo.layout import parameter_counts, tensor_shapes
from upt_zoo.spec import AdapterSpec, BackboneIdentity, Head, Lineage, TaskInput

BackboneName = Literal["minilm", "roberta_base"]
Lengths = Literal["f32", "f128", "mix"]
Popularity = Literal["distinct", "uniform", "zipf"]
Kind = Literal["nothing", "prompt", "lora", "prefix", "bottleneck", "lora_only"]

BACKBONES: tuple[BackboneName, ...] = get_args(BackboneName)
LENGTHS: tuple[Lengths, ...] = get_args(Lengths)
PARTS: tuple[Kind, ...] = ("nothing", "prompt", "lora", "prefix", "bottleneck")
UNION: Kind = "bottleneck"  # the last part: UniPELT+Prompt as a whole
PROMPT_LENGTH = 10

_MIX_MEAN, _MIX_SIGMA, _MIX_SEED, _SHORTEST, _LONGEST = 40, 0.7, 4, 8, 256
_LARGEST_BATCH = 32
_FIRST_WORD = 1000  # behind the special tokens
_ZIPF_EXPONENT = 1.1
_SCALE = 0.02


def row_lengths(lengths: Lengths, rows: int) -> list[int]:
    """Return each row's number of tokens; smaller batches are the first rows of larger ones.

    ``mix`` is log-normal with mean 40, between 8 and 256. Of 32 such rows padded to the longest,
    73 % of the tokens are padding.
    """
    if lengths != "mix":
        return [int(lengths[1:])] * rows
    location = math.log(_MIX_MEAN) - _MIX_SIGMA**2 / 2
    drawn = np.random.RandomState(_MIX_SEED).lognormal(location, _MIX_SIGMA, _LARGEST_BATCH)
    kept: list[int] = np.clip(np.rint(drawn), _SHORTEST, _LONGEST).astype(int).tolist()
    return kept[:rows]


def token_rows(lengths: Sequence[int], vocabulary: int) -> list[list[int]]:
    """Draw token ids for rows of these lengths."""
    source = np.random.RandomState(0)
    return [source.randint(_FIRST_WORD, vocabulary, length).tolist() for length in lengths]


def drawn_adapters(
    popularity: Popularity, *, registered: int, rows: int, batches: int
) -> list[list[int]]:
    """Say which registered adapter answers each row of each batch.

    ``distinct`` walks through all of them, so that none comes twice in a batch; ``zipf`` asks for
    the k-th most popular in proportion to k ** -1.1.
    """
    source = np.random.RandomState(1)
    total = rows * batches
    if popularity == "distinct":
        order = source.permutation(registered)
        chosen = np.resize(order, total)
    elif popularity == "uniform":
        chosen = source.randint(0, registered, total)
    else:
        weights = np.arange(1, registered + 1) ** -_ZIPF_EXPONENT
        chosen = source.choice(registered, total, p=weights / weights.sum())
    drawn: list[list[int]] = chosen.reshape(batches, rows).tolist()
    return drawn


def adapter_spec(kind: Kind, backbone: BackboneIdentity) -> AdapterSpec:
    """Describe an adapter with two labels; a part has all parts before it: see ``PARTS``."""
    components = _components(kind, backbone)
    spec = AdapterSpec(
        method=kind,
        backbone=backbone,
        lora=components.lora,
        prefix=components.prefix,
        bottleneck=components.bottleneck,
        prompt=components.prompt,
        head=Head(kind="classification", outputs=2, labels=("a", "b")),
        task=TaskInput(name="none", fields=("text",), max_tokens=256, metric="accuracy"),
        lineage=Lineage(
            data="none",
            data_licence="none",
            commercial_use="yes",
            files=(),
            recipe={},
            seed=0,
            code_version="none",
            precision="fp32",
            metrics={},
            trained_parameters=0,
            served_parameters=0,
            head_parameters=0,
        ),
    )
    served, head = parameter_counts(spec)
    counts = {"served_parameters": served, "head_parameters": head}
    return spec.model_copy(update={"lineage": spec.lineage.model_copy(update=counts)})


def adapter_tensors(spec: AdapterSpec, seed: int) -> dict[str, Tensor]:
    """Draw an adapter's numbers, N(0, 0.02²), in fp16 as most are published."""
    source = torch.Generator().manual_seed(seed)
    return {
        name: (_SCALE * torch.randn(shape, generator=source)).half()
        for name, shape in tensor_shapes(spec).items()
    }


def benchmark_backbone(name: BackboneName, folder: Path) -> Backbone:
    """Return MiniLM as it is, or write an encoder of roberta-base's shape into ``folder``."""
    if name == "minilm":
        return resolve_backbone(EMBEDDED_HUB_ID)
    from transformers import RobertaConfig, RobertaModel
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # it ships untyped

    config = RobertaConfig(
        vocab_size=50265,
        max_position_embeddings=514,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        pad_token_id=1,
    )
    torch.manual_seed(0)
    RobertaModel(config, add_pooling_layer=False).save_pretrained(folder)
    Tokenizer(WordLevel({"<unk>": 0}, unk_token="<unk>")).save(str(folder / "tokenizer.json"))
    return open_backbone(folder, hub_id="upt/roberta-base-shape")


def _components(kind: Kind, backbone: BackboneIdentity) -> Components:
    if kind == "lora_only":
        return components_of("lora", backbone)
    whole = components_of("unipelt_prompt", backbone)
    missing = PARTS[PARTS.index(kind) + 1 :]
    return replace(whole, **dict.fromkeys(missing))
