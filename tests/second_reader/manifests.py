"""The manifest (docs/format.md, "The manifest")."""

from dataclasses import dataclass
from typing import Any

from second_reader.forms import (
    VERSION_FORM,
    is_digest,
    is_int,
    is_name,
    is_text,
    map_to,
    need,
    parse_json,
)

CONFIG = "application/vnd.upt.adapter.config.v1+json"
TENSORS = "application/vnd.upt.adapter.tensors.v1+safetensors"
CARD = "application/vnd.upt.adapter.card.v1+markdown"
ARTIFACT = "application/vnd.upt.adapter.v1"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
TITLE, VERSION = "org.opencontainers.image.title", "org.opencontainers.image.version"
MAX_MANIFEST_BYTES, MAX_BLOB_BYTES = 4 * 2**20, 2**30


@dataclass(frozen=True)
class Manifest:
    """A name, a version, and digest and size of spec, tensors and card."""

    name: str
    version: str
    blobs: tuple[tuple[str, int], ...]


def read_manifest(data: bytes) -> Manifest:
    """Read the manifest of one adapter."""
    values = parse_json(data, "manifest")
    need(isinstance(values, dict), "manifest: no object")
    need(values.get("schemaVersion") == 2, "manifest: schemaVersion")
    need(values.get("mediaType", MANIFEST) == MANIFEST, "manifest: mediaType")
    need(values.get("artifactType", ARTIFACT) == ARTIFACT, "manifest: artifactType")
    layers = values.get("layers")
    need(isinstance(layers, list) and len(layers) == 2, "manifest: layers")
    blobs = []
    for blob, kind in zip([values.get("config"), *layers], (CONFIG, TENSORS, CARD), strict=True):
        need(isinstance(blob, dict) and blob.get("mediaType") == kind, f"manifest: no {kind}")
        blobs.append(pointer_of(blob))
    notes = values.get("annotations")
    need(map_to(is_text)(notes), "manifest: annotations")
    name, version = notes.get(TITLE), notes.get(VERSION)
    need(is_name(name), "manifest: name")
    need(is_text(version) and VERSION_FORM.fullmatch(version), "manifest: version")
    return Manifest(name, version, tuple(blobs))


def pointer_of(values: dict[str, Any]) -> tuple[str, int]:
    """Return digest and size of a descriptor."""
    digest, size = values.get("digest"), values.get("size")
    need(is_digest(digest), "a digest")
    need(is_int(size) and 0 <= (size or 0) <= MAX_BLOB_BYTES, "a size")
    return str(digest), int(size or 0)
