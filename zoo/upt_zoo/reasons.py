"""Says in one line what pydantic found wrong, without the value, which may be long or a secret."""

import re
from collections.abc import Collection, Iterator

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from upt_zoo.close_names import did_you_mean

_QUOTED = re.compile(r"'([^']+)'")


def first_reason(error: ValueError, keys: Collection[str] = ()) -> str:
    """Return the first thing that is wrong, behind its place; ``keys`` are those there may be."""
    return next(_reasons(error, keys))


def all_reasons(error: ValueError, keys: Collection[str] = ()) -> str:
    """Return all that is wrong, each behind its place; ``keys`` are those there may be."""
    return "; ".join(_reasons(error, keys))


def _reasons(error: ValueError, keys: Collection[str]) -> Iterator[str]:
    if not isinstance(error, ValidationError):
        yield str(error)
        return
    for found in error.errors(include_url=False):
        place = ".".join(map(str, found["loc"]))
        text = found["msg"].removeprefix("Value error, ") + _meant(found, keys)
        yield f"{place}: {text}" if place else text


def _meant(found: ErrorDetails, keys: Collection[str]) -> str:
    if found["type"] == "extra_forbidden":
        return did_you_mean(str(found["loc"][-1]), keys)
    if found["type"] == "literal_error":
        return did_you_mean(str(found["input"]), _QUOTED.findall(found["ctx"]["expected"]))
    return ""
