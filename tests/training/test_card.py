from upt_testing.adapters import LORA, tiny_spec
from upt_training.card import write_card
from upt_zoo.spec import AdapterSpec, DataFile

CARD = """\
# tiny

Is it good?

`lora` on `upt/tiny` (`sha256:abababababababababababababababababababababababababababababababab`).

Reads `sentence` and answers with one of negative, positive.

## Quality

| split/metric | % |
| --- | --- |
| dev/accuracy | 90.12 |
| test/accuracy | 88.00 |

In fp32, by these very tensors. Dev and test files were read once, after training.

## Parameters

| trained | served, without the head | head |
| --- | --- | --- |
| 12,345 | 164 | 18 |

## Data

A data set. Licence of the data: CC0-1.0. Commercial use: yes. \
Licence of the adapter: Apache-2.0.

| file | rows | sha256 |
| --- | --- | --- |
| tiny/train | 1,200 | cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd |
| tiny/dev | 34 | efefefefefefefefefefefefefefefefefefefefefefefefefefefefefefefef |

1,100 rows were learnt from. 100 rows of the train files were held out; the best epoch on them \
was kept.

Overlap with the backbone's own data: none known.

## Recipe

Seed 1, bf16 products, upt 0.1.0.

| key | value |
| --- | --- |
| epochs | 3 |
| files | ["train"] |
"""


def spec(**changes: object) -> AdapterSpec:
    plain = tiny_spec(lora=LORA)
    facts = {
        "data": "A data set",
        "files": (
            DataFile(name="tiny/train", digest="sha256:" + "cd" * 32, rows=1200),
            DataFile(name="tiny/dev", digest="sha256:" + "ef" * 32, rows=34),
        ),
        "recipe": {"epochs": 3, "files": ["train"], "patience": None},
        "precision": "bf16",
        "metrics": {"dev/accuracy": 90.1234, "test/accuracy": 88.0},
        "trained_parameters": 12345,
    }
    return plain.model_copy(
        update={
            "lineage": plain.lineage.model_copy(update=facts | changes),
            "task": plain.task.model_copy(update={"description": "Is it good?"}),
        }
    )


def test_a_card_says_what_the_spec_says() -> None:
    assert write_card(spec(), train_rows=1100, holdout_rows=100) == CARD


def test_a_card_says_when_no_row_was_held_out() -> None:
    card = write_card(spec(), train_rows=1200, holdout_rows=0)
    assert "1,200 rows were learnt from. No row was held out; the last epoch was kept." in card


def test_a_card_says_when_nothing_was_measured() -> None:
    card = write_card(spec(metrics={}), train_rows=1, holdout_rows=0)
    assert "## Quality\n\nNot measured: there was no dev or test file.\n\n## Par" in card


def test_a_card_names_a_task_of_ones_own_and_keeps_its_table_whole() -> None:
    card = write_card(
        spec(recipe={"task": {"name": "tickets", "fields": ["a"]}, "note": "a|b"}),
        train_rows=1,
        holdout_rows=0,
    )
    assert card.endswith("| task | tickets |\n| note | a\\|b |\n")


def test_a_card_tells_of_data_that_the_backbone_knew() -> None:
    card = write_card(spec(backbone_overlap="it read them all"), train_rows=1, holdout_rows=0)
    assert "Overlap with the backbone's own data: it read them all." in card
