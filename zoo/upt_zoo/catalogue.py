"""Which stores there are: the user's own, the catalogue inside this package, and remotes.

It opens stores and moves no bytes; see ``Store.copy_from``.
"""

from pathlib import Path
from urllib.parse import unquote, urlsplit

import platformdirs

from upt_zoo.errors import InvalidReference
from upt_zoo.local.store import Store

EMBEDDED = "embedded"


def home_store(home: Path | None = None) -> Store:
    """Open the user's store: ``home`` itself, by default the user's data directory for upt."""
    return Store(home or platformdirs.user_data_path("upt", appauthor=False))


def embedded_catalogue() -> Store:
    """Open the adapters that this package carries; the store is read-only, and may be empty."""
    return Store(Path(__file__).with_name(EMBEDDED), is_read_only=True)


def remote_store(remote: str) -> Store:
    """Open what stands before the name in a reference: ``embedded`` or ``file:///directory``.

    Raises:
        InvalidReference: another remote, or a file URL with a host, a relative path or ``..``.
    """
    if remote == EMBEDDED:
        return embedded_catalogue()
    url = urlsplit(remote)
    if url.scheme != "file" or url.netloc or not url.path:
        raise InvalidReference(f"remote {remote!r}: expected {EMBEDDED} or file:///directory")
    path = Path(unquote(url.path))
    if ".." in path.parts:  # an allow-list compares what is written
        raise InvalidReference(f"remote {remote!r}: expected a path without ..")
    return Store(path, is_read_only=True)
