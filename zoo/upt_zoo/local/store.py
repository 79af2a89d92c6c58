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

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from upt_zoo.contents import check_blobs, read_spec
from upt_zoo.errors import AdapterNotFound, Conflict, Corrupt, InvalidInput
from upt_zoo.layout import check_shapes
from upt_zoo.local.blobs import Blobs
from upt_zoo.local.draft import Draft
from upt_zoo.local.edits import add_signatures
from upt_zoo.local.files import FileBatch, locked, make_directory, sync_directory
from upt_zoo.local.hints import not_found
from upt_zoo.local.index_file import IndexFile, Stamp
from upt_zoo.local.leases import leased
from upt_zoo.local.listing import (
    CREATED,
    YANKED,
    Listed,
    Listing,
    Summary,
    check_listed,
    check_notes,
    read_entry,
)
from upt_zoo.manifest import (
    MAX_MANIFEST_BYTES,
    Descriptor,
    Index,
    Manifest,
    digest_of,
    entry_of,
)
from upt_zoo.references import Reference, version_order
from upt_zoo.remote.source import Source, TrustCheck
from upt_zoo.signatures import Signature
from upt_zoo.spec import AdapterSpec
from upt_zoo.tensors import Array, read_tensors

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


class Store:
    """Adapters in an OCI image layout; a directory that does not exist is an empty store.

    Any number of instances, in any process and thread, may use one root: an instance remembers the
    index only as long as its file is the same one. ``blobs`` and ``index`` are its two halves, for
    the modules beside this one.
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
        self.blobs = Blobs(root / "blobs" / "sha256")
        self.index = IndexFile(root, self.blobs)
        self._clock = clock

    def now(self) -> str:
        """Return the time as the index notes it: RFC 3339, UTC, whole seconds."""
        return self._clock().astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    def stamp(self) -> Stamp | None:
        """Tell one index from the next: each is a file of its own; None while there is none."""
        return self.index.stamp()

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
            InvalidSpec: the method exists for comparison only, or the lineage counts other
                parameters than the tensors have.
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
            sync_directory(self.blobs.directory)
            if entries:
                manifests = (*index.manifests, *entries)
                self.index.write(index.model_copy(update={"manifests": manifests}))
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
        return self.blobs.read(self.resolve(reference).digest, MAX_MANIFEST_BYTES)

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
            raise not_found(reference, listing, self.root)
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
        summary = listed.summary
        if summary is None:
            stored = self._open_as(listed)
            return Summary.of(stored.spec, stored.size_bytes)
        if self.blobs.size(listed.digest) != listed.manifest_bytes:
            raise Corrupt(
                f"the blob {listed.digest} is missing or not of {listed.manifest_bytes} bytes; "
                f"pull or publish the adapter again, or `upt-zoo reindex` where the index is wrong",
                f"(in {self.blobs.directory})",
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
        manifest = self._open(stored.digest).manifest
        check_blobs(manifest, [self._read_blob(blob) for blob in manifest.blobs])

    def verify_listing(self, stored: StoredAdapter) -> None:
        """Compare what the index says of a version with its blobs, and with itself.

        Raises:
            Corrupt: they differ, or its aliases, signatures or history are damaged; the message
                names how to mend them.
        """
        index, listing = self.read_index()
        listed = listing.versions[stored.name][stored.version]
        summary = Summary.of(stored.spec, stored.size_bytes)
        check_listed(listed, summary, self.blobs.size(stored.digest))
        listing.check_aliases(listed)
        check_notes(index, listed)

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
                self.index.write(changed)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the lock of the only writer in a layout without leftovers.

        Raises:
            InvalidInput: the store is read-only.
            Unavailable: somebody else has been writing for a minute.
        """
        if self._is_read_only:
            raise InvalidInput(f"{self.root} is read-only; use a store of your own")
        make_directory(self.blobs.directory)
        with locked(self.root / ".lock", timeout_s=_LOCK_TIMEOUT_S) as was_killed:
            if was_killed:
                self.remove_leftovers()
            self.index.begin()
            yield

    def blob_path(self, digest: str) -> Path:
        """Return where a blob is, or would be."""
        return self.blobs.path(digest)

    def read_index(self) -> tuple[Index, Listing]:
        """Parse the index, unless the file is the one that was parsed before.

        Raises:
            Corrupt: it cannot be read, or there are blobs and no index.
        """
        return self.index.read()

    def _open_as(self, listed: Listed) -> StoredAdapter:
        stored = self._open(listed.digest)
        if stored.reference != listed.reference:
            raise Corrupt(f"the index says {listed.reference}, its manifest {stored.reference}")
        return stored

    def _open(self, digest: str) -> StoredAdapter:
        manifest = Manifest.from_json(self.blobs.read(digest, MAX_MANIFEST_BYTES))
        spec = read_spec(manifest, self._read_blob(manifest.config))
        return StoredAdapter(digest=digest, manifest=manifest, spec=spec)

    def _read_blob(self, blob: Descriptor) -> bytes:
        return self.blobs.read(blob.digest, blob.size)

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
            self.blobs.put(blob)
        if is_listed:
            listed = listing.versions[added.name][added.version]
        else:
            changed = index.with_manifest(manifest, self._notes(blobs, origin))
            listed = read_entry(changed.manifests[-1])
        changed = add_signatures(changed, listed, signatures)
        if changed is not index:
            self.index.write(changed)
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

    def leftovers(self) -> Iterator[Path]:
        """Yield the temporary files of writers; without the lock, of one at work too."""
        for directory in (self.root, self.blobs.directory):
            yield from directory.glob(".*.tmp")

    def remove_leftovers(self) -> None:
        """Remove what killed writers left behind; the caller holds the lock."""
        for leftover in list(self.leftovers()):
            leftover.unlink()
