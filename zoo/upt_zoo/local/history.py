"""What happened to the tags of an adapter: who moved where, when, and how to go back. Pure.

The events of one adapter are one JSON list in an annotation of the index, so an alias and its
history change in one rename; see docs/format.md.
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from upt_zoo.errors import Corrupt

MAX_EVENTS = 1000  # an adapter; older ones are dropped, which bounds the index
Action = Literal["tag", "rollback", "untag", "yank", "unyank", "remove"]


class Event(BaseModel):
    """One change: an alias went from ``before`` to ``after``, or a version was yanked or removed.

    Without ``alias``, ``before`` is the version that was yanked, taken back or removed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    time: str
    action: Action
    alias: str | None = None
    before: str | None = None
    after: str | None = None
    reason: str | None = None


_EVENTS = TypeAdapter(tuple[Event, ...])
_VALUES = TypeAdapter(list[object])


def parse_events(text: str | None) -> tuple[Event, ...]:
    """Parse the annotation, from the oldest event to the newest; None is no event.

    Raises:
        Corrupt: not a list of events.
    """
    try:
        return _EVENTS.validate_json(text) if text is not None else ()
    except ValidationError as error:
        reason = error.errors(include_url=False, include_input=False)[0]["msg"]
        raise Corrupt(f"the history in the index cannot be read: {reason}") from error


def salvage_events(text: str) -> tuple[Event, ...]:
    """Return the events of an annotation that can be read, none if it is no list."""
    try:
        values = _VALUES.validate_json(text)
    except ValidationError:
        return ()
    events: list[Event] = []
    for value in values:
        with suppress(ValidationError):
            events.append(Event.model_validate(value))
    return tuple(events)


def format_events(events: Sequence[Event]) -> str:
    """Serialise the newest events."""
    return _EVENTS.dump_json(tuple(events[-MAX_EVENTS:]), exclude_none=True).decode()


def earlier_version(events: Iterable[Event], alias: str, current: str) -> str | None:
    """Return where an alias pointed before ``current``; None if it pointed nowhere else.

    A rollback takes the last move back, so the next one goes further back, and never forth again.
    """
    places: list[str | None] = []
    for event in events:
        if event.alias != alias:
            continue
        if event.action == "tag":
            places.append(event.after)
        elif event.action == "rollback":
            del places[-1:]
        else:
            places.clear()
    while places and places[-1] == current:
        places.pop()
    return places[-1] if places else None
