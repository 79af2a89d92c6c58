"""Where adapters are kept on disk: an OCI image layout that several processes share.

    oci-layout       the layout's version
    index.json       which versions there are; replaced last, so it names whole adapters only
    blobs/sha256/    manifests, specs, tensors and cards, each named by its digest
    .lock            held by the one writer

A version is immutable. Every file is written beside its place, synced and renamed; a killed writer
leaves a temporary file, which the next one removes. Readers take no lock and read the index anew on
each call, so a running server sees a new version at once. Every byte is compared with its digest
when it is read. The store knows no remotes; see ``upt_zoo.catalogue``.

Source: OCI image specification 1.1, image-layout.md.
"""

import difflib
import fcntl
import os
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from upt_zoo.errors import (
    AdapterNotFound,
    Conflict,
    Corrupt,
    InvalidInput,
    InvalidReference,
    InvalidSpec,
    Unavailable,
)
from upt_zoo.layout import check_shapes
from upt_zoo.manifest import MAX_MANIFEST_BYTES, Descriptor, Index, Manifest, digest_of
from upt_zoo.references import Reference, is_version, newest, next_patch, version_order
from upt_zoo.spec import AdapterSpec
from upt_zoo.tensors import Array, read_tensors, write_tensors

_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
_MAX_INDEX_BYTES = 256 * 1024 * 1024  # half a million versions
_LOCK_TIMEOUT_S = 60.0
_LOCK_POLL_S = 0.02
_COMPARISON_ONLY = {
    "full": "it changes the backbone, which all adapters share",
    "bitfit": "it changes the backbone's own biases",
    "ia3_prefix_bottleneck": "the engine has no IA3",
    "stacked_unipelt": "the engine has no stacked blocks",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredAdapter:
    """One version of an adapter in a store; ``digest`` is the manifest's and covers every byte."""

    digest: str
    manifest: Manifest
    spec: AdapterSpec

    @property
    def name(self) -> str:
        """The adapter's name."""
        return self.manifest.name

    @property
    def version(self) -> str:
        """The adapter's version, MAJOR.MINOR.PATCH."""
        return self.manifest.version

    @property
    def reference(self) -> str:
        """``name:version``."""
        return f"{self.name}:{self.version}"

    @property
    def size_bytes(self) -> int:
        """Size of spec, tensors and card together."""
        return sum(blob.size for blob in self.manifest.blobs)


Stamp = tuple[int, int, int]  # time of change, size, inode


class Store:
    """Adapters in an OCI image layout; a directory that does not exist is an empty store.

    Any number of instances, in any process and thread, may use one root: an instance remembers the
    index only as long as its file is the same one.
    """

    def __init__(self, root: Path, *, is_read_only: bool = False) -> None:
        self.root = root
        self._is_read_only = is_read_only
        self._blobs = root / "blobs" / "sha256"
        self._known: tuple[Stamp | None, Index, dict[str, dict[str, str]]] | None = None

    def stamp(self) -> Stamp | None:
        """Tell one index from the next: each is a file of its own; None while there is none."""
        try:
            status = (self.root / "index.json").stat()
        except FileNotFoundError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino

    def publish(
        self,
        spec: AdapterSpec,
        tensors: Mapping[str, Array],
        card: str,
        *,
        version: str | None = None,
    ) -> StoredAdapter:
        """Add a version under the task's name; None means the patch after the newest version.

        Publishing the same bytes as the same version again changes nothing.

        Raises:
            Conflict: the version exists with other bytes.
            Corrupt: the tensors are not those of the spec.
            InvalidInput: a tensor's type cannot be stored, or the store is read-only.
            InvalidReference: the version is not MAJOR.MINOR.PATCH.
            InvalidSpec: the method exists for comparison only.
        """
        _refuse_comparisons(spec)
        if version is not None and not is_version(version):
            raise InvalidReference(f"expected a version MAJOR.MINOR.PATCH, got {version!r}")
        check_shapes(spec, {name: tensor.shape for name, tensor in tensors.items()})
        name = spec.task.name
        blobs = (spec.to_json(), write_tensors(tensors), card.encode())
        with self._writing():
            manifest = Manifest.of(
                name,
                version or next_patch(newest(self.versions(name))),
                spec=blobs[0],
                tensors=blobs[1],
                card=blobs[2],
            )
            return self._add(manifest.to_json(), blobs)

    def copy_from(self, other: "Store", reference: Reference) -> StoredAdapter:
        """Copy one version with its digest; what is here whole stays, what is damaged is mended.

        Raises:
            AdapterNotFound: the other store does not have it.
            Conflict: the version exists here with other bytes.
            Corrupt: the other store's bytes are damaged; nothing was copied.
        """
        stored = other.resolve(reference)
        other.verify(stored)
        manifest = other._read(stored.digest, MAX_MANIFEST_BYTES)
        with self._writing():
            return self._add(manifest, (other._read_blob(blob) for blob in stored.manifest.blobs))

    def resolve(self, reference: Reference, *, backbone: str | None = None) -> StoredAdapter:
        """Find the version that is meant: by tag, by digest, else the newest.

        With ``backbone``, a digest, a bare name means the newest version for that backbone; if
        there is none, the newest. The remote of the reference is not looked at: whoever chose this
        store has done so.

        Raises:
            AdapterNotFound: no such name, tag or digest.
            Corrupt: the tag has another digest than the one asked for, or the blobs are damaged.
        """
        digests = self._digests().get(reference.name, {})
        version = _select_version(reference, digests)
        if version is None:
            raise self._not_found(reference, digests)
        if reference.digest not in (None, digests[version]):
            raise Corrupt(f"{reference}: expected that digest, got {digests[version]}")
        stored = self._open_as(reference.name, version, digests[version])
        if backbone is None or reference.tag is not None or reference.digest is not None:
            return stored
        candidates = (
            self._open_as(reference.name, older, digests[older])
            for older in sorted(digests, key=version_order, reverse=True)
        )
        fitting = (each for each in candidates if each.spec.backbone.digest == backbone)
        return next(fitting, stored)

    def list(self) -> tuple[Reference, ...]:
        """Return every version with its digest, by name, then from oldest to newest version."""
        digests = self._digests()
        return tuple(
            Reference(name=name, tag=version, digest=digests[name][version])
            for name in sorted(digests)
            for version in sorted(digests[name], key=version_order)
        )

    def versions(self, name: str) -> tuple[str, ...]:
        """Return an adapter's versions from lowest to highest; none if the name is unknown."""
        return tuple(sorted(self._digests().get(name, {}), key=version_order))

    def load(self, stored: StoredAdapter) -> tuple[AdapterSpec, dict[str, Array]]:
        """Read the spec and the tensors; the arrays are the caller's own.

        Raises:
            Corrupt: bytes do not match their digest, their format or the spec.
        """
        tensors = read_tensors(self._read_blob(stored.manifest.tensors))
        check_shapes(stored.spec, {name: tensor.shape for name, tensor in tensors.items()})
        return stored.spec, tensors

    def card(self, stored: StoredAdapter) -> str:
        """Read the card, Markdown.

        Raises:
            Corrupt: the bytes do not match their digest or are not UTF-8.
        """
        data = self._read_blob(stored.manifest.card)
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise Corrupt(f"the card of {stored.reference} is not UTF-8: {error}") from error

    def verify(self, stored: StoredAdapter) -> None:
        """Compute every digest again and check manifest, spec, tensors and card.

        Raises:
            Corrupt: something does not match; the message names it.
        """
        fresh = self._open(stored.digest)
        self.load(fresh)
        self.card(fresh)

    def _digests(self) -> Mapping[str, Mapping[str, str]]:
        """Map each name to its versions and their digests."""
        return self._read_index()[1]

    def _read_index(self) -> tuple[Index, dict[str, dict[str, str]]]:
        """Parse the index, unless the file is the one that was parsed before."""
        stamp = self.stamp()  # before reading: a file that comes in between is read again
        known = self._known
        if known is None or known[0] != stamp:
            index = self._parse_index()
            digests: dict[str, dict[str, str]] = {}
            for (name, version), digest in index.adapters().items():
                digests.setdefault(name, {})[version] = digest
            self._known = known = (stamp, index, digests)
        return known[1:]

    def _parse_index(self) -> Index:
        try:
            return Index.from_json(_read_file(self.root / "index.json", _MAX_INDEX_BYTES))
        except FileNotFoundError:
            return Index()
        except Corrupt as error:
            raise Corrupt(f"{self.root / 'index.json'}: {error}") from error

    def _open_as(self, name: str, version: str, digest: str) -> StoredAdapter:
        stored = self._open(digest)
        if (stored.name, stored.version) != (name, version):
            raise Corrupt(f"the index says {name}:{version}, its manifest {stored.reference}")
        return stored

    def _open(self, digest: str) -> StoredAdapter:
        manifest = Manifest.from_json(self._read(digest, MAX_MANIFEST_BYTES))
        try:
            spec = AdapterSpec.from_json(self._read_blob(manifest.config))
        except InvalidSpec as error:
            raise Corrupt(f"{manifest.name}:{manifest.version}: {error}") from error
        return StoredAdapter(digest=digest, manifest=manifest, spec=spec)

    def _blob(self, digest: str) -> Path:
        return self._blobs / digest.removeprefix("sha256:")

    def _read_blob(self, blob: Descriptor) -> bytes:
        return self._read(blob.digest, blob.size)

    def _read(self, digest: str, max_bytes: int) -> bytes:
        path = self._blob(digest)
        try:
            data = _read_file(path, max_bytes)
        except FileNotFoundError as error:
            raise Corrupt(f"{path} is missing; pull or publish the adapter again") from error
        if len(data) > max_bytes or digest_of(data) != digest:
            raise Corrupt(
                f"{path}: expected at most {max_bytes} bytes with the digest of its name, got "
                f"others; pull or publish the adapter again"
            )
        return data

    def _not_found(self, reference: Reference, versions: Iterable[str]) -> AdapterNotFound:
        if versions := sorted(versions, key=version_order):
            return AdapterNotFound(f"no {reference} in {self.root}; it has {', '.join(versions)}")
        close = difflib.get_close_matches(reference.name, self._digests())
        hint = f"; did you mean {' or '.join(close)}?" if close else ";"
        return AdapterNotFound(
            f"no adapter {reference.name} in {self.root}{hint} `upt-zoo ls` lists what is here, "
            f"`upt-zoo ls --catalogue` what `upt-zoo pull NAME` can fetch"
        )

    def _add(self, manifest: bytes, blobs: Iterable[bytes]) -> StoredAdapter:
        """Write the blobs, then the manifest, then the index; the caller holds the lock."""
        index, digests = self._read_index()
        added, digest = Manifest.from_json(manifest), digest_of(manifest)
        present = digests.get(added.name, {}).get(added.version)
        if present not in (None, digest):
            raise Conflict(
                f"{added.name}:{added.version} exists in {self.root} with the digest {present}, "
                f"got {digest}; a version never changes, choose another one"
            )
        for blob in blobs:
            self._put(blob)
        self._put(manifest)
        if present is None:
            _replace(self.root / "index.json", index.with_manifest(manifest).to_json())
        return self._open(digest)

    def _put(self, data: bytes) -> None:
        path = self._blob(digest_of(data))
        is_there = path.is_file() and path.stat().st_size == len(data)
        if not (is_there and path.read_bytes() == data):
            _replace(path, data)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Hold the lock of the only writer in a layout without leftovers."""
        if self._is_read_only:
            raise InvalidInput(f"{self.root} is read-only; use a store of your own")
        self._blobs.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("ab") as lock:  # closing the file releases the lock
            _acquire(lock.fileno(), self.root)
            for directory in (self.root, self._blobs):
                for leftover in directory.glob(".*.tmp"):
                    leftover.unlink()
            if not (self.root / "oci-layout").is_file():
                _replace(self.root / "oci-layout", _LAYOUT)
            yield


def _refuse_comparisons(spec: AdapterSpec) -> None:
    reason = _COMPARISON_ONLY.get(spec.method)
    if reason is not None:
        raise InvalidSpec(
            f"method {spec.method} is trained for comparison only and cannot be served: {reason}"
        )


def _select_version(reference: Reference, digests: Mapping[str, str]) -> str | None:
    """Return the version among ``digests`` (version to digest) that the reference means."""
    if reference.tag is not None:
        return reference.tag if reference.tag in digests else None
    if reference.digest is not None:
        return newest(v for v, digest in digests.items() if digest == reference.digest)
    return newest(digests)


def _acquire(lock: int, root: Path) -> None:
    deadline = time.monotonic() + _LOCK_TIMEOUT_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"another process has been writing to {root} for {_LOCK_TIMEOUT_S:.0f} s"
                ) from None
            time.sleep(_LOCK_POLL_S)
        else:
            return


def _read_file(path: Path, max_bytes: int) -> bytes:
    """Read at most one byte more than ``max_bytes`` of a regular file, whatever it says it is.

    The directory may be somebody else's: a pipe would hang and a device would never end.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Corrupt(f"{path}: expected a regular file")
    with os.fdopen(descriptor, "rb") as file:
        return file.read(max_bytes + 1)


def _replace(path: Path, data: bytes) -> None:
    """Put a whole file in its place, durably: a reader sees the old bytes or the new ones."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
