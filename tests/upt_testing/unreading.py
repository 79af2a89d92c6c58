"""A caller of gRPC who asks and takes no answer: HTTP/2 by hand, with windows of no byte.

gRPC's own clients take some megabytes before anybody reads them, and send a message as a whole.

Source: RFC 9113, HTTP/2; RFC 7541, HPACK.
"""

import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain, repeat
from typing import Self

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS = 0, 1, 3, 4
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1
_TABLE, _INITIAL_WINDOW = 1, 4
_HEAD_BYTES = 9
_DRIP_S = 0.02
_MAX_DRIPS = 1000
_LARGE = b"\0" + (2**20).to_bytes(4)  # how a message of so many bytes begins


class Unreading:
    """One connection on which calls are made whose answers find no room."""

    def __init__(self, target: str, timeout_s: float) -> None:
        host, _, port = target.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=timeout_s)
        self._stream, self._buffer = -1, b""
        # without a table whatever the server says can be read as it is
        none = b"".join(each.to_bytes(2) + (0).to_bytes(4) for each in (_TABLE, _INITIAL_WINDOW))
        self._socket.sendall(PREFACE + _frame(_SETTINGS, 0, 0, none))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def call(self, path: str, message: bytes) -> None:
        """Make a call of one message."""
        stream = self.begin(path)
        body = b"\0" + len(message).to_bytes(4) + message
        self._socket.sendall(_frame(_DATA, _END_STREAM, stream, body))

    def begin(self, path: str, secret: str | None = None) -> int:
        """Begin a call whose message does not come; return its stream."""
        self._stream += 2
        head = _head(
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", "localhost"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            *([("authorization", f"Bearer {secret}")] if secret else []),
        )
        self._socket.sendall(_frame(_HEADERS, _END_HEADERS, self._stream, head))
        return self._stream

    def drip(self, streams: Iterable[int]) -> dict[int, bytes]:
        """Send the messages of calls a byte at a time; return what the server ended each with."""
        waiting, ends = set(streams), dict[int, bytes]()
        self._socket.settimeout(_DRIP_S)
        for byte in chain(_LARGE, repeat(0, _MAX_DRIPS)):
            for stream in waiting:
                self._socket.sendall(_frame(_DATA, 0, stream, bytes([byte])))
            with suppress(TimeoutError):
                for kind, flags, stream, payload in self._frames():
                    if _is_end(kind, flags):
                        ends.setdefault(stream, payload)
            waiting -= ends.keys()
            if not waiting:
                return ends
        raise AssertionError(f"{len(waiting)} calls were kept")

    def wait_for_the_end(self, calls: int) -> int:
        """Wait until the server has ended so many calls; return the bytes of answers until then."""
        ended, received = set[int](), 0
        for kind, flags, stream, payload in self._frames():
            received += len(payload) if kind == _DATA else 0
            if _is_end(kind, flags):
                ended.add(stream)
            if len(ended) == calls:
                return received
        raise AssertionError(f"the connection ended, and {len(ended)} of {calls} calls before it")

    def _frames(self) -> Iterator[tuple[int, int, int, bytes]]:
        """Yield what comes until the connection ends; a frame that has come in part is kept."""
        while True:
            while len(self._buffer) >= (size := self._frame_bytes()):
                frame, self._buffer = self._buffer[:size], self._buffer[size:]
                kind, flags = frame[3], frame[4]
                if kind == _SETTINGS and not flags & _ACK:
                    self._socket.sendall(_frame(_SETTINGS, _ACK, 0, b""))
                yield kind, flags, int.from_bytes(frame[5:_HEAD_BYTES]), frame[_HEAD_BYTES:]
            if not (more := self._socket.recv(65_536)):
                return
            self._buffer += more

    def _frame_bytes(self) -> int:
        is_whole = len(self._buffer) >= _HEAD_BYTES
        return _HEAD_BYTES + (int.from_bytes(self._buffer[:3]) if is_whole else 0)


def _is_end(kind: int, flags: int) -> bool:
    return kind == _RESET or (kind in (_DATA, _HEADERS) and bool(flags & _END_STREAM))


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


def _head(*fields: Sequence[str]) -> bytes:
    """Write header fields that no table is to know."""
    texts = (text.encode() for field in fields for text in field)
    strings = [bytes([len(text)]) + text for text in texts]  # all shorter than 127
    return b"".join(
        b"\0" + name + value for name, value in zip(strings[::2], strings[1::2], strict=True)
    )
