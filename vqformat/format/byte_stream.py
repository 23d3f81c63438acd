"""A file as a stream of bytes, read front to back (REA-001, REA-002)."""

from __future__ import annotations

import errno
from typing import BinaryIO, Protocol

from ..errors import TruncatedError

PIECE_NBYTES = 1 << 22  # bytes asked of a stream in one call


class Readable(Protocol):
    """Where bytes come from: ``read`` takes the next ones and knows at which byte of the file it is."""

    offset: int

    def read(self, n: int, what: str) -> bytes: ...


class StreamInput:
    """Reads a binary stream front to back, never asking for more than a piece ahead (REA-002).

    Args:
        stream: Anything with ``read``; it need not seek.
        on_bytes: Called with all bytes read, for a digest.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.offset = 0
        self.end: int | None = None  # of the stream, once it has been met
        self.hasher: _Hasher | None = None

    def read(self, n: int, what: str) -> bytes:
        """The next ``n`` bytes.

        Raises:
            TruncatedError: There are fewer (REA-001).
        """
        pieces = []
        left = n
        while left:
            piece = self._stream.read(min(left, PIECE_NBYTES))
            if piece is None:
                raise BlockingIOError(errno.EAGAIN, "a stream is wanted that blocks until it has bytes")
            if not piece:
                self.end = self.offset + n - left
                raise TruncatedError(f"{what} needs {n} bytes, but the file ends after {n - left}", clause="REA-001",
                                     offset=self.offset)  # fmt: skip
            pieces.append(piece)
            left -= len(piece)
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self.offset += n
        if self.hasher is not None:
            self.hasher.update(data)
        return data

    def at_end(self) -> bool:
        return not self._stream.read(1)


class _Hasher(Protocol):
    def update(self, data: bytes, /) -> None: ...
