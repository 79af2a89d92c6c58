"""A whole backbone of random weights on disk, small enough to be made anew in every test run."""

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import RobertaProcessing, TemplateProcessing

from upt_zoo.backbone import Backbone, open_backbone
from upt_zoo.spec import Family

LAYERS, HIDDEN, HEADS, INTERMEDIATE, POSITIONS = 2, 32, 4, 64, 320
# fmt: off
WORDS = (
    "a", "the", "of", "and", "is", "was", "not", "it", "this", "film", "movie", "story", "acting",
    "good", "great", "fine", "bad", "dull", "poor", "boring", "funny", "gripping", "moving", "who",
    "what", "where", "when", "wrote", "painted", "lives", "works", "man", "woman", "city", "house",
    "river", "book", "song", "red", "green", "blue", "old", "new", "very", "almost", ".", ",", "?",
)
# fmt: on
_SPECIALS: dict[Family, tuple[str, ...]] = {
    "bert": ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    "roberta": ("<s>", "<pad>", "</s>", "<unk>", "<mask>"),
}


def write_tiny_backbone(
    directory: Path, family: Family = "bert", seed: int = 0, *, heads: int = HEADS
) -> Backbone:
    """Write configuration, weights and tokenizer of a random encoder; equal seeds, equal bytes."""
    directory.mkdir(parents=True, exist_ok=True)
    vocabulary = {word: index for index, word in enumerate((*_SPECIALS[family], *WORDS))}
    (directory / "config.json").write_text(json.dumps(_config(family, len(vocabulary), heads)))
    save_file(_weights(family, len(vocabulary), seed), directory / "model.safetensors")
    _tokenizer(family, vocabulary).save(str(directory / "tokenizer.json"))
    return open_backbone(directory, hub_id=f"upt/tiny-{family}-{seed}")


def _config(family: Family, vocabulary_size: int, heads: int) -> dict[str, str | int | float]:
    return {
        "model_type": family,
        "num_hidden_layers": LAYERS,
        "hidden_size": HIDDEN,
        "num_attention_heads": heads,
        "intermediate_size": INTERMEDIATE,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": POSITIONS,
        "type_vocab_size": 2 if family == "bert" else 1,
        "vocab_size": vocabulary_size,
        "pad_token_id": _SPECIALS[family].index("[PAD]" if family == "bert" else "<pad>"),
    }


def _weights(family: Family, vocabulary_size: int, seed: int) -> dict[str, NDArray[np.float32]]:
    # the legacy generator, because numpy promises never to change its stream
    source = np.random.RandomState(seed)
    shapes = {
        "embeddings.word_embeddings.weight": (vocabulary_size, HIDDEN),
        "embeddings.position_embeddings.weight": (POSITIONS, HIDDEN),
        "embeddings.token_type_embeddings.weight": (2 if family == "bert" else 1, HIDDEN),
        **_norm("embeddings.LayerNorm"),
    }
    for layer in range(LAYERS):
        name = f"encoder.layer.{layer}"
        for part in ("query", "key", "value"):
            shapes |= _linear(f"{name}.attention.self.{part}", HIDDEN, HIDDEN)
        shapes |= _linear(f"{name}.attention.output.dense", HIDDEN, HIDDEN)
        shapes |= _norm(f"{name}.attention.output.LayerNorm")
        shapes |= _linear(f"{name}.intermediate.dense", HIDDEN, INTERMEDIATE)
        shapes |= _linear(f"{name}.output.dense", INTERMEDIATE, HIDDEN)
        shapes |= _norm(f"{name}.output.LayerNorm")
    return {
        name: (0.3 * source.standard_normal(shape) + name.endswith("LayerNorm.weight")).astype(
            np.float32
        )
        for name, shape in sorted(shapes.items())
    }


def _linear(name: str, size_in: int, size_out: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (size_out, size_in), f"{name}.bias": (size_out,)}


def _norm(name: str) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (HIDDEN,), f"{name}.bias": (HIDDEN,)}


def _tokenizer(family: Family, vocabulary: dict[str, int]) -> Tokenizer:
    is_bert = family == "bert"
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]" if is_bert else "<unk>"))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    if is_bert:
        tokenizer.post_processor = TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[(word, vocabulary[word]) for word in ("[CLS]", "[SEP]")],
        )
    else:
        first, last = (("<s>", vocabulary["<s>"]), ("</s>", vocabulary["</s>"]))
        tokenizer.post_processor = RobertaProcessing(last, first)
    return tokenizer
