"""Which runs there are to be: recipes times the values that take the place of their own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from pydantic import JsonValue

from upt_training.recipe import Recipe, read_recipe, recipe_of_task
from upt_training.records import read_record
from upt_zoo.errors import InvalidInput


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A run to be: its recipe and the folder of its rows, None where the hub has them."""

    recipe: Recipe
    data: Path | None


def plan_of_tasks(tasks: Sequence[str], data: Path | None) -> list[Planned]:
    """Plan a run of each task of the catalogue, with the recipe that ships.

    Raises:
        NotFound: the catalogue has no such task.
    """
    return [Planned(recipe=recipe_of_task(task), data=data) for task in tasks]


def plan_of_files(files: Sequence[Path], data: Path | None) -> list[Planned]:
    """Plan a run of each recipe, or repeat a record's; a task of one's own has its rows beside it.

    Raises:
        Corrupt: a record is none.
        InvalidInput: there is no such record, or its task is not of the catalogue.
        InvalidSpec: a recipe is none.
    """
    found = [
        (_recipe_of_record(file) if file.suffix == ".json" else read_recipe(file), file.parent)
        for file in files
    ]
    return [
        Planned(recipe=recipe, data=data if isinstance(recipe.task, str) else near)
        for recipe, near in found
    ]


def multiply(
    runs: Sequence[Planned],
    axes: Mapping[str, Sequence[JsonValue]],
    changes: Mapping[str, JsonValue],
) -> list[Planned]:
    """Change all runs, and give each with every choice of values for the keys of ``axes``.

    The first axis turns slowest, the runs turn fastest. An axis without values stays as it is.

    Raises:
        InvalidSpec: a key is unknown, or a value does not fit a recipe.
    """
    named = {key: values for key, values in axes.items() if values}
    choices = [dict(zip(named, values, strict=True)) for values in product(*named.values())]
    return [
        Planned(recipe=run.recipe.changed({**changes, **choice}), data=run.data)
        for choice in choices
        for run in runs
    ]


def _recipe_of_record(file: Path) -> Recipe:
    if not file.is_file():
        raise InvalidInput(f"expected a recipe or a run record, there is no file {file}")
    recipe = read_record(file).recipe
    if not isinstance(recipe.task, str):
        raise InvalidInput(f"{file} is of a task of one's own: name its recipe instead")
    return recipe
