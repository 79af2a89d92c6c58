"""An imported adapter's spec: what the checkpoint says, and what only its owner can say."""

import importlib.metadata
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from pydantic import JsonValue, ValidationError

from upt_zoo.backbone import Backbone
from upt_zoo.errors import InvalidSpec
from upt_zoo.interop.parts import FoundHead, Parts
from upt_zoo.spec import AdapterSpec, Head, HeadKind, Lineage, TaskInput
from upt_zoo.tasks import TASKS, Task

_MAX_TOKENS = 128
_METRICS: dict[HeadKind, str] = {"span": "f1", "regression": "pearson"}
_PLACEHOLDERS = re.compile(r"LABEL_\d+")
_SHOWN_KEYS = 4  # of a place inside a spec
UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """What a checkpoint does not say; None leaves it to the catalogue's task of that name."""

    task: str
    name: str | None = None
    labels: tuple[str, ...] | None = None
    kind: HeadKind | None = None
    fields: tuple[str, ...] | None = None
    max_tokens: int | None = None
    data: str = UNKNOWN
    data_licence: str = UNKNOWN
    licence: str = UNKNOWN


def draft_spec(
    parts: Parts, backbone: Backbone, choices: Choices, origin: Mapping[str, JsonValue]
) -> AdapterSpec:
    """Join parts and choices; ``origin`` becomes the recipe, since the real one is not known.

    Raises:
        InvalidSpec: a choice is missing, or contradicts the checkpoint.
    """
    task = TASKS.get(choices.task)
    with refusing_values():
        head = _head(parts.head, choices, task)
        spec = AdapterSpec(
            method=_method(parts),
            backbone=backbone.identity,
            lora=parts.lora,
            prefix=parts.prefix,
            bottleneck=parts.bottleneck,
            prompt=parts.prompt,
            head=head,
            task=_task(head, backbone, choices, task),
            lineage=_lineage(parts, choices, origin),
        )
    return AdapterSpec.from_json(spec.to_json())  # a foreign configuration may be too deep to read


@contextmanager
def refusing_values() -> Iterator[None]:
    """Turn a value that the spec does not take into ``InvalidSpec``, which names its place."""
    try:
        yield
    except ValidationError as error:
        reason = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, (error.title, *reason["loc"][:_SHOWN_KEYS])))
        raise InvalidSpec(f"{place}: {reason['msg']}") from error


def write_card(spec: AdapterSpec, library: str) -> str:
    """Write what is known of an imported adapter."""
    lineage = spec.lineage
    return (
        f"# {spec.task.name}\n\n{spec.task.description}\n\n"
        f"`{spec.method}` on `{spec.backbone.hub_id}` (`{spec.backbone.digest}`), imported from a "
        f"checkpoint of {library}. It was not evaluated here.\n\n"
        f"Data: {lineage.data}. Licence of the data: {lineage.data_licence}. Licence of the "
        f"adapter: {lineage.licence}. Parameters: {lineage.served_parameters:,} served, and "
        f"{lineage.head_parameters:,} in the head.\n"
    )


def _head(found: FoundHead, choices: Choices, task: Task | None) -> Head:
    kind = found.kind or choices.kind or ("regression" if found.outputs == 1 else "classification")
    if choices.kind not in (None, kind):
        raise InvalidSpec(f"kind: the checkpoint has a {kind} head, got {choices.kind}")
    labels = None if kind in ("span", "regression") else _labels(found, choices, task)
    return Head(kind=kind, outputs=found.outputs, labels=labels, layers=found.layers)


def _labels(found: FoundHead, choices: Choices, task: Task | None) -> tuple[str, ...]:
    """Take the owner's labels, the checkpoint's own, or the catalogue's, in this order."""
    catalogue = task.labels if task and len(task.labels or ()) == found.outputs else None
    own = found.labels
    if own and all(map(_PLACEHOLDERS.fullmatch, own)):
        own = None
    labels = choices.labels or own or catalogue or found.labels
    if labels is None or len(labels) != found.outputs:
        raise InvalidSpec(
            f"labels: the head has {found.outputs} outputs; name as many labels in their order, "
            f"got {', '.join(labels or ()) or 'none'}"
        )
    return labels


def _task(head: Head, backbone: Backbone, choices: Choices, task: Task | None) -> TaskInput:
    default = ("question", "context") if head.kind == "span" else ("text",)
    limit = choices.max_tokens or (task.max_tokens if task else _MAX_TOKENS)
    if choices.max_tokens and choices.max_tokens > backbone.config.max_tokens:
        raise InvalidSpec(
            f"max_tokens: the backbone takes {backbone.config.max_tokens}, got {choices.max_tokens}"
        )
    return TaskInput(
        name=choices.name or choices.task,
        fields=choices.fields or (task.fields if task else default),
        max_tokens=min(limit, backbone.config.max_tokens),
        stride=task.stride if task and head.kind == "span" else None,
        metric=task.metrics[0] if task else _METRICS.get(head.kind, "accuracy"),
        description=task.description if task else "",
    )


def _lineage(parts: Parts, choices: Choices, origin: Mapping[str, JsonValue]) -> Lineage:
    sizes = {name: math.prod(tensor.shape) for name, tensor in parts.tensors.items()}
    in_head = sum(size for name, size in sizes.items() if name.startswith("head."))
    return Lineage(
        data=choices.data,
        data_licence=choices.data_licence,
        commercial_use="unclear",
        files=(),
        recipe=dict(origin),
        seed=0,
        code_version=importlib.metadata.version("upt-zoo"),
        precision="fp32",
        metrics={},
        trained_parameters=sum(sizes.values()),
        served_parameters=sum(sizes.values()) - in_head,
        head_parameters=in_head,
        licence=choices.licence,
    )


def _method(parts: Parts) -> str:
    """Name the union as upt's recipes do."""
    components = {
        "lora": parts.lora,
        "prefix": parts.prefix,
        "bottleneck": parts.bottleneck,
        "prompt": parts.prompt,
    }
    name = "_".join(key for key, component in components.items() if component)
    gated = (parts.lora, parts.prefix, parts.bottleneck)
    if all(component is not None and component.gated for component in gated):
        return "unipelt_prompt" if parts.prompt else "unipelt"
    return name
