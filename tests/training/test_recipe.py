from pathlib import Path

import pytest
import yaml

import upt_training
from upt_training.recipe import Recipe, Trial, read_recipe, recipe_of_task
from upt_zoo.errors import InvalidSpec, NotFound
from upt_zoo.tasks import TASKS

SHIPPED = sorted((Path(upt_training.__file__).parent / "recipes").glob("*.yaml"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "recipe.yaml"


def test_a_recipe_needs_no_more_than_its_task(file: Path) -> None:
    file.write_text("task: sst2\n")
    assert read_recipe(file) == Recipe(task="sst2")


def test_every_key_is_read(file: Path) -> None:
    recipe = Recipe(
        task="squad",
        method="stacked_unipelt",
        backbone="a/b",
        seed=7,
        has_gates=False,
        blocks=2,
        epochs=2,
        batch_size=3,
        adapter_rate=0.1,
        head_rate=0.2,
        backbone_rate=0.3,
        gate_rate_share=0.4,
        gate_bias=-1.0,
        warmup_share=0.5,
        weight_decay=0.6,
        dropout=0.7,
        max_gradient_norm=0.8,
        lora_factor=0.9,
        is_prefix_reparametrised=True,
        initial_adapter=None,
        pooling="mean",
        max_tokens=64,
        files=("train", "train_extra"),
        holdout_rows=11,
        patience=2,
        precision="fp32",
        rows_at_once=2,
        train_rows=100,
        class_weights={"positive": 2.0},
        label_smoothing=0.1,
        search=(Trial(adapter_rate=0.1, head_rate=0.2, backbone_rate=0.3, epochs=2, holdout=50.0),),
    )
    written, defaults = (each.model_dump(mode="json") for each in (recipe, Recipe(task="sst2")))
    excluded = {"initial_adapter"}  # by a reparametrised prefix
    assert all(written[key] != default for key, default in defaults.items() if key not in excluded)
    file.write_text(yaml.safe_dump(written))
    assert read_recipe(file) == recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task: sst2\nlearning_rate: 0.1\n", "learning_rate"),
        (
            "task: sst2\ninitial_adapter: mnli\nis_prefix_reparametrised: true\n",
            "cannot start from an initial_adapter",
        ),
        ("task: sst2\ninitial_adapter: mnli\nmethod: full\n", "method full cannot start"),
        ("task: sst2\nhas_gates: false\nmethod: lora\n", "method lora has none to leave out"),
        ("task: sst2\nblocks: 2\nmethod: unipelt\n", "only stacked_unipelt has them"),
        ("task: sst2\npatience: 3\n", "patience needs holdout_rows"),
        ("task: sst2\nmethod: adapters\n", "method"),
        ("task: sst2\nmethod: full\nprecision: int8\n", "that int8 would round"),
        ("task: sst2\nmethod: bitfit\nprecision: int8\n", "that int8 would round"),
        ("task: sst2\nepochs: 0\n", "epochs"),
        ("task: sst2\nbatch_size: many\n", "batch_size"),
        ("task: sst2\nadapter_rate: 1.5\n", "adapter_rate"),
        ("task: sst2\ndropout: 1\n", "dropout"),
        ("task: sst2\ngate_bias: .nan\n", "gate_bias"),
        ("task: sst2\nmax_gradient_norm: .inf\n", "max_gradient_norm"),
        ("task: sst2\nmax_tokens: 7\n", "max_tokens"),
        ("task: sst2\nfiles: []\n", "files"),
        ("task: sst2\nfiles: train\n", "files"),
        ("method: lora\n", "task"),
        ("- sst2\n", "dictionary"),
        ("task: [\n", "expected"),
        ("", "dictionary"),
    ],
)
def test_what_is_wrong_with_a_recipe_is_named(file: Path, text: str, message: str) -> None:
    file.write_text(text)
    with pytest.raises(InvalidSpec, match=message) as caught:
        read_recipe(file)
    assert str(file) in str(caught.value)


def test_a_file_that_is_no_text_is_no_recipe(file: Path) -> None:
    file.write_bytes(b"task: \xff\xfe")
    with pytest.raises(InvalidSpec, match=r"recipe\.yaml"):
        read_recipe(file)


def test_a_missing_recipe_is_named(file: Path) -> None:
    with pytest.raises(InvalidSpec, match=r"recipe\.yaml"):
        read_recipe(file)


def test_some_recipes_ship() -> None:
    assert {"sst2", "mrpc", "stsb", "cola", "squad"} <= {file.stem for file in SHIPPED}


@pytest.mark.parametrize("shipped", SHIPPED, ids=lambda file: file.stem)
def test_a_shipped_recipe_is_that_of_the_task_in_its_file_name(shipped: Path) -> None:
    recipe = recipe_of_task(shipped.stem)
    assert recipe == read_recipe(shipped)
    assert recipe.task == shipped.stem


def test_every_task_of_the_catalogue_has_a_recipe() -> None:
    assert {file.stem for file in SHIPPED} == set(TASKS)


def test_a_recipe_is_for_a_task_of_the_catalogue() -> None:
    with pytest.raises(NotFound, match="no task 'sst3'"):
        recipe_of_task("sst3")


def test_a_change_touches_its_key_alone() -> None:
    recipe = Recipe(task="sst2", holdout_rows=5, patience=1)
    changed = recipe.changed({"method": "prefix", "seed": 4})
    assert changed == Recipe(task="sst2", holdout_rows=5, patience=1, method="prefix", seed=4)
    assert recipe == Recipe(task="sst2", holdout_rows=5, patience=1)
    assert recipe.changed({}) == recipe


@pytest.mark.parametrize(
    "changes", [{"method": "adapters"}, {"seeds": 3}, {"seed": "x"}, {"holdout_rows": 0}]
)
def test_a_change_is_held_to_the_same_rules(changes: dict[str, str | int]) -> None:
    recipe = Recipe(task="sst2", holdout_rows=5, patience=1)
    with pytest.raises(InvalidSpec, match=r"recipe of sst2: .*"):
        recipe.changed(changes)
