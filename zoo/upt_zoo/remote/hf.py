"""Adapters on a Hugging Face Hub: ``hf://owner`` or ``hf://owner/repository``.

A repository holds the versions of one adapter, each a commit with the version as its git tag; any
other branch, tag or commit may be named too. ``upt/`` holds the adapter to the byte; what lies
beside it is made from that for people and other libraries, and never read here. Nothing is believed
before its digest is right, wherever it comes from: the Hub or the library's cache. A version can be
seen when it is tagged, which the Hub lets happen once. What HTTP needs is in
``upt_zoo.remote.hub``.
"""

from collections.abc import Iterator, Sequence

from upt_zoo.contents import check_blobs
from upt_zoo.errors import AdapterNotFound, Conflict, Corrupt, Unavailable
from upt_zoo.local.files import read_file
from upt_zoo.local.store import StoredAdapter
from upt_zoo.manifest import MAX_MANIFEST_BYTES, Descriptor, Manifest, digest_of
from upt_zoo.references import Reference, hub_repository, is_version, version_order
from upt_zoo.remote.hub import MAIN, Hub, Refs
from upt_zoo.remote.hub_files import (
    CHECKPOINT_FILES,
    FIRST_FILES,
    MANIFEST,
    MAX_SIGNATURES_BYTES,
    blob_file,
    signatures_file,
)
from upt_zoo.remote.source import Source
from upt_zoo.signatures import Signature, format_signatures, of_digest, parse_signatures


