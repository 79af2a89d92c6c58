"""Adapters in an OCI registry: ``oci://host[:port][/prefix]``.

The adapter ``name`` is the repository ``prefix/name``, a version is its tag. Manifest and blobs are
those of the store, to the byte; signatures are where cosign puts them. A blob is loaded into a file
that a later try goes on with; nothing is believed before its digest is right. Blobs and signatures
are uploaded first and the manifest last, so a killed push leaves nothing that can be seen. What
HTTP needs is in ``upt_zoo.remote.connection``.

Source: OCI distribution specification 1.1.
"""

import fcntl
import functools
import os
import re
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from pydantic import BaseModel, ValidationError

from upt_zoo.contents import check_blobs
from upt_zoo.errors import AdapterNotFound, Conflict, Corrupt, Unavailable
from upt_zoo.local.store import StoredAdapter
from upt_zoo.manifest import (
    MANIFEST_TYPE,
    MAX_MANIFEST_BYTES,
    Descriptor,
    Manifest,
    digest_of,
)
from upt_zoo.progress import Pieces, Report, silent
from upt_zoo.references import Reference, is_version, newest, repository_prefix
from upt_zoo.remote.connection import Connection, Reply
from upt_zoo.remote.source import Source
from upt_zoo.signatures import Signature, SignatureArtifact, of_digest, read_artifact, tag_of

_MAX_TAG_PAGES = 1000
_MAX_PART_AGE_S = 7 * 86400.0  # nobody comes back for it
_TAGS_A_PAGE = 100
_NEXT_PAGE = re.compile(r'<([^>]*)>\s*;\s*rel="?next"?')


