"""What the page is made of besides documents: files that this package carries, in memory."""

import gzip
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import PurePosixPath
from string import Template

INDEX = "index.html"
SETUP = "setup.json"
# no script, style or address but the page's own, and no text that becomes HTML or a script
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asset:
    """A file of the page; ``etag`` is of its bytes."""

    content: bytes
    gzipped: bytes
    media_type: str
    etag: str


def read_assets() -> Mapping[str, Asset]:
    """Read every asset by its path below the page."""
    root = files("upt_zoo.site") / "static"
    return {name: _asset(name, source.read_bytes()) for name, source in _walk(root, "")}


def _walk(folder: Traversable, prefix: str) -> list[tuple[str, Traversable]]:
    found = []
    for each in folder.iterdir():
        name = f"{prefix}{each.name}"
        found += _walk(each, f"{name}/") if each.is_dir() else [(name, each)]
    return found


def _asset(name: str, content: bytes) -> Asset:
    if name == INDEX:
        content = Template(content.decode()).substitute(policy=POLICY).encode()
    return Asset(
        content=content,
        gzipped=gzip.compress(content, mtime=0),
        media_type=_MEDIA_TYPES.get(PurePosixPath(name).suffix, "text/plain; charset=utf-8"),
        etag=f'"{sha256(content).hexdigest()[:32]}"',
    )
