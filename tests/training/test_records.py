from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from upt_testing.adapters import LORA, tiny_spec
from upt_training.experiment import Trained
from upt_training.recipe import Recipe
from upt_training.records import Machine, Record, record_file, write_record
from upt_training.team import ALONE

RECIPE = Recipe(task="sst2", method="lora", seed=3, holdout_rows=4, files=("train", "train_extra"))
SPEC = tiny_spec(lora=LORA)


@pytest.fixture
def record() -> Record:
    trained = Trained(
        spec=SPEC,
        tensors={},
        holdout=(50.0, 75.5),
        steps=12,
        best_epoch=2,
        train_rows=20,
        holdout_rows=4,
        seconds=1.2345,
    )
    return Record.of(RECIPE, trained, adapter="tiny:1.0.0@sha256:0", max_minutes=2.5)


def test_a_record_has_the_facts_of_the_run(record: Record) -> None:
    assert record.recipe == RECIPE
    assert (record.train_rows, record.steps, record.best_epoch) == (20, 12, 2)
    assert (record.seconds, record.max_minutes) == (1.2, 2.5)
    assert record.holdout == (50.0, 75.5)
    assert record.files == SPEC.lineage.files
    assert record.metrics == SPEC.lineage.metrics
    assert record.served_parameters == SPEC.lineage.served_parameters > 0
    assert record.head_parameters == SPEC.lineage.head_parameters > 0
    assert record.trained_parameters == record.served_parameters + record.head_parameters
    assert record.machine == Machine.of(ALONE)


def test_a_machine_is_described_by_what_changes_the_speed_and_the_bits() -> None:
    machine = Machine.of(ALONE)
    assert machine.processor
    assert machine.threads == torch.get_num_threads()
    assert machine.torch == torch.__version__
    assert machine.python.startswith("3.")


def test_a_record_is_read_as_it_was_written(record: Record, tmp_path: Path) -> None:
    file = record_file(tmp_path / "not" / "there", RECIPE)
    assert file == tmp_path / "not" / "there" / "sst2-lora-seed3.json"
    write_record(file, record)
    assert Record.model_validate_json(file.read_bytes()) == record
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_record_is_written_whole_or_not_at_all(
    record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = record_file(tmp_path, RECIPE)

    def fail(self: Path, target: Path) -> Path:
        raise OSError("no space left")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        write_record(file, record)
    assert not file.exists()


def test_runs_on_few_rows_and_of_ones_own_task_have_files_of_their_own() -> None:
    few = Recipe(task="sst2", train_rows=100)
    assert record_file(Path(), few) == Path("sst2-100rows-unipelt_prompt-seed1.json")


def test_an_unknown_key_makes_no_record(record: Record) -> None:
    with pytest.raises(ValidationError, match="colour"):
        Record.model_validate(record.model_dump() | {"colour": "red"})


def test_an_automatic_precision_is_whatever_a_run_came_to(record: Record) -> None:
    ran = RECIPE.model_copy(update={"precision": "fp32"})
    record = record.model_copy(update={"recipe": ran})
    assert record.is_of(ran)
    assert record.is_of(RECIPE)
    assert not record.is_of(RECIPE.model_copy(update={"precision": "bf16"}))
    assert not record.is_of(RECIPE.model_copy(update={"epochs": RECIPE.epochs + 1}))
