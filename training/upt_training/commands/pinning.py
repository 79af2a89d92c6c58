"""What a run starts from: an adapter of a store, pinned by its digest."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import typer

if TYPE_CHECKING:
    from upt_training.recipe import Learning
    from upt_zoo.tensors import Array

AnyRecipe = TypeVar("AnyRecipe", bound="Learning")


def pin_start(
    context: typer.Context, recipe: AnyRecipe, home: Path | None
) -> "tuple[AnyRecipe, Mapping[str, Array] | None]":
    """Pin the recipe's initial adapter by its digest and read it.

    Raises:
        WrongBackbone: it belongs to another backbone than the recipe names.
        UptError: it cannot be found or read.
    """
    from upt_zoo.backbone import resolve_backbone
    from upt_zoo.commands.remotes import store_of
    from upt_zoo.errors import WrongBackbone
    from upt_zoo.references import Reference

    if recipe.initial_adapter is None:
        return recipe, None
    reference = Reference.parse(recipe.initial_adapter)
    origin = store_of(context, reference, home, offline=False)
    stored = origin.resolve(reference)
    backbone = resolve_backbone(recipe.backbone).identity
    if stored.spec.backbone.digest != backbone.digest:
        raise WrongBackbone(
            f"initial_adapter: {stored.reference} belongs to {stored.spec.backbone.digest}, "
            f"{recipe.backbone} is {backbone.digest}"
        )
    _, tensors = origin.load(stored)
    pinned = replace(reference, tag=stored.version, digest=stored.digest)
    return recipe.model_copy(update={"initial_adapter": str(pinned)}), tensors
