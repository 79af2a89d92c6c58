"""A sweep: a file that says which runs make a table. Where they are done is not its affair."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator, model_validator

from upt_training.methods import Method
from upt_training.plan import Planned, multiply, plan_of_files, plan_of_tasks
from upt_training.recipe import Recipe
from upt_training.records import record_file
from upt_zoo.errors import InvalidSpec
from upt_zoo.reasons import all_reasons

_Several = Field(default=None, min_length=1)
_Seed = Annotated[int, Field(strict=True)]
_Rows = Annotated[int, Field(strict=True, gt=0)]
# what has a list of its own, or is told by a search
_NO_CHANGE = {"task": "tasks", "method": "methods", "seed": "seeds", "search": "upt-train search"}


class Sweep(BaseModel):
    """Runs of every task or recipe with every seed, method and number of train rows.

    ``tasks`` are of the catalogue and have the recipes that ship; ``recipes`` are files of recipes
    or run records, relative to the sweep's own. A list that is left out leaves each recipe's own
    value. ``changes`` are keys of a recipe, the same for all runs; ``max_minutes`` ends each one's
    schedule.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    tasks: tuple[str, ...] | None = _Several
    recipes: tuple[Path, ...] | None = _Several
    methods: tuple[Method, ...] | None = _Several
    seeds: tuple[_Seed, ...] | None = _Several
    train_rows: tuple[_Rows, ...] | None = _Several
    changes: dict[str, JsonValue] = {}
    max_minutes: Annotated[float, Field(gt=0)] | None = None

    @field_validator("changes")
    @classmethod
    def _are_keys_of_a_recipe(cls, changes: dict[str, JsonValue]) -> dict[str, JsonValue]:
        for key in changes:
            if key not in Recipe.model_fields:
                raise ValueError(f"{key} is no key of a recipe")
            if key in _NO_CHANGE:
                raise ValueError(f"{key} is not changed here, but by {_NO_CHANGE[key]}")
        return changes

    @model_validator(mode="after")
    def _has_something_to_run(self) -> Self:
        if (self.tasks is None) == (self.recipes is None):
            raise ValueError("expected tasks or recipes, and not both")
        if self.train_rows is not None and "train_rows" in self.changes:
            raise ValueError("train_rows: expected it as a list or under changes, got both")
        return self

    def plan(self, folder: Path, *, data: Path | None) -> list[Planned]:
        """Return all runs, seed by seed, then method by method, then by train rows.

        ``folder`` is that of the sweep's file; ``data`` has the rows of the catalogue's tasks.

        Raises:
            InvalidSpec: a recipe is none, a value does not fit one, or two runs are the same.
            UptError: there is no such task, or a record cannot be repeated.
        """
        runs = (
            plan_of_tasks(self.tasks, data)
            if self.tasks is not None
            else plan_of_files([folder / file for file in self.recipes or ()], data)
        )
        axes: dict[str, Sequence[JsonValue]] = {
            "seed": self.seeds or (),
            "method": self.methods or (),
            "train_rows": self.train_rows or (),
        }
        planned = multiply(runs, axes, self.changes)
        names = Counter(record_file(Path(), run.recipe).stem for run in planned)
        if doubles := [name for name, count in names.items() if count > 1]:
            raise InvalidSpec(
                f"expected runs that differ in task, method, train rows or seed, got more than one "
                f"{', '.join(doubles)}"
            )
        return planned


def read_sweep(file: Path) -> Sweep:
    """Read a sweep from YAML.

    Raises:
        InvalidSpec: not YAML, an unknown key, or a value out of range.
    """
    try:
        return Sweep.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
    except (ValueError, yaml.YAMLError) as error:
        reasons = str(error)
        if isinstance(error, ValueError):
            reasons = all_reasons(error, Sweep.model_fields)
        raise InvalidSpec(f"sweep {file}: {reasons}") from error


def check_choice(recipes: Sequence[Recipe]) -> None:
    """Refuse runs of which none can be chosen for the zoo, before the first one.

    Raises:
        InvalidSpec: several would give an adapter of one task, and no rows are held out.
    """
    giving = [recipe for recipe in recipes if recipe.traits.gives_adapter]
    counts = Counter(recipe.task_name for recipe in giving)
    for recipe in giving:
        if counts[recipe.task_name] > 1 and not recipe.holdout_rows:
            raise InvalidSpec(
                f"expected holdout_rows to choose one of {counts[recipe.task_name]} adapters of "
                f"{recipe.task_name}; put them under changes, or run with --no-publish"
            )
