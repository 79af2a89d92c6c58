"""The loss of a batch of a task: one forward pass of the learner, under autograd."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from upt_training.batches import Feature, loss_of
from upt_training.gold import Gold
from upt_training.learner import Learner
from upt_zoo.nn.forward import forward
from upt_zoo.nn.packing import Row
from upt_zoo.spec import AdapterSpec

# attention in one padded bucket a group and products over multiples of 64 tokens: few distinct
# shapes, so that oneDNN compiles few kernels (docs/decisions/002-one-code-path.md)
BUCKET_MULTIPLE, TOKEN_MULTIPLE = 512, 64


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskLoss:
    """The mean loss over a batch's rows; the settings are those of ``batches.loss_of``."""

    learner: Learner
    spec: AdapterSpec
    dropout: float = 0.0
    deviation: float = 1.0
    class_weights: Tensor | None = None
    label_smoothing: float = 0.0

    def __call__(self, batch: Sequence[Feature]) -> Tensor:
        """Return the loss of the weights as they stand."""
        encoder, adapter = self.learner.model()
        rows = [
            Row(ids=feature.row.ids, type_ids=feature.row.type_ids, adapter=adapter)
            for feature in batch
        ]
        rows += [
            Row(ids=feature.other.ids, type_ids=feature.other.type_ids, adapter=adapter)
            for feature in batch
            if feature.other is not None
        ]
        logits = forward(
            encoder,
            rows,
            bucket_multiple=BUCKET_MULTIPLE,
            token_multiple=TOKEN_MULTIPLE,
            dropout=self.dropout,
        )
        return loss_of(
            self.spec,
            logits,
            batch,
            deviation=self.deviation,
            class_weights=self.class_weights,
            label_smoothing=self.label_smoothing,
        )


def class_weights_of(
    wanted: Literal["balanced"] | Mapping[str, float], labels: Sequence[str], golds: Sequence[Gold]
) -> Tensor:
    """Return [label] for ``batches.loss_of``, from the rows learnt from.

    Of one label a row, such that the rows' mean weight is 1; of sets, the weight of having a label,
    balanced the rows without it for each row with it. A label that no row has weighs 1 then.
    """
    sets = [gold for gold in golds if isinstance(gold, frozenset)]
    counts = Counter(label for gold in sets for label in gold) if sets else Counter(golds)
    rows = torch.tensor([float(counts[number]) for number in range(len(labels))])
    if wanted != "balanced":
        weights = torch.tensor([wanted.get(label, 1.0) for label in labels])
    elif sets:
        weights = torch.where(rows > 0, (len(sets) - rows) / rows, 1.0)
    else:
        weights = 1 / rows.clamp(min=1)
    return weights if sets else weights * rows.sum() / (weights * rows).sum()
