"""A file of scores that is written once, from its first line to its last, in any number of runs.

While it is not whole, ``FILE.resume`` stands beside it and says what its lines are the answer to.
A line counts once it ends; what a killed run left half written is cut off.
"""

import fcntl
import hashlib
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from upt_zoo.errors import Conflict, Corrupt

_CHUNK_BYTES = 1024**2


class Job(BaseModel):
    """What the lines answer: the same in every run.

    ``rows_digest`` is that of the file of rows, ``adapter`` names a digest, ``options`` are as the
    command line gives them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    rows_digest: str
    adapter: str
    columns: list[str]
    options: dict[str, bool | int | None]


def digest_and_lines(file: Path) -> tuple[str, int]:
    """Return the digest of a file and how many lines it has, for a first estimate of its rows."""
    digest, lines = hashlib.sha256(), 0
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
            lines += chunk.count(b"\n")
    return f"sha256:{digest.hexdigest()}", lines


class ScoreFile:
    """The file, open for more lines; a context manager. ``lines`` counts those it has.

    An error before the first line leaves nothing behind: there is nothing to go on with.

    Raises:
        Conflict: it is whole already, answers something else, or another run writes it.
        Corrupt: its ``.resume`` is none.
        OSError: it cannot be written.
    """

    def __init__(self, file: Path, job: Job) -> None:
        self._file, self._resume = file, file.with_name(f"{file.name}.resume")
        self._check(job)
        self._stream = file.open("ab+")
        try:
            self._lock()
            self.lines = self._cut_to_whole_lines()
        except BaseException:
            self._stream.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error and not self.lines:
            self._file.unlink()
            self._resume.unlink()
        self._stream.close()  # and with it the lock

    def append(self, line: str) -> None:
        """Write the next row's line."""
        self._stream.write(line.encode() + b"\n")
        self._stream.flush()
        self.lines += 1

    def finish(self) -> None:
        """Say that the file is whole."""
        self._resume.unlink()

    def _check(self, job: Job) -> None:
        if not self._resume.exists():
            if self._file.exists():
                raise Conflict(f"{self._file} is there already; remove it, or choose another --out")
            self._resume.write_text(job.model_dump_json(), encoding="utf-8")
            return
        try:
            begun = Job.model_validate_json(self._resume.read_bytes())
        except ValidationError as error:
            raise Corrupt(
                f"{self._resume}: expected the job of a run before; remove both"
            ) from error
        other = [name for name in Job.model_fields if getattr(begun, name) != getattr(job, name)]
        if other:
            raise Conflict(
                f"{self._file} was begun with another {' and '.join(other)}; go on with that "
                f"(its adapter was {begun.adapter}), or remove it and {self._resume.name}"
            )

    def _lock(self) -> None:
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Conflict(f"{self._file}: another run writes it") from error

    def _cut_to_whole_lines(self) -> int:
        lines, whole = 0, 0
        self._stream.seek(0)
        for line in self._stream:
            if line.endswith(b"\n"):
                lines, whole = lines + 1, whole + len(line)
        self._stream.truncate(whole)
        return lines
