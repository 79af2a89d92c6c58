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
    │   └── Untrusted           not signed by a key that is trusted
    ├── Forbidden               who calls may not do this
    │   └── Unauthenticated     and is not known
    ├── Overloaded              no room; try again later
    └── Unavailable             starting, draining or loading; try again later
"""


class UptError(Exception):
    """Root of all errors that upt raises on purpose."""


class InvalidInput(UptError):
    """The caller's request, file or setting is wrong."""


class InvalidReference(InvalidInput):
    """An adapter reference does not follow ``[remote/]name[:tag][@sha256:digest]``."""


class InvalidSpec(InvalidInput):
    """A spec, recipe or setting is malformed or contradicts itself."""


class InvalidText(InvalidInput):
    """A text field is missing, empty, too long or not one of the task's fields."""


class WrongBackbone(InvalidInput):
    """The adapter was trained on another backbone than the one at hand."""


class NotFound(UptError):
    """What was named does not exist."""


class AdapterNotFound(NotFound):
    """No adapter, version or tag of that name."""


class BackboneNotFound(NotFound):
    """The backbone's files are not on this machine and could not be fetched."""


class DataNotFound(NotFound):
    """A data set or one of its files is missing."""


class Conflict(UptError):
    """The same version exists with other bytes."""


class Corrupt(UptError):
    """Bytes do not match their digest, their layout or their format."""


class Overflowed(Corrupt):
    """An adapter's numbers overflow at an input; others may well have an answer."""


class Untrusted(Corrupt):
    """An adapter is not signed, or not by a key that is trusted."""


class Forbidden(UptError):
    """The caller's credentials do not allow this."""


class Unauthenticated(Forbidden):
    """Credentials are missing or wrong."""


class Overloaded(UptError):
    """A queue or a quota is full; ``retry_after_s`` says when to try again."""

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unavailable(UptError):
    """Starting, draining or still loading; ``retry_after_s`` says when to try again."""

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
