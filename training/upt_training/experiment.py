"""One recipe, from data to an adapter with its metrics: everything but printing and publishing."""

import importlib.metadata
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from upt_training.batches import features_of
from upt_training.components import components_of
from upt_training.data import Example, GoldSpans, Split, hold_out, read_split, splits_in
from upt_training.evaluation import answers_in_process
from upt_training.learner import AdapterLearner, FullLearner, Learner
from upt_training.loop import Reporter, Trainer
from upt_training.metrics import score
from upt_training.recipe import Recipe
from upt_zoo import layout
from upt_zoo.backbone import Backbone, resolve_backbone
from upt_zoo.errors import InvalidSpec
from upt_zoo.nn.adapter import PreparedAdapter, prepare
from upt_zoo.nn.encoder import Encoder, load_encoder, load_tensors
from upt_zoo.nn.linear import is_bf16_fast
from upt_zoo.spec import AdapterSpec, Head, Lineage
from upt_zoo.tasks import Task, find_task
from upt_zoo.tensors import Array
from upt_zoo.tokenization import Tokenizer

_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "int8": torch.float32}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What a run gives: an adapter (for full fine-tuning the head alone), and how it went.

    ``tensors`` are float16 where that left every dev metric the same, else float32; the metrics in
    the spec's lineage are theirs. ``steps`` were taken in ``seconds``; ``holdout`` has the deciding
    metric after each epoch. ``train_rows`` were learnt from, ``holdout_rows`` held out.
    """

    spec: AdapterSpec
    tensors: dict[str, Array]
    holdout: tuple[float, ...]
    steps: int
    best_epoch: int
    train_rows: int
    holdout_rows: int
    seconds: float


class Experiment:
    """A recipe made ready: its data read, its backbone loaded.

    ``initial`` are the tensors of the recipe's ``initial_adapter``.

    Raises:
        UptError: the task, the data or the backbone is missing, or the recipe does not fit them.
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        data_folder: Path | None,
        initial: Mapping[str, Array] | None = None,
    ) -> None:
        self.task = find_task(recipe.task)
        self._data_folder, self._initial = data_folder, initial
        self.recipe = recipe.model_copy(update={"precision": _ran_in(recipe)})
        self.backbone = resolve_backbone(recipe.backbone)
        _check_length(recipe, self.task, self.backbone)
        self._tokenizer = Tokenizer(self.backbone.tokenizer_file)
        self._train = [read_split(self.task, name, folder=data_folder) for name in recipe.files]
        examples = [example for split in self._train for example in split.examples]
        self._examples, self._holdout = hold_out(examples, recipe.holdout_rows, seed=recipe.seed)
        if not self._examples:
            raise InvalidSpec(
                f"holdout_rows: {recipe.holdout_rows} of {len(examples)} rows held out leave none "
                f"to learn from"
            )

    def run(
        self,
        reporter: Reporter,
        *,
        checkpoint: Path | None = None,
        max_seconds: float | None = None,
    ) -> Trained:
        """Train, then evaluate on every dev and test file, once.

        The checkpoint stands until the caller removes it: a repeated run goes on from there.

        Raises:
            UptError: the training failed, or a dev or test file cannot be read.
        """
        torch.manual_seed(self.recipe.seed)
        draft = self._draft_spec()
        encoder = self._frozen_encoder(_DTYPES[self.recipe.precision])
        learner = self._learner(draft, encoder)

        def watch() -> dict[str, float]:
            with torch.no_grad():
                current, adapter = learner.model()
            return self._score(current, adapter, draft, self._holdout)

        trainer = Trainer(
            self.recipe,
            draft,
            learner,
            evaluate=watch if self._holdout else None,
            reporter=reporter,
            checkpoint=checkpoint,
            max_seconds=max_seconds,
            deviation=self._target_scale()[1],
        )
        trainer.run(features_of(self._examples, draft, self._tokenizer))
        progress = trainer.progress
        splits = [
            read_split(self.task, name, folder=self._data_folder)
            for name in splits_in(self.task, folder=self._data_folder)
        ]
        tensors, metrics = self._round(draft, learner, splits)
        return Trained(
            spec=self._final_spec(draft, learner, splits, metrics),
            tensors=tensors,
            holdout=tuple(progress.holdout),
            steps=progress.step,
            best_epoch=progress.best_epoch or progress.epoch,
            train_rows=len(self._examples),
            holdout_rows=len(self._holdout),
            seconds=progress.seconds,
        )

    def _learner(self, spec: AdapterSpec, encoder: Encoder) -> Learner:
        if self.recipe.method == "full":
            return FullLearner(
                self.recipe,
                spec,
                self.backbone.config,
                load_tensors(self.backbone),
                dtype=_DTYPES[self.recipe.precision],
                target_scale=self._target_scale(),
            )
        count = (
            max(part.length for part in (spec.prompt, spec.prefix) if part is not None)
            if spec.prompt or spec.prefix
            else 0
        )
        return AdapterLearner(
            self.recipe,
            spec,
            encoder,
            start_ids=self._start_ids(spec, count),
            target_scale=self._target_scale(),
            initial=None if self._initial is None else _to_torch(self._initial),
        )

    def _start_ids(self, spec: AdapterSpec, count: int) -> list[int]:
        """Return ids of words about the task: its description and its labels, over and over."""
        words = " ".join([self.task.description, *(self.task.labels or ())]).replace("_", " ")
        one_field = spec.task.model_copy(update={"fields": ("text",)})
        (row,) = self._tokenizer.encode(one_field, (words,), is_span=False)
        return list(islice(cycle(row.ids[1:-1]), count))

    def _target_scale(self) -> tuple[float, float]:
        """Return (mean, deviation) of a regression's training values; (0, 1) otherwise."""
        if self.task.kind != "regression":
            return 0.0, 1.0
        values = [float(e.gold) for e in self._examples if not isinstance(e.gold, GoldSpans)]
        return statistics.fmean(values), statistics.pstdev(values) or 1.0

    def _score(
        self,
        encoder: Encoder,
        adapter: PreparedAdapter,
        spec: AdapterSpec,
        examples: Sequence[Example],
    ) -> dict[str, float]:
        texts = [example.texts for example in examples]
        answers = answers_in_process(encoder, adapter, spec, self._tokenizer, texts)
        return score(self.task, examples, answers)

    def _round(
        self, spec: AdapterSpec, learner: Learner, splits: Sequence[Split]
    ) -> tuple[dict[str, Array], dict[str, float]]:
        """Return the tensors to publish and their metrics on all splits, as ``split/metric``.

        They are computed as a server answers: in fp32, or in int8 for what was trained in int8.
        """
        wide: dict[str, Array] = {
            name: tensor.numpy() for name, tensor in learner.served_tensors().items()
        }
        encoder = self._serving_encoder(learner)
        metrics = self._score_splits(encoder, spec, wide, splits)
        narrow: dict[str, Array] = {
            name: tensor.astype(np.float16) for name, tensor in wide.items()
        }
        narrow_metrics = self._score_splits(encoder, spec, narrow, splits)
        dev = [name for name in metrics if name.startswith("dev")]
        is_same = all(round(metrics[name], 1) == round(narrow_metrics[name], 1) for name in dev)
        return (narrow, narrow_metrics) if is_same else (wide, metrics)

    def _serving_encoder(self, learner: Learner) -> Encoder:
        if isinstance(learner, FullLearner):
            return learner.trained_encoder()
        return self._frozen_encoder(torch.float32)

    def _frozen_encoder(self, dtype: torch.dtype) -> Encoder:
        return load_encoder(self.backbone, dtype=dtype, is_int8=self.recipe.precision == "int8")

    def _score_splits(
        self,
        encoder: Encoder,
        spec: AdapterSpec,
        tensors: Mapping[str, Array],
        splits: Sequence[Split],
    ) -> dict[str, float]:
        adapter = prepare(spec, _to_torch(tensors), dtype=torch.float32)
        return {
            f"{split.file.name.rpartition('/')[2]}/{metric}": value
            for split in splits
            for metric, value in self._score(encoder, adapter, spec, split.examples).items()
        }

    def _draft_spec(self) -> AdapterSpec:
        components = components_of(self.recipe.method, self.backbone.identity)
        return AdapterSpec(
            method=self.recipe.method,
            backbone=self.backbone.identity,
            lora=components.lora,
            prefix=components.prefix,
            bottleneck=components.bottleneck,
            prompt=components.prompt,
            head=self._head(),
            task=self.task.input(max_tokens=self.recipe.max_tokens),
            lineage=Lineage(
                data=self.task.title,
                data_licence=self.task.data_licence,
                commercial_use=self.task.commercial_use,
                files=tuple(split.file for split in self._train),
                recipe=self.recipe.model_dump(mode="json"),
                seed=self.recipe.seed,
                code_version=importlib.metadata.version("upt-zoo"),
                precision=_ran_in(self.recipe),
                metrics={},
                trained_parameters=0,
                served_parameters=0,
                head_parameters=0,
                backbone_overlap=self.task.backbone_overlap,
            ),
        )

    def _head(self) -> Head:
        head = self.task.head()
        if head.kind == "span":  # reads every token by itself
            return head
        return head.model_copy(update={"pooling": self.recipe.pooling})

    def _final_spec(
        self,
        draft: AdapterSpec,
        learner: Learner,
        splits: Sequence[Split],
        metrics: dict[str, float],
    ) -> AdapterSpec:
        head = layout.head_shapes(draft.head, draft.backbone.hidden)
        lineage = draft.lineage.model_copy(
            update={
                "files": tuple(split.file for split in (*self._train, *splits)),
                "metrics": metrics,
                "trained_parameters": sum(w.numel() for w in learner.weights.values()),
                "served_parameters": _count(layout.component_shapes(draft)),
                "head_parameters": _count(head),
            }
        )
        return draft.model_copy(update={"lineage": lineage})


def _ran_in(recipe: Recipe) -> Literal["fp32", "bf16", "int8"]:
    if recipe.precision != "auto":
        return recipe.precision
    return "bf16" if is_bf16_fast() else "fp32"


def _check_length(recipe: Recipe, task: Task, backbone: Backbone) -> None:
    wanted, most = recipe.max_tokens or task.max_tokens, backbone.config.max_tokens
    if wanted > most:
        raise InvalidSpec(
            f"max_tokens: expected at most the {most} tokens of {recipe.backbone}, got {wanted}"
        )


def _count(shapes: Mapping[str, layout.Shape]) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def _to_torch(tensors: Mapping[str, Array]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}
