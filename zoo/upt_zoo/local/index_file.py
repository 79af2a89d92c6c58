"""The files that say what a layout holds: ``oci-layout`` and ``index.json``.

The index is read again only when its file is another one, and entries that other tools have copied
without a name get the one of their manifest. What the entries mean is ``upt_zoo.local.listing``.
"""

import json
from pathlib import Path

from upt_zoo.errors import Corrupt
from upt_zoo.local.blobs import Blobs
from upt_zoo.local.edits import alias_entry, alias_of
from upt_zoo.local.files import read_file, replace_file
from upt_zoo.local.listing import Listing, read_entry
from upt_zoo.manifest import MANIFEST_TYPE, MAX_MANIFEST_BYTES, Descriptor, Index, entry_of

MAX_INDEX_BYTES = 256 * 1024 * 1024  # half a million versions
_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
_MAX_LAYOUT_BYTES = 4096

Stamp = tuple[int, int, int]  # time of change, size, inode


class IndexFile:
    """The index of one layout; an instance remembers it as long as its file is the same one."""

    def __init__(self, root: Path, blobs: Blobs) -> None:
        self._path, self._layout, self._blobs = root / "index.json", root / "oci-layout", blobs
        self._known: tuple[Stamp | None, Index, Listing] | None = None

    def stamp(self) -> Stamp | None:
        """Tell one index from the next: each is a file of its own; None while there is none."""
        try:
            status = self._path.stat()
        except FileNotFoundError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino

    def read(self) -> tuple[Index, Listing]:
        """Parse the index, unless the file is the one that was parsed before.

        Raises:
            Corrupt: it cannot be read, or there are blobs and no index.
        """
        stamp = self.stamp()  # before reading: a file that comes in between is read again
        known = self._known
        if known is None or known[0] != stamp:
            index = self._parse()
            self._known = known = (stamp, index, Listing.of(index))
        return known[1:]

    def write(self, index: Index) -> None:
        """Replace the index; the caller holds the lock."""
        replace_file(self._path, index.to_json())
        self._known = (self.stamp(), index, Listing.of(index))

    def begin(self) -> None:
        """Make what is missing of a layout; the caller holds the lock.

        An index is there before the first blob, so that blobs without an index are damage.
        """
        if not self._layout.is_file():
            self.write_layout()
        if self.stamp() is None and not any(self._blobs):
            replace_file(self._path, Index().to_json())

    def write_layout(self) -> None:
        """Write ``oci-layout``; the caller holds the lock."""
        replace_file(self._layout, _LAYOUT)

    def check_layout(self) -> None:
        """Check that what is there is a layout of the version that is known here.

        Raises:
            Corrupt: ``oci-layout`` is missing or says something else, or there are blobs and no
                index.
        """
        self.read()
        if self.stamp() is None:
            return
        try:
            values = json.loads(read_file(self._layout, _MAX_LAYOUT_BYTES))
            version = values["imageLayoutVersion"]
        except (FileNotFoundError, Corrupt, ValueError, KeyError, TypeError, RecursionError):
            version = None
        if version != "1.0.0":
            raise Corrupt(
                f"the store's layout: expected the imageLayoutVersion 1.0.0, got "
                f"{version or 'none'}; `upt-zoo reindex` writes it",
                f"({self._layout})",
            )

    def _parse(self) -> Index:
        try:
            index = Index.from_json(read_file(self._path, MAX_INDEX_BYTES))
        except FileNotFoundError:
            if any(self._blobs) and not self._path.exists():  # else somebody has just begun
                raise Corrupt(
                    "the store's index is missing and there are blobs; `upt-zoo reindex` "
                    "rebuilds it",
                    f"({self._path})",
                ) from None
            return Index()
        except Corrupt as error:
            raise Corrupt(
                f"the store's index: {error.what}; `upt-zoo reindex` rebuilds it",
                f"({self._path})",
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
            data = self._blobs.read(entry.digest, MAX_MANIFEST_BYTES)
            named, alias = entry_of(data, entry.annotations), alias_of(entry)
        except Corrupt:
            return entry
        return named if alias is None else alias_entry(read_entry(named), alias)
