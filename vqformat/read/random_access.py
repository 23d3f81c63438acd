"""Reading any part of a seekable file. Parts that will be read soon are fetched by one large read and kept."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import BinaryIO

from ..errors import TruncatedError, VqmError
from .file_access import file_access


class RandomInput:
    """Reads any part of a seekable file. Threads, and processes forked from this one, may read it at the same time.

    ``hold`` reads a part into memory and keeps it for the reads that follow: over a network, few large reads are faster
    than many small ones. At most one part of each kind is held: a layer, a BOOK chunk, a FREQ chunk, the beginning of
    a layer, the end of the file.

    Attributes:
        nbytes: Bytes of the file.
        is_near: Whether a read takes little time; then it need not be large.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._file = file_access(stream)
        self.is_near = self._file.is_near
        self._is_closed = False
        self._held: dict[bytes, tuple[int, bytes]] = {}  # kind -> offset and bytes
        end: int | None = stream.seek(0, os.SEEK_END)
        self.nbytes = stream.tell() if end is None else end  # seek of an mmap returns None

    def hold(self, kind: bytes, start: int, end: int) -> None:
        """Hold the bytes ``start:end`` in memory, instead of those of this kind held before.

        If the file is shorter, nothing is read: a later ``read_at`` reports the error.

        Args:
            kind: Type of the chunk to which the bytes belong, ``b"head"`` for the beginning of a layer, ``b"tail"`` for
                the end of the file.
        """
        offset, data = self._held.get(kind, (0, b""))
        if end <= self.nbytes and not (offset <= start and end <= offset + len(data)):
            self._held.pop(kind, None)  # before the read, so that old and new are not in memory together
            self._held[kind] = start, self.read_at(start, end - start, "a part of the file")

    def release(self, kind: bytes, most_nbytes: int = 0) -> None:
        """Free the bytes of a kind, if they are more than ``most_nbytes``."""
        if len(self._held.get(kind, (0, b""))[1]) > most_nbytes:
            self._held.pop(kind, None)

    def close(self) -> None:
        """Free all held bytes. A later read raises ValueError."""
        self._is_closed = True
        self._held.clear()
        self._file.close()

    def check_open(self) -> None:
        """Raise ValueError if ``close`` has been called."""
        if self._is_closed:
            raise ValueError("the file is closed")

    def check_unchanged(self) -> None:
        """Raise FormatError if the file has been overwritten since it was opened, as far as the system tells."""
        self._file.check_unchanged()

    @contextlib.contextmanager
    def clearing_on_error(self) -> Iterator[None]:
        """Context that frees all held bytes if the file is refused: a retry after a network error must read anew."""
        try:
            yield
        except VqmError:
            self._held.clear()
            raise

    def read_at(self, offset: int, n: int, what: str) -> bytes:
        """Read the bytes ``offset:offset + n``.

        Args:
            what: Name of what is read, for error texts.

        Raises:
            TruncatedError: The file is shorter.
            ValueError: ``close`` has been called.
        """
        held = self._held_at(offset, n)
        return self._read(offset, n, what) if held is None else bytes(held)

    def view_at(self, offset: int, n: int, what: str) -> memoryview:
        """The same without a copy of what is held. Arguments and errors are those of ``read_at``."""
        held = self._held_at(offset, n)
        return memoryview(self._read(offset, n, what)) if held is None else held

    def _held_at(self, offset: int, n: int) -> memoryview | None:
        self.check_open()
        for held_offset, held in list(self._held.values()):
            if held_offset <= offset and offset + n <= held_offset + len(held):
                return memoryview(held)[offset - held_offset : offset - held_offset + n]
        return None

    def _read(self, offset: int, n: int, what: str) -> bytes:
        if offset + n <= self.nbytes:  # before memory is allocated
            data = self._file.read(offset, n)
            if len(data) == n:
                return data
            raise TruncatedError(f"{what} needs bytes {offset} to {offset + n}, but the file, of {self.nbytes} bytes"
                                 f" when it was opened, gives {len(data)} of them", clause="REA-001",
                                 offset=offset)  # fmt: skip
        raise TruncatedError(f"{what} needs bytes {offset} to {offset + n}, but the file has {self.nbytes}",
                             clause="REA-001", offset=offset)  # fmt: skip


class PartInput:
    """Reads a file in order from an offset, as ``Readable``.

    Args:
        offset: Where reading starts.
        start, data: Offset and bytes of a part that is in memory already. Other parts are read from the file.
    """

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
