"""Rows of a real task to learn from, and our training loop over them."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from upt_benchmarks.peers import Lesson
from upt_benchmarks.timing import Timed
from upt_benchmarks.workloads import UNION, adapter_spec
from upt_training.batches import Feature, batches_of, features_of
from upt_training.data import draw, read_split
from upt_training.learner import AdapterLearner, FullLearner, Learner
from upt_training.loop import Progress, Trainer
from upt_training.losses import TaskLoss
from upt_training.recipe import Recipe
from upt_zoo.backbone import Backbone
from upt_zoo.nn.encoder import load_encoder, load_tensors
from upt_zoo.spec import AdapterSpec
from upt_zoo.tasks import find_task
from upt_zoo.tokenization import Tokenizer

BATCH_SIZE, DROPOUT = 32, 0.1
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_POOL_BATCHES = 50  # those that the loop sorts together


def spread_batches(
    task: str, spec: AdapterSpec, tokenizer: Tokenizer, *, folder: Path | None, batches: int
) -> list[Feature]:
    """Return the rows of ``batches`` of an epoch's first batches, from the shortest to the longest.

    Their lengths are spread as those of all: of 50 batches every so-and-so-many-th is taken.
    """
    known = find_task(task)
    examples = read_split(known, "train", folder=folder).examples
    drawn = draw(examples, min(len(examples), _POOL_BATCHES * BATCH_SIZE), seed=1)
    asked = spec.model_copy(update={"task": known.input()})
    found = batches_of(features_of(drawn, asked, tokenizer), BATCH_SIZE, seed=1, epoch=0)
    found.sort(key=lambda batch: max(len(feature.row.ids) for feature in batch))
    step = len(found) / batches
    chosen = [found[int((number + 0.5) * step)] for number in range(batches)]
    return [feature for batch in chosen for feature in batch]


def mean_tokens(features: Sequence[Feature]) -> float:
    """Return the mean length of the rows, in real tokens."""
    return sum(len(feature.row.ids) for feature in features) / len(features)


def our_loop(method: str, precision: str, backbone: Backbone, features: Sequence[Feature]) -> Timed:
    """Return one epoch of ``upt-train``'s loop, from fresh optimiser states each time.

    Timed is from before the first step to after the last, as with the peers.
    """
    recipe = Recipe.model_validate(
        {"task": "sst2", "method": method, "epochs": 1, "batch_size": BATCH_SIZE}
    )
    is_full = method == "full"
    spec = adapter_spec("nothing" if is_full else UNION, backbone.identity)
    dtype = DTYPES[precision]
    torch.manual_seed(0)
    learner: Learner
    if is_full:
        tensors = load_tensors(backbone)
        learner = FullLearner(recipe, spec, backbone.config, tensors, dtype=dtype)
    else:
        encoder = load_encoder(backbone, dtype=dtype)
        learner = AdapterLearner(recipe, spec, encoder, start_ids=range(1000, 1010))
    loss = TaskLoss(learner=learner, spec=spec, dropout=DROPOUT)

    def run() -> float:
        trainer = Trainer(recipe, spec, learner, loss=loss, evaluate=None, reporter=_Silent())
        started = time.perf_counter()
        trainer.run(features)
        return (time.perf_counter() - started) * 1000

    return run


def lesson_of(
    backbone: Backbone,
    features: Sequence[Feature],
    *,
    bf16: bool,
    is_grouped: bool,
    threads: int,
) -> Lesson:
    """Return the same rows for a peer."""
    return Lesson(
        checkpoint=backbone.directory,
        rows=[list(feature.row.ids) for feature in features],
        type_ids=[list(feature.row.type_ids) for feature in features],
        labels=[feature.target for feature in features if isinstance(feature.target, int)],
        batch_size=BATCH_SIZE,
        dropout=DROPOUT,
        bf16=bf16,
        is_grouped=is_grouped,
        threads=threads,
    )


class _Silent:
    """Hears and says nothing."""

    def step(self, progress: Progress, *, steps: int, loss: float) -> None:
        """Hear of a finished step."""

    def epoch(self, progress: Progress, *, holdout: Mapping[str, float] | None) -> None:
        """Hear of a finished epoch."""
