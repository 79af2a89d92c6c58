"""The loop with real learners on the tiny backbone: six steps in three epochs, unless said."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from upt_testing.adapters import tiny_spec
from upt_testing.learners import spec_of_method
from upt_testing.rows import sentiment_rows
from upt_training import loop
from upt_training.batches import Feature, features_of
from upt_training.data import Example
from upt_training.learner import AdapterLearner, FullLearner, Learner
from upt_training.loop import Progress, Trainer, schedule
from upt_training.losses import TaskLoss
from upt_training.recipe import Recipe
from upt_zoo.backbone import Backbone
from upt_zoo.errors import InvalidSpec
from upt_zoo.nn.adapter import prepare
from upt_zoo.nn.encoder import Encoder, load_encoder, load_tensors
from upt_zoo.nn.forward import forward
from upt_zoo.nn.packing import Row
from upt_zoo.spec import AdapterSpec, DataFile
from upt_zoo.tokenization import Tokenizer

STEPS = 6
RECIPE = Recipe(
    task="sst2",
    epochs=3,
    batch_size=8,
    adapter_rate=0.01,
    dropout=0.1,
    is_prefix_reparametrised=True,
    precision="fp32",
)
METRICS = (50.0, 70.0, 60.0, 65.0, 70.0)  # by epoch, where a test has a holdout


class Interrupted(Exception):
    pass


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Listener:
    """Keeps what it hears; the hooks may act on the run."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.losses: list[float] = []
        self.epochs: list[tuple[int, Mapping[str, float] | None]] = []
        self.on_step: Callable[[Progress], None] = lambda progress: None
        self.on_epoch: Callable[[Progress], None] = lambda progress: None

    def step(self, progress: Progress, *, steps: int, loss: float) -> None:
        self.steps.append(progress.step)
        self.losses.append(loss)
        self.on_step(progress)

    def epoch(self, progress: Progress, *, holdout: Mapping[str, float] | None) -> None:
        self.epochs.append((progress.epoch, holdout))
        self.on_epoch(progress)


@dataclass(frozen=True)
class Training:
    trainer: Trainer
    learner: Learner
    features: list[Feature]
    listener: Listener

    def run(self) -> "Training":
        self.trainer.run(self.features)
        return self

    def weights(self) -> dict[str, bytes]:
        return {
            name: weight.detach().numpy().tobytes() for name, weight in self.learner.weights.items()
        }

    def interrupt_at(self, step: int, *, is_saved: bool) -> None:
        """Run up to a step and stop there, right after a checkpoint or without one."""

        def stop(progress: Progress) -> None:
            if progress.step == step:
                if is_saved:
                    self.trainer.save()
                raise Interrupted

        self.listener.on_step = stop
        with pytest.raises(Interrupted):
            self.run()


Start = Callable[..., Training]


@pytest.fixture(scope="module")
def start(backbone: Backbone) -> Start:
    """Make a run of a recipe, as a fresh process would."""

    def start(
        recipe: Recipe = RECIPE,
        *,
        checkpoint: Path | None = None,
        has_holdout: bool = False,
        max_seconds: float | None = None,
        clock: Clock | None = None,
        data: str = "ab",
    ) -> Training:
        torch.manual_seed(recipe.seed)
        spec, encoder = _spec(backbone, recipe, data), load_encoder(backbone)
        learner = _learner(backbone, recipe, spec, encoder)
        listener = Listener()
        trainer = Trainer(
            recipe,
            spec,
            learner,
            loss=TaskLoss(learner=learner, spec=spec, dropout=recipe.dropout),
            evaluate=(lambda: {"accuracy": METRICS[trainer.progress.epoch - 1], "other": 0.0})
            if has_holdout
            else None,
            reporter=listener,
            checkpoint=checkpoint,
            max_seconds=max_seconds,
            clock=clock or Clock(),
        )
        return Training(trainer, learner, _features(backbone, spec), listener)

    return start


def _spec(backbone: Backbone, recipe: Recipe, data: str) -> AdapterSpec:
    spec = spec_of_method(recipe.method, backbone.identity)
    lineage = {
        "recipe": recipe.model_dump(mode="json"),
        "files": (DataFile(name="sst2/train", digest="sha256:" + data * 32, rows=16),),
    }
    return spec.model_copy(update={"lineage": spec.lineage.model_copy(update=lineage)})


