"""A folder to train from: ``recipe.yaml`` and a file of JSON lines for each split."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from pydantic import ValidationError

from upt_training.recipe import Recipe
from upt_training.starting.detection import Layout
from upt_training.starting.rows import Labelled
from upt_training.starting.survey import MOST_IMBALANCE, Survey
from upt_training.user_tasks import UserTask
from upt_zoo.errors import Conflict, InvalidSpec
from upt_zoo.reasons import all_reasons
from upt_zoo.tokenization import Tokenizer

RECIPE = "recipe.yaml"
_ROWS_MEASURED = 2000
_WHOLE_SHARE = 0.98  # of the rows measured are read whole
_LENGTH_STEP = 32
_LONGEST = 256  # unless the user says otherwise: time grows with it
# so many epochs for fewer rows than that, as the recipes that ship were found to need
_EPOCHS = ((100, 20), (2000, 10), (10_000, 5))
_LEAST_EPOCHS = 3
_BATCH_ROWS = 16
_LEAST_ROWS_TO_HOLD_OUT = 500
_HOLDOUT_SHARE, _MOST_HOLDOUT_ROWS = 0.1, 500
_PATIENCE = 3


def make_task(name: str, title: str, layout: Layout, splits: Sequence[str]) -> UserTask:
    """Return the description of the task.

    Raises:
        InvalidSpec: the catalogue has a task of that name, or the name is none.
    """
    try:
        return UserTask(
            name=name,
            title=title,
            head=layout.head,
            fields=layout.fields,
            gold=layout.gold,
            labels=layout.labels,
            files={split: f"{split}.jsonl" for split in splits},
        )
    except ValidationError as error:
        reasons = all_reasons(error, UserTask.model_fields)
        raise InvalidSpec(
            f"task {name}: {reasons}; --name names another task, --text and --label other columns"
        ) from error


def lengths_of(task: UserTask, rows: Sequence[Labelled], tokenizer: Tokenizer) -> list[int]:
    """Return how many tokens the first rows have, from the fewest to the most."""
    spec = task.task().input(max_tokens=2**31 - 1)
    texts = [row.texts for row in rows[:_ROWS_MEASURED]]
    encoded = [  # as for a classification, whose inputs are a row each and no windows
        tokenizer.encode(spec, fields[: len(spec.fields)], kind="classification")
        for fields in texts
    ]
    return sorted(len(row.ids) for (row,) in encoded)


def with_length(task: UserTask, lengths: Sequence[int], *, longest: int) -> UserTask:
    """Return the task with a ``max_tokens`` that leaves nearly all rows whole.

    ``lengths`` are sorted, ``longest`` is what the backbone takes.
    """
    usual = lengths[int(_WHOLE_SHARE * (len(lengths) - 1))]
    max_tokens = -(-usual // _LENGTH_STEP) * _LENGTH_STEP
    return task.model_copy(update={"max_tokens": min(max_tokens, _LONGEST, longest)})


def note_on_length(task: UserTask, lengths: Sequence[int]) -> str:
    """Say why ``max_tokens`` is what it is, and what becomes of longer texts."""
    longer = sum(length > task.max_tokens for length in lengths)
    has_windows = task.head in ("span", "token_classification")
    return (
        f"max_tokens is {task.max_tokens}: of {len(lengths):,} train rows {longer:,} are longer, "
        f"the longest has {lengths[-1]:,} tokens. Longer texts are "
        + ("read in windows" if has_windows else "cut")
        + ", in training and when asked; set it higher in the recipe if you expect such"
    )


def make_recipe(task: UserTask, found: Survey, *, backbone: str, seed: int) -> Recipe:
    """Return a recipe that fits the rows: few are learnt from more often."""
    rows = found.rows["train"]
    has_holdout = rows >= _LEAST_ROWS_TO_HOLD_OUT
    is_pooled = task.head not in ("span", "token_classification")
    is_weighted = task.head == "classification" and found.imbalance >= MOST_IMBALANCE
    return Recipe(
        task=task,
        backbone=backbone,
        seed=seed,
        epochs=next((epochs for most, epochs in _EPOCHS if rows < most), _LEAST_EPOCHS),
        batch_size=_BATCH_ROWS,
        adapter_rate=0.001,
        head_rate=0.001,
        dropout=0.1,
        pooling="mean" if is_pooled else "cls",
        class_weights="balanced" if is_weighted else None,
        holdout_rows=min(_MOST_HOLDOUT_ROWS, round(_HOLDOUT_SHARE * rows)) if has_holdout else 0,
        patience=_PATIENCE if has_holdout else None,
    )


def write_folder(
    folder: Path, recipe: Recipe, splits: Mapping[str, Sequence[Labelled]], notes: Sequence[str]
) -> Path:
    """Write recipe and rows, the recipe last with ``notes`` as comments; return its file.

    Raises:
        Conflict: the folder has one of these files.
    """
    files = {split: folder / f"{split}.jsonl" for split in splits}
    recipe_file = folder / RECIPE
    for file in (recipe_file, *files.values()):
        if file.exists():
            raise Conflict(f"{file} exists: name another folder with --out, or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        lines = (json.dumps(row.cells, ensure_ascii=False) + "\n" for row in rows)
        files[split].write_text("".join(lines), encoding="utf-8")
    dumped = recipe.model_dump(mode="json", exclude_defaults=True)
    keys = {"task": dumped.pop("task"), **dumped}
    # names of columns and labels may hold line ends, behind which a comment is over
    comments = "".join(f"# {' '.join(line.split())}\n" for line in notes)
    text = yaml.safe_dump(keys, sort_keys=False, allow_unicode=True)
    recipe_file.write_text(comments + text, encoding="utf-8")
    return recipe_file