class OciRemote:
    """The adapters below one prefix of a registry; ``connection`` is to its host.

    ``partial`` is where parts of blobs are kept for a later try; None keeps none. ``report`` is
    told how far blobs have come.
    """

    def __init__(
        self,
        remote: str,
        connection: Connection,
        *,
        partial: Path | None = None,
        report: Report = silent,
    ) -> None:
        self.remote = remote
        self._prefix = repository_prefix(remote)
        self._connection = connection
        self._partial = partial
        self._report = report

    def versions(self, name: str) -> tuple[str, ...]:
        """Return an adapter's versions in the registry's order; none if the name is unknown.

        Raises:
            Corrupt: the answer is not a list of tags, or never ends.
            InvalidInput: the registry does not let us.
            Unavailable: no answer in time.
        """
        path, tags = f"/v2/{self._repository(name)}/tags/list?n={_TAGS_A_PAGE}", []
        for _ in range(_MAX_TAG_PAGES):
            reply = self._connection.request(
                "GET", path, expected=(200, 404), max_bytes=MAX_MANIFEST_BYTES
            )
            if reply.status == 404:
                return ()
            tags += _tags(reply, self.remote)
            following = _NEXT_PAGE.search(reply.headers.get("link", ""))
            if following is None:
                return tuple(tag for tag in tags if is_version(tag))
            path = following[1]
        raise Corrupt(f"{self.remote}/{name}: more than {_MAX_TAG_PAGES} pages of tags")

    def read_manifest(self, reference: Reference) -> bytes:
        """Return the manifest of the version that is meant; see ``Source``."""
        target = reference.tag or reference.digest or newest(self.versions(reference.name))
        data = self._manifest(reference.name, target) if target else None
        if data is None:
            raise AdapterNotFound(f"no {reference} in {self.remote}")
        digest, manifest = digest_of(data), Manifest.from_json(data)
        if reference.digest not in (None, digest):
            raise Corrupt(f"{reference}: expected that digest, got {digest}")
        is_other_version = is_version(target or "") and manifest.version != target
        if manifest.name != reference.name or is_other_version:
            raise Corrupt(
                f"{self.remote} says {reference.name}:{target}, its manifest "
                f"{manifest.name}:{manifest.version}"
            )
        return data

    def read_blob(self, name: str, blob: Descriptor) -> bytes:
        """Return a blob, going on where an earlier try ended; see ``Source``."""
        return self._read_blob(name, blob, self._partial)

    def _read_blob(self, name: str, blob: Descriptor, partial: Path | None) -> bytes:
        with _partial_file(partial, blob.digest) as file:
            is_continued = file.seek(0, os.SEEK_END) > 0
            data = self._download(name, blob, file)
            if digest_of(data) != blob.digest and is_continued:
                file.truncate(0)  # the part may have been damaged on this side
                data = self._download(name, blob, file)
        if digest_of(data) != blob.digest:
            raise Corrupt(f"{self.remote}/{name}: expected {blob.digest}, got {digest_of(data)}")
        return data

    def read_signatures(self, name: str, digest: str) -> tuple[Signature, ...]:
        """Return what says to be a signature of a manifest; see ``Source``."""
        manifest = self._manifest(name, tag_of(digest))
        if manifest is None:
            return ()
        return tuple(
            Signature(payload=self._read_blob(name, payload, None), signature=signature)
            for payload, signature in read_artifact(manifest)
        )

    def copy_from(self, source: Source, reference: Reference) -> StoredAdapter:
        """Upload one version with its digest; what the registry has already stays.

        Two who push the same version at the same moment may both succeed: registries cannot be
        asked to refuse an existing tag. The later one counts; digests tell them apart.

        Raises:
            AdapterNotFound: the source does not have it.
            Conflict: the version exists there with other bytes.
            Corrupt: the source's bytes are damaged; nothing was uploaded.
            InvalidInput: the registry does not let us.
            Unavailable: no answer in time.
        """
        data = source.read_manifest(reference)
        digest, manifest = digest_of(data), Manifest.from_json(data)
        name, version = manifest.name, manifest.version
        blobs = [source.read_blob(name, blob) for blob in manifest.blobs]
        stored = StoredAdapter(digest=digest, manifest=manifest, spec=check_blobs(manifest, blobs))
        is_there = self._has(name, version, digest)
        self._add_signatures(name, digest, source.read_signatures(name, digest))
        if not is_there:
            self._put(name, version, data, zip(manifest.blobs, blobs, strict=True))
            self._has(name, version, digest)
        return stored

    def _add_signatures(self, name: str, digest: str, signatures: Sequence[Signature]) -> None:
        """Put signatures beside those of the registry; of two who do so at once one counts."""
        if signatures:
            there = self.read_signatures(name, digest)
            merged = of_digest([*signatures, *there], digest)
            if not {*merged} <= {*there}:
                made = SignatureArtifact.of(merged)
                self._put(name, tag_of(digest), made.manifest, made.blobs)

    def _put(
        self, name: str, tag: str, manifest: bytes, blobs: Iterable[tuple[Descriptor, bytes]]
    ) -> None:
        """Upload blobs and then the manifest that needs them."""
        for blob, content in blobs:
            self._connection.retry(functools.partial(self._upload, name, blob, content))
        path = f"/v2/{self._repository(name)}/manifests/{tag}"
        headers = {"Content-Type": MANIFEST_TYPE}
        self._connection.request("PUT", path, expected=(201,), headers=headers, content=manifest)

    def _repository(self, name: str) -> str:
        return f"{self._prefix}/{name}".lstrip("/")

    def _has(self, name: str, version: str, digest: str) -> bool:
        there = self._manifest(name, version)
        if there is not None and digest_of(there) != digest:
            raise Conflict(
                f"{name}:{version} exists in {self.remote} with the digest {digest_of(there)}, "
                f"got {digest}; a version never changes, choose another one"
            )
        return there is not None

    def _manifest(self, name: str, target: str) -> bytes | None:
        """Get what a tag or a digest points to; None if nothing."""
        reply = self._connection.request(
            "GET",
            f"/v2/{self._repository(name)}/manifests/{target}",
            expected=(200, 404),
            headers={"Accept": MANIFEST_TYPE},
            max_bytes=MAX_MANIFEST_BYTES,
        )
        if reply.status == 404:
            return None
        if reply.media_type != MANIFEST_TYPE:
            raise Corrupt(
                f"{self.remote}/{name}:{target}: expected {MANIFEST_TYPE}, got "
                f"{reply.media_type or 'no media type'}"
            )
        announced = reply.headers.get("docker-content-digest", "")
        if announced.startswith("sha256:") and announced != digest_of(reply.body):
            raise Corrupt(f"{self.remote}/{name}:{target}: expected {announced}, got other bytes")
        return reply.body

    def _download(self, name: str, blob: Descriptor, file: BinaryIO) -> bytes:
        self._connection.retry(lambda: self._download_rest(name, blob, file))
        file.seek(0)
        return file.read()

    def _download_rest(self, name: str, blob: Descriptor, file: BinaryIO) -> None:
        """Load what the file lacks, once; what has come stays in it when the connection breaks."""
        start = file.seek(0, os.SEEK_END)
        if start == blob.size:
            return
        if start > blob.size:
            start = file.truncate(0)
        headers = {"Range": f"bytes={start}-"} if start else {}
        path = f"/v2/{self._repository(name)}/blobs/{blob.digest}"
        with self._connection.open(
            "GET", path, expected=(200, 206, 404, 416), headers=headers
        ) as response:
            if response.status_code == 404:
                raise Corrupt(f"{self.remote}/{name}: the blob {blob.digest} is missing")
            if response.status_code == 200:
                start = file.truncate(0)
            elif not response.headers.get("content-range", "").startswith(f"bytes {start}-"):
                file.truncate(0)
                raise Unavailable(f"{self.remote} cannot go on with {blob.digest}", retry_after_s=0)
            for piece in self._connection.read(response, blob.size - start):
                start += file.write(piece)
                self._report(_label(name, blob), start, blob.size)
        if file.seek(0, os.SEEK_END) < blob.size:
            size = file.seek(0, os.SEEK_END)
            file.truncate(0)
            raise Corrupt(f"{self.remote}/{name}: {blob.digest} has {size} of {blob.size} bytes")

    def _upload(self, name: str, blob: Descriptor, content: bytes) -> None:
        repository = f"/v2/{self._repository(name)}"
        there = self._connection.request(
            "HEAD", f"{repository}/blobs/{blob.digest}", expected=(200, 404)
        )
        if there.status == 200:
            return
        begun = self._connection.request(
            "POST", f"{repository}/blobs/uploads/", expected=(202,), content=b""
        )
        with self._connection.open(
            "PUT",
            begun.headers.get("location", ""),
            expected=(201,),
            params={"digest": blob.digest},
            headers={
                "Content-Type": "application/octet-stream",
                "Content-Length": str(len(content)),
            },
            content=Pieces(_label(name, blob), content, self._report),
        ):
            pass


