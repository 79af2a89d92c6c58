"""A small search over learning rates and epochs, decided on held-out rows alone."""

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import product

from upt_training.checkpoints import claimed
from upt_training.jobs import Job, checkpoint_of, experiment_of, fit, keep
from upt_training.recipe import Recipe, Trial
from upt_training.records import Record
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


def search(
    job: Job, recipes: Sequence[Recipe], *, say: Callable[[str], None], as_json: bool
) -> Record:
    """Try the recipes on held-out rows; evaluate, publish and record the best alone.

    The job's minutes are shared out to them alike. A search that was interrupted goes on: the
    checkpoints of what was tried stand until the result is safe. ``say`` hears of each trial.

    Raises:
        UptError: a run cannot start, or fails.
        Unavailable: another process does one of the runs.
    """
    minutes = None if job.max_minutes is None else job.max_minutes / len(recipes)
    trials: list[Trial] = []
    with ExitStack() as claims:
        jobs = [replace(job, recipe=recipe, max_minutes=minutes) for recipe in recipes]
        for each in jobs:
            checkpoint = checkpoint_of(each)
            claims.enter_context(claimed(checkpoint))
            fitted = fit(each, experiment_of(each), checkpoint, as_json=as_json)
            trial = _trial_of(each.recipe, max(fitted.progress.holdout))
            if all(trial.holdout > other.holdout for other in trials):
                best, best_fitted = each, fitted
            trials.append(trial)
            say(f"trial {len(trials)} of {len(recipes)}: {trial}")
        found = replace(best, recipe=best.recipe.model_copy(update={"search": tuple(trials)}))
        record = keep(found, experiment_of(found), best_fitted)
        for each in jobs:
            checkpoint_of(each).unlink(missing_ok=True)
    return record


def _trial_of(recipe: Recipe, metric: float) -> Trial:
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
