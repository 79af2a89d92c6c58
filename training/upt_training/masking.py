"""Masked-language modelling: which tokens are hidden, the head that guesses them, the loss.

Of the tokens chosen 80 % become the mask token, 10 % a random one, 10 % stay (Devlin et al. 2019,
section 3.1). The head is BERT's: logits = LN(gelu(W h + b)) Eᵀ + c with the word embeddings E.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from upt_training.batches import Feature
from upt_training.losses import BUCKET_MULTIPLE, TOKEN_MULTIPLE
from upt_zoo.backbone import Backbone
from upt_zoo.errors import InvalidSpec
from upt_zoo.nn.adapter import PreparedAdapter
from upt_zoo.nn.encoder import Encoder
from upt_zoo.nn.forward import lay_out
from upt_zoo.nn.layers import embed, run_layers
from upt_zoo.nn.packing import Row
from upt_zoo.spec import Family

_MASKED, _RANDOM = 0.8, 0.1
_START_STD = 0.02
# ours to the checkpoints' names; "LayerNorm" tells the optimiser that it does not decay
_NAMES: dict[Family, dict[str, str]] = {
    "bert": {
        "mlm.dense.weight": "cls.predictions.transform.dense.weight",
        "mlm.dense.bias": "cls.predictions.transform.dense.bias",
        "mlm.LayerNorm.weight": "cls.predictions.transform.LayerNorm.weight",
        "mlm.LayerNorm.bias": "cls.predictions.transform.LayerNorm.bias",
        "mlm.bias": "cls.predictions.bias",
    },
    "roberta": {
        "mlm.dense.weight": "lm_head.dense.weight",
        "mlm.dense.bias": "lm_head.dense.bias",
        "mlm.LayerNorm.weight": "lm_head.layer_norm.weight",
        "mlm.LayerNorm.bias": "lm_head.layer_norm.bias",
        "mlm.bias": "lm_head.bias",
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """What masking needs to know of a tokenizer: ids, and which tokens go on with a word."""

    size: int
    mask_id: int
    special_ids: frozenset[int]
    continuing_ids: frozenset[int]

    def words(self, ids: Sequence[int]) -> list[list[int]]:
        """Group the places of a row's tokens by word; special tokens are in none."""
        words: list[list[int]] = []
        is_inside = False
        for place, token in enumerate(ids):
            if token in self.special_ids:
                is_inside = False
            elif is_inside and token in self.continuing_ids:
                words[-1].append(place)
            else:
                words.append([place])
                is_inside = True
        return words


def read_vocabulary(file: Path) -> Vocabulary:
    """Read a ``tokenizer.json`` with BERT's ``##`` or RoBERTa's ``Ġ`` for the parts of words.

    Raises:
        InvalidSpec: there is no mask token.
    """
    tokenizer = Tokenizer.from_file(str(file))
    ids = tokenizer.get_vocab()
    mask = next((ids[name] for name in ("[MASK]", "<mask>") if name in ids), None)
    if mask is None:
        raise InvalidSpec(f"{file}: expected a token [MASK] or <mask>, there is none")
    special = {mask} | {
        ids[name] for name in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "<s>", "</s>", "<pad>", "<unk>")
        if name in ids
    }  # fmt: skip
    has_marks = any(token.startswith("Ġ") for token in ids)
    return Vocabulary(
        size=max(ids.values()) + 1,
        mask_id=mask,
        special_ids=frozenset(special),
        continuing_ids=frozenset(
            number
            for token, number in ids.items()
            if (not token.startswith("Ġ") if has_marks else token.startswith("##"))
        ),
    )


def mask_row(
    ids: Sequence[int],
    vocabulary: Vocabulary,
    *,
    share: float,
    whole_words: bool,
    generator: torch.Generator | None = None,
) -> tuple[list[int], list[int]]:
    """Return (ids with some of them hidden, the places to guess); at least one is.

    About ``share`` of the real tokens are chosen, by ``generator`` or torch's own.
    """
    words = vocabulary.words(ids)
    units = words if whole_words else [[place] for word in words for place in word]
    wanted = max(1, round(share * sum(map(len, units))))
    places: list[int] = []
    for index in torch.randperm(len(units), generator=generator).tolist():
        if not places or len(places) + len(units[index]) <= wanted:
            places += units[index]
    places.sort()
    hidden = list(ids)
    draws = torch.rand(len(places), generator=generator).tolist()
    others = torch.randint(vocabulary.size, (len(places),), generator=generator).tolist()
    for place, draw, other in zip(places, draws, others, strict=True):
        if draw < _MASKED:
            hidden[place] = vocabulary.mask_id
        elif draw < _MASKED + _RANDOM:
            hidden[place] = other
    return hidden, places


