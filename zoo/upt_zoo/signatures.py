"""Who vouches for an adapter: detached signatures of its digest, in the form of cosign. Pure.

A signature signs a payload, a small JSON document with the adapter's digest, so the adapter and its
digest stay as they are. In a store the signatures of a version are an annotation of its entry in
the index; in a registry they are an artifact of their own, under the tag ``sha256-HEX.sig``. What
they are worth, only a key can tell; see ``upt_zoo.keys``.

Source: cosign, SIGNATURE_SPEC.md; the simple signing format of containers/image.
"""

from base64 import b64decode, b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.alias_generators import to_camel

from upt_zoo.errors import Corrupt
from upt_zoo.json_text import format_json
from upt_zoo.manifest import MANIFEST_TYPE, Descriptor
from upt_zoo.spec import Digest

SIGNATURES = "vnd.upt.adapter.signatures"
MAX_SIGNATURES = 16  # a version; together with the sizes they bound what a remote can send
MAX_PAYLOAD_BYTES = 4096
_MAX_SIGNATURE_BYTES = 1024
_PAYLOAD_TYPE = "application/vnd.dev.cosign.simplesigning.v1+json"
_CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
_ANNOTATION = "dev.cosignproject.cosign/signature"
_KIND: Literal["cosign container image signature"] = "cosign container image signature"


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """A payload and its signature: ECDSA on P-256 with SHA-256, in DER."""

    payload: bytes
    signature: bytes

    @property
    def digest(self) -> str | None:
        """The digest of the manifest that is signed; None if the payload does not say it."""
        payload = _Payload.read(self.payload)
        return payload.critical.image.digest if payload else None

    @property
    def key_id(self) -> str | None:
        """The key that is said to have signed; only a check with that key proves it."""
        payload = _Payload.read(self.payload)
        key = (payload.optional or {}).get("key") if payload else None
        return key if isinstance(key, str) else None


def payload_of(name: str, digest: str, key_id: str) -> bytes:
    """Return what is signed for the adapter ``name`` whose manifest has that digest."""
    critical = {
        "identity": {"docker-reference": name},
        "image": {"docker-manifest-digest": digest},
        "type": _KIND,
    }
    return format_json({"critical": critical, "optional": {"key": key_id}})


def of_digest(signatures: Iterable[Signature], digest: str) -> tuple[Signature, ...]:
    """Return the signatures that are of a manifest, each once, the first ones if there are many."""
    distinct = dict.fromkeys(each for each in signatures if each.digest == digest)
    return tuple(distinct)[:MAX_SIGNATURES]


def parse_signatures(text: str | None) -> tuple[Signature, ...]:
    """Parse the annotation of an index entry; None is no signature.

    Raises:
        Corrupt: not a list of signatures.
    """
    try:
        return tuple(
            Signature(
                payload=each.payload.encode(), signature=b64decode(each.signature, validate=True)
            )
            for each in (_ANNOTATED.validate_json(text) if text is not None else ())
        )
    except ValueError as error:
        raise Corrupt(f"{SIGNATURES} in the index cannot be read: {_reason(error)}") from error


def format_signatures(signatures: Iterable[Signature]) -> str:
    """Serialise for the annotation of an index entry."""
    values = [
        {"payload": each.payload.decode(), "signature": b64encode(each.signature).decode()}
        for each in signatures
    ]
    return format_json(values).decode()


def tag_of(digest: str) -> str:
    """Return the tag under which a registry keeps the signatures of a manifest."""
    return f"{digest.replace(':', '-')}.sig"


@dataclass(frozen=True, slots=True, kw_only=True)
class SignatureArtifact:
    """The signatures of one manifest as a registry keeps them: a manifest and its blobs."""

    manifest: bytes
    blobs: tuple[tuple[Descriptor, bytes], ...]

    @classmethod
    def of(cls, signatures: Sequence[Signature]) -> Self:
        """Make the artifact: each payload is a layer, with its signature as an annotation."""
        layers = [
            Descriptor.of(_PAYLOAD_TYPE, each.payload).model_copy(
                update={"annotations": {_ANNOTATION: b64encode(each.signature).decode()}}
            )
            for each in signatures
        ]
        rootfs = {"diff_ids": [layer.digest for layer in layers], "type": "layers"}
        config = format_json({"architecture": "", "config": {}, "os": "", "rootfs": rootfs})
        described = Descriptor.of(_CONFIG_TYPE, config)
        manifest = _Manifest(config=described, layers=tuple(layers))
        payloads = (each.payload for each in signatures)
        values = manifest.model_dump(mode="json", by_alias=True, exclude_none=True)
        return cls(
            manifest=format_json(values),
            blobs=((described, config), *zip(layers, payloads, strict=True)),
        )


def read_artifact(manifest: bytes) -> tuple[tuple[Descriptor, bytes], ...]:
    """Return where the payloads are and their signatures; layers of other kinds are passed over.

    Raises:
        Corrupt: not a manifest of signatures, or one with too many or too large ones.
    """
    try:
        layers = _Manifest.model_validate_json(manifest).layers
        kept = [layer for layer in layers if layer.media_type == _PAYLOAD_TYPE]
        found = [
            (layer, b64decode((layer.annotations or {}).get(_ANNOTATION, ""), validate=True))
            for layer in kept
        ]
    except ValueError as error:
        raise Corrupt(f"not a manifest of signatures: {_reason(error)}") from error
    largest = max((layer.size for layer in kept), default=0)
    if len(kept) > MAX_SIGNATURES or largest > MAX_PAYLOAD_BYTES:
        raise Corrupt(
            f"expected at most {MAX_SIGNATURES} signatures with payloads of at most "
            f"{MAX_PAYLOAD_BYTES} bytes, got {len(kept)} with up to {largest}"
        )
    return tuple(found)


class _Lazy(BaseModel):
    model_config = ConfigDict(defer_build=True)  # a list of adapters reads no signature


class _Image(_Lazy):
    digest: Digest = Field(alias="docker-manifest-digest")


class _Critical(_Lazy):
    image: _Image
    type: Literal["cosign container image signature"]


class _Payload(_Lazy):
    critical: _Critical
    optional: dict[str, object] | None = None

    @classmethod
    def read(cls, data: bytes) -> Self | None:
        try:
            return cls.model_validate_json(data)
        except ValidationError:
            return None


class _Annotated(_Lazy):
    model_config = ConfigDict(extra="forbid", strict=True)

    payload: Annotated[str, Field(max_length=MAX_PAYLOAD_BYTES)]
    signature: Annotated[str, Field(max_length=_MAX_SIGNATURE_BYTES)]


class _Manifest(_Lazy):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)

    schema_version: Literal[2] = 2
    media_type: Literal["application/vnd.oci.image.manifest.v1+json"] = MANIFEST_TYPE
    config: Descriptor
    layers: tuple[Descriptor, ...]


_ANNOTATED = TypeAdapter(
    Annotated[tuple[_Annotated, ...], Field(max_length=MAX_SIGNATURES)],
    config=ConfigDict(defer_build=True),
)


def _reason(error: ValueError) -> str:
    """Say what pydantic or base64 found, without the whole input."""
    if isinstance(error, ValidationError):
        return error.errors(include_url=False, include_input=False)[0]["msg"]
    return str(error)