def _learner(backbone: Backbone, recipe: Recipe, spec: AdapterSpec, encoder: Encoder) -> Learner:
    if recipe.method == "full":
        return FullLearner(recipe, spec, backbone.config, load_tensors(backbone))
    return AdapterLearner(recipe, spec, encoder, start_ids=range(10, 20))


def _features(backbone: Backbone, spec: AdapterSpec) -> list[Feature]:
    examples = [
        Example(texts=(str(row["sentence"]),), gold=int(str(row["label"])))
        for row in sentiment_rows(16)
    ]
    return features_of(examples, spec, Tokenizer(backbone.tokenizer_file))


@pytest.fixture(scope="module")
def whole(start: Start) -> dict[bool, Training]:
    """Uninterrupted runs, without and with a holdout."""
    return {has_holdout: start(has_holdout=has_holdout).run() for has_holdout in (False, True)}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return tmp_path / "run.safetensors"


# Resuming


@pytest.mark.parametrize("step", [1, 2, 3, 5, 6])
@pytest.mark.parametrize("has_holdout", [False, True])
def test_a_run_that_was_interrupted_ends_with_the_same_bytes(
    start: Start, whole: dict[bool, Training], checkpoint: Path, step: int, has_holdout: bool
) -> None:
    start(checkpoint=checkpoint, has_holdout=has_holdout).interrupt_at(step, is_saved=True)
    torch.manual_seed(12345)
    resumed = start(checkpoint=checkpoint, has_holdout=has_holdout).run()
    assert resumed.listener.steps == list(range(step + 1, STEPS + 1))
    assert resumed.weights() == whole[has_holdout].weights()
    assert asdict(resumed.trainer.progress) == asdict(whole[has_holdout].trainer.progress)
    assert resumed.trainer.progress.best_epoch == (2 if has_holdout else 0)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_so_do_runs_of_other_methods(start: Start, checkpoint: Path, method: str) -> None:
    recipe = RECIPE.changed({"method": method})
    whole = start(recipe).run()
    start(recipe, checkpoint=checkpoint).interrupt_at(4, is_saved=True)
    assert start(recipe, checkpoint=checkpoint).run().weights() == whole.weights()


def test_a_run_may_be_interrupted_again_and_again(
    start: Start, whole: dict[bool, Training], checkpoint: Path
) -> None:
    for step in (1, 2, 4, 5):
        start(checkpoint=checkpoint, has_holdout=True).interrupt_at(step, is_saved=True)
    resumed = start(checkpoint=checkpoint, has_holdout=True).run()
    assert resumed.weights() == whole[True].weights()


def test_an_interrupted_epoch_is_gone_back_to_without_a_checkpoint_inside_it(
    start: Start, whole: dict[bool, Training], checkpoint: Path
) -> None:
    start(checkpoint=checkpoint, has_holdout=True).interrupt_at(4, is_saved=False)
    resumed = start(checkpoint=checkpoint, has_holdout=True).run()
    assert resumed.listener.steps == [3, 4, 5, 6]
    assert resumed.weights() == whole[True].weights()


def test_a_run_that_stops_while_it_reports_an_epoch_loses_nothing(
    start: Start, whole: dict[bool, Training], checkpoint: Path
) -> None:
    stopped = start(checkpoint=checkpoint, has_holdout=True)

    def stop(progress: Progress) -> None:
        if progress.epoch == 2:
            raise Interrupted

    stopped.listener.on_epoch = stop
    with pytest.raises(Interrupted):
        stopped.run()
    resumed = start(checkpoint=checkpoint, has_holdout=True).run()
    assert resumed.weights() == whole[True].weights()
    assert resumed.trainer.progress.holdout == list(METRICS[:3])


def test_the_bytes_depend_on_dropout_and_seed(start: Start, whole: dict[bool, Training]) -> None:
    """Else the tests above would hold without the state of the random numbers."""
    weights = whole[False].weights()
    assert start().run().weights() == weights
    assert start(RECIPE.changed({"seed": 2})).run().weights() != weights
    assert start(RECIPE.model_copy(update={"dropout": 0.0})).run().weights() != weights


