"""Continued pretraining, from texts to an adapter or to a backbone of one's own."""

import importlib.metadata
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from upt_training.batches import Feature
from upt_training.corpus import read_corpus, rows_for_masking
from upt_training.data import hold_out
from upt_training.experiment import DTYPES, Outline, ran_in
from upt_training.learner import AdapterLearner, FullLearner, Learner
from upt_training.loop import Progress, Reporter, Trainer
from upt_training.masking import (
    MaskedLoss,
    checkpoint_names,
    read_head,
    read_vocabulary,
    start_head,
)
from upt_training.methods import components_of
from upt_training.pretraining import Pretraining
from upt_training.team import ALONE, Team
from upt_zoo import layout
from upt_zoo.backbone import Backbone, resolve_backbone
from upt_zoo.errors import InvalidSpec
from upt_zoo.nn.encoder import load_encoder, load_tensors
from upt_zoo.spec import AdapterSpec, Curve, Head, Lineage, TaskInput
from upt_zoo.tensors import Array
from upt_zoo.tokenization import Tokenizer

# no task yet: a head of one label, so that the adapter is whole and promises nothing
_NO_HEAD = Head(kind="classification", outputs=1, labels=("untrained",))
_FACTS = "pretraining.json"


@dataclass(slots=True, kw_only=True)
class _Parts:
    """The weights that one phase trains."""

    weights: dict[str, Tensor]
    rates: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pretrained:
    """What comes out: an adapter's spec and tensors, and the backbone's tensors with its head.

    ``backbone`` are under the names of a checkpoint. ``before`` and ``after`` are the metrics on
    the held-out rows around the second phase, empty without any. ``had_head`` tells whether the
    masked-language head came with the backbone, ``was_cut_short`` whether the clock ended a phase
    before its steps were done.
    """

    spec: AdapterSpec
    tensors: dict[str, Array]
    backbone: dict[str, Tensor]
    before: dict[str, float]
    after: dict[str, float]
    had_head: bool
    train_rows: int
    holdout_rows: int
    steps: int
    was_cut_short: bool
    seconds: float


