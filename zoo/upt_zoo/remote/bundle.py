"""A store as one file for sites without a network: an OCI image layout in a tar archive.

Equal adapters make equal bundles. Other tools read them too (``oci-archive:`` of skopeo). Of a
bundle only the files of a layout are unpacked, whatever else is in it.
"""

import os
import re
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from upt_zoo.errors import Corrupt
from upt_zoo.local.store import Store, StoredAdapter
from upt_zoo.progress import Report, silent
from upt_zoo.references import Reference

_MEMBER = re.compile(r"(?:\./)?(oci-layout|index\.json|blobs/sha256/[0-9a-f]{64})")


def write_bundle(
    store: Store, references: Sequence[Reference], path: Path, *, report: Report = silent
) -> tuple[StoredAdapter, ...]:
    """Write adapters of a store into one file; it appears when it is whole.

    ``report`` is told how much of it is written.

    Raises:
        AdapterNotFound: the store lacks one of them.
        Corrupt: the store's bytes are damaged.
        FileNotFoundError: the file's directory is not there.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"no directory {path.parent} for {path.name}; make it first")
    with tempfile.TemporaryDirectory(prefix=".upt-", dir=path.parent) as folder:
        layout = Store(Path(folder) / "layout")
        stored = tuple(layout.copy_from(store, reference) for reference in references)
        whole = Path(folder) / "bundle.tar"
        with tarfile.open(whole, "w", format=tarfile.USTAR_FORMAT) as archive:
            members = sorted(_members(layout.root))
            total, done = sum(file.stat().st_size for file, _ in members), 0
            for file, name in members:
                _append(archive, file, name)
                done += file.stat().st_size
                report(path.name, done, total)
        with whole.open("rb") as stream:
            os.fsync(stream.fileno())
        whole.replace(path)
    return stored


@contextmanager
def unpacked(path: Path) -> Iterator[Store]:
    """Open the store in a bundle, read-only, for as long as the context lasts.

    Raises:
        Corrupt: not an uncompressed tar archive of a layout.
    """
    with tempfile.TemporaryDirectory(prefix="upt-") as folder:
        try:
            with tarfile.open(path, "r:") as archive:
                _unpack(archive, path.stat().st_size, Path(folder))
        except tarfile.TarError as error:
            raise Corrupt(f"{path}: expected a tar archive without compression: {error}") from error
        if not (Path(folder) / "index.json").is_file():
            raise Corrupt(f"{path}: expected an OCI image layout, got no index.json")
        yield Store(Path(folder), is_read_only=True)


def _members(layout: Path) -> Iterator[tuple[Path, str]]:
    for file in layout.rglob("*"):
        name = file.relative_to(layout).as_posix()
        if _MEMBER.fullmatch(name):
            yield file, name


def _append(archive: tarfile.TarFile, file: Path, name: str) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = file.stat().st_size, 0o644
    with file.open("rb") as stream:
        archive.addfile(member, stream)


def _unpack(archive: tarfile.TarFile, size_bytes: int, folder: Path) -> None:
    (folder / "blobs" / "sha256").mkdir(parents=True)
    for member in archive:
        found = _MEMBER.fullmatch(member.name)
        is_plain = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE)
        if found is None or not is_plain:
            continue
        size_bytes -= member.size  # together no more than the archive itself: no sparse giants
        stream = archive.extractfile(member)
        if size_bytes < 0 or stream is None:
            raise Corrupt(f"{member.name} is larger than the archive")
        (folder / found[1]).write_bytes(stream.read())