def test_a_finished_run_is_not_run_again_until_its_checkpoint_is_removed(
    start: Start, whole: dict[bool, Training], checkpoint: Path
) -> None:
    start(checkpoint=checkpoint, has_holdout=True).run()
    again = start(checkpoint=checkpoint, has_holdout=True).run()
    assert (again.listener.steps, again.listener.epochs) == ([], [])
    assert again.weights() == whole[True].weights()
    checkpoint.unlink()
    afresh = start(checkpoint=checkpoint, has_holdout=True)
    afresh.interrupt_at(1, is_saved=False)


def test_another_recipes_checkpoint_is_not_used(
    start: Start, whole: dict[bool, Training], checkpoint: Path
) -> None:
    other = RECIPE.model_copy(update={"weight_decay": 0.5})
    start(other, checkpoint=checkpoint).interrupt_at(4, is_saved=True)
    run = start(checkpoint=checkpoint).run()
    assert run.listener.steps == list(range(1, STEPS + 1))
    assert run.weights() == whole[False].weights()


def test_a_checkpoint_of_other_data_is_not_used(start: Start, checkpoint: Path) -> None:
    start(checkpoint=checkpoint, data="01").interrupt_at(4, is_saved=True)
    start(checkpoint=checkpoint, data="02").interrupt_at(1, is_saved=False)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:100],
        lambda data: data[:-1],
        lambda data: b"\0" * len(data),
    ],
    ids=["empty", "without a header", "truncated", "zeros"],
)
def test_a_damaged_checkpoint_is_told_of_and_the_run_starts_afresh(
    start: Start,
    whole: dict[bool, Training],
    checkpoint: Path,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[bytes], bytes],
) -> None:
    start(checkpoint=checkpoint).interrupt_at(4, is_saved=True)
    checkpoint.write_bytes(damage(checkpoint.read_bytes()))
    with caplog.at_level(logging.WARNING):
        run = start(checkpoint=checkpoint).run()
    assert str(checkpoint) in caplog.text
    assert run.listener.steps == list(range(1, STEPS + 1))
    assert run.weights() == whole[False].weights()


def test_a_checkpoint_is_written_every_minute_and_after_each_epoch(
    start: Start, checkpoint: Path
) -> None:
    clock = Clock()
    run = start(checkpoint=checkpoint, clock=clock)
    written: list[tuple[str, int]] = []

    def look(event: str) -> Callable[[Progress], None]:
        def look(progress: Progress) -> None:
            if checkpoint.exists():
                checkpoint.unlink()
                written.append((event, progress.step))
            clock.now += 31.0 if event == "step" else 0.0

        return look

    run.listener.on_step, run.listener.on_epoch = look("step"), look("epoch")
    run.run()
    # 31 s a step: two steps take a minute, and end an epoch, whose own is seen a step later
    assert written == [("epoch", 2), ("step", 3), ("epoch", 4), ("step", 5), ("epoch", 6)]
    assert checkpoint.exists()
    assert not checkpoint.with_suffix(".partial").exists()


def test_a_run_without_a_checkpoint_writes_nothing(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    start().run()
    assert list(tmp_path.iterdir()) == []


# Which weights are kept


def snapshots_of(training: Training) -> list[dict[str, bytes]]:
    """Keep the weights after each epoch."""
    snapshots: list[dict[str, bytes]] = []
    training.listener.on_epoch = lambda progress: snapshots.append(training.weights())
    return snapshots


def test_without_a_holdout_the_last_epoch_is_kept(start: Start) -> None:
    run = start()
    snapshots = snapshots_of(run)
    assert run.run().weights() == snapshots[-1]
    assert run.listener.epochs == [(1, None), (2, None), (3, None)]


def test_the_best_epoch_on_the_holdout_is_kept_and_the_first_of_equals(start: Start) -> None:
    run = start(RECIPE.model_copy(update={"epochs": 5}), has_holdout=True)
    snapshots = snapshots_of(run)
    assert run.run().weights() == snapshots[1]
    assert run.weights() != snapshots[4]
    progress = run.trainer.progress
    assert (progress.best_epoch, progress.epoch) == (2, 5)
    assert progress.holdout == list(METRICS)
    assert run.listener.epochs[0] == (1, {"accuracy": 50.0, "other": 0.0})


def test_a_run_stops_when_its_patience_is_over(start: Start) -> None:
    recipe = RECIPE.model_copy(update={"epochs": 5, "holdout_rows": 4, "patience": 2})
    run = start(recipe, has_holdout=True)
    snapshots = snapshots_of(run)
    assert run.run().weights() == snapshots[1]
    assert [epoch for epoch, _ in run.listener.epochs] == [1, 2, 3, 4]


def test_a_run_out_of_patience_does_not_go_on_when_it_is_started_again(
    start: Start, checkpoint: Path
) -> None:
    recipe = RECIPE.model_copy(update={"epochs": 5, "holdout_rows": 4, "patience": 1})
    whole = start(recipe, checkpoint=checkpoint, has_holdout=True).run()
    again = start(recipe, checkpoint=checkpoint, has_holdout=True).run()
    assert again.listener.steps == []
    assert again.weights() == whole.weights()


# Steps


def test_a_run_learns(start: Start) -> None:
    recipe = RECIPE.model_copy(update={"epochs": 8, "dropout": 0.0})
    losses = start(recipe).run().listener.losses
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])


