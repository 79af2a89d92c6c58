"""Reads adapters made elsewhere: a spec, tensors and a card in three files."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from upt_zoo.errors import Corrupt, InvalidInput
from upt_zoo.local.draft import Draft
from upt_zoo.local.files import read_file
from upt_zoo.spec import AdapterSpec
from upt_zoo.tensors import read_tensors

FILES = {"spec": "spec.json", "tensors": "tensors.safetensors", "card": "card.md"}
_MAX_SPEC_BYTES = 16 * 1024 * 1024
_MAX_BYTES = 1024 * 1024 * 1024  # of a blob


def read_drafts(paths: Sequence[Path], *, version: str | None = None) -> Iterator[Draft]:
    """Read every directory, or the three files of one adapter; a version for all, or the next one.

    Raises:
        Corrupt: a file is not of its format.
        InvalidInput: a file is missing, or the three files are not told by their suffixes.
        InvalidSpec: the spec is none.
    """
    if any(path.is_dir() for path in paths):
        for path in paths:
            yield _read_draft([path / name for name in FILES.values()], version)
    else:
        yield _read_draft(_in_order(paths), version)


def _in_order(paths: Iterable[Path]) -> list[Path]:
    """Sort spec, tensors and card by their suffixes."""
    by_suffix = {path.suffix: path for path in paths}
    wanted = [Path(name).suffix for name in FILES.values()]
    if sorted(by_suffix) != sorted(wanted):
        raise InvalidInput(
            f"expected directories with {', '.join(FILES.values())}, or three files that end in "
            f"{', '.join(wanted)}, got {', '.join(map(str, paths))}"
        )
    return [by_suffix[suffix] for suffix in wanted]


def _read_draft(paths: Sequence[Path], version: str | None) -> Draft:
    spec, tensors, card = paths
    try:
        return Draft(
            spec=AdapterSpec.from_json(_read(spec, _MAX_SPEC_BYTES)),
            tensors=read_tensors(_read(tensors, _MAX_BYTES)),
            card=_read(card, _MAX_BYTES).decode(),
            version=version,
        )
    except UnicodeDecodeError as error:
        raise Corrupt(f"{card} is not UTF-8: {error}") from error


def _read(path: Path, max_bytes: int) -> bytes:
    try:
        data = read_file(path, max_bytes)
    except FileNotFoundError as error:
        raise InvalidInput(f"expected the file {path}; it is missing") from error
    if len(data) > max_bytes:
        raise InvalidInput(f"{path}: expected at most {max_bytes} bytes")
    return data
