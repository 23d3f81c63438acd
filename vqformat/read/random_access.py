"""A seekable file whose parts are read in any order, with parts held in memory for the reads that follow."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import BinaryIO

from ..errors import TruncatedError, VqmError


class RandomInput:
    """Reads any part of a seekable file; one lock keeps seek and read together.

    Parts may be held in memory, for the reads that follow: over a network few large reads are quicker than many. One of
    a layer is, one of a chunk that is read meanwhile, the beginning of the last layer and the end of the file.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._is_closed = False
        self._held: dict[bytes, tuple[int, bytes]] = {}  # by what they are of: offset and bytes
        end: int | None = stream.seek(0, os.SEEK_END)
        self.nbytes = stream.tell() if end is None else end  # mmap does not say

    def hold(self, kind: bytes, start: int, end: int) -> None:
        """Have bytes ``start:end`` in memory, in place of those held before; nothing where the file is shorter.

        Args:
            kind: Type of the chunk that they are of, ``b"head"`` for a layer's beginning, ``b"tail"`` for the file's
                end.
        """
        offset, data = self._held.get(kind, (0, b""))
        if end <= self.nbytes and not (offset <= start and end <= offset + len(data)):
            self._held.pop(kind, None)  # not both in memory
            self._held[kind] = start, self.read_at(start, end - start, "a part of the file")

    def release(self, kind: bytes, most_nbytes: int = 0) -> None:
        """Hold no longer what is larger."""
        if len(self._held.get(kind, (0, b""))[1]) > most_nbytes:
            self._held.pop(kind, None)

    def close(self) -> None:
        """Read no more, and hold nothing."""
        self._is_closed = True
        self._held.clear()

    @contextlib.contextmanager
    def clearing_on_error(self) -> Iterator[None]:
        """Nothing is held any more when a file is refused: the network may be at fault, and the next try reads anew."""
        try:
            yield
        except VqmError:
            self._held.clear()
            raise

    def read_at(self, offset: int, n: int, what: str) -> bytes:
        """Bytes ``offset:offset + n``.

        Raises:
            TruncatedError: The file is shorter.
            ValueError: It is closed.
        """
        if self._is_closed:
            raise ValueError("the file is closed")
        for held_offset, held in list(self._held.values()):
            if held_offset <= offset and offset + n <= held_offset + len(held):
                return held[offset - held_offset : offset - held_offset + n]
        if offset + n <= self.nbytes:  # compared before anything is allocated
            with self._lock:
                self._stream.seek(offset)
                pieces, left = [], n
                while left > 0 and (piece := self._stream.read(left)):  # a raw file may give less than it has
                    pieces.append(piece)
                    left -= len(piece)
            if not left:
                return b"".join(pieces)
            raise TruncatedError(f"{what} needs bytes {offset} to {offset + n}, but the file, of {self.nbytes} bytes"
                                 f" when it was opened, gives {n - left} of them", clause="REA-001",
                                 offset=offset)  # fmt: skip
        raise TruncatedError(f"{what} needs bytes {offset} to {offset + n}, but the file has {self.nbytes}",
                             clause="REA-001", offset=offset)  # fmt: skip


class PartInput:
    """A part of a file in memory, and what follows it from the file: read like a stream."""

    def __init__(self, source: RandomInput, offset: int, start: int = 0, data: bytes = b"") -> None:
        self._source, self.offset, self._start, self._data = source, offset, start, data

    def read(self, n: int, what: str) -> bytes:
        at = self.offset - self._start
        if at >= 0 and at + n <= len(self._data):
            piece = self._data[at : at + n]
        else:
            piece = self._source.read_at(self.offset, n, what)
        self.offset += n
        return piece
