"""A small search over learning rates and epochs, decided on held-out rows alone."""

import math
from itertools import product

from upt_training.recipe import Recipe, Trial
from upt_zoo.errors import InvalidSpec

# shares of the recipe's own values; both halves and doubles are one step away
_RATES = (1.0, 0.5, 2.0, 0.25, 4.0)
_EPOCHS = (1.0, 0.5, 2.0)
MOST_RUNS = len(_RATES) * len(_EPOCHS)


def trials_of(recipe: Recipe, runs: int) -> list[Recipe]:
    """Return the recipes to try: the recipe itself, then its neighbours, the nearest first.

    All learning rates move together; the number of epochs decides how slowly they fall.

    Raises:
        InvalidSpec: no rows are held out to decide on, or a rate is 1 or more.
    """
    if not recipe.holdout_rows:
        raise InvalidSpec("search: expected holdout_rows to decide on, the recipe has none")
    steps = sorted(
        product(_RATES, _EPOCHS),
        key=lambda shares: sum(abs(math.log2(share)) for share in shares),
    )
    changed = (_changed(recipe, rates, epochs) for rates, epochs in steps)
    different = {each.model_dump_json(): each for each in changed}  # one epoch has no half
    return list(different.values())[:runs]


def with_trials(recipe: Recipe, trials: list[Trial]) -> Recipe:
    """Return the recipe with what led to it."""
    return recipe.model_copy(update={"search": tuple(trials)})


def trial_of(recipe: Recipe, metric: float) -> Trial:
    """Say what was tried and how it did on the held-out rows."""
    return Trial(
        adapter_rate=recipe.adapter_rate,
        head_rate=recipe.head_rate,
        backbone_rate=recipe.backbone_rate,
        epochs=recipe.epochs,
        holdout=metric,
    )


def _changed(recipe: Recipe, rates: float, epochs: float) -> Recipe:
    names = ("adapter_rate", "head_rate", "backbone_rate")
    changes = {name: getattr(recipe, name) * rates for name in names}
    return recipe.changed(changes | {"epochs": max(1, round(recipe.epochs * epochs))})