class Pretrainer:
    """A recipe made ready: its texts read and tokenised, its backbone loaded.

    Raises:
        UptError: texts or backbone are missing, or the recipe does not fit them.
    """

    def __init__(
        self,
        recipe: Pretraining,
        *,
        folder: Path | None,
        initial: Mapping[str, Array] | None = None,
        team: Team = ALONE,
    ) -> None:
        team.check_device()
        self._team = team
        self.recipe = recipe.model_copy(update={"precision": ran_in(recipe, team.device)})
        self.backbone = resolve_backbone(recipe.backbone)
        self._initial = initial
        self._corpus = read_corpus(recipe, folder)
        self._vocabulary = read_vocabulary(self.backbone.tokenizer_file)
        tokenizer = Tokenizer(self.backbone.tokenizer_file)
        texts = hold_out(self._corpus.examples, recipe.holdout_rows, seed=recipe.seed)
        self._texts, self._held_out_texts = map(len, texts)
        self._train, self._holdout = (
            [
                feature
                for feature in rows_for_masking(examples, tokenizer, self._max_tokens())
                if self._vocabulary.words(feature.row.ids)
            ]
            for examples in texts
        )
        if not self._train:
            raise InvalidSpec(
                f"holdout_rows: {recipe.holdout_rows} of {len(self._corpus.examples)} texts held "
                f"out leave none to learn from"
            )

    def outline(self) -> Outline:
        """Say what the run would do, by all that it would start with; its rows are texts."""
        learner, head = self._learner(self._draft_spec()), self._start_head()
        learnt = {name: each for name, each in learner.weights.items() if "head." not in name}
        return Outline(
            device=self._team.device,
            precision=self.recipe.precision,
            train_rows=self._texts,
            holdout_rows=self._held_out_texts,
            token_rows=len(self._train),
            most_tokens=max(len(feature.row.ids) for feature in self._train),
            steps=math.ceil(len(self._train) / self.recipe.batch_size) * sum(self._epochs()),
            trained_parameters=sum(each.numel() for each in (*learnt.values(), *head.values())),
        )

    def run(
        self,
        reporter: Reporter,
        *,
        checkpoint: Path | None = None,
        max_seconds: float | None = None,
    ) -> Pretrained:
        """Train the masked-language head, if there is none, and then what the recipe names.

        The checkpoints stand until the caller removes them: a repeated run goes on from there.
        ``max_seconds`` are shared out to both by their epochs.

        Raises:
            InvalidSpec: the training failed.
        """
        with self._team.fitting(self.recipe.rows_at_once or self.recipe.batch_size):
            return self._run(reporter, checkpoint, max_seconds)

    def _run(
        self, reporter: Reporter, checkpoint: Path | None, max_seconds: float | None
    ) -> Pretrained:
        torch.manual_seed(self.recipe.seed)
        spec = self._draft_spec()
        learner = self._learner(spec)
        head = self._start_head()
        rates = dict.fromkeys(head, self.recipe.head_rate)
        head_epochs, epochs = self._epochs()
        second_s = None if max_seconds is None else max_seconds / (head_epochs + epochs)
        steps, seconds, curve, is_cut = 0, 0.0, None, False  # the curve is of the last phase
        if head_epochs:
            keys = {"epochs": head_epochs} | ({"patience": None} if epochs else {})
            done, is_cut = self._train_phase(
                self.recipe.model_copy(update=keys),
                spec,
                _Parts(weights=head, rates=rates),
                self._loss(learner, head, is_head_alone=True),
                reporter,
                _beside(checkpoint, "head"),
                None if second_s is None else second_s * head_epochs,
            )
            steps, seconds, curve = done.step, done.seconds, done.curve()
        loss = self._loss(learner, head)
        before = self._score(loss)
        if epochs:
            names = [name for name in learner.weights if not name.startswith("head.")]
            parts = _Parts(
                weights={name: learner.weights[name] for name in names} | head,
                rates={name: learner.rates[name] for name in names} | rates,
            )
            rest_s = None if second_s is None else second_s * epochs
            done, is_rest_cut = self._train_phase(
                self.recipe, spec, parts, loss, reporter, checkpoint, rest_s
            )
            is_cut = is_cut or is_rest_cut
            steps, seconds = steps + done.step, seconds + done.seconds
            curve = done.curve()
        after = self._score(loss)
        return Pretrained(
            spec=self._final_spec(
                spec, learner, head, after, had_head=self._has_head(), curve=curve
            ),
            tensors={
                name: tensor.numpy().astype(np.float32)
                for name, tensor in (learner.served_tensors() | _zero_head(spec)).items()
            },
            backbone=self._backbone_tensors(learner, head),
            before=before,
            after=after,
            had_head=self._has_head(),
            train_rows=len(self._train),
            holdout_rows=len(self._holdout),
            steps=steps,
            was_cut_short=is_cut,
            seconds=seconds,
        )

    def _train_phase(
        self,
        recipe: Pretraining,
        spec: AdapterSpec,
        parts: _Parts,
        loss: MaskedLoss,
        reporter: Reporter,
        checkpoint: Path | None,
        max_seconds: float | None,
    ) -> tuple[Progress, bool]:
        trainer = Trainer(
            recipe,
            spec,
            parts,
            loss=loss,
            evaluate=(lambda: self._score(loss)) if self._holdout else None,
            reporter=reporter,
            checkpoint=checkpoint,
            max_seconds=max_seconds,
            team=self._team,
        )
        is_cut_short = trainer.run(self._train) is not None
        return trainer.progress, is_cut_short

    def _has_head(self) -> bool:
        return read_head(self.backbone) is not None

    def _start_head(self) -> dict[str, Tensor]:
        config = self.backbone.config
        drawn = read_head(self.backbone) or start_head(config.hidden_size, config.vocab_size)
        return {
            name: tensor.detach().to(self._team.device).requires_grad_()
            for name, tensor in drawn.items()
        }

    def _epochs(self) -> tuple[int, int]:
        """Return the epochs of the head alone, and those of all that learns."""
        recipe = self.recipe
        if recipe.method == "head":
            return recipe.epochs, 0
        return 0 if self._has_head() else recipe.head_epochs, recipe.epochs

    def _loss(
        self, learner: Learner, head: Mapping[str, Tensor], *, is_head_alone: bool = False
    ) -> MaskedLoss:
        return MaskedLoss(
            model=learner.model,
            head=head,
            vocabulary=self._vocabulary,
            share=self.recipe.masked_share,
            whole_words=self.recipe.whole_words,
            dropout=self.recipe.dropout,
            is_head_alone=is_head_alone,
        )

    def _score(self, loss: MaskedLoss) -> dict[str, float]:
        if not self._holdout:
            return {}
        by_length = sorted(self._holdout, key=lambda feature: len(feature.row.ids))
        return loss.score(by_length, self.recipe.batch_size, seed=self.recipe.seed)

    def _learner(self, spec: AdapterSpec) -> Learner:
        dtype = DTYPES[self.recipe.precision]
        if self.recipe.method == "full":
            tensors = load_tensors(self.backbone, device=self._team.device)
            return FullLearner(self.recipe, spec, self.backbone.config, tensors, dtype=dtype)
        encoder = load_encoder(
            self.backbone,
            dtype=dtype,
            device=self._team.device,
            is_int8=self.recipe.precision == "int8",
        )
        parts = [part.length for part in (spec.prompt, spec.prefix) if part is not None]
        initial = self._initial
        return AdapterLearner(
            self.recipe,
            spec,
            encoder,
            start_ids=_start_ids(self._train, max(parts, default=0)),
            initial=None
            if initial is None
            else {name: torch.from_numpy(array) for name, array in initial.items()},
        )

    def _max_tokens(self) -> int:
        most = self.backbone.config.max_tokens
        wanted = self.recipe.max_tokens or min(128, most)
        if wanted > most:
            raise InvalidSpec(
                f"max_tokens: expected at most the {most} tokens of {self.recipe.backbone}, "
                f"got {wanted}"
            )
        return wanted

    def _backbone_tensors(self, learner: Learner, head: Mapping[str, Tensor]) -> dict[str, Tensor]:
        tensors = load_tensors(self.backbone)
        if self.recipe.method == "full":
            tensors = {name: learner.weights[name].detach().cpu() for name in tensors}
        return tensors | checkpoint_names(head, self.backbone.config.model_type)

    def _draft_spec(self) -> AdapterSpec:
        recipe, corpus = self.recipe, self._corpus
        components = components_of(
            recipe.method, self.backbone.identity, has_gates=recipe.has_gates
        )
        return AdapterSpec(
            method=recipe.method,
            backbone=self.backbone.identity,
            lora=components.lora,
            prefix=components.prefix,
            bottleneck=components.bottleneck,
            prompt=components.prompt,
            head=_NO_HEAD,
            task=TaskInput(
                name=recipe.name,
                fields=("text",),
                max_tokens=self._max_tokens(),
                metric="masked_accuracy",
            ),
            lineage=Lineage(
                data=corpus.title,
                data_licence=corpus.licence,
                commercial_use=corpus.commercial_use,
                files=corpus.files,
                recipe=recipe.model_dump(mode="json"),
                seed=recipe.seed,
                code_version=importlib.metadata.version("upt-zoo"),
                precision=ran_in(recipe, self._team.device),
                metrics={},
                trained_parameters=0,
                served_parameters=0,
                head_parameters=0,
                licence=recipe.adapter_licence,
            ),
        )

    def _final_spec(
        self,
        draft: AdapterSpec,
        learner: Learner,
        head: Mapping[str, Tensor],
        metrics: Mapping[str, float],
        *,
        had_head: bool,
        curve: Curve | None,
    ) -> AdapterSpec:
        origin = (
            "came with the backbone"
            if had_head
            else f"was trained first, alone, for {self.recipe.head_epochs} epochs, tied to the "
            f"word embeddings, since the backbone has none"
        )
        description = (
            f"Pretrained on texts by masked-language modelling; the masked-language head {origin}. "
            f"It answers nothing by itself: start a task from it with initial_adapter."
        )
        count = {name: tensor.numel() for name, tensor in learner.weights.items()}
        heads = [name for name in count if name.startswith("head.")]
        served = layout.component_shapes(draft)
        lineage = draft.lineage.model_copy(
            update={
                "metrics": {f"holdout/{name}": value for name, value in metrics.items()},
                "trained_parameters": sum(count.values())
                - sum(count[name] for name in heads)
                + sum(tensor.numel() for tensor in head.values()),
                "served_parameters": sum(int(np.prod(shape)) for shape in served.values()),
                "head_parameters": sum(count[name] for name in heads),
                "curve": curve,
            }
        )
        task = draft.task.model_copy(update={"description": description})
        return draft.model_copy(update={"lineage": lineage, "task": task})


