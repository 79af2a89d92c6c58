"""How clients of ``upt.v1`` reach a server, who they are, and what they raise. No torch."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import cast

import grpc

from upt_server import statuses
from upt_server.tls import ClientTls
from upt_zoo.errors import InvalidInput, Unavailable

# a server that comes back is found within five seconds; by default gRPC waits up to two minutes
_OPTIONS = (("grpc.max_reconnect_backoff_ms", 5000),)
_HTTP_ANSWERS = "Failed parsing HTTP/2"  # in gRPC's own words


def open_channel(target: str, tls: ClientTls | None, token: str | None) -> grpc.Channel:
    """Connect; ``tls`` None: in the clear. A token never leaves this machine in the clear."""
    credentials = _credentials(tls, token)
    if credentials is None:
        return grpc.insecure_channel(target, _OPTIONS)
    return grpc.secure_channel(target, credentials, _OPTIONS)


def open_async_channel(target: str, tls: ClientTls | None, token: str | None) -> grpc.aio.Channel:
    """Connect, as ``open_channel``."""
    credentials = _credentials(tls, token)
    if credentials is None:
        return grpc.aio.insecure_channel(target, _OPTIONS)
    return grpc.aio.secure_channel(target, credentials, _OPTIONS)


@contextmanager
def our_errors(
    target: str, *, command: str = "upt-server run", port: str = "--grpc-port"
) -> Iterator[None]:
    """Raise what the server met; a call that did not reach it is ``Unavailable``.

    ``command`` is what would have to run at ``target``, ``port`` the option that names its port.

    Raises:
        InvalidInput: another port's calls are answered there.
        Unavailable: the call did not reach the server.
    """
    try:
        yield
    except grpc.RpcError as error:
        code, message = error.code(), error.details() or ""
        remedy = f"name the port of `upt-server run {port}`"
        # pairs of key and value in both kinds of channel, of two types
        trailers = cast("Iterable[tuple[str, str | bytes]]", error.trailing_metadata() or ())
        details = next((value for key, value in trailers if key == statuses.DETAILS_KEY), None)
        if details is None and code is grpc.StatusCode.CANCELLED:
            # what gRPC says of calls that reached a stopping server and were never taken up
            raise Unavailable(f"{target} ended the call: it stops; try another server") from error
        if details is None and code is grpc.StatusCode.UNAVAILABLE:
            if _HTTP_ANSWERS in message:
                raise Unavailable(f"{target} answers, but not by gRPC; {remedy}") from error
            message = f"cannot reach {target}: {_cause(message)}; is `{command}` running there?"
        if details is None and code is grpc.StatusCode.INTERNAL:
            # of a proxy whose server died at work: a server's own faults come with details
            raise Unavailable(f"{target} lost the call; try again") from error
        if details is None and code is grpc.StatusCode.UNIMPLEMENTED:
            raise InvalidInput(f"{target} has no such call; {remedy}") from error
        data = details if isinstance(details, bytes) else b""
        raise statuses.error_of(code, message or code.name, data) from error


def _credentials(tls: ClientTls | None, token: str | None) -> grpc.ChannelCredentials | None:
    if token is None:
        return tls.channel_credentials() if tls else None
    # gRPC sends these over loopback and Unix sockets only
    channel = tls.channel_credentials() if tls else grpc.local_channel_credentials()
    return grpc.composite_channel_credentials(channel, grpc.access_token_call_credentials(token))


def _cause(message: str) -> str:
    """Return the last of gRPC's chain of causes, and what a hang-up at once usually means."""
    if not message.startswith("failed to connect"):
        return message
    cause = message.rpartition(": ")[2]
    is_hung_up = cause == "Socket closed"
    return f"{cause}, as by a server with TLS (--ca, ClientTls)" if is_hung_up else cause
