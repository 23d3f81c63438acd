"""A file as a stream of bytes, read front to back (REA-001, REA-002)."""

from __future__ import annotations

import errno
from typing import BinaryIO, Protocol

from ..errors import TruncatedError

PIECE_NBYTES = 1 << 22  # bytes asked of a stream in one call


class Readable(Protocol):
    """A source of bytes, read in order.

    Attributes:
        offset: Number of the byte of the file that ``read`` returns next.
    """

    offset: int

    def read(self, n: int, what: str) -> bytes: ...


class StreamInput:
    """Reads a binary stream front to back, at most ``PIECE_NBYTES`` in one call (REA-002).

    Args:
        stream: An object with ``read``. It need not support ``seek``.

    Attributes:
        offset: Bytes read so far.
        end: Length of the stream, once a read has met its end; else None.
        hasher: If set, it is updated with all bytes that are read.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.offset = 0
        self.end: int | None = None
        self.hasher: _Hasher | None = None

    def read(self, n: int, what: str) -> bytes:
        """Read the next ``n`` bytes.

        Args:
            what: Name of what is read, for error texts.

        Raises:
            TruncatedError: The stream ends before that (REA-001).
            BlockingIOError: The stream is non-blocking.
        """
        if not n:
            return b""
        data = self._stream.read(min(n, PIECE_NBYTES))
        if data is None or len(data) != n:
            data = self._read_on(data, n, what)
        self.offset += n
        if self.hasher is not None:
            self.hasher.update(data)
        return data

    def _read_on(self, piece: bytes | None, n: int, what: str) -> bytes:
        """Read what is left of ``n`` bytes after the first piece, which the stream gave for them."""
        pieces = []
        left = n
        while True:
            if piece is None:
                raise BlockingIOError(errno.EAGAIN, "the stream is non-blocking; a blocking one is needed")
            if not piece:
                self.end = self.offset + n - left
                raise TruncatedError(f"{what} needs {n} bytes, but the file ends after {n - left}", clause="REA-001",
                                     offset=self.offset)  # fmt: skip
            pieces.append(piece)
            left -= len(piece)
            if not left:
                return b"".join(pieces)
            piece = self._stream.read(min(left, PIECE_NBYTES))

    def at_end(self) -> bool:
        """Whether no byte follows. It reads one byte, so that nothing can be read after it."""
        return not self._stream.read(1)


class _Hasher(Protocol):
    def update(self, data: bytes, /) -> None: ...
