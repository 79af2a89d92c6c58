"""Nothing that learns is left on another device: on fake tensors, and with real ones on a GPU."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from upt_testing.adapters import (
    CLASSIFICATION,
    EMBEDDING,
    MULTI_LABEL,
    REGRESSION,
    SPAN,
    TOKENS,
)
from upt_testing.learners import spec_of_method
from upt_testing.rows import sentiment_rows, write_split
from upt_training import masking
from upt_training.batches import UNTAGGED, Feature, Target
from upt_training.comparisons import Ia3Learner, StackedLearner
from upt_training.experiment import Experiment
from upt_training.learner import AdapterLearner, FullLearner, Learner
from upt_training.losses import TaskLoss
from upt_training.masking import MaskedLoss, Vocabulary, start_head
from upt_training.methods import Method
from upt_training.progress import SilentReporter
from upt_training.recipe import Recipe
from upt_training.team import Team
from upt_zoo.backbone import Backbone
from upt_zoo.nn import forward, packing
from upt_zoo.nn.encoder import build_encoder, load_tensors
from upt_zoo.spec import AdapterSpec, Head
from upt_zoo.tokenization import TokenRow

OTHER = "meta"  # the device that every build of torch has beside the CPU
IDS = ([2, 7, 9, 30, 3], [2, 40, 3], [2, *range(5, 30), 3])
START_IDS = list(range(10, 40))


@pytest.fixture
def _packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lay batches out and draw masks as ever: fake tensors hold no numbers to read."""

    def for_real(function: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **named: object) -> object:
            with unset_fake_temporarily():
                return function(*arguments, **named)

        return call

    monkeypatch.setattr(forward, "pack", for_real(packing.pack))
    monkeypatch.setattr(masking, "mask_row", for_real(masking.mask_row))


@pytest.fixture(scope="module")
def tensors(backbone: Backbone) -> dict[str, Tensor]:
    return load_tensors(backbone)


def fake_learner(
    backbone: Backbone, tensors: dict[str, Tensor], method: Method, head: Head = CLASSIFICATION
) -> tuple[AdapterSpec, Learner]:
    """Return one on the other device, made of fake tensors."""
    recipe = Recipe(task="sst2", method=method, is_prefix_reparametrised=method == "prefix")
    spec = spec_of_method(method, backbone.identity, head=head)
    moved = {name: tensor.to(OTHER) for name, tensor in tensors.items()}
    if method in ("full", "bitfit"):
        return spec, FullLearner(recipe, spec, backbone.config, moved)
    encoder = build_encoder(backbone.config, moved, dtype=torch.float32)
    if method == "stacked_unipelt":
        return spec, StackedLearner(recipe, spec, encoder, start_ids=START_IDS)
    if method == "ia3_prefix_bottleneck":
        return spec, Ia3Learner(recipe, spec, encoder, start_ids=START_IDS)
    return spec, AdapterLearner(recipe, spec, encoder, start_ids=START_IDS)


def features(targets: Sequence[Target], *, is_pair: bool = False) -> list[Feature]:
    rows = [TokenRow(ids=ids, type_ids=[0] * len(ids), offsets=None) for ids in IDS]
    return [
        Feature(row=row, target=target, other=row if is_pair else None)
        for row, target in zip(rows, targets, strict=True)
    ]


def devices_of_gradients(weights: Sequence[Tensor]) -> set[str]:
    return {weight.grad.device.type for weight in weights if weight.grad is not None}


@pytest.mark.usefixtures("_packed")
@pytest.mark.parametrize("method", get_args(Method))
def test_every_method_learns_where_its_encoder_is(
    backbone: Backbone, tensors: dict[str, Tensor], method: Method
) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        spec, model = fake_learner(backbone, tensors, method)
        TaskLoss(learner=model, spec=spec, dropout=0.1)(features([0, 1, 1])).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        assert devices_of_gradients(list(model.weights.values())) == {OTHER}
        assert {tensor.device.type for tensor in model.served_tensors().values()} == {"cpu"}


@pytest.mark.usefixtures("_packed")
@pytest.mark.parametrize(
    ("head", "targets"),
    [
        (CLASSIFICATION, [0, 1, 1]),
        (MULTI_LABEL, [frozenset({0}), frozenset[int](), frozenset({1, 2})]),
        (REGRESSION, [0.5, 1.0, 2.5]),
        (SPAN, [(0, 0), (1, 1), (2, 5)]),
        (TOKENS, [(UNTAGGED, *[1] * (len(ids) - 2), UNTAGGED) for ids in IDS]),
        (EMBEDDING, [0.0, 0.5, 1.0]),
    ],
)
def test_every_head_has_its_targets_there(
    backbone: Backbone, tensors: dict[str, Tensor], head: Head, targets: Sequence[Target]
) -> None:
    is_pair = head.kind == "embedding"
    head = head.model_copy(update={"outputs": backbone.identity.hidden}) if is_pair else head
    with FakeTensorMode(allow_non_fake_inputs=True):
        spec, model = fake_learner(backbone, tensors, "unipelt_prompt", head)
        loss = TaskLoss(learner=model, spec=spec)(features(targets, is_pair=is_pair))
        assert loss.device.type == OTHER


@pytest.mark.usefixtures("_packed")
def test_masked_words_are_guessed_there(backbone: Backbone, tensors: dict[str, Tensor]) -> None:
    words = Vocabulary(
        size=50, mask_id=4, special_ids=frozenset({2, 3}), continuing_ids=frozenset()
    )
    with FakeTensorMode(allow_non_fake_inputs=True):
        _, model = fake_learner(backbone, tensors, "full")
        drawn = start_head(backbone.config.hidden_size, backbone.config.vocab_size)
        head = {name: tensor.detach().to(OTHER) for name, tensor in drawn.items()}
        loss = MaskedLoss(
            model=model.model,
            head=head,
            vocabulary=words,
            share=0.15,
            whole_words=False,
            dropout=0.0,
        )
        assert loss(features([0, 1, 1])).device.type == OTHER


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["unipelt_prompt", "full"])
def test_a_gpu_learns_as_the_cpu(tmp_path: Path, backbone: Backbone, method: Method) -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch finds no GPU")
    write_split(tmp_path, "sst2", "train", sentiment_rows(24))
    write_split(tmp_path, "sst2", "dev", sentiment_rows(12, seed=1))
    recipe = Recipe(
        task="sst2",
        backbone=str(backbone.directory),
        method=method,
        epochs=2,
        batch_size=8,
        precision="fp32",
    )
    losses = [
        Experiment(recipe, data_folder=tmp_path, team=Team(device=device))
        .run(SilentReporter())
        .losses
        for device in ("cpu", "cuda")
    ]
    assert losses[1] == pytest.approx(losses[0], abs=1e-3)