@pytest.mark.parametrize("method", ["unipelt_prompt", "full"])
def test_the_backbone_is_left_as_it_was(start: Start, backbone: Backbone, method: str) -> None:
    files = (backbone.weights_file, backbone.tokenizer_file)
    before = [file.read_bytes() for file in files]
    run = start(RECIPE.changed({"method": method}))
    bare = tiny_spec(backbone=backbone.identity)
    head = {"head.out.weight": torch.eye(2, 32), "head.out.bias": torch.zeros(2)}
    encoder = load_encoder(backbone) if method == "full" else run.learner.model()[0]

    def bare_logits() -> list[Tensor]:
        adapter = prepare(bare, head, dtype=torch.float32)
        return forward(encoder, [Row(ids=[2, 9, 3], type_ids=[0] * 3, adapter=adapter)])

    logits = bare_logits()
    run.run()
    assert torch.equal(bare_logits()[0], logits[0])
    assert not any(weight.requires_grad for weight in (encoder.embeddings.word, logits[0]))
    assert before == [
        file.read_bytes() for file in (backbone.weights_file, backbone.tokenizer_file)
    ]


def test_weights_decay_and_biases_and_gates_do_not(start: Start) -> None:
    """On the first step B is zero, so A and the gates of LoRA have no gradient: decay alone."""
    recipe = RECIPE.model_copy(update={"weight_decay": 0.5, "warmup_share": 0.0})
    run = start(recipe)
    before = {name: weight.detach().clone() for name, weight in run.learner.weights.items()}
    run.interrupt_at(1, is_saved=False)
    after = run.learner.weights
    decayed = before["lora.q.a"] * (1 - recipe.adapter_rate * 0.5)
    torch.testing.assert_close(after["lora.q.a"].detach(), decayed)
    for name in ("lora.q.gate.weight", "lora.q.gate.bias"):
        assert torch.equal(after[name], before[name])


def test_a_weights_first_step_is_its_own_rate_times_the_schedule(start: Start) -> None:
    """Adam divides the first gradient by its own size; biases do not decay."""
    recipe = RECIPE.model_copy(update={"warmup_share": 0.1, "head_rate": 0.02})
    run = start(recipe)
    names = {"head.out.bias": 0.02, "bottleneck.up.bias": 0.01, "prefix.gate.bias": 0.001}
    before = {name: run.learner.weights[name].detach().clone() for name in names}
    run.interrupt_at(1, is_saved=False)
    for name, rate in names.items():
        moved = (run.learner.weights[name].detach() - before[name]).abs().max()
        assert float(moved) == pytest.approx(rate * 0.001 / 0.101, rel=1e-2)


def test_gradients_are_clipped_as_one_vector(start: Start) -> None:
    run = start(RECIPE.model_copy(update={"max_gradient_norm": 0.01}))
    norms: list[float] = []

    def look(progress: Progress) -> None:
        gradients = [w.grad for w in run.learner.weights.values() if w.grad is not None]
        norms.append(float(torch.cat([gradient.flatten() for gradient in gradients]).norm()))

    run.listener.on_step = look
    run.run()
    assert norms == pytest.approx([0.01] * STEPS, rel=1e-3)


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_weights(
    start: Start, checkpoint: Path
) -> None:
    run = start(checkpoint=checkpoint)
    with torch.no_grad():
        run.learner.weights["head.out.bias"].fill_(float("nan"))
    before = run.weights()
    with pytest.raises(InvalidSpec, match=r"recipe of tiny: expected a finite loss, got nan"):
        run.run()
    assert run.weights() == before
    assert not checkpoint.exists()


