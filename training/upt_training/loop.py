"""The training loop: steps, schedule, early stopping, checkpoints that resume bit-exactly.

It knows neither the data's origin nor the zoo: features in, trained weights out.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from upt_training.batches import Feature, batches_of
from upt_training.learner import Trainable
from upt_training.recipe import Learning
from upt_training.team import ALONE, Team
from upt_zoo.errors import InvalidSpec
from upt_zoo.spec import AdapterSpec, Curve

_ADAM_BETAS = (0.9, 0.98)
_CHECKPOINT_EVERY_S = 60.0
_LOGGER = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class Progress:
    """Where a run stands; part of every checkpoint.

    ``holdout`` has the deciding metric after each epoch, ``losses`` each epoch's mean over its
    steps, ``loss_sum`` the current epoch's so far; ``seconds`` were spent up to the last
    checkpoint, by all processes that worked on the run.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    best_epoch: int = 0
    holdout: list[float] = field(default_factory=list)
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    loss_sum: float = 0.0

    @property
    def kept_epoch(self) -> int:
        """The epoch whose weights stay: the best on the holdout, else the last with any step."""
        return self.best_epoch or len(self.losses)

    def curve(self) -> Curve | None:
        """Say how the run went, for the adapter's spec."""
        return Curve.of_run(holdout=self.holdout, losses=self.losses, best_epoch=self.kept_epoch)


class Reporter(Protocol):
    """Told of each step and each epoch."""

    def step(self, progress: Progress, *, steps: int, loss: float) -> None:
        """Hear of a finished step."""
        ...

    def epoch(self, progress: Progress, *, holdout: Mapping[str, float] | None) -> None:
        """Hear of a finished epoch and of the metrics on the holdout, if there is one."""
        ...


