"""A foreign configuration, read key by key: whatever nobody has asked for must be switched off.

So a setting that a later version of a library adds is refused and never ignored.
"""

import math
from collections.abc import Collection, Mapping
from typing import TypeVar

from pydantic import JsonValue

from upt_zoo.errors import InvalidSpec

T = TypeVar("T", str, bool, int, list[JsonValue], dict[str, JsonValue])


class Settings:
    """A JSON object of another library; ``source`` names it in messages."""

    def __init__(self, values: Mapping[str, JsonValue], source: str) -> None:
        self.values = values
        self.source = source

    def take(self, name: str, default: T) -> T:
        """Return a value of the default's type; the default if it is missing or null.

        Raises:
            InvalidSpec: it is of another type.
        """
        value = self.values.get(name)
        if value is None:
            return default
        if type(value) is not type(default):
            raise self.refusal(name, f"expected {type(default).__name__}")
        return value

    def number(self, name: str, default: float) -> float:
        """Return a finite number.

        Raises:
            InvalidSpec: it is none.
        """
        value = self.values.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.refusal(name, "expected a number")
        try:
            number = float(value)
        except OverflowError:  # JSON's integers have no limit
            number = math.inf
        if not math.isfinite(number):
            raise self.refusal(name, "expected a finite number")
        return number

    def layers(self, name: str, count: int) -> frozenset[int]:
        """Return the layers of a list.

        Raises:
            InvalidSpec: one is not a layer of the backbone.
        """
        layers = [layer for layer in self.take(name, list[JsonValue]()) if isinstance(layer, int)]
        if len(layers) != len(self.take(name, list[JsonValue]())):
            raise self.refusal(name, "expected numbers of layers")
        if not set(layers) <= set(range(count)):
            raise self.refusal(name, f"the backbone has the layers 0 to {count - 1}")
        return frozenset(layers)

    def child(self, name: str) -> "Settings":
        """Return the object under a key.

        Raises:
            InvalidSpec: there is none.
        """
        value = self.values.get(name)
        if not isinstance(value, dict):
            raise self.refusal(name, "expected an object")
        return Settings(value, f"{self.source}, {name}")

    def require(self, name: str, expected: JsonValue, reason: str, *, default: JsonValue) -> None:
        """Check that a setting has the only value that can be expressed.

        Raises:
            InvalidSpec: it has another; ``reason`` says why that cannot be expressed.
        """
        if self.values.get(name, default) != expected:
            raise self.refusal(name, reason)

    def refuse_others(self, known: Collection[str], reasons: Mapping[str, str]) -> None:
        """Check that all settings but the known ones are off: null, false, zero or empty.

        Raises:
            InvalidSpec: one is on; the message has its reason, if there is one.
        """
        for name in sorted(self.values.keys() - set(known)):
            if self.values[name]:
                raise self.refusal(name, reasons.get(name, "it is not known to upt"))

    def refusal(self, name: str, reason: str) -> InvalidSpec:
        """Make the error that refuses a setting."""
        text = str(self.values.get(name))
        shown = text if len(text) <= 80 else f"{text[:77]}..."
        return InvalidSpec(f"{self.source}: {name} = {shown} cannot be imported: {reason}")
