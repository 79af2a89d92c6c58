"""Messages that no client would send, from whole ones and from nothing."""

import random
from collections.abc import Sequence
from typing import cast

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

_STRINGS = (
    "",
    " ",
    "\0",
    "\r\nx-injected: 1",
    "../../etc/passwd",
    "%2e%2e%2f",
    "\N{GRINNING FACE}\u202e\u0301" * 3,
    "a" * 3000,
    "film " * 400,
    "a gripping film",
    "{}",
    "-1",
    "text",
    "sentence",
    "question",
    "BYTES",
    "FP32",
    "*",
)
_NUMBERS = (0, 1, -1, 2, 7, 255, 2**31 - 1, -(2**31), 2**32 - 1, 2**63 - 1, -(2**63), 2**64 - 1)
_FLOATS = (0.0, -1.0, float("nan"), float("inf"), float("-inf"), 1e308, 5e-324)
_DEEPEST = 4
_BOUNDS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}


class Mutations:
    """Makes things up; ``names`` are adapters that there are."""

    def __init__(self, source: random.Random, *, names: Sequence[str]) -> None:
        self._random, self._names = source, names

    def string(self) -> str:
        """Return a text or a reference of any kind."""
        name = self._random.choice(self._names)
        digest = "".join(self._random.choices("0123456789abcdef", k=64))
        return self._random.choice(
            (*_STRINGS, name, name, name, f"{name}:1.0.0", f"{name}:", f"{name}@sha256:{digest}")
        )

    def data(self) -> bytes:
        """Return random bytes."""
        return self._random.randbytes(self._random.choice((0, 1, 3, 8, 40, 400, 5000)))

    def fill(self, message: Message, *, chance: float = 0.5, depth: int = 0) -> Message:
        """Set fields of a message to anything that their types allow; return it."""
        for field in _fields(message):
            if self._random.random() < chance:
                self._set(message, field, depth)
        return message

    def change(self, message: Message) -> Message:
        """Set one field somewhere in a message to something else; return the message."""
        inner = message
        while self._random.random() < 0.7:
            below = [
                each
                for field in _fields(inner)
                if field.message_type and not field.message_type.GetOptions().map_entry
                if field.is_repeated or inner.HasField(field.name)
                for each in _values(inner, field)
            ]
            if not below:
                break
            inner = self._random.choice(below)
        if fields := _fields(inner):
            field = self._random.choice(fields)
            if self._random.random() < 0.3:
                inner.ClearField(field.name)
            else:
                self._set(inner, field, 1)
        return message

    def spoil(self, data: bytes) -> bytes:
        """Change, drop, repeat or insert some bytes."""
        spoilt = bytearray(data)
        for _ in range(self._random.randint(1, 4)):
            at = self._random.randint(0, len(spoilt))
            length = self._random.choice((1, 1, 1, 4, 20))
            match self._random.choice(("change", "drop", "repeat", "insert", "end")):
                case "change":
                    spoilt[at : at + length] = self._random.randbytes(length)
                case "drop":
                    del spoilt[at : at + length]
                case "repeat":
                    spoilt[at:at] = spoilt[at : at + length]
                case "insert":
                    spoilt[at:at] = self._random.randbytes(length)
                case _:
                    del spoilt[at:]
        return bytes(spoilt)

    def _set(self, message: Message, field: FieldDescriptor, depth: int) -> None:
        if field.message_type and field.message_type.GetOptions().map_entry:
            self._set_map(getattr(message, field.name), field, depth)
        elif field.is_repeated:
            values = getattr(message, field.name)
            for _ in range(self._random.choice((1, 1, 2, 3, 300))):
                if not field.message_type:
                    values.append(self._value(field))
                elif depth < _DEEPEST and len(values) < 4:
                    self.fill(values.add(), depth=depth + 1)
        elif field.message_type:
            if depth < _DEEPEST:
                self.fill(getattr(message, field.name), depth=depth + 1)
                getattr(message, field.name).SetInParent()
        else:
            setattr(message, field.name, self._value(field))

    def _set_map(self, values: "object", field: FieldDescriptor, depth: int) -> None:
        entry = GetMessageClass(field.message_type)()  # type: ignore[arg-type]  # a map has a type
        key, value = _fields(entry)
        for _ in range(self._random.choice((1, 2, 5))):
            if value.message_type:
                self.fill(values[self._value(key)], depth=depth + 1)  # type: ignore[index]  # a map
            else:
                values[self._value(key)] = self._value(value)  # type: ignore[index]  # a map

    def _value(self, field: FieldDescriptor) -> str | bytes | bool | int | float:
        kind = field.cpp_type
        if field.type == FieldDescriptor.TYPE_BYTES:
            return self.data()
        if kind == FieldDescriptor.CPPTYPE_STRING:
            return self.string()
        if kind == FieldDescriptor.CPPTYPE_BOOL:
            return self._random.random() < 0.5
        if kind == FieldDescriptor.CPPTYPE_ENUM:
            return self._random.choice((0, 1, 2, 99))
        if kind in _BOUNDS:
            low, high = _BOUNDS[kind]
            return min(max(self._random.choice(_NUMBERS), low), high)
        return self._random.choice(_FLOATS)


def _fields(message: Message) -> list[FieldDescriptor]:
    return [cast("FieldDescriptor", field) for field in message.DESCRIPTOR.fields]


def _values(message: Message, field: FieldDescriptor) -> list[Message]:
    value = getattr(message, field.name)
    return [*value] if field.is_repeated else [value]