class Trainer:
    """Runs a recipe over features with a learner.

    ``loss`` gives the mean loss of a batch by the learner's weights, under autograd; ``evaluate``
    gives the metrics on the holdout, the deciding one first, or is None without one.
    ``checkpoint`` is a file for resuming: of the same spec, hence of the same recipe, data and
    backbone. It still stands when the run is done, for the caller to remove once the result is
    safe. ``max_seconds`` ends the schedule early: the learning rate then falls with the clock, so
    such a run is not repeatable to the bit. Of a ``team``'s processes each has a trainer of its
    own; the first one decides and writes.
    """

    def __init__(
        self,
        recipe: Learning,
        spec: AdapterSpec,
        learner: Trainable,
        *,
        loss: Callable[[Sequence[Feature]], Tensor],
        evaluate: Callable[[], dict[str, float]] | None,
        reporter: Reporter,
        checkpoint: Path | None = None,
        max_seconds: float | None = None,
        team: Team = ALONE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._recipe, self._spec, self._learner = recipe, spec, learner
        self._evaluate, self._reporter = evaluate, reporter
        self._checkpoint, self._max_seconds = checkpoint, max_seconds
        self._loss, self._team, self._clock = loss, team, clock
        self._optimizer = _optimizer(recipe, learner)
        self._rates = [group["lr"] for group in self._optimizer.param_groups]
        self._best: dict[str, Tensor] = {}
        self.progress = Progress()

    def run(self, features: Sequence[Feature]) -> int | None:
        """Train to the end; the learner's weights are then the best, or the last, ones.

        Where the clock ended it before its steps were done, return how many these were.

        Raises:
            InvalidSpec: the loss is not finite any more.
            Unavailable: another process of the team has ended.
        """
        if self._checkpoint is not None and self._checkpoint.exists():
            self._resume(self._checkpoint)
        self._team.align(self._learner.weights, f"step {self.progress.step} of {self._spec_json()}")
        self._saved = self._clock()
        self._started = self._saved - self.progress.seconds
        steps = -(-len(features) // self._recipe.batch_size) * self._recipe.epochs
        # an epoch that was begun is also evaluated, however late it is
        while not self._has_stopped() and (self.progress.batch or self._share_done(steps) < 1):
            self._run_epoch(features, steps)
        self._restore_best()
        is_cut_short = self.progress.step < steps and self._share_done(steps) >= 1
        return steps if is_cut_short else None

    def _run_epoch(self, features: Sequence[Feature], steps: int) -> None:
        progress = self.progress
        batches = batches_of(
            features, self._recipe.batch_size, seed=self._recipe.seed, epoch=progress.epoch
        )
        for batch in batches[progress.batch :]:
            share = self._share_done(steps)
            if share >= 1:
                break
            loss = self._step(batch, share)
            progress.batch += 1
            progress.loss_sum += loss
            progress.step += 1
            self._reporter.step(progress, steps=steps, loss=loss)
            if self._clock() - self._saved > _CHECKPOINT_EVERY_S:
                self.save()
        if progress.batch:
            progress.losses.append(progress.loss_sum / progress.batch)
        progress.epoch, progress.batch, progress.loss_sum = progress.epoch + 1, 0, 0.0
        holdout = self._measure()
        if holdout is not None:
            self._keep_best(next(iter(holdout.values())))
        self._reporter.epoch(progress, holdout=holdout)
        self.save()

    def _measure(self) -> Mapping[str, float] | None:
        if self._evaluate is None:
            return None
        return self._team.agree(self._evaluate() if self._team.leads else {})

    def _step(self, batch: Sequence[Feature], share: float) -> float:
        self._optimizer.zero_grad()
        self._team.seed(self._recipe.seed, self.progress.step)
        value = self._add_gradients(batch)
        if not math.isfinite(value):
            raise InvalidSpec(
                f"recipe of {self._spec.task.name}: expected a finite loss, got {value} after "
                f"{self.progress.step} steps; try lower learning rates"
            )
        torch.nn.utils.clip_grad_norm_(
            self._learner.weights.values(), self._recipe.max_gradient_norm
        )
        factor = schedule(share, warmup_share=self._recipe.warmup_share)
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        self._optimizer.step()
        return value

    def _add_gradients(self, batch: Sequence[Feature]) -> float:
        """Add the gradients of the batch's mean loss, part by part, and return the loss."""
        rows = self._team.share_of(batch)
        size, value = self._recipe.rows_at_once or len(batch), 0.0
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            value += self._add_part(part, len(part) / len(batch))
        if not rows:  # its gradients of zero are added as those of the others are
            self._add_part(batch[:1], 0.0)
        return self._team.add_up(self._learner.weights, value)

    def _add_part(self, rows: Sequence[Feature], share: float) -> float:
        loss = self._loss(rows) * share
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return float(loss.detach())

    def _share_done(self, steps: int) -> float:
        """Return how much of the schedule is over, by steps or by the clock."""
        share = self.progress.step / steps
        if self._max_seconds is None:
            return share
        return self._team.agree(max(share, (self._clock() - self._started) / self._max_seconds))

    def _has_stopped(self) -> bool:
        progress, recipe = self.progress, self._recipe
        has_lost_patience = (
            recipe.patience is not None and progress.epoch - progress.best_epoch >= recipe.patience
        )
        return progress.epoch >= recipe.epochs or has_lost_patience

    def _keep_best(self, metric: float) -> None:
        progress = self.progress
        if metric > max(progress.holdout, default=-math.inf):
            progress.best_epoch = progress.epoch
            self._best = {name: w.detach().clone() for name, w in self._learner.weights.items()}
        progress.holdout.append(metric)

    def _restore_best(self) -> None:
        with torch.no_grad():
            for name, weight in self._best.items():
                self._learner.weights[name].copy_(weight)

    def save(self) -> None:
        """Write a checkpoint; a run that starts with it goes on as if it had not stopped."""
        self._saved = self._clock()
        self.progress.seconds = self._saved - self._started
        if self._checkpoint is None or not self._team.leads:
            return
        tensors = {f"weight/{name}": w.detach() for name, w in self._learner.weights.items()}
        tensors |= {f"best/{name}": w for name, w in self._best.items()}
        for index, state in self._optimizer.state_dict()["state"].items():
            tensors |= {f"adam/{index}/{key}": value for key, value in state.items()}
        tensors["random"] = torch.get_rng_state()
        partial = self._checkpoint.with_suffix(".partial")
        facts = {"progress": json.dumps(asdict(self.progress)), "spec": self._spec_json()}
        save_file({name: t.contiguous() for name, t in tensors.items()}, partial, metadata=facts)
        partial.replace(self._checkpoint)

    def _resume(self, file: Path) -> None:
        try:
            with safe_open(file, framework="pt") as checkpoint:
                facts = checkpoint.metadata() or {}
                tensors = {name: checkpoint.get_tensor(name) for name in checkpoint.keys()}  # noqa: SIM118 - no mapping
        except SafetensorError as error:
            _LOGGER.warning("the checkpoint %s is damaged, the run starts afresh: %s", file, error)
            return
        if facts.get("spec") != self._spec_json():
            return  # another run's checkpoint: start afresh
        self.progress = Progress(**json.loads(facts["progress"]))
        torch.set_rng_state(tensors.pop("random"))
        state: dict[int, dict[str, Tensor]] = {}
        with torch.no_grad():
            for name, tensor in tensors.items():
                kind, rest = name.split("/", 1)
                if kind == "weight":
                    self._learner.weights[rest].copy_(tensor)
                elif kind == "best":
                    self._best[rest] = tensor
                else:
                    index, key = rest.split("/")
                    state.setdefault(int(index), {})[key] = tensor
        whole = self._optimizer.state_dict()
        self._optimizer.load_state_dict(whole | {"state": state})

    def _spec_json(self) -> str:
        return self._spec.to_json().decode()


def schedule(share: float, *, warmup_share: float) -> float:
    """Return the learning rate's factor: linear warm-up, then linear to zero at share 1."""
    if share < warmup_share:
        return (share + 1e-3) / (warmup_share + 1e-3)
    return max(0.0, (1 - share) / (1 - warmup_share))


def _optimizer(recipe: Learning, learner: Trainable) -> torch.optim.AdamW:
    """One group per weight; biases, gates and norms do not decay."""
    groups = [
        {
            "params": [weight],
            "lr": learner.rates[name],
            "weight_decay": recipe.weight_decay if _decays(name) else 0.0,
        }
        for name, weight in learner.weights.items()
    ]
    return torch.optim.AdamW(groups, betas=_ADAM_BETAS, foreach=False, fused=True)


def _decays(name: str) -> bool:
    return not name.endswith("bias") and "Norm" not in name and ".gate." not in name