def test_rows_computed_a_few_at_once_make_the_same_step(start: Start) -> None:
    plain = RECIPE.changed({"epochs": 1, "dropout": 0})
    whole = start(plain).run()
    parts = start(plain.changed({"rows_at_once": 3})).run()
    assert parts.listener.steps == whole.listener.steps == [1, 2]
    assert parts.listener.losses == pytest.approx(whole.listener.losses, rel=1e-4)
    for name, weight in whole.learner.weights.items():
        # Adam's first steps are of size rate, whatever the gradient: rounding may turn a sign
        assert torch.allclose(parts.learner.weights[name], weight, atol=2e-3), name


# The schedule


def test_the_rate_rises_over_the_warm_up_and_falls_to_zero() -> None:
    factors = [schedule(share, warmup_share=0.2) for share in (0.0, 0.1, 0.2, 0.6, 1.0, 1.1)]
    assert factors == pytest.approx([0.001 / 0.201, 0.101 / 0.201, 1.0, 0.5, 0.0, 0.0])
    assert [schedule(share, warmup_share=0.0) for share in (0.0, 0.5)] == [1.0, 0.5]


@given(one=st.floats(0, 1), other=st.floats(0, 1), warmup_share=st.floats(0, 1, exclude_max=True))
def test_the_rate_has_one_peak(one: float, other: float, warmup_share: float) -> None:
    first, second = sorted((one, other))
    factors = [schedule(share, warmup_share=warmup_share) for share in (first, second)]
    assert all(0 <= factor <= 1 for factor in factors)
    if second < warmup_share:
        assert factors[0] <= factors[1]
    if first >= warmup_share:
        assert factors[0] >= factors[1]


@pytest.fixture
def shares(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Keep the shares of the schedule that the loop asks for."""
    shares: list[float] = []

    def spy(share: float, *, warmup_share: float) -> float:
        shares.append(share)
        return schedule(share, warmup_share=warmup_share)

    monkeypatch.setattr(loop, "schedule", spy)
    return shares


def test_the_schedule_goes_by_steps(start: Start, shares: list[float]) -> None:
    start().run()
    assert shares == [step / STEPS for step in range(STEPS)]


def timed(start: Start, clock: Clock, *, checkpoint: Path | None = None) -> Training:
    """Make a run of 4.5 seconds in which a step takes one, as does a holdout."""
    run = start(checkpoint=checkpoint, has_holdout=True, max_seconds=4.5, clock=clock)

    def tick(progress: Progress) -> None:
        clock.now += 1.0

    run.listener.on_step = run.listener.on_epoch = tick
    return run


def test_the_clock_ends_the_schedule_and_the_rate_falls_with_it(
    start: Start, shares: list[float]
) -> None:
    run = timed(start, Clock()).run()
    assert run.listener.steps == [1, 2, 3, 4]  # with a holdout between them it is over at 5 s
    assert shares == pytest.approx([0.0, 1 / 4.5, 3 / 4.5, 4 / 4.5])
    assert [epoch for epoch, _ in run.listener.epochs] == [1, 2]
    assert run.trainer.progress.best_epoch == 2


def test_a_slow_clock_does_not_prolong_the_schedule(start: Start, shares: list[float]) -> None:
    start(max_seconds=1000.0).run()
    assert shares == [step / STEPS for step in range(STEPS)]


def test_time_spent_before_an_interruption_counts(
    start: Start, checkpoint: Path, shares: list[float]
) -> None:
    clock = Clock()
    stopped = timed(start, clock, checkpoint=checkpoint)
    tick = stopped.listener.on_step

    def stop(progress: Progress) -> None:
        tick(progress)
        if progress.step == 2:
            stopped.trainer.save()
            raise Interrupted

    stopped.listener.on_step = stop
    with pytest.raises(Interrupted):
        stopped.run()
    clock.now += 1000.0  # until somebody starts it again
    resumed = timed(start, clock, checkpoint=checkpoint).run()
    assert resumed.listener.steps == [3, 4]
    assert shares[2:] == pytest.approx([3 / 4.5, 4 / 4.5])
    assert resumed.trainer.progress.seconds == pytest.approx(6.0)
