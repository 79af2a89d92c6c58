"""A caller of gRPC who asks and takes no answer: HTTP/2 by hand, with windows of no byte.

gRPC's own clients take some megabytes before anybody reads them.

Source: RFC 9113, HTTP/2; RFC 7541, HPACK.
"""

import socket
from collections.abc import Iterator, Sequence
from typing import Self

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS = 0, 1, 3, 4
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1
_INITIAL_WINDOW = 4
_HEAD_BYTES = 9


class Unreading:
    """One connection on which calls are made whose answers find no room."""

    def __init__(self, target: str, timeout_s: float) -> None:
        host, _, port = target.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=timeout_s)
        self._stream = -1
        no_window = _INITIAL_WINDOW.to_bytes(2) + (0).to_bytes(4)
        self._socket.sendall(_PREFACE + _frame(_SETTINGS, 0, 0, no_window))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def call(self, path: str, message: bytes) -> None:
        """Make a call of one message."""
        self._stream += 2
        head = _head(
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", "localhost"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
        )
        body = b"\0" + len(message).to_bytes(4) + message
        self._socket.sendall(
            _frame(_HEADERS, _END_HEADERS, self._stream, head)
            + _frame(_DATA, _END_STREAM, self._stream, body)
        )

    def wait_for_the_end(self, calls: int) -> int:
        """Wait until the server has ended so many calls; return the bytes of answers until then."""
        ended, received = set[int](), 0
        for kind, flags, stream, payload in self._frames():
            if kind == _SETTINGS and not flags & _ACK:
                self._socket.sendall(_frame(_SETTINGS, _ACK, 0, b""))
            received += len(payload) if kind == _DATA else 0
            if kind == _RESET or (kind in (_DATA, _HEADERS) and flags & _END_STREAM):
                ended.add(stream)
            if len(ended) == calls:
                return received
        raise AssertionError(f"the connection ended, and {len(ended)} of {calls} calls before it")

    def _frames(self) -> Iterator[tuple[int, int, int, bytes]]:
        while head := self._receive(_HEAD_BYTES):
            yield (
                head[3],
                head[4],
                int.from_bytes(head[5:]),
                self._receive(int.from_bytes(head[:3])),
            )

    def _receive(self, size: int) -> bytes:
        data = b""
        while len(data) < size and (more := self._socket.recv(size - len(data))):
            data += more
        return data


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


def _head(*fields: Sequence[str]) -> bytes:
    """Write header fields that no table is to know."""
    texts = (text.encode() for field in fields for text in field)
    strings = [bytes([len(text)]) + text for text in texts]  # all shorter than 127
    return b"".join(
        b"\0" + name + value for name, value in zip(strings[::2], strings[1::2], strict=True)
    )
