"""A blocking client of ``/metrics``, for operators' commands."""

import ssl
from time import monotonic
from typing import Self

import httpx2

from upt_server.activity import Reading, read_metrics
from upt_server.tls import ClientTls, is_loopback
from upt_zoo.errors import (
    Corrupt,
    Forbidden,
    InvalidInput,
    NotFound,
    Unauthenticated,
    Unavailable,
    UptError,
)

_TIMEOUT_S = 10.0
_ERRORS: dict[int, tuple[type[UptError], str]] = {
    401: (Unauthenticated, "the token is missing or wrong; see --token-file"),
    403: (Forbidden, "metrics need a token with the scope metadata and for all adapters"),
    404: (NotFound, "the server shows no metrics; start it without --no-metrics"),
}


class MetricsClient:
    """Reads a server's metrics over HTTP; a context manager.

    Raises:
        InvalidInput: the address is none, the token would travel in the clear, or a file of TLS
            cannot be read.
    """

    def __init__(self, server: str, *, token: str | None, tls: ClientTls | None) -> None:
        self._server = server
        host = server.rpartition(":")[0].strip("[]")
        if token is not None and tls is None and not is_loopback(host):
            raise InvalidInput(f"a token leaves this machine by TLS only; give --ca for {server}")
        try:
            url = httpx2.URL(f"{'https' if tls else 'http'}://{server}")
        except httpx2.InvalidURL as error:
            raise InvalidInput(f"expected HOST:PORT, got {server!r}") from error
        self._client = httpx2.Client(
            base_url=url,
            headers={} if token is None else {"authorization": f"Bearer {token}"},
            timeout=_TIMEOUT_S,
            trust_env=False,  # operators mean this very server, not a proxy
            verify=_context(tls) if tls else True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def read(self) -> Reading:
        """Read the metrics of this moment.

        Raises:
            Corrupt: what answers there are no metrics.
            Forbidden: the token does not allow it.
            NotFound: the server does not show its metrics.
            Unauthenticated: the token is missing or wrong.
            Unavailable: nobody answers.
        """
        try:
            response = self._client.get("/metrics")
        except httpx2.RemoteProtocolError as error:
            raise Unavailable(
                f"{self._server} gave no answer in HTTP ({error}); is it the port of "
                f"`upt-server run --http-port`?"
            ) from error
        except httpx2.TransportError as error:
            raise Unavailable(
                f"cannot reach {self._server}: {error}; is `upt-server run` running there?"
            ) from error
        if response.status_code in _ERRORS:
            kind, message = _ERRORS[response.status_code]
            raise kind(message)
        try:
            reading = read_metrics(response.text, monotonic())
        except ValueError as error:
            raise Corrupt(f"{self._server}: expected metrics of upt-server") from error
        if not response.is_success or not reading.label_values("upt_build_info", "version"):
            raise Corrupt(f"{self._server}: expected metrics of upt-server")
        return reading


def _context(tls: ClientTls) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=tls.ca)
        if tls.certificate is not None:
            context.load_cert_chain(tls.certificate, tls.key)
    except OSError as error:  # as OpenSSL's own errors are
        raise InvalidInput(f"cannot speak TLS with the files given: {error}") from error
    return context
