"""Writes the page of a store into a directory, for any server of files."""

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

from pydantic import JsonValue

from upt_zoo.errors import Conflict, Corrupt, NotFound
from upt_zoo.json_text import format_json
from upt_zoo.local.store import Store
from upt_zoo.site.assets import SETUP, read_assets
from upt_zoo.site.documents import CATALOGUE, Documents, document_path
from upt_zoo.spec import Curve

_DATA = "data"

logger = logging.getLogger(__name__)


def write_site(store: Store, out: Path, curves: Mapping[str, Curve] | None = None) -> int:
    """Write the page with every whole version of a store, and return how many there are.

    An earlier page in ``out`` is replaced; other files there stay. ``curves``, by digest, are of
    adapters whose specs have none.

    Raises:
        Conflict: ``out`` holds files and no earlier page.
        Corrupt: the index of the store cannot be read.
    """
    _make_room(out)
    for name, asset in read_assets().items():
        _write(out / name, asset.content)
    documents = Documents(store, curves)
    catalogue = documents.catalogue()
    adapters = catalogue["adapters"]
    assert isinstance(adapters, list)
    written: list[JsonValue] = []
    for each in adapters:
        assert isinstance(each, dict)
        name, version = str(each["name"]), str(each["version"])
        try:
            document = documents.adapter(name, version)
        except (Corrupt, NotFound) as error:  # its card, or it was removed meanwhile
            logger.warning("left out of the page: %s", error)
            continue
        _write_json(out / document_path(name, version), document)
        written.append(each)
    _write_json(out / CATALOGUE, {**catalogue, "adapters": written})
    _write_json(out / SETUP, {"is_live": False})
    return len(written)


def _make_room(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise Conflict(f"expected a directory to write into, got the file {out}")
    if not out.exists() or not any(out.iterdir()):
        return
    if not (out / SETUP).is_file():
        raise Conflict(f"{out} holds files and no earlier page; name an empty or a new directory")
    shutil.rmtree(out / _DATA, ignore_errors=True)


def _write(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


def _write_json(file: Path, value: dict[str, JsonValue]) -> None:
    _write(file, format_json(value))
