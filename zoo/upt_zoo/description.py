"""What is known of an adapter, in JSON: the one place for commands and pages that show it."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import JsonValue

    from upt_zoo.local.store import StoredAdapter


def summary_of(stored: "StoredAdapter") -> "dict[str, JsonValue]":
    """Say what an adapter is, in short."""
    spec = stored.spec
    return {
        "name": stored.name,
        "version": stored.version,
        "digest": stored.digest,
        "method": spec.method,
        "metrics": dict(spec.lineage.metrics),
        "size_bytes": stored.size_bytes,
    }


def describe(stored: "StoredAdapter") -> "dict[str, JsonValue]":
    """Say all that a version says of itself, but for its card and its numbers."""
    values: dict[str, JsonValue] = stored.spec.model_dump(mode="json")
    lineage = stored.spec.lineage
    return {
        **summary_of(stored),
        "backbone": values["backbone"],
        "task": values["task"],
        "head": values["head"],
        "components": {name: values[name] for name in ("lora", "prefix", "bottleneck", "prompt")},
        "parameters": {
            "trained": lineage.trained_parameters,
            "served": lineage.served_parameters,
            "head": lineage.head_parameters,
        },
        "licence": lineage.licence,
        "lineage": values["lineage"],
    }
