"""One recipe, from data to an adapter with its metrics: everything but printing and publishing."""

import importlib.metadata
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from upt_training.batches import features_of
from upt_training.comparisons import Ia3Learner, StackedLearner
from upt_training.data import Example, Split, draw, hold_out, read_split, splits_in
from upt_training.evaluation import answers_in_process
from upt_training.learner import AdapterLearner, FullLearner, Learner
from upt_training.loop import Progress, Reporter, Trainer
from upt_training.losses import TaskLoss, class_weights_of
from upt_training.methods import components_of
from upt_training.metrics import outcomes_of, score
from upt_training.outcomes import Outcomes
from upt_training.recipe import Learning, Recipe, task_of
from upt_training.team import ALONE, Team
from upt_zoo import layout
from upt_zoo.answers import Answer
from upt_zoo.backbone import Backbone, resolve_backbone
from upt_zoo.errors import InvalidSpec
from upt_zoo.nn.adapter import PreparedAdapter
from upt_zoo.nn.devices import is_bf16_fast
from upt_zoo.nn.encoder import Encoder, load_encoder, load_tensors
from upt_zoo.nn.example import record_example
from upt_zoo.spec import AdapterSpec, Head, Lineage
from upt_zoo.spec import Example as SpecExample
from upt_zoo.tasks import Task
from upt_zoo.tensors import Array
from upt_zoo.tokenization import Tokenizer

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "int8": torch.float32}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What a run gives: an adapter (for full fine-tuning the head alone), and how it went.

    ``tensors`` are float16 where that left every dev metric the same, else float32; the metrics in
    the spec's lineage are theirs. ``steps`` were taken in ``seconds``; ``holdout`` has the deciding
    metric after each epoch, ``losses`` its mean loss; ``outcomes`` are those of dev and test files.
    ``train_rows`` were learnt from, ``holdout_rows`` held out.
    """

    spec: AdapterSpec
    tensors: dict[str, Array]
    holdout: tuple[float, ...]
    steps: int
    best_epoch: int
    train_rows: int
    holdout_rows: int
    seconds: float
    losses: tuple[float, ...] = ()
    outcomes: Mapping[str, Outcomes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """What a run would do: learn from ``train_rows`` in at most ``steps`` steps.

    A long text is several rows of tokens, the longest of which has ``most_tokens``.
    """

    device: str
    precision: str
    train_rows: int
    holdout_rows: int
    token_rows: int
    most_tokens: int
    steps: int
    trained_parameters: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """What has learnt, before any dev or test file was read.

    Where the clock ended it, ``steps`` were to be done.
    """

    learner: Learner
    progress: Progress
    steps: int | None


class Experiment:
    """A recipe made ready: its data read, its backbone loaded.

    ``initial`` are the tensors of the recipe's ``initial_adapter``; the ``team`` computes.

    Raises:
        UptError: the task, the data or the backbone is missing, or the recipe does not fit them.
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        data_folder: Path | None,
        initial: Mapping[str, Array] | None = None,
        team: Team = ALONE,
    ) -> None:
        team.check_device()
        self.task = task_of(recipe)
        self._data_folder, self._initial, self._team = data_folder, initial, team
        self.recipe = recipe.model_copy(update={"precision": ran_in(recipe, team.device)})
        self.backbone = resolve_backbone(recipe.backbone)
        _check_length(recipe, self.task, self.backbone)
        _check_loss(recipe, self.task)
        if self.task.kind == "embedding" and recipe.method == "head":
            raise InvalidSpec("method head: an embedding has no head to learn; take another method")
        self._tokenizer = Tokenizer(self.backbone.tokenizer_file)
        self._train = [read_split(self.task, name, folder=data_folder) for name in recipe.files]
        examples = [example for split in self._train for example in split.examples]
        self._examples, self._holdout = hold_out(examples, recipe.holdout_rows, seed=recipe.seed)
        if recipe.train_rows is not None:
            self._examples = draw(self._examples, recipe.train_rows, seed=recipe.seed)
        if not self._examples:
            raise InvalidSpec(
                f"holdout_rows: {recipe.holdout_rows} of {len(examples)} rows held out leave none "
                f"to learn from"
            )

    def outline(self) -> Outline:
        """Say what the run would do, by all that it would start with."""
        draft = self._draft_spec()
        features = features_of(self._examples, draft, self._tokenizer)
        learner = self._learner(draft, self._frozen_encoder(DTYPES[self.recipe.precision]))
        return Outline(
            device=self._team.device,
            precision=self.recipe.precision,
            train_rows=len(self._examples),
            holdout_rows=len(self._holdout),
            token_rows=len(features),
            most_tokens=max(len(feature.row.ids) for feature in features),
            steps=math.ceil(len(features) / self.recipe.batch_size) * self.recipe.epochs,
            trained_parameters=_size(learner),
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
        return self.finish(self.fit(reporter, checkpoint=checkpoint, max_seconds=max_seconds))

    def fit(
        self,
        reporter: Reporter,
        *,
        checkpoint: Path | None = None,
        max_seconds: float | None = None,
    ) -> Fitted:
        """Train, looking at train rows alone.

        Raises:
            InvalidSpec: the training failed.
        """
        with self._team.fitting(self.recipe.rows_at_once or self.recipe.batch_size):
            return self._fit(reporter, checkpoint, max_seconds)

    def _fit(
        self, reporter: Reporter, checkpoint: Path | None, max_seconds: float | None
    ) -> Fitted:
        torch.manual_seed(self.recipe.seed)
        draft = self._draft_spec()
        encoder = self._frozen_encoder(DTYPES[self.recipe.precision])
        learner = self._learner(draft, encoder)

        def watch() -> dict[str, float]:
            with torch.no_grad():
                current, adapter = learner.model()
            answers = self._answers(current, adapter, draft, self._holdout)
            return score(self.task, self._holdout, answers)

        trainer = Trainer(
            self.recipe,
            draft,
            learner,
            loss=TaskLoss(
                learner=learner,
                spec=draft,
                dropout=self.recipe.dropout,
                deviation=self._target_scale()[1],
                class_weights=self._class_weights(),
                label_smoothing=self.recipe.label_smoothing,
            ),
            evaluate=watch if self._holdout else None,
            reporter=reporter,
            checkpoint=checkpoint,
            max_seconds=max_seconds,
            team=self._team,
        )
        steps = trainer.run(features_of(self._examples, draft, self._tokenizer))
        return Fitted(learner=learner, progress=trainer.progress, steps=steps)

    def finish(self, fitted: Fitted) -> Trained:
        """Evaluate what has learnt on every dev and test file, once.

        Raises:
            UptError: a dev or test file cannot be read.
        """
        draft, learner, progress = self._draft_spec(), fitted.learner, fitted.progress
        splits = [
            read_split(self.task, name, folder=self._data_folder)
            for name in splits_in(self.task, folder=self._data_folder)
        ]
        tensors, metrics, outcomes = self._round(draft, learner, splits)
        return Trained(
            spec=self._final_spec(draft, fitted, splits, metrics).model_copy(
                update={"example": self._example(draft, learner, tensors)}
            ),
            tensors=tensors,
            holdout=tuple(progress.holdout),
            steps=progress.step,
            best_epoch=progress.kept_epoch,
            train_rows=len(self._examples),
            holdout_rows=len(self._holdout),
            seconds=progress.seconds,
            losses=tuple(progress.losses),
            outcomes=outcomes,
        )

    def _learner(self, spec: AdapterSpec, encoder: Encoder) -> Learner:
        if self.recipe.traits.learns_backbone:
            return FullLearner(
                self.recipe,
                spec,
                self.backbone.config,
                load_tensors(self.backbone, device=self._team.device),
                dtype=DTYPES[self.recipe.precision],
                target_scale=self._target_scale(),
            )
        count = (
            max(part.length for part in (spec.prompt, spec.prefix) if part is not None)
            if spec.prompt or spec.prefix
            else 0
        )
        if self.recipe.method in ("stacked_unipelt", "ia3_prefix_bottleneck"):
            is_stack = self.recipe.method == "stacked_unipelt"
            kind = StackedLearner if is_stack else Ia3Learner
            return kind(
                self.recipe,
                spec,
                encoder,
                start_ids=self._start_ids(spec, count * self.recipe.blocks if is_stack else count),
                target_scale=self._target_scale(),
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
        """Return ids of words about the task: its description and its labels, over and over.

        Where it has neither, they are those of its title.
        """
        words = " ".join([self.task.description, *(self.task.labels or ())]).replace("_", " ")
        words = words if words.strip() else self.task.title
        one_field = spec.task.model_copy(update={"fields": ("text",)})
        (row,) = self._tokenizer.encode(one_field, (words,), kind="classification")
        return list(islice(cycle(row.ids[1:-1]), count))

    def _target_scale(self) -> tuple[float, float]:
        """Return (mean, deviation) of a regression's training values; (0, 1) otherwise."""
        if self.task.kind != "regression":
            return 0.0, 1.0
        values = [e.gold for e in self._examples if isinstance(e.gold, float)]
        return statistics.fmean(values), statistics.pstdev(values) or 1.0

    def _class_weights(self) -> Tensor | None:
        wanted = self.recipe.class_weights
        if wanted is None:
            return None
        golds = [example.gold for example in self._examples]
        return class_weights_of(wanted, self.task.labels or (), golds).to(self._team.device)

    def _answers(
        self,
        encoder: Encoder,
        adapter: PreparedAdapter,
        spec: AdapterSpec,
        examples: Sequence[Example],
    ) -> list[Answer]:
        texts = [example.texts for example in examples]
        return answers_in_process(encoder, adapter, spec, self._tokenizer, texts)

    def _round(
        self, spec: AdapterSpec, learner: Learner, splits: Sequence[Split]
    ) -> tuple[dict[str, Array], dict[str, float], dict[str, Outcomes]]:
        """Return the tensors to publish, their metrics as ``split/metric``, outcomes by split.

        They are computed as a server answers: in fp32, or in int8 for what was trained in int8.
        """
        wide: dict[str, Array] = {
            name: tensor.numpy() for name, tensor in learner.served_tensors().items()
        }
        narrow: dict[str, Array] = {
            name: tensor.astype(np.float16) for name, tensor in wide.items()
        }
        dev = [split for split in splits if split.name.startswith("dev")]
        frozen = self._frozen_encoder(torch.float32)
        in_wide = self._score_splits(learner, spec, frozen, wide, dev)
        in_narrow = self._score_splits(learner, spec, frozen, narrow, dev)
        is_same = all(round(v, 1) == round(in_narrow[0][name], 1) for name, v in in_wide[0].items())
        tensors, (metrics, outcomes) = (narrow, in_narrow) if is_same else (wide, in_wide)
        others = [split for split in splits if split not in dev]
        more_metrics, more_outcomes = self._score_splits(learner, spec, frozen, tensors, others)
        return tensors, metrics | more_metrics, outcomes | more_outcomes

    def _frozen_encoder(self, dtype: torch.dtype) -> Encoder:
        return load_encoder(
            self.backbone,
            dtype=dtype,
            device=self._team.device,
            is_int8=self.recipe.precision == "int8",
        )

    def _score_splits(
        self,
        learner: Learner,
        spec: AdapterSpec,
        frozen: Encoder,
        tensors: Mapping[str, Array],
        splits: Sequence[Split],
    ) -> tuple[dict[str, float], dict[str, Outcomes]]:
        encoder, adapter = learner.answering(frozen, _to_torch(tensors))
        metrics: dict[str, float] = {}
        outcomes = {}
        for split in splits:
            answers = self._answers(encoder, adapter, spec, split.examples)
            scores = score(self.task, split.examples, answers)
            metrics |= {f"{split.name}/{metric}": value for metric, value in scores.items()}
            outcomes[split.name] = outcomes_of(self.task, split.examples, answers)
        return metrics, outcomes

    def _example(
        self, spec: AdapterSpec, learner: Learner, tensors: Mapping[str, Array]
    ) -> SpecExample | None:
        """Return what a server holds the adapter to; None for what no server takes."""
        if not self.recipe.traits.gives_adapter:
            return None
        encoder = load_encoder(self.backbone, dtype=torch.float32)
        answering, adapter = learner.answering(encoder, _to_torch(tensors))
        return record_example(answering, spec, adapter, self._tokenizer)

    def _draft_spec(self) -> AdapterSpec:
        components = components_of(
            self.recipe.method, self.backbone.identity, has_gates=self.recipe.has_gates
        )
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
                precision=ran_in(self.recipe, self._team.device),
                metrics={},
                trained_parameters=0,
                served_parameters=0,
                head_parameters=0,
                backbone_overlap=self.task.backbone_overlap,
                licence=self.task.adapter_licence,
            ),
        )

    def _head(self) -> Head:
        head = self.task.head(self.backbone.identity.hidden)
        if head.is_per_token:
            return head
        return head.model_copy(update={"pooling": self.recipe.pooling})

    def _final_spec(
        self,
        draft: AdapterSpec,
        fitted: Fitted,
        splits: Sequence[Split],
        metrics: dict[str, float],
    ) -> AdapterSpec:
        learner = fitted.learner
        head = layout.head_shapes(draft.head, draft.backbone.hidden)
        lineage = draft.lineage.model_copy(
            update={
                "files": tuple(split.file for split in (*self._train, *splits)),
                "metrics": metrics,
                "trained_parameters": _size(learner),
                "served_parameters": sum(
                    tensor.numel()
                    for name, tensor in learner.served_tensors().items()
                    if name not in head
                ),
                "head_parameters": _count(head),
                "curve": fitted.progress.curve(),
            }
        )
        return draft.model_copy(update={"lineage": lineage})


