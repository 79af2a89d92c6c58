"""A recipe from data to tensors and metrics, on the tiny backbone."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from upt_testing.rows import sentiment_rows, similarity_rows, write_split, write_tasks
from upt_training import experiment
from upt_training.batches import Feature
from upt_training.data import read_split
from upt_training.evaluation import answers_in_process
from upt_training.experiment import Experiment, Trained
from upt_training.learner import FullLearner
from upt_training.loop import Progress
from upt_training.losses import TaskLoss, class_weights_of
from upt_training.methods import Method
from upt_training.metrics import score
from upt_training.recipe import Recipe
from upt_zoo.backbone import Backbone
from upt_zoo.errors import BackboneNotFound, DataNotFound, InvalidSpec, NotFound
from upt_zoo.layout import check_shapes
from upt_zoo.nn.adapter import prepare
from upt_zoo.nn.devices import is_bf16_fast
from upt_zoo.nn.encoder import Encoder, load_encoder
from upt_zoo.nn.example import record_example
from upt_zoo.spec import Curve
from upt_zoo.tasks import find_task
from upt_zoo.tokenization import Tokenizer


class Silence:
    def step(self, progress: Progress, *, steps: int, loss: float) -> None:
        pass

    def epoch(self, progress: Progress, *, holdout: Mapping[str, float] | None) -> None:
        pass


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def recipe(backbone: Backbone) -> Recipe:
    return Recipe(
        task="sst2",
        backbone=str(backbone.directory),
        epochs=2,
        batch_size=8,
        max_tokens=48,
        holdout_rows=8,
        precision="fp32",
    )


def train(recipe: Recipe, data: Path) -> Trained:
    return Experiment(recipe, data_folder=data).run(Silence())


@pytest.fixture(scope="module")
def trained(recipe: Recipe, data: Path) -> Trained:
    return train(recipe, data)


def test_a_run_says_how_it_went(trained: Trained) -> None:
    assert trained.train_rows + trained.holdout_rows == 24
    assert trained.holdout_rows >= 8
    assert trained.steps == 2 * -(-trained.train_rows // 8)
    assert len(trained.holdout) == 2
    assert trained.best_epoch == 1 + trained.holdout.index(max(trained.holdout))
    assert trained.seconds > 0


def test_the_lineage_names_what_the_adapter_comes_from(
    trained: Trained, recipe: Recipe, data: Path, backbone: Backbone
) -> None:
    spec, lineage, task = trained.spec, trained.spec.lineage, find_task("sst2")
    check_shapes(spec, {name: tensor.shape for name, tensor in trained.tensors.items()})
    assert spec.backbone == backbone.identity.model_copy(update={"hub_id": recipe.backbone})
    assert spec.task.max_tokens == 48
    assert lineage.files == tuple(
        read_split(task, name, folder=data).file for name in ("train", "dev")
    )
    assert Recipe.model_validate(lineage.recipe) == recipe
    assert (lineage.seed, lineage.precision) == (1, "fp32")
    served = sum(t.size for name, t in trained.tensors.items() if "head." not in name)
    head = sum(t.size for name, t in trained.tensors.items() if "head." in name)
    assert (lineage.served_parameters, lineage.head_parameters) == (served, head)
    assert lineage.trained_parameters == served + head


def test_the_lineage_has_the_curve(trained: Trained) -> None:
    assert len(trained.losses) == 2
    assert trained.spec.lineage.curve == Curve(
        epochs=(1, 2),
        holdout=trained.holdout,
        losses=tuple(round(loss, 4) for loss in trained.losses),
        best_epoch=trained.best_epoch,
    )


def test_without_a_holdout_the_curve_has_losses_and_the_last_epoch(
    recipe: Recipe, data: Path
) -> None:
    found = train(recipe.model_copy(update={"holdout_rows": 0}), data)
    curve = found.spec.lineage.curve
    assert curve is not None
    assert (curve.epochs, curve.holdout, curve.best_epoch) == ((1, 2), None, 2)
    assert curve.losses == pytest.approx(found.losses, abs=1e-4)


def dev_metrics(
    trained: Trained, data: Path, backbone: Backbone, encoder: Encoder
) -> dict[str, float]:
    """Compute the metrics on the dev file by the tensors and an encoder."""
    task = find_task(trained.spec.task.name)
    dev = read_split(task, "dev", folder=data).examples
    tensors = {name: torch.from_numpy(tensor) for name, tensor in trained.tensors.items()}
    answers = answers_in_process(
        encoder,
        prepare(trained.spec, tensors, dtype=torch.float32),
        trained.spec,
        Tokenizer(backbone.tokenizer_file),
        [example.texts for example in dev],
    )
    return {f"dev/{name}": value for name, value in score(task, dev, answers).items()}


def test_the_metrics_are_those_of_the_very_tensors(
    recipe: Recipe, data: Path, backbone: Backbone
) -> None:
    trained = train(recipe.model_copy(update={"task": "stsb"}), data)
    metrics = dev_metrics(trained, data, backbone, load_encoder(backbone))
    assert trained.spec.lineage.metrics == metrics


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_example_is_the_answer_of_the_very_tensors_on_the_backbone_in_fp32(
    recipe: Recipe, data: Path, backbone: Backbone, precision: str
) -> None:
    trained = train(recipe.model_copy(update={"precision": precision, "epochs": 1}), data)
    tensors = {name: torch.from_numpy(tensor) for name, tensor in trained.tensors.items()}
    again = record_example(
        load_encoder(backbone),
        trained.spec,
        prepare(trained.spec, tensors, dtype=torch.float32),
        Tokenizer(backbone.tokenizer_file),
    )
    assert trained.spec.example == again
    assert len(again.logits) == 2


def test_what_no_server_takes_has_no_example(recipe: Recipe, data: Path) -> None:
    trained = train(recipe.model_copy(update={"method": "bitfit", "epochs": 1}), data)
    assert trained.spec.example is None


def test_a_repeated_run_gives_the_same_tensors(
    trained: Trained, recipe: Recipe, data: Path
) -> None:
    torch.manual_seed(99)
    again = train(recipe, data)
    assert again.spec == trained.spec
    assert all(np.array_equal(again.tensors[name], t) for name, t in trained.tensors.items())


def test_a_reparametrised_prefix_trains_more_than_it_serves(recipe: Recipe, data: Path) -> None:
    changes = {"is_prefix_reparametrised": True, "epochs": 1, "holdout_rows": 0}
    lineage = train(recipe.model_copy(update=changes), data).spec.lineage
    assert lineage.trained_parameters > lineage.served_parameters + lineage.head_parameters


@pytest.mark.parametrize(
    ("changed", "dtype"), [(50.04, np.float16), (50.06, np.float32)], ids=["same", "changed"]
)
def test_tensors_are_rounded_where_that_leaves_the_dev_metric_the_same(
    recipe: Recipe,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    changed: float,
    dtype: type[np.floating],
) -> None:
    """To a tenth of a point: the scores of the two roundings stand in for those of the model."""
    scores = iter([{"accuracy": 50.0}, {"accuracy": changed}])
    monkeypatch.setattr(experiment, "score", lambda *_: next(scores))
    found = train(recipe.model_copy(update={"epochs": 1, "holdout_rows": 0}), data)
    assert {tensor.dtype for tensor in found.tensors.values()} == {np.dtype(dtype)}
    kept = changed if dtype is np.float16 else 50.0
    assert found.spec.lineage.metrics == {"dev/accuracy": kept}


def test_a_regression_begins_at_the_mean_of_its_training_values(
    recipe: Recipe, tmp_path: Path
) -> None:
    """An adapter that has learnt nothing answers about the mean, in the labels' own unit."""
    rows = similarity_rows(16)
    write_split(tmp_path, "stsb", "train", rows)
    changes = {"task": "stsb", "holdout_rows": 0, "epochs": 1, "head_rate": 1e-9, "method": "head"}
    bias = train(recipe.model_copy(update=changes), tmp_path).tensors["head.out.bias"]
    mean = statistics.fmean(float(str(row["label"])) for row in rows)
    assert float(bias[0]) == pytest.approx(mean, abs=1e-2)


