"""The tokens of callers in a file that holds their hashes only.

    {"tokens": [{"name": "ci", "sha256": "...", "scopes": ["predict"], "adapters": ["sst2"]}]}

A token is ``upt_`` and 256 random bits, so that one round of SHA-256 is enough to keep it: there is
nothing to guess. Whoever reads the file can call nobody. It knows no protocol.
"""

import hashlib
import hmac
import logging
import secrets
import stat
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from upt_zoo.close_names import did_you_mean
from upt_zoo.errors import Conflict, Corrupt, InvalidInput, NotFound, Unavailable
from upt_zoo.local.files import locked, read_file, replace_file
from upt_zoo.reasons import first_reason

Scope: TypeAlias = Literal["predict", "metadata", "admin"]
_LOGGER = logging.getLogger(__name__)
ALL_ADAPTERS = "*"
_PREFIX, _SECRET_BYTES = "upt_", 32
_MAX_FILE_BYTES = 8 * 1024**2
_LOCK_TIMEOUT_S = 10.0
_Stamp: TypeAlias = tuple[int, int, int]


class Token(BaseModel):
    """What the file says of a token: whose it is, what it may do, and how much of it.

    ``adapters`` are names in which ``*`` stands for any letters. ``requests_per_second`` counts
    calls; ``queued_tokens`` bounds the tokens of text that wait or are computed at once; None of
    either is no bound.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    scopes: Annotated[tuple[Scope, ...], Field(min_length=1)]
    adapters: Annotated[
        tuple[Annotated[str, Field(pattern=r"^[a-z0-9._*-]{1,128}$")], ...], Field(min_length=1)
    ] = (ALL_ADAPTERS,)
    requests_per_second: Annotated[float, Field(gt=0, le=1e9)] | None = None
    queued_tokens: Annotated[int, Field(gt=0)] | None = None

    def allows(self, adapter: str) -> bool:
        """Tell whether an adapter of this name may be asked."""
        return any(fnmatchcase(adapter, pattern) for pattern in self.adapters)

    @classmethod
    def create(cls, **fields: object) -> tuple[Self, str]:
        """Make a token of the given fields; return it and the secret, which is nowhere else.

        Raises:
            InvalidInput: a field is not of the form that is documented.
        """
        secret = _PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
        try:
            return cls.model_validate({**fields, "sha256": _hash(secret)}), secret
        except ValidationError as error:
            raise InvalidInput(f"token: {first_reason(error)}") from error


class _Tokens(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: tuple[Token, ...] = ()

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        if len({token.name for token in self.tokens}) < len(self.tokens):
            raise ValueError("expected every name once")
        return self


class TokenFile:
    """The tokens in a file, read again when the file has changed; owned by the event loop."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: tuple[_Stamp, tuple[Token, ...]] | None = None

    def tokens(self) -> tuple[Token, ...]:
        """Return all tokens.

        Raises:
            InvalidInput: the file is missing, not of this form, or anybody may write to it.
        """
        try:
            status = self._path.stat()
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
            if self._known is None or self._known[0] != stamp:
                if status.st_mode & stat.S_IWOTH:
                    raise InvalidInput(f"{self._path}: anybody may write to it; chmod o-w")
                self._known = (stamp, _read(self._path).tokens)
        except OSError as error:
            raise InvalidInput(f"cannot read {self._path}: {error.strerror}") from error
        return self._known[1]

    def find(self, secret: str) -> Token | None:
        """Return the token with this secret, in a time that tells nothing of the others.

        Raises:
            Unavailable: the file cannot be read, so nobody can be told apart.
        """
        return self.find_hash(_hash(secret))

    def find_hash(self, sha256: str) -> Token | None:
        """Return the token whose secret has this hash, as the file has it now.

        Raises:
            Unavailable: the file cannot be read, so nobody can be told apart.
        """
        try:
            tokens = self.tokens()
        except InvalidInput as error:
            _LOGGER.error("%s", error)
            raise Unavailable("the server cannot read its tokens; its log says more") from error
        found = None
        for token in tokens:  # to the end, whatever is found
            if hmac.compare_digest(token.sha256, sha256):
                found = token
        return found


def add_token(path: Path, token: Token) -> None:
    """Append a token; a file that does not exist is begun, readable by its owner only.

    Raises:
        Conflict: there is a token of that name.
        InvalidInput: the file is not of this form.
    """
    with locked(_lock(path), timeout_s=_LOCK_TIMEOUT_S):
        known = _read(path).tokens if path.exists() else ()
        if any(each.name == token.name for each in known):
            raise Conflict(
                f"{path} has a token {token.name}; choose another name, or revoke that one first"
            )
        _write(path, (*known, token))


def revoke_token(path: Path, name: str) -> None:
    """Remove a token; running servers refuse it from their next call on.

    Raises:
        InvalidInput: the file is missing or not of this form.
        NotFound: there is no token of that name.
    """
    known = TokenFile(path).tokens()
    with locked(_lock(path), timeout_s=_LOCK_TIMEOUT_S):
        known = _read(path).tokens
        if name not in (names := [each.name for each in known]):
            hint = did_you_mean(name, names) or ";"
            raise NotFound(f"no token {name} in {path}{hint} `upt-server token ls` lists them")
        _write(path, tuple(each for each in known if each.name != name))


def _lock(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def _read(path: Path) -> _Tokens:
    try:
        data = read_file(path, _MAX_FILE_BYTES)
        return _Tokens.model_validate_json(data)
    except Corrupt as error:
        raise InvalidInput(str(error)) from error
    except ValidationError as error:
        raise InvalidInput(f"{path}: {first_reason(error)}") from error


def _write(path: Path, tokens: tuple[Token, ...]) -> None:
    mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else stat.S_IRUSR | stat.S_IWUSR
    text = _Tokens(tokens=tokens).model_dump_json(indent=2, exclude_defaults=True)
    replace_file(path, text.encode() + b"\n", mode)


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