def ran_in(recipe: Learning, device: str = "cpu") -> Literal["fp32", "bf16", "int8"]:
    """Return the precision that a recipe comes to on a device of this machine."""
    if recipe.precision != "auto":
        return recipe.precision
    return "bf16" if is_bf16_fast(device) else "fp32"


def _check_length(recipe: Recipe, task: Task, backbone: Backbone) -> None:
    wanted, most = recipe.max_tokens or task.max_tokens, backbone.config.max_tokens
    if wanted > most:
        raise InvalidSpec(
            f"max_tokens: expected at most the {most} tokens of {recipe.backbone}, got {wanted}"
        )


def _check_loss(recipe: Recipe, task: Task) -> None:
    if recipe.label_smoothing and task.kind != "classification":
        raise InvalidSpec(f"label_smoothing: expected a classification, {task.name} is {task.kind}")
    if recipe.class_weights is None:
        return
    if task.kind not in ("classification", "multi_label"):
        raise InvalidSpec(f"class_weights: expected a classification, {task.name} is {task.kind}")
    named, labels = recipe.class_weights, task.labels or ()
    if named != "balanced" and not named.keys() <= set(labels):
        raise InvalidSpec(
            f"class_weights: expected labels of {task.name} ({', '.join(labels)}), "
            f"got {', '.join(named)}"
        )


def _size(learner: Learner) -> int:
    return sum(weight.numel() for weight in learner.weights.values())


def _count(shapes: Mapping[str, layout.Shape]) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def _to_torch(tensors: Mapping[str, Array]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}