def test_full_fine_tuning_gives_its_own_metrics_and_no_adapter(
    recipe: Recipe, data: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    learners: list[FullLearner] = []

    class Kept(FullLearner):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            learners.append(self)

    monkeypatch.setattr(experiment, "FullLearner", Kept)
    changes = {"task": "stsb", "method": "full", "backbone_rate": 0.01, "epochs": 1}
    trained = train(recipe.model_copy(update=changes), data)
    lineage = trained.spec.lineage
    assert trained.tensors.keys() == {"head.out.weight", "head.out.bias"}
    assert (lineage.served_parameters, lineage.head_parameters) == (0, 33)
    assert lineage.trained_parameters > 10_000
    (learner,) = learners
    assert lineage.metrics == dev_metrics(trained, data, backbone, learner.trained_encoder())
    assert lineage.metrics != dev_metrics(trained, data, backbone, load_encoder(backbone))


class Losses(Silence):
    def __init__(self) -> None:
        self.values: list[float] = []

    def step(self, progress: Progress, *, steps: int, loss: float) -> None:
        self.values.append(loss)


@pytest.mark.parametrize("method", get_args(Method))
def test_every_method_learns_its_rows(recipe: Recipe, data: Path, method: Method) -> None:
    changes = {"method": method, "epochs": 30, "holdout_rows": 0, "adapter_rate": 0.02}
    losses = Losses()
    learning = recipe.model_copy(update=changes | {"head_rate": 0.02, "backbone_rate": 0.002})
    trained = Experiment(learning, data_folder=data).run(losses)
    first, last = losses.values[:3], losses.values[-3:]  # an epoch each
    assert statistics.fmean(last) < 0.75 * statistics.fmean(first)
    lineage = trained.spec.lineage
    assert lineage.metrics.keys() == {"dev/accuracy"}
    served = sum(t.size for name, t in trained.tensors.items() if "head." not in name)
    assert lineage.served_parameters == served
    assert lineage.trained_parameters >= served + lineage.head_parameters


def test_a_union_without_gates_has_none_and_answers_as_it_learnt(
    recipe: Recipe, data: Path, backbone: Backbone
) -> None:
    trained = train(recipe.model_copy(update={"task": "stsb", "has_gates": False}), data)
    assert not [name for name in trained.tensors if ".gate." in name]
    check_shapes(trained.spec, {name: each.shape for name, each in trained.tensors.items()})
    metrics = dev_metrics(trained, data, backbone, load_encoder(backbone))
    assert trained.spec.lineage.metrics == metrics


def test_a_stack_is_evaluated_with_all_its_blocks(
    recipe: Recipe, data: Path, backbone: Backbone
) -> None:
    """By the first block alone its metrics are others."""
    changes = {"task": "stsb", "method": "stacked_unipelt", "blocks": 2, "adapter_rate": 0.02}
    trained = train(recipe.model_copy(update=changes), data)
    first = {name.removeprefix("block0/"): t for name, t in trained.tensors.items()}
    alone = replace(
        trained, tensors={name: t for name, t in first.items() if not name.startswith("block")}
    )
    metrics = dev_metrics(alone, data, backbone, load_encoder(backbone))
    assert trained.spec.lineage.metrics != metrics


def test_every_file_beside_the_train_files_is_evaluated(recipe: Recipe, data: Path) -> None:
    folder = data.with_name("more")
    for name in ("train", "train_extra", "dev", "dev_hard", "test"):
        write_split(folder, "stsb", name, similarity_rows(8, seed=len(name)))
    changes = {"task": "stsb", "files": ("train", "train_extra"), "holdout_rows": 0}
    found = train(recipe.model_copy(update=changes), folder)
    assert found.train_rows == 16
    assert [file.name for file in found.spec.lineage.files] == [
        "stsb/train",
        "stsb/train_extra",
        "stsb/dev",
        "stsb/dev_hard",
        "stsb/test",
    ]
    assert list(found.spec.lineage.metrics) == [
        f"{split}/{name}"
        for split in ("dev", "dev_hard", "test")
        for name in ("pearson", "spearmanr")
    ]


def test_the_precision_is_that_of_the_machine_unless_the_recipe_says(
    recipe: Recipe, data: Path
) -> None:
    left = Experiment(recipe.model_copy(update={"precision": "auto"}), data_folder=data)
    assert left.recipe.precision == ("bf16" if is_bf16_fast() else "fp32")
    changes = {"precision": "bf16", "epochs": 1, "holdout_rows": 0}
    found = train(recipe.model_copy(update=changes), data)
    assert found.spec.lineage.precision == "bf16"


def test_few_rows_are_drawn_by_the_seed_from_those_not_held_out(recipe: Recipe, data: Path) -> None:
    few = recipe.model_copy(update={"train_rows": 5, "holdout_rows": 10, "epochs": 1})
    found = train(few, data)
    assert (found.train_rows, found.steps) == (5, 1)
    assert found.holdout_rows >= 10
    assert found.spec.lineage.recipe["train_rows"] == 5
    assert found.spec.lineage.files[0].rows == 24
    other = train(few.model_copy(update={"seed": 2}), data)
    assert other.tensors["prompt"].tobytes() != found.tensors["prompt"].tobytes()


def test_class_weights_have_a_mean_of_one_and_follow_the_labels(
    recipe: Recipe, tmp_path: Path
) -> None:
    rows = [row for row in sentiment_rows(60) if row["label"]][:18]
    rows += [row for row in sentiment_rows(60) if not row["label"]][:6]
    write_split(tmp_path, "sst2", "train", rows)
    settled: list[list[float]] = []

    class Looking(TaskLoss):
        def __call__(self, batch: Sequence[Feature]) -> torch.Tensor:
            settled.append([] if self.class_weights is None else self.class_weights.tolist())
            return TaskLoss.__call__(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "TaskLoss", Looking)
        for weights in (None, "balanced", {"negative": 3.0}):
            keys = {"class_weights": weights, "epochs": 1, "holdout_rows": 0}
            Experiment(recipe.model_copy(update=keys), data_folder=tmp_path).run(Silence())
    assert settled[0] == []
    assert settled[3] == pytest.approx([2.0, 2 / 3])
    assert settled[6] == pytest.approx([2.0, 2 / 3])


def test_weights_of_sets_make_having_a_label_count_as_much_as_not_having_it() -> None:
    golds = [frozenset({0}), frozenset({0, 1}), frozenset({0}), frozenset[int]()]
    labels = ("often", "seldom", "never")
    assert class_weights_of("balanced", labels, golds).tolist() == pytest.approx([1 / 3, 3.0, 1.0])
    assert class_weights_of({"seldom": 2.0}, labels, golds).tolist() == [1.0, 2.0, 1.0]


def test_smoothed_labels_change_what_is_learnt(recipe: Recipe, data: Path) -> None:
    hard, soft = (
        train(recipe.model_copy(update={"label_smoothing": share, "epochs": 1}), data)
        for share in (0.0, 0.3)
    )
    assert hard.losses != soft.losses
    assert hard.tensors["prompt"].tobytes() != soft.tensors["prompt"].tobytes()


def test_a_head_pools_as_the_recipe_says(recipe: Recipe, data: Path) -> None:
    found = train(recipe.model_copy(update={"pooling": "mean", "epochs": 1}), data)
    assert found.spec.head.pooling == "mean"


def test_an_adapter_may_learn_on_the_int8_backbone_that_will_serve_it(
    recipe: Recipe, data: Path, backbone: Backbone
) -> None:
    found = train(recipe.model_copy(update={"precision": "int8", "dropout": 0.0}), data)
    assert found.spec.lineage.precision == "int8"
    tensors = {name: torch.from_numpy(tensor) for name, tensor in found.tensors.items()}
    adapter = prepare(found.spec, tensors, dtype=torch.float32)
    split = read_split(find_task("sst2"), "dev", folder=data)
    answers = answers_in_process(
        load_encoder(backbone, is_int8=True),
        adapter,
        found.spec,
        Tokenizer(backbone.tokenizer_file),
        [example.texts for example in split.examples],
    )
    # the metrics of the card are those of int8
    assert score(find_task("sst2"), split.examples, answers)["accuracy"] == pytest.approx(
        found.spec.lineage.metrics["dev/accuracy"]
    )


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"task": "sst3"}, NotFound, "no task 'sst3'"),
        ({"backbone": "/no/where"}, BackboneNotFound, "/no/where"),
        ({"max_tokens": 321}, InvalidSpec, "max_tokens: expected at most the 320"),
        ({"task": "squad", "max_tokens": None}, InvalidSpec, "got 384"),
        ({"task": "mrpc"}, DataNotFound, "mrpc/train"),
        ({"files": ("train_extra",)}, DataNotFound, "sst2/train_extra"),
        ({"holdout_rows": 24}, InvalidSpec, "holdout_rows: 24 of 24 rows"),
        ({"train_rows": 17}, InvalidSpec, "train_rows: expected at most the 1. rows .*got 17"),
        ({"class_weights": {"good": 2.0}}, InvalidSpec, r"labels of sst2 \(negative, positive\)"),
        ({"task": "stsb", "class_weights": "balanced"}, InvalidSpec, "stsb is regression"),
        ({"task": "stsb", "label_smoothing": 0.1}, InvalidSpec, "label_smoothing: .*regression"),
    ],
)
def test_a_recipe_that_cannot_run_says_why_before_it_trains(
    recipe: Recipe, data: Path, changes: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Experiment(recipe.model_copy(update=changes), data_folder=data)