def write_backbone(directory: Path, source: Backbone, pretrained: Pretrained) -> None:
    """Write a backbone that recipes and servers name by its directory; whole or not at all.

    It holds the masked-language head, too, so that a later pretraining goes on with it. The head
    is not part of a backbone's identity: adapters fit both, if the encoder stayed as it was.
    """
    partial = directory.with_name(f"{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json"):
        shutil.copyfile(source.directory / name, partial / name)
    tensors = {name: tensor.contiguous() for name, tensor in pretrained.backbone.items()}
    save_file(tensors, partial / "model.safetensors", metadata={"format": "pt"})
    facts = pretrained.spec.lineage.model_dump(mode="json") | {"from": source.identity.digest}
    (partial / _FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    partial.replace(directory)


def _start_ids(features: Sequence[Feature], count: int) -> list[int]:
    return list(islice(cycle(features[0].row.ids[1:-1]), count))


def _zero_head(spec: AdapterSpec) -> dict[str, Tensor]:
    shapes = layout.head_shapes(spec.head, spec.backbone.hidden)
    return {name: torch.zeros(shape) for name, shape in shapes.items()}


def _beside(checkpoint: Path | None, phase: str) -> Path | None:
    return None if checkpoint is None else checkpoint.with_suffix(f".{phase}.safetensors")
