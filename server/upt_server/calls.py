"""What calls end with: the status of every gRPC service, and the log of what went wrong."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic
from typing import TypeAlias

import grpc

from upt_server import statuses
from upt_zoo.errors import Corrupt

_LOGGER = logging.getLogger("upt_server.faults")  # the log of calls has this module's name
_DAMAGE_EVERY_S = 3600.0
_Context: TypeAlias = "grpc.aio.ServicerContext[object, object]"
_next_at_s: dict[str, float] = {}  # by message, of which there are as many as damaged files
_CODE_NAMES: dict[object, str] = {
    known: code.name for code in grpc.StatusCode for known in (code, code.value[0])
}


@asynccontextmanager
async def ending_with_a_status(context: _Context) -> AsyncIterator[None]:
    """End the call with the status of whatever error comes out. Texts are never logged."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - the edge: every error becomes a status
        log_fault(error)
        details = (statuses.DETAILS_KEY, statuses.details_of(error))
        # what was set before would be lost: aborting replaces it
        trailers = (*(context.trailing_metadata() or ()), details)
        await context.abort(statuses.code_of(error), statuses.message_of(error), trailers)


def log_fault(error: Exception) -> None:
    """Log what a caller is not told: a fault of the server, and which file is damaged."""
    if statuses.code_of(error) is grpc.StatusCode.INTERNAL:
        _LOGGER.error("a call failed", exc_info=error)
    elif isinstance(error, Corrupt) and error.place:
        _log_damage(str(error), monotonic())


def _log_damage(message: str, now_s: float) -> None:
    """Log it once an hour: a damaged adapter is asked for again and again."""
    if now_s >= _next_at_s.get(message, now_s):
        _next_at_s[message] = now_s + _DAMAGE_EVERY_S
        _LOGGER.error("%s", message)


def code_name(code: object) -> str:
    """Spell a code, which a call's context gives as it was set or as its number."""
    return _CODE_NAMES.get(code, str(code))
