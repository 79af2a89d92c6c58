"""By which word a call is found again: the caller's own where it is harmless, else one made here.

Pure but for the source of new ones. What comes out goes into headers and logs as it is.
"""

import re
from collections.abc import Callable, Sequence
from secrets import token_hex

REQUEST_ID = "x-request-id"
# room for UUIDs, W3C and vendors' ids; nothing that could end a header, a line or a quotation
_WELL_FORMED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:=+/@-]{0,127}")


def make_request_id() -> str:
    """Return 32 hexadecimal digits that nobody has had."""
    return token_hex(16)


def choose_request_id(given: Sequence[str], make: Callable[[], str] = make_request_id) -> str:
    """Return the id that the caller sent, if it is one and well formed, else a new one."""
    if len(given) == 1 and _WELL_FORMED.fullmatch(given[0]):
        return given[0]
    return make()
