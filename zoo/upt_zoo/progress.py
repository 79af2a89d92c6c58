"""How far a transfer has come; whoever moves bytes reports, and whoever waits may look. Pure."""

from collections.abc import Callable, Iterator

Report = Callable[[str, int, int], None]  # what moves, bytes so far, bytes in all
_PIECE_BYTES = 64 * 1024


def silent(what: str, done_bytes: int, total_bytes: int) -> None:
    """Tell nobody."""


class Pieces:
    """Bytes to be sent, in pieces and as often as they are asked for; each piece is reported."""

    def __init__(self, what: str, content: bytes, report: Report) -> None:
        self._what, self._content, self._report = what, content, report

    def __iter__(self) -> Iterator[bytes]:
        size = len(self._content)
        for start in range(0, size, _PIECE_BYTES):
            yield self._content[start : start + _PIECE_BYTES]
            self._report(self._what, min(start + _PIECE_BYTES, size), size)
