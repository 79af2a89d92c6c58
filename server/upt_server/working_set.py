"""What was in memory, in a file, so that the next run need not wait to be asked for it.

The file is written every few seconds where something has changed, since a run may end without a
word. It is a hint only: what it names and is not there any more is left out.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from upt_zoo.errors import Corrupt, InvalidReference
from upt_zoo.local.files import read_file, replace_file
from upt_zoo.references import Reference

_LOGGER = logging.getLogger(__name__)
_INTERVAL_S = 5.0
_MAX_FILE_BYTES = 16 * 1024**2


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    adapters: tuple[str, ...]


def read_working_set(file: Path) -> tuple[Reference, ...]:
    """Return what was in memory, the least recently used first; nothing where that is not known."""
    try:
        content = _File.model_validate_json(read_file(file, _MAX_FILE_BYTES))
        return tuple(Reference.parse(adapter) for adapter in content.adapters)
    except FileNotFoundError:
        return ()
    except (OSError, Corrupt, ValidationError, InvalidReference):
        _LOGGER.warning("%s is no list of adapters: nothing is loaded before it is asked for", file)
        return ()


@asynccontextmanager
async def remembering(
    file: Path, resident: Callable[[], Sequence[Reference]]
) -> AsyncIterator[None]:
    """Keep the file as ``resident`` says, until the end of the ``with``.

    A disk that is full or read-only is logged; nothing else depends on the file.
    """
    written: Sequence[Reference] | None = None

    async def write() -> None:
        nonlocal written
        adapters = resident()
        if adapters != written:
            data = json.dumps({"adapters": [str(each) for each in adapters]}).encode()
            try:
                await asyncio.to_thread(replace_file, file, data)
                written = adapters
            except OSError as error:
                _LOGGER.warning("cannot write %s: %s", file, error.strerror)

    async def write_again_and_again() -> None:
        while True:
            await write()
            await asyncio.sleep(_INTERVAL_S)

    task = asyncio.create_task(write_again_and_again())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
        await write()
