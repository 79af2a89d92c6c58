"""HTTP connections whose request does not come; uvicorn waits for its head for ever."""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

_HEAD_S = 10.0


class ImpatientProtocol(H11Protocol):
    """Closes a connection on which no whole head of a request comes within ten seconds.

    They count from its start, or from the first byte behind an answer; until then uvicorn's own
    patience with idle connections counts.
    """

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # asyncio says BaseTransport
        """Begin to wait."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Take bytes, and wait no longer once they make a request."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        super().connection_lost(exc)
        self._stop()

    def _watch(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop()
        elif self._timer is None and not self.transport.is_closing():
            self._timer = self.loop.call_later(_HEAD_S, self.transport.close)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