def read_head(backbone: Backbone) -> dict[str, Tensor] | None:
    """Read the masked-language head out of a checkpoint; None if it has none."""
    names = _NAMES[backbone.config.model_type]
    with safe_open(backbone.weights_file, framework="pt") as checkpoint:
        if not set(names.values()) <= set(checkpoint.keys()):
            return None
        return {
            ours: checkpoint.get_tensor(theirs).float().requires_grad_()
            for ours, theirs in names.items()
        }


def start_head(hidden: int, vocabulary_size: int) -> dict[str, Tensor]:
    """Draw the start values of a head."""
    values = {
        "mlm.dense.weight": torch.randn(hidden, hidden) * _START_STD,
        "mlm.dense.bias": torch.zeros(hidden),
        "mlm.LayerNorm.weight": torch.ones(hidden),
        "mlm.LayerNorm.bias": torch.zeros(hidden),
        "mlm.bias": torch.zeros(vocabulary_size),
    }
    return {name: value.requires_grad_() for name, value in values.items()}


def checkpoint_names(head: Mapping[str, Tensor], family: Family) -> dict[str, Tensor]:
    """Return the head under the names of the family's checkpoints."""
    return {theirs: head[ours].detach().cpu() for ours, theirs in _NAMES[family].items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedLoss:
    """The mean loss over a batch's hidden tokens.

    ``model`` gives encoder and adapter for one pass; with ``is_head_alone`` only the head learns.
    """

    model: Callable[[], tuple[Encoder, PreparedAdapter]]
    head: Mapping[str, Tensor]
    vocabulary: Vocabulary
    share: float
    whole_words: bool
    dropout: float
    is_head_alone: bool = False

    def __call__(self, batch: Sequence[Feature]) -> Tensor:
        """Return the cross-entropy by the weights as they stand; masks come from torch's state."""
        logits, targets = self._guess(batch, self.dropout, None)
        return functional.cross_entropy(logits, targets)

    def score(self, features: Sequence[Feature], batch_size: int, *, seed: int) -> dict[str, float]:
        """Return the share of hidden tokens that are guessed, in percent; masks are the seed's."""
        generator = torch.Generator().manual_seed(seed)
        right = total = 0
        with torch.no_grad():
            for start in range(0, len(features), batch_size):
                batch = features[start : start + batch_size]
                logits, targets = self._guess(batch, 0.0, generator)
                right += int((logits.argmax(1) == targets).sum())
                total += len(targets)
        return {"masked_accuracy": round(100 * right / total, 4)}

    def _guess(
        self, features: Sequence[Feature], dropout: float, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """Return logits [hidden token, word] and the words' ids."""
        masked = [
            mask_row(
                feature.row.ids,
                self.vocabulary,
                share=self.share,
                whole_words=self.whole_words,
                generator=generator,
            )
            for feature in features
        ]
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.is_head_alone):
            encoder, adapter = self.model()
            rows = [
                Row(ids=ids, type_ids=feature.row.type_ids, adapter=adapter)
                for feature, (ids, _) in zip(features, masked, strict=True)
            ]
            hidden = _real_states(encoder, rows, dropout)
        starts = [0, *accumulate(len(row.ids) for row in rows)]
        chosen, targets = [], []
        for start, feature, (_, places) in zip(starts, features, masked, strict=False):
            chosen += [start + place for place in places]
            targets += [feature.row.ids[place] for place in places]
        words = encoder.embeddings.word
        return (
            head_logits(
                self.head,
                hidden[torch.tensor(chosen, device=hidden.device)].float(),
                words.detach() if self.is_head_alone else words,
                eps=encoder.config.layer_norm_eps,
            ),
            torch.tensor(targets, device=hidden.device),
        )


def head_logits(head: Mapping[str, Tensor], hidden: Tensor, words: Tensor, *, eps: float) -> Tensor:
    """Return LN(gelu(W h + b)) Eᵀ + c for states [token, hidden] and words E [word, hidden]."""
    inner = functional.linear(hidden, head["mlm.dense.weight"], head["mlm.dense.bias"])
    scale, shift = head["mlm.LayerNorm.weight"], head["mlm.LayerNorm.bias"]
    inner = functional.layer_norm(functional.gelu(inner), scale.shape, scale, shift, eps)
    return functional.linear(inner, words.to(inner.dtype), head["mlm.bias"])


def _real_states(encoder: Encoder, rows: Sequence[Row], dropout: float) -> Tensor:
    """Return the last states [token, hidden] of all rows' real tokens, in the rows' order."""
    batch = lay_out(encoder, rows, bucket_multiple=BUCKET_MULTIPLE, token_multiple=TOKEN_MULTIPLE)
    hidden = run_layers(encoder, batch, embed(encoder, batch), dropout=dropout)
    real = hidden.index_select(0, batch.real_tokens)
    parts: list[Tensor] = [real] * len(rows)
    for place, row in enumerate(batch.order):
        parts[row] = real[batch.starts[place] : batch.starts[place + 1]]
    return torch.cat(parts)
