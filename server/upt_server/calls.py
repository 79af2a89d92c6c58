"""What every call of every gRPC service ends with."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeAlias

import grpc

from upt_server import statuses

_LOGGER = logging.getLogger(__name__)
_Context: TypeAlias = "grpc.aio.ServicerContext[object, object]"
_CODE_NAMES: dict[object, str] = {
    known: code.name for code in grpc.StatusCode for known in (code, code.value[0])
}


@asynccontextmanager
async def ending_with_a_status(context: _Context) -> AsyncIterator[None]:
    """End the call with the status of whatever error comes out. Texts are never logged."""
    try:
        yield
    except Exception as error:  # the edge: every error becomes a status
        code = statuses.code_of(error)
        if code is grpc.StatusCode.INTERNAL:
            _LOGGER.exception("a call failed")
        details = (statuses.DETAILS_KEY, statuses.details_of(error))
        # what was set before would be lost: aborting replaces it
        trailers = (*(context.trailing_metadata() or ()), details)
        await context.abort(code, statuses.message_of(error), trailers)


def code_name(code: object) -> str:
    """Spell a code, which a call's context gives as it was set or as its number."""
    return _CODE_NAMES.get(code, str(code))