def _label(name: str, blob: Descriptor) -> str:
    return f"{name} {blob.digest.removeprefix('sha256:')[:12]}"


class _TagPage(BaseModel):
    tags: list[str] | None = None


def _tags(reply: Reply, remote: str) -> list[str]:
    try:
        return _TagPage.model_validate_json(reply.body).tags or []
    except ValidationError as error:
        raise Corrupt(f"{remote}: expected a list of tags, got {reply.media_type}") from error


@contextmanager
def _partial_file(folder: Path | None, digest: str) -> Iterator[BinaryIO]:
    """Open the file of a blob that is being loaded; it goes when the blob is whole or wrong.

    It stays if the registry fails or the process is killed. Of two who load the same blob, the
    second one loads it for itself.
    """
    if folder is None:
        with tempfile.TemporaryFile() as file:
            yield file
        return
    folder.mkdir(parents=True, exist_ok=True)
    _drop_old_parts(folder)
    path = folder / digest.removeprefix("sha256:")
    with path.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with tempfile.TemporaryFile(dir=folder) as own:
                yield own
            return
        try:
            yield file
        except (Unavailable, OSError, KeyboardInterrupt):
            raise
        except Exception:
            path.unlink(missing_ok=True)
            raise
        path.unlink(missing_ok=True)


def _drop_old_parts(folder: Path) -> None:
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # somebody else was done with it
            if path.stat().st_mtime < time.time() - _MAX_PART_AGE_S:
                path.unlink()
