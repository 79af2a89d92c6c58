"""How a line of the log is written: as text for people, or as JSON for programs.

Whatever is logged stays one line, but for the traceback of a fault in text. Lines written while a
call is served carry its request's id.
"""

import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime

from upt_server.telemetry.choices import LogFormat
from upt_server.telemetry.records import at_hand

FACTS = "facts"  # the attribute of a logging record that holds a line's own fields
_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def make_formatter(form: LogFormat) -> logging.Formatter:
    """Return what writes lines in this form."""
    return _JsonFormatter() if form == "json" else _TextFormatter(_TEXT)


class _TextFormatter(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {name}={_word(value)}" for name, value in _fields(record).items())
        return _one_line(super().formatMessage(record)) + fields


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _fields(record: logging.LogRecord) -> Mapping[str, object]:
    facts: Mapping[str, object] | None = getattr(record, FACTS, None)
    if facts is not None:
        return facts
    call = at_hand()
    return {} if call is None else {"request_id": call.request_id}


def _word(value: object) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value)) or "-"
    return str(value)


def _one_line(text: str) -> str:
    """Escape whatever could end the line or drive a terminal."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
