"""What adapters can be copied from: the seam between stores and registries.

What is copied are the manifest's bytes and the blobs, unchanged, so a digest is the same
everywhere. Nothing here knows files or networks.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from upt_zoo.manifest import Descriptor
from upt_zoo.references import Reference
from upt_zoo.signatures import Signature

if TYPE_CHECKING:
    from upt_zoo.local.store import StoredAdapter


# name and version, digest, signatures; it raises Untrusted
TrustCheck = Callable[[str, str, Sequence[Signature]], None]


class Source(Protocol):
    """What an adapter can be read from, byte by byte; a store and a registry are sources."""

    def read_manifest(self, reference: Reference) -> bytes:
        """Return the manifest of the version that is meant.

        Raises:
            AdapterNotFound: no such name, tag or digest.
            Corrupt: not the manifest of that adapter, or not of the digest asked for.
            Unavailable: no answer in time.
        """
        ...

    def read_blob(self, name: str, blob: Descriptor) -> bytes:
        """Return a blob of the adapter ``name``; its digest and size are those of ``blob``.

        Raises:
            Corrupt: missing, or other bytes.
            Unavailable: no answer in time.
        """
        ...

    def read_signatures(self, name: str, digest: str) -> tuple[Signature, ...]:
        """Return what says to be a signature of the adapter ``name`` with that digest.

        Raises:
            Corrupt: it cannot be read.
            Unavailable: no answer in time.
        """
        ...


class Remote(Source, Protocol):
    """A source that can be copied to as well."""

    def copy_from(self, source: Source, reference: Reference) -> "StoredAdapter":
        """Copy one version with its digest; nothing can be seen of it until it is whole.

        Raises:
            AdapterNotFound: the source does not have it.
            Conflict: the version exists here with other bytes.
            Corrupt: the source's bytes are damaged; nothing was copied.
            Unavailable: no answer in time.
        """
        ...
