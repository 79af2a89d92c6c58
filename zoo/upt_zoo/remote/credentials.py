"""Who we are to a registry: names and passwords, in a file that only its owner can read.

The form is that of Docker's ``config.json``, which is read as well:

    {"auths": {"host[:port]": {"auth": base64 of "name:password", "tokenHost": host or absent}}}

Docker's credential helpers and identity tokens are not used.
"""

import json
import os
from base64 import b64decode, b64encode
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel

from upt_zoo.errors import InvalidInput


class _Entry(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="allow")

    auth: str | None = None
    token_host: str | None = None


class _File(BaseModel):
    model_config = ConfigDict(extra="allow")

    auths: dict[str, _Entry] = {}

    @classmethod
    def read(cls, path: Path) -> Self:
        try:
            return cls.model_validate_json(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return cls()
        except ValidationError as error:  # its text may hold a password
            raise InvalidInput(f"{path}: expected the form of Docker's config.json") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """A name and a password for one registry.

    ``token_host`` is the host that may be told the password besides the registry itself: the one
    that the registry named when the user logged in.
    """

    username: str
    password: str = field(repr=False)
    token_host: str | None = None

    @property
    def basic(self) -> str:
        """Name and password as HTTP's basic authentication writes them."""
        return b64encode(f"{self.username}:{self.password}".encode()).decode()


def read_credentials(host: str, files: Iterable[Path]) -> Credentials | None:
    """Find the credentials for ``host[:port]`` in the first file that has them.

    Raises:
        InvalidInput: a file is not of that form.
    """
    for path in files:
        entry = _File.read(path).auths.get(host)
        if entry is not None and entry.auth:
            return _decode(entry, path)
    return None


def save_credentials(host: str, credentials: Credentials, path: Path) -> None:
    """Write the credentials for ``host[:port]`` into a file of mode 0600; others in it stay.

    Raises:
        InvalidInput: the file there is not of that form.
    """
    entry = _Entry(auth=credentials.basic, token_host=credentials.token_host)
    file = _File.read(path)
    _write(file.model_copy(update={"auths": {**file.auths, host: entry}}), path)


def drop_credentials(host: str, path: Path) -> bool:
    """Forget the credentials for ``host[:port]``; others in the file stay. False if none are there.

    Raises:
        InvalidInput: the file there is not of that form.
    """
    file = _File.read(path)
    if host not in file.auths:
        return False
    kept = {each: entry for each, entry in file.auths.items() if each != host}
    _write(file.model_copy(update={"auths": kept}), path)
    return True


def _write(file: _File, path: Path) -> None:
    values = file.model_dump(mode="json", by_alias=True, exclude_none=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(json.dumps(values, indent=2))
    temporary.replace(path)


def _decode(entry: _Entry, path: Path) -> Credentials:
    try:
        username, separator, password = b64decode(entry.auth or "").decode().partition(":")
    except ValueError:
        separator = ""
    if not separator:
        raise InvalidInput(f"{path}: expected auth to be base64 of name:password")
    return Credentials(username=username, password=password, token_host=entry.token_host)
