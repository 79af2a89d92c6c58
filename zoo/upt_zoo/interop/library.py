"""From a foreign directory to what a store publishes, and back."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pydantic import JsonValue

from upt_zoo.backbone import Backbone, is_on_this_machine, open_backbone, resolve_backbone
from upt_zoo.errors import InvalidSpec, Unavailable
from upt_zoo.interop import adapterhub, adapterhub_export, adapterhub_names, peft
from upt_zoo.interop.checkpoint import read_pooler, read_settings, read_weights, write_checkpoint
from upt_zoo.interop.choices import Choices, draft_spec, refusing_values, write_card
from upt_zoo.interop.parts import Parts
from upt_zoo.interop.settings import Settings
from upt_zoo.spec import AdapterSpec
from upt_zoo.tensors import Array

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


class Library(StrEnum):
    """A library whose checkpoints are read and written."""

    PEFT = "peft"
    ADAPTERHUB = "adapterhub"


_BACKBONE_KEYS = {Library.PEFT: "base_model_name_or_path", Library.ADAPTERHUB: "model_name"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """An adapter as a store publishes it."""

    spec: AdapterSpec
    tensors: Mapping[str, Array]
    card: str


def import_checkpoint(
    library: Library,
    directory: Path,
    choices: Choices,
    *,
    backbone: str | None = None,
    is_offline: bool = False,
    source: str | None = None,
) -> Checkpoint:
    """Read a checkpoint; nothing is written.

    ``backbone`` is a directory or a name of the hub; None is the one that the checkpoint names.
    ``source`` is where the directory comes from, for the lineage.

    Raises:
        BackboneNotFound: the backbone is not there.
        Corrupt: a file does not have its format, or a tensor is missing.
        InvalidInput: a file is missing, or a pickled one and no torch.
        InvalidSpec: something cannot be expressed; the message names it and says why.
        Unavailable: we are offline, and the backbone would have to be fetched.
    """
    config = read_settings(directory / peft.CONFIG)
    named = config.take(_BACKBONE_KEYS[library], "")
    if is_offline and not is_on_this_machine(backbone or named):
        raise Unavailable(f"offline, and the backbone {backbone or named} is not on this machine")
    found = _find_backbone(backbone, named)
    with refusing_values():
        parts = _read_parts(library, directory, config, found)
    origin: dict[str, JsonValue] = {"imported_from": library.value, "config": dict(config.values)}
    if source is not None:
        origin["source"] = source
    spec = draft_spec(parts, found, choices, origin)
    return Checkpoint(spec=spec, tensors=parts.tensors, card=write_card(spec, library.value))


def export_checkpoint(library: Library, checkpoint: Checkpoint, directory: Path) -> None:
    """Write a whole directory, or nothing.

    Raises:
        Conflict: the directory exists and is not empty.
        InvalidSpec: the library cannot express the adapter; the message says why.
    """
    spec, tensors = checkpoint.spec, checkpoint.tensors
    if library is Library.PEFT:
        config, weights = peft.write_peft(spec, tensors)
        write_checkpoint(directory, {peft.CONFIG: config}, {peft.WEIGHTS: weights}, checkpoint.card)
    else:
        written = adapterhub_export.write_adapterhub(spec, tensors)
        write_checkpoint(directory, written.configs, written.weights, checkpoint.card)


def _find_backbone(reference: str | None, named: str) -> Backbone:
    """Find the backbone that the caller means; the checkpoint's name for it is kept."""
    if not reference and not named:
        raise InvalidSpec("backbone: the checkpoint names none; name a directory or a hub id")
    if reference and Path(reference).is_dir() and _HUB_ID.fullmatch(named):
        return open_backbone(Path(reference), hub_id=named)
    return resolve_backbone(reference or named)


def _read_parts(library: Library, directory: Path, config: Settings, backbone: Backbone) -> Parts:
    pooler = read_pooler(backbone)
    if library is Library.PEFT:
        tensors = read_weights(directory, peft.WEIGHTS, peft.PICKLED)
        return peft.read_peft(config, tensors, backbone.identity, pooler)
    names = adapterhub_names
    return adapterhub.read_adapterhub(
        config,
        read_weights(directory, names.WEIGHTS, names.PICKLED),
        read_settings(directory / names.HEAD_CONFIG),
        read_weights(directory, names.HEAD_WEIGHTS, names.HEAD_PICKLED),
        backbone=backbone.identity,
        pooler=pooler,
    )
