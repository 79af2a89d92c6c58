"""One JSON line for each call that needs ``admin``: who, what, when, how it ended. Never texts.

The lines go to the logger ``upt_server.audit``; the command line decides where that writes.
"""

import json
import logging
from collections.abc import Sequence
from datetime import UTC, datetime

LOGGER = logging.getLogger("upt_server.audit")
_MAX_CHARS, _MAX_ADAPTERS = 200, 100


def record(*, who: str, peer: str, what: str, adapters: Sequence[str], result: str) -> None:
    """Write a line; ``adapters`` are as the caller wrote them, so they are cut and escaped."""
    line = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "who": who,
        "peer": peer[:_MAX_CHARS],
        "what": what[:_MAX_CHARS],
        "adapters": [adapter[:_MAX_CHARS] for adapter in adapters[:_MAX_ADAPTERS]],
        "result": result,
    }
    LOGGER.info("%s", json.dumps(line))
