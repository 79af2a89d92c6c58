"""Bytes and values in general: one meaning or ``Damaged`` (docs/format.md, "JSON")."""

import hashlib
import json
import math
import re
from collections.abc import Callable
from typing import Any, NoReturn

NAME_FORM = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*")
VERSION_FORM = re.compile(r"(?:(?:0|[1-9]\d{0,8})\.){2}(?:0|[1-9]\d{0,8})", re.ASCII)
DIGEST_FORM = re.compile(r"sha256:[0-9a-f]{64}")


class Damaged(Exception):
    """What the page calls damaged or refused."""


def fail(reason: str) -> NoReturn:
    """Raise ``Damaged``."""
    raise Damaged(reason)


def need(condition: object, reason: str) -> None:
    """Raise ``Damaged`` unless the condition holds."""
    if not condition:
        fail(reason)


def digest_of(data: bytes) -> str:
    """Return ``sha256:`` and the sum."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def parse_json(data: bytes, what: str) -> Any:
    """Parse one document that has one meaning."""
    try:
        values = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=lambda pairs: _object(pairs, what),
            parse_constant=lambda text: fail(f"{what}: {text}"),
            parse_float=lambda text: _number(text, what),
        )
        json.dumps(values, ensure_ascii=False).encode("utf-8")  # half a surrogate pair
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{what}: {error}") from error
    return values


def _object(pairs: list[tuple[str, Any]], what: str) -> dict[str, Any]:
    values = dict(pairs)
    need(len(values) == len(pairs), f"{what}: a key repeats")
    return values


def _number(text: str, what: str) -> float:
    number = float(text)
    need(math.isfinite(number), f"{what}: {text}")
    return number


Check = Callable[[Any], bool]


def is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    return is_int(value) or isinstance(value, float)


def is_count(value: Any) -> bool:
    return is_int(value) and 1 <= value < 2**31


def is_total(value: Any) -> bool:
    return is_int(value) and 0 <= value < 2**63


def is_positive(value: Any) -> bool:
    return is_number(value) and value > 0


def is_digest(value: Any) -> bool:
    return is_text(value) and DIGEST_FORM.fullmatch(value) is not None


def is_name(value: Any) -> bool:
    """Tell whether it is an adapter's name."""
    return is_text(value) and len(value) <= 128 and NAME_FORM.fullmatch(value) is not None


def one_of(*values: Any) -> Check:
    return lambda value: not is_bool(value) and value in values


def or_null(check: Check) -> Check:
    return lambda value: value is None or check(value)


def list_of(check: Check, least: int = 0, most: int = 2**31) -> Check:
    return lambda value: (
        isinstance(value, list) and least <= len(value) <= most and all(map(check, value))
    )


def map_to(check: Check) -> Check:
    return lambda value: isinstance(value, dict) and all(map(check, value.values()))


def distinct(check: Check) -> Check:
    return lambda value: check(value) and len(set(value)) == len(value)
