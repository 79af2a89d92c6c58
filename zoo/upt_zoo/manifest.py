"""The documents of the store: the manifest of one adapter and the index of many.

A manifest names the adapter and the digests of its blobs; the adapter's digest is the sha256 of the
manifest's bytes, so it covers everything. It holds no time and no place: equal adapters of equal
name and version have equal digests everywhere. Files are the affair of ``upt_zoo.local.store``.

Unknown properties are kept in the index and ignored in a manifest, where other documents of ours
forbid them: the standard demands it, and other tools write into the index.

Source: OCI image specification 1.1, manifest.md, image-index.md, annotations.md.
"""

import hashlib
from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from upt_zoo.errors import Corrupt
from upt_zoo.json_text import check_json, format_json
from upt_zoo.reasons import first_reason
from upt_zoo.references import Version
from upt_zoo.spec import Digest, Name

ARTIFACT_TYPE: Literal["application/vnd.upt.adapter.v1"] = "application/vnd.upt.adapter.v1"
CONFIG_TYPE = "application/vnd.upt.adapter.config.v1+json"
TENSORS_TYPE = "application/vnd.upt.adapter.tensors.v1+safetensors"
CARD_TYPE = "application/vnd.upt.adapter.card.v1+markdown"
MANIFEST_TYPE: Literal["application/vnd.oci.image.manifest.v1+json"] = (
    "application/vnd.oci.image.manifest.v1+json"
)
INDEX_TYPE: Literal["application/vnd.oci.image.index.v1+json"] = (
    "application/vnd.oci.image.index.v1+json"
)
MAX_MANIFEST_BYTES = 4 * 1024 * 1024  # the limit that registries set on manifests
_MAX_BLOB_BYTES = 1024 * 1024 * 1024  # fifty times UniPELT+Prompt on roberta-large; bounds a read
TITLE = "org.opencontainers.image.title"
VERSION = "org.opencontainers.image.version"
REF_NAME = "org.opencontainers.image.ref.name"


class _Document(BaseModel):
    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, frozen=True, extra="ignore", strict=True
    )


class Descriptor(_Document):
    """A pointer to a blob: what it is, its digest and its exact size."""

    model_config = ConfigDict(extra="allow")

    media_type: str
    digest: Digest
    size: Annotated[int, Field(ge=0, le=_MAX_BLOB_BYTES)]
    artifact_type: str | None = None
    annotations: dict[str, str] | None = None

    @classmethod
    def of(cls, media_type: str, data: bytes) -> Self:
        """Describe a blob that holds ``data``."""
        return cls(media_type=media_type, digest=digest_of(data), size=len(data))


class Annotations(_Document):
    """The name and version of an adapter among whatever else is noted there."""

    model_config = ConfigDict(extra="allow", alias_generator=None)
    __pydantic_extra__: dict[str, str] = Field(init=False)

    name: Name = Field(alias=TITLE)
    version: Version = Field(alias=VERSION)


class Manifest(_Document):
    """One version of one adapter: the spec as config, then its tensors and its card as layers."""

    schema_version: Literal[2] = 2
    media_type: Literal["application/vnd.oci.image.manifest.v1+json"] = MANIFEST_TYPE
    artifact_type: Literal["application/vnd.upt.adapter.v1"] = ARTIFACT_TYPE
    config: Descriptor
    layers: tuple[Descriptor, Descriptor]
    annotations: Annotations

    @model_validator(mode="after")
    def _blobs_are_in_their_places(self) -> Self:
        expected = [CONFIG_TYPE, TENSORS_TYPE, CARD_TYPE]
        got = [blob.media_type for blob in self.blobs]
        if got != expected:
            raise ValueError(f"expected config and layers of types {expected}, got {got}")
        return self

    @classmethod
    def of(cls, name: str, version: str, *, spec: bytes, tensors: bytes, card: bytes) -> Self:
        """Describe the blobs of an adapter under its name and version."""
        return cls(
            config=Descriptor.of(CONFIG_TYPE, spec),
            layers=(Descriptor.of(TENSORS_TYPE, tensors), Descriptor.of(CARD_TYPE, card)),
            annotations=Annotations(name=name, version=version),
        )

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Parse and validate.

        Raises:
            Corrupt: not the manifest of an adapter, or a key in it repeats.
        """
        try:
            manifest = cls.model_validate_json(data)
            check_json(data)
            return manifest
        except ValueError as error:  # of pydantic too
            raise Corrupt(f"not a manifest of an adapter: {first_reason(error)}") from error

    def to_json(self) -> bytes:
        """Serialise canonically: sorted keys, no white space, UTF-8; equal values, equal bytes."""
        return _canonical(self)

    @property
    def name(self) -> str:
        """The adapter's name."""
        return self.annotations.name

    @property
    def version(self) -> str:
        """The adapter's version, MAJOR.MINOR.PATCH."""
        return self.annotations.version

    @property
    def tensors(self) -> Descriptor:
        """The safetensors layer."""
        return self.layers[0]

    @property
    def card(self) -> Descriptor:
        """The Markdown layer."""
        return self.layers[1]

    @property
    def blobs(self) -> tuple[Descriptor, ...]:
        """All that must exist before the manifest does: config and layers."""
        return (self.config, *self.layers)


class Index(_Document):
    """Which manifests a store holds; what its entries say is read by ``upt_zoo.local.listing``."""

    model_config = ConfigDict(extra="allow")

    schema_version: Literal[2] = 2
    media_type: Literal["application/vnd.oci.image.index.v1+json"] = INDEX_TYPE
    manifests: tuple[Descriptor, ...] = ()
    annotations: dict[str, str] | None = None

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Parse and validate.

        Raises:
            Corrupt: not an index.
        """
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            raise Corrupt(f"not an image index: {first_reason(error)}") from error

    def to_json(self) -> bytes:
        """Serialise canonically; a number of another tool that is not finite becomes null."""
        return _canonical(self)

    def with_manifest(self, data: bytes, notes: Mapping[str, str] | None = None) -> Self:
        """Return an index that lists the manifest of these bytes behind all others.

        ``notes`` are further annotations of the entry. ``ref.name`` is for other tools; it joins
        with ``-``, which a registry's tags may contain.
        """
        return self.model_copy(update={"manifests": (*self.manifests, entry_of(data, notes))})


def entry_of(data: bytes, notes: Mapping[str, str] | None = None) -> Descriptor:
    """Return the entry of an index that lists the manifest of these bytes.

    Raises:
        Corrupt: not the manifest of an adapter.
    """
    manifest = Manifest.from_json(data)
    annotations = {
        **(notes or {}),
        TITLE: manifest.name,
        VERSION: manifest.version,
        REF_NAME: f"{manifest.name}-{manifest.version}",
    }
    return Descriptor.of(MANIFEST_TYPE, data).model_copy(
        update={"artifact_type": ARTIFACT_TYPE, "annotations": annotations}
    )


def digest_of(data: bytes) -> str:
    """Return ``sha256:`` and the hexadecimal sha256 of the bytes."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _canonical(document: _Document) -> bytes:
    return format_json(document.model_dump(mode="json", by_alias=True, exclude_none=True))
