"""Where adapters are kept on disk: an OCI image layout that several processes share.

    oci-layout       the layout's version
    index.json       which versions there are; replaced last, so it names whole adapters only
    blobs/sha256/    manifests, specs, tensors and cards, each named by its digest
    .lock            held by the one writer
    leases/          what long readers still need; see ``upt_zoo.local.leases``
    .partial/        parts of blobs from registries; see ``upt_zoo.remote.oci``

A version is immutable. Every file is written beside its place, synced and renamed; a killed writer
leaves a temporary file, which the next one removes. Readers take no lock and read the index anew
when it has changed, so a running server sees a new version at once. Every byte is compared with its
digest when it is read. The store knows no remotes (``upt_zoo.catalogue``), moves no aliases
(``upt_zoo.local.tags``) and deletes nothing (``upt_zoo.local.upkeep``).

Source: OCI image specification 1.1, image-layout.md.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from upt_zoo.errors import (
    AdapterNotFound,
    Conflict,
    Corrupt,
    InvalidInput,
    InvalidSpec,
)
from upt_zoo.layout import check_shapes
from upt_zoo.local.close_names import close_names
from upt_zoo.local.draft import Draft
from upt_zoo.local.edits import add_signatures, alias_entry, alias_of
from upt_zoo.local.files import (
    FileBatch,
    holds,
    locked,
    make_directory,
    read_file,
    replace_file,
    sync_directory,
)
from upt_zoo.local.leases import leased
from upt_zoo.local.listing import CREATED, YANKED, Listed, Listing, Summary, read_entry
from upt_zoo.manifest import (
    MANIFEST_TYPE,
    MAX_MANIFEST_BYTES,
    Descriptor,
    Index,
    Manifest,
    digest_of,
    entry_of,
)
from upt_zoo.references import Reference, version_order
from upt_zoo.remote.source import Source, TrustCheck, check_blobs
from upt_zoo.signatures import Signature
from upt_zoo.spec import AdapterSpec
from upt_zoo.tensors import Array, read_tensors

_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
MAX_INDEX_BYTES = 256 * 1024 * 1024  # half a million versions
_LOCK_TIMEOUT_S = 60.0


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

    def __init__(
        self,
        root: Path,
        *,
        is_read_only: bool = False,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.root = root
        self._is_read_only = is_read_only
        self._blobs = root / "blobs" / "sha256"
        self._clock = clock
        self._known: tuple[Stamp | None, Index, Listing] | None = None

    def now(self) -> str:
        """Return the time as the index notes it: RFC 3339, UTC, whole seconds."""
        return self._clock().astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

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
        draft = Draft(spec=spec, tensors=tensors, card=card, version=version)
        draft.check()
        blobs = draft.blobs()
        with self.writing():
            known = self.listing().versions.get(spec.task.name, {})
            return self._add(draft.manifest(blobs, known).to_json(), blobs)

    def publish_all(self, drafts: Iterable[Draft]) -> tuple[StoredAdapter, ...]:
        """Publish many at once: they become visible together, or none does.

        It writes the index once, where ``publish`` writes it for every version. The lock is held
        while ``drafts`` is drawn from.

        Raises:
            Conflict: a version exists with other bytes.
            Corrupt: the tensors of one are not those of its spec.
            InvalidInput: as ``publish``.
        """
        with self.writing():
            index, listing = self.read_index()
            known = {name: dict(versions) for name, versions in listing.versions.items()}
            entries: list[Descriptor] = []
            added: list[StoredAdapter] = []
            with FileBatch() as files:
                for draft in drafts:
                    stored, entry = self._stage(draft, known, files)
                    added.append(stored)
                    if entry is not None:
                        entries.append(entry)
            sync_directory(self._blobs)
            if entries:
                manifests = (*index.manifests, *entries)
                self.write_index(index.model_copy(update={"manifests": manifests}))
            return tuple(added)

    def copy_from(
        self, source: Source, reference: Reference, *, check: TrustCheck | None = None
    ) -> StoredAdapter:
        """Copy one version with its digest; what is here whole stays, what is damaged is mended.

        Its signatures come along; ``check`` looks at them before anything is copied.

        Raises:
            AdapterNotFound: the source does not have it.
            Conflict: the version exists here with other bytes.
            Corrupt: the source's bytes are damaged; nothing was copied.
            Unavailable: the source does not answer.
            Untrusted: ``check`` does not let it in.
        """
        data = source.read_manifest(reference)
        manifest = Manifest.from_json(data)
        signatures = source.read_signatures(manifest.name, digest_of(data))
        if check is not None:
            check(f"{manifest.name}:{manifest.version}", digest_of(data), signatures)
        blobs = [self._own_or_copied(source, manifest.name, blob) for blob in manifest.blobs]
        check_blobs(manifest, blobs)
        origin = None
        if isinstance(source, Store):  # a registry knows no times and no yanked versions
            origin = source.listing().versions.get(manifest.name, {}).get(manifest.version)
        with self.writing():
            return self._add(data, blobs, origin, signatures)

    def read_manifest(self, reference: Reference) -> bytes:
        """Return the bytes of the manifest that is meant; see ``Source``."""
        return self.read_bytes(self.resolve(reference).digest, MAX_MANIFEST_BYTES)

    def read_blob(self, name: str, blob: Descriptor) -> bytes:
        """Return the bytes of a blob; see ``Source``. All adapters share the blobs of a store."""
        return self._read_blob(blob)

    def read_signatures(self, name: str, digest: str) -> tuple[Signature, ...]:
        """Return the signatures of the version with that digest; see ``Source``."""
        known = self.listing().versions.get(name, {}).values()
        return tuple(
            signature
            for listed in known
            if listed.digest == digest
            for signature in listed.signatures
        )

    def resolve(self, reference: Reference, *, backbone: str | None = None) -> StoredAdapter:
        """Find the version that is meant: by tag, by digest, else the newest.

        With ``backbone``, a digest, a bare name means the newest version for that backbone; if
        there is none, the newest. The remote of the reference is not looked at: whoever chose this
        store has done so.

        Raises:
            AdapterNotFound: no such name, tag or digest.
            Corrupt: the tag has another digest than the one asked for, or the blobs are damaged.
        """
        listing = self.listing()
        listed = listing.select(reference)
        if listed is None:
            raise self._not_found(reference, listing)
        if reference.digest not in (None, listed.digest):
            raise Corrupt(f"{reference}: expected that digest, got {listed.digest}")
        stored = self._open_as(listed)
        if backbone is None or reference.tag is not None or reference.digest is not None:
            return stored
        known = listing.versions[reference.name]
        candidates = (
            self._open_as(known[version])
            for version in sorted(known, key=version_order, reverse=True)
            if known[version].yanked is None
        )
        fitting = (each for each in candidates if each.spec.backbone.digest == backbone)
        return next(fitting, stored)

    def list(self) -> tuple[Reference, ...]:
        """Return every version with its digest, by name, then from oldest to newest version."""
        return tuple(
            Reference(name=listed.name, tag=listed.version, digest=listed.digest)
            for listed in self.listing().all()
        )

    def versions(self, name: str) -> tuple[str, ...]:
        """Return an adapter's versions from lowest to highest; none if the name is unknown."""
        return tuple(sorted(self.listing().versions.get(name, {}), key=version_order))

    def listing(self) -> Listing:
        """Return what the index says; it opens no blob.

        Raises:
            Corrupt: the index cannot be read.
        """
        return self.read_index()[1]

    def summarise(self, listed: Listed) -> Summary:
        """Return what a list shows of a version; only an entry that does not say so costs a read.

        Raises:
            Corrupt: the manifest is missing or not as long as the index says, or cannot be read.
        """
        path, summary = f"{self._blobs}/{listed.digest.removeprefix('sha256:')}", listed.summary
        if summary is None:
            stored = self._open_as(listed)
            return Summary.of(stored.spec, stored.size_bytes)
        try:
            size = os.stat(path).st_size  # noqa: PTH116 - half the time of Path, ten thousand times
        except FileNotFoundError:
            size = None
        if size != listed.manifest_bytes:
            raise Corrupt(
                f"{path} is missing or not of {listed.manifest_bytes} bytes; pull or publish the "
                f"adapter again"
            )
        return summary

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

    def verify_listing(self, stored: StoredAdapter) -> None:
        """Compare what the index says of a version with its blobs.

        Raises:
            Corrupt: they differ; the message names how to rebuild the index.
        """
        listed = self.listing().versions[stored.name][stored.version]
        expected = Summary.of(stored.spec, stored.size_bytes)
        if listed.summary not in (None, expected):
            raise Corrupt(
                f"the index says other things of {stored.reference} than its blobs; "
                f"`upt-zoo reindex` rebuilds it"
            )

    def lease(self, stored: StoredAdapter) -> AbstractContextManager[None]:
        """Keep a version's blobs until the end of the ``with``, whoever removes and collects it.

        For readers that take long; ``load`` alone needs none.
        """
        return leased(self.root, [stored.digest, *(blob.digest for blob in stored.manifest.blobs)])

    def add_signatures(self, stored: StoredAdapter, signatures: Sequence[Signature]) -> None:
        """Note signatures of a version, which stays as it is.

        Raises:
            AdapterNotFound: the version has been removed.
            InvalidInput: the store is read-only.
            Unavailable: somebody else has been writing for a minute.
        """

        def change(index: Index, listing: Listing) -> Index:
            listed = listing.versions.get(stored.name, {}).get(stored.version)
            if listed is None or listed.digest != stored.digest:
                raise AdapterNotFound(f"{stored.reference} has been removed from {self.root}")
            return add_signatures(index, listed, signatures)

        self.edit(change)

    def edit(self, change: Callable[[Index, Listing], Index]) -> None:
        """Replace the index by what ``change`` makes of it, while nobody else writes.

        Raises:
            InvalidInput: the store is read-only.
            Unavailable: somebody else has been writing for a minute.
        """
        with self.writing():
            index, listing = self.read_index()
            changed = change(index, listing)
            if changed is not index:
                self.write_index(changed)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the lock of the only writer in a layout without leftovers.

        Raises:
            InvalidInput: the store is read-only.
            Unavailable: somebody else has been writing for a minute.
        """
        if self._is_read_only:
            raise InvalidInput(f"{self.root} is read-only; use a store of your own")
        make_directory(self._blobs)
        with locked(self.root / ".lock", timeout_s=_LOCK_TIMEOUT_S) as was_killed:
            if was_killed:
                self.remove_leftovers()
            if not (self.root / "oci-layout").is_file():
                replace_file(self.root / "oci-layout", _LAYOUT)
            yield

    def blob_path(self, digest: str) -> Path:
        """Return where a blob is, or would be."""
        return self._blobs / digest.removeprefix("sha256:")

    def read_index(self) -> tuple[Index, Listing]:
        """Parse the index, unless the file is the one that was parsed before.

        Raises:
            Corrupt: it cannot be read.
        """
        stamp = self.stamp()  # before reading: a file that comes in between is read again
        known = self._known
        if known is None or known[0] != stamp:
            index = self._parse_index()
            self._known = known = (stamp, index, Listing.of(index))
        return known[1:]

    def write_index(self, index: Index) -> None:
        """Replace the index; the caller holds the lock."""
        replace_file(self.root / "index.json", index.to_json())
        self._known = (self.stamp(), index, Listing.of(index))

    def _parse_index(self) -> Index:
        try:
            index = Index.from_json(read_file(self.root / "index.json", MAX_INDEX_BYTES))
        except FileNotFoundError:
            return Index()
        except Corrupt as error:
            raise Corrupt(
                f"{self.root / 'index.json'}: {error}; `upt-zoo reindex` rebuilds it"
            ) from error
        named = tuple(self._named(entry) for entry in index.manifests)
        return index.model_copy(update={"manifests": named})

    def _named(self, entry: Descriptor) -> Descriptor:
        """Complete the entry of an adapter that another tool has copied: some keep the digest only.

        What is not an adapter stays as it is.
        """
        if entry.artifact_type is not None or entry.media_type != MANIFEST_TYPE:
            return entry
        try:
            data = self.read_bytes(entry.digest, MAX_MANIFEST_BYTES)
            named, alias = entry_of(data, entry.annotations), alias_of(entry)
        except Corrupt:
            return entry
        return named if alias is None else alias_entry(read_entry(named), alias)

    def _open_as(self, listed: Listed) -> StoredAdapter:
        stored = self._open(listed.digest)
        if stored.reference != listed.reference:
            raise Corrupt(f"the index says {listed.reference}, its manifest {stored.reference}")
        return stored

    def _open(self, digest: str) -> StoredAdapter:
        manifest = Manifest.from_json(self.read_bytes(digest, MAX_MANIFEST_BYTES))
        try:
            spec = AdapterSpec.from_json(self._read_blob(manifest.config))
        except InvalidSpec as error:
            raise Corrupt(f"{manifest.name}:{manifest.version}: {error}") from error
        return StoredAdapter(digest=digest, manifest=manifest, spec=spec)

    def _read_blob(self, blob: Descriptor) -> bytes:
        return self.read_bytes(blob.digest, blob.size)

    def read_bytes(self, digest: str, max_bytes: int) -> bytes:
        """Read a blob of at most so many bytes.

        Raises:
            Corrupt: it is missing, longer, or its digest is another one.
        """
        path = self.blob_path(digest)
        try:
            data = read_file(path, max_bytes)
        except FileNotFoundError as error:
            raise Corrupt(f"{path} is missing; pull or publish the adapter again") from error
        if len(data) > max_bytes or digest_of(data) != digest:
            raise Corrupt(
                f"{path}: expected at most {max_bytes} bytes with the digest of its name, got "
                f"others; pull or publish the adapter again"
            )
        return data

    def _not_found(self, reference: Reference, listing: Listing) -> AdapterNotFound:
        if known := sorted(listing.versions.get(reference.name, ()), key=version_order):
            aliases = sorted(listing.aliases.get(reference.name, ()))
            tags = ", ".join([*known, *aliases])
            if reference.tag is None and reference.digest is None:
                return AdapterNotFound(f"every version of {reference} is yanked; name one: {tags}")
            return AdapterNotFound(f"no {reference} in {self.root}; it has {tags}")
        close = close_names(reference.name, listing.versions)
        hint = f"; did you mean {' or '.join(close)}?" if close else ";"
        return AdapterNotFound(
            f"no adapter {reference.name} in {self.root}{hint} `upt-zoo ls` lists what is here, "
            f"`upt-zoo ls --catalogue` what `upt-zoo pull NAME` can fetch"
        )

    def _own_or_copied(self, source: Source, name: str, blob: Descriptor) -> bytes:
        try:
            return self._read_blob(blob)
        except Corrupt:  # missing or damaged
            return source.read_blob(name, blob)

    def _add(
        self,
        manifest: bytes,
        blobs: Sequence[bytes],
        origin: Listed | None = None,
        signatures: Sequence[Signature] = (),
    ) -> StoredAdapter:
        """Write the blobs, then the manifest, then the index; the caller holds the lock.

        ``origin`` is what the store says of it where it comes from.
        """
        index, listing = self.read_index()
        changed = index
        added = Manifest.from_json(manifest)
        is_listed = self._is_listed(added, digest_of(manifest), listing.versions)
        for blob in (*blobs, manifest):
            self._put(blob)
        if is_listed:
            listed = listing.versions[added.name][added.version]
        else:
            changed = index.with_manifest(manifest, self._notes(blobs, origin))
            listed = read_entry(changed.manifests[-1])
        changed = add_signatures(changed, listed, signatures)
        if changed is not index:
            self.write_index(changed)
        return self._open(digest_of(manifest))

    def _stage(
        self, draft: Draft, known: dict[str, dict[str, Listed]], files: FileBatch
    ) -> tuple[StoredAdapter, Descriptor | None]:
        """Hand a draft's files over for writing; the entry is None if it is listed already.

        ``known`` gets the new version.
        """
        draft.check()
        blobs = draft.blobs()
        versions = known.setdefault(draft.spec.task.name, {})
        manifest = draft.manifest(blobs, versions)
        data = manifest.to_json()
        stored = StoredAdapter(digest=digest_of(data), manifest=manifest, spec=draft.spec)
        is_listed = self._is_listed(manifest, stored.digest, known)
        for blob in (*blobs, data):
            files.put(self.blob_path(digest_of(blob)), blob)
        if is_listed:
            return stored, None
        entry = entry_of(data, self._notes(blobs, None))
        versions[manifest.version] = read_entry(entry)
        return stored, entry

    def _is_listed(
        self, added: Manifest, digest: str, versions: Mapping[str, Mapping[str, Listed]]
    ) -> bool:
        present = versions.get(added.name, {}).get(added.version)
        if present is not None and present.digest != digest:
            raise Conflict(
                f"{added.name}:{added.version} exists in {self.root} with the digest "
                f"{present.digest}, got {digest}; a version never changes, choose another one"
            )
        return present is not None

    def _notes(self, blobs: Sequence[bytes], origin: Listed | None) -> dict[str, str]:
        """Say in annotations what a list shows, when it was published, and whether it is yanked."""
        summary = Summary.of(AdapterSpec.from_json(blobs[0]), sum(map(len, blobs)))
        created = (origin.created if origin else None) or self.now()
        yanked = {YANKED: origin.yanked} if origin and origin.yanked else {}
        return summary.to_annotations() | {CREATED: created} | yanked

    def _put(self, data: bytes) -> None:
        path = self.blob_path(digest_of(data))
        if not holds(path, data):
            replace_file(path, data)

    def leftovers(self) -> Iterator[Path]:
        """Yield the temporary files of writers; without the lock, of one at work too."""
        for directory in (self.root, self._blobs):
            yield from directory.glob(".*.tmp")

    def remove_leftovers(self) -> None:
        """Remove what killed writers left behind; the caller holds the lock."""
        for leftover in list(self.leftovers()):
            leftover.unlink()
