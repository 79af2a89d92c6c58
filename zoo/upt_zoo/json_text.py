"""JSON as the format wants it: what is written, and what is refused when it is read. Pure.

RFC 8259 leaves open what a repeated key means, and Python's parser takes NaN and half a surrogate
pair, which are no JSON. Two readers could see two different documents in the same bytes, so here
none of these is read or written.
"""

import json
import math
from typing import NoReturn


def format_json(value: object) -> bytes:
    """Serialise canonically: sorted keys, no white space, UTF-8; equal values, equal bytes.

    Raises:
        ValueError: it holds a number that is not finite, or half a surrogate pair.
    """
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode()


def check_json(data: bytes) -> None:
    """Check that the bytes are one JSON document that every reader reads alike.

    Raises:
        ValueError: malformed, nested too deeply, a key that repeats in its object, a number that is
            not finite, or half a surrogate pair.
    """
    try:
        values = json.loads(
            data.decode(),
            object_pairs_hook=_distinct,
            parse_constant=_refuse,
            parse_float=_finite,
        )
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    format_json(values)


def _distinct(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {repeated!r} repeats")
    return values


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        _refuse(text)
    return number


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a finite number")