class HfRemote:
    """The adapters of one owner, or of one repository, on a Hub."""

    def __init__(self, remote: str, hub: Hub) -> None:
        self.remote = remote
        self._hub = hub
        self._commits: dict[str, str] = {}  # by name: where the manifest read last was found

    def versions(self, name: str) -> tuple[str, ...]:
        """Return an adapter's versions from highest to lowest.

        Raises:
            AdapterNotFound: no such repository.
            Corrupt: it is not a Hub that answers.
            InvalidInput: the Hub does not let us.
            Unavailable: no answer in time, or offline.
        """
        tags = self._hub.refs(self._repository(name)).tags
        return tuple(sorted(filter(is_version, tags), key=version_order, reverse=True))

    def read_manifest(self, reference: Reference) -> bytes:
        """Return the manifest of the version that is meant; see ``Source``."""
        for revision in self._revisions(reference):
            data = self._manifest(reference.name, revision)
            if reference.digest in (None, digest_of(data)):
                return data
            if reference.tag is not None:
                raise Corrupt(f"{reference}: expected that digest, got {digest_of(data)}")
        raise AdapterNotFound(f"no {reference} in {self.remote}")

    def read_blob(self, name: str, blob: Descriptor) -> bytes:
        """Return a blob; what the library's cache has damaged is loaded again. See ``Source``."""
        path, revision = blob_file(blob), self._commits.get(name, MAIN)
        for is_fresh in (False, True):
            data = self._read(name, path, revision, max_bytes=blob.size, is_fresh=is_fresh)
            if digest_of(data) == blob.digest:
                return data
        raise Corrupt(f"{self.remote}/{name}: {path}: expected {blob.digest}, got other bytes")

    def read_signatures(self, name: str, digest: str) -> tuple[Signature, ...]:
        """Return what says to be a signature of a manifest; see ``Source``.

        Signatures may come later than their version, so they are those of the main branch.
        """
        path = signatures_file(digest)
        try:
            data = self._read(name, path, MAIN, max_bytes=MAX_SIGNATURES_BYTES, is_fresh=True)
        except AdapterNotFound:
            return ()
        except Unavailable:
            if self._hub.is_offline:  # the cache has none
                return ()
            raise
        return of_digest(parse_signatures(_text(data, path)), digest)

    def copy_from(self, source: Source, reference: Reference) -> StoredAdapter:
        """Commit one version with its digest, its page and its checkpoint, and tag the commit.

        Raises:
            AdapterNotFound: the source does not have it.
            Conflict: the version exists there with other bytes, or the repository holds something
                else.
            Corrupt: the source's bytes are damaged; nothing was uploaded.
            InvalidInput: the Hub does not let us.
            Unavailable: no answer in time, offline, or somebody else was pushing.
        """
        data = source.read_manifest(reference)
        digest, manifest = digest_of(data), Manifest.from_json(data)
        blobs = [source.read_blob(manifest.name, blob) for blob in manifest.blobs]
        stored = StoredAdapter(digest=digest, manifest=manifest, spec=check_blobs(manifest, blobs))
        refs = self._refs_or_new(manifest.name)
        signed = self._new_signatures(stored, source)
        if manifest.version not in refs.tags:
            self._publish(stored, blobs, signed, refs)
            return stored
        self._check_same(stored)
        if signed:
            message = f"Sign {stored.reference}"
            repository = self._repository(stored.name)
            self._hub.commit(repository, message, added=signed, parent=refs.main)
        return stored

    def _publish(
        self, stored: StoredAdapter, blobs: Sequence[bytes], signed: dict[str, bytes], refs: Refs
    ) -> None:
        from upt_zoo.remote.hub_page import repository_files  # the exporters: only for a push

        repository = self._repository(stored.name)
        there = self._own_files(stored.name)
        added = signed | repository_files(
            stored, blobs, repository=repository, reference=f"{self.remote}/{stored.reference}"
        )
        commit = self._hub.commit(
            repository,
            f"Publish {stored.reference}",
            added=added,
            deleted=sorted((there & CHECKPOINT_FILES) - added.keys()),
            parent=refs.main,
        )
        if digest_of(self._read_manifest(stored.name, commit)) != stored.digest:
            # the library commits nothing where nothing changes, and names the newest commit
            raise Unavailable(f"{repository}: somebody else has changed it meanwhile; try again")
        if not self._hub.tag(repository, stored.version, commit):
            self._check_same(stored)

    def _own_files(self, name: str) -> frozenset[str]:
        """Return the files of the main branch, if they are of this adapter or a new repository.

        Raises:
            Conflict: they are something else.
        """
        repository = self._repository(name)
        there = self._hub.files(repository, MAIN)
        holds = "other files" if there - FIRST_FILES else name
        if MANIFEST in there:
            holds = Manifest.from_json(self._read_manifest(name, MAIN)).name
        if holds != name:
            raise Conflict(
                f"{repository} holds {holds}; {name} needs a repository of its own, such as "
                f"hf://{repository.partition('/')[0]}"
            )
        return there

    def _check_same(self, stored: StoredAdapter) -> None:
        try:
            there = digest_of(self._read_manifest(stored.name, stored.version))
        except AdapterNotFound:
            there = None
        if there != stored.digest:
            self._own_files(stored.name)  # if it is of another adapter, that is said
            raise Conflict(
                f"{stored.reference} exists in {self.remote} with the digest {there}, got "
                f"{stored.digest}; a version never changes, choose another one"
            )

    def _new_signatures(self, stored: StoredAdapter, source: Source) -> dict[str, bytes]:
        """Return the file of all signatures, if the Hub lacks some of them."""
        there = self.read_signatures(stored.name, stored.digest)
        ours = source.read_signatures(stored.name, stored.digest)
        merged = of_digest([*ours, *there], stored.digest)
        if set(merged) <= set(there):
            return {}
        return {signatures_file(stored.digest): format_signatures(merged).encode()}

    def _refs_or_new(self, name: str) -> Refs:
        repository = self._repository(name)
        try:
            return self._hub.refs(repository)
        except AdapterNotFound:
            self._hub.create(repository)
            return self._hub.refs(repository)

    def _revisions(self, reference: Reference) -> Iterator[str]:
        """Yield where the adapter may be: at its tag, or at the newest version, or at any."""
        if reference.tag is not None:
            yield reference.tag
        elif reference.digest is None:
            yield from self.versions(reference.name)[:1]
        else:
            yield from self.versions(reference.name)

    def _manifest(self, name: str, revision: str) -> bytes:
        """Read the manifest at a revision; it must be that of the name and the version."""
        data = self._read_manifest(name, revision)
        manifest = Manifest.from_json(data)
        if manifest.name != name:
            raise AdapterNotFound(
                f"no {name} in {self._repository(name)} on the Hub; it holds {manifest.name}"
            )
        if is_version(revision) and manifest.version != revision:
            raise Corrupt(
                f"{self.remote} says {name}:{revision}, its manifest {name}:{manifest.version}"
            )
        return data

    def _read_manifest(self, name: str, revision: str) -> bytes:
        return self._read(name, MANIFEST, revision, max_bytes=MAX_MANIFEST_BYTES, is_fresh=True)

    def _read(
        self, name: str, path: str, revision: str, *, max_bytes: int, is_fresh: bool
    ) -> bytes:
        file = self._hub.fetch(
            self._repository(name), path, revision, max_bytes=max_bytes, is_fresh=is_fresh
        )
        if path == MANIFEST:
            self._commits[name] = file.parents[path.count("/")].name
        return read_file(file, max_bytes)

    def _repository(self, name: str) -> str:
        return hub_repository(self.remote, name)


def _text(data: bytes, path: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise Corrupt(f"{path}: not UTF-8: {error}") from error
