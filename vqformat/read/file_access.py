"""Reading a file at any offset, while other threads, and processes forked from this one, read it too.

A fork copies the memory of a process, but not its open files: parent and child share the position of a descriptor, and
a connection to a server. So a descriptor is read at a given offset, which leaves its position alone. Any other file is
opened again in the child, by a copy through pickle; a file of fsspec opens what it stands for.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
from typing import BinaryIO, Protocol

from ..errors import FormatError
from ..files import reads_its_descriptor
from ..forks import ForkSafeLock, RenewedByFork
from ..format.container import FOOTER_NBYTES
from .pinned import pinned

_IN_MEMORY = io.BytesIO, mmap.mmap
_END_NBYTES = FOOTER_NBYTES + 4  # the end of a file that is compared


class FileAccess(Protocol):
    """Reads a file at any offset.

    Attributes:
        is_near: Whether a read takes little time. Over a network, few large reads are faster than many small ones.
    """

    is_near: bool

    def read(self, offset: int, n: int) -> bytes:
        """Read the bytes ``offset:offset + n``, or those of them that the file has."""
        ...

    def check_unchanged(self) -> None:
        """Raise FormatError if the file has been overwritten since it was opened, as far as the system tells."""
        ...

    def close(self) -> None:
        """Close what has been opened here. The stream itself stays open."""
        ...


def file_access(stream: BinaryIO) -> FileAccess:
    """The way to read a file that can seek."""
    return _Descriptor(stream) if hasattr(os, "pread") and reads_its_descriptor(stream) else _Seeking(stream)


class _Descriptor:
    """Reads a descriptor without its position (POSIX: pread)."""

    is_near = True

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._version, self._changed_ns = self._stat()
        self._end = self._read_end()

    def _stat(self) -> tuple[tuple[int, int], int]:
        stat = os.fstat(self._stream.fileno())
        return (stat.st_size, stat.st_mtime_ns), stat.st_ctime_ns

    def _read_end(self) -> bytes:
        """The CRC of the index, which has the SHA-256 of all before it, and the footer."""
        return self.read(max(0, self._version[0] - _END_NBYTES), _END_NBYTES)

    def check_unchanged(self) -> None:
        version, changed_ns = self._stat()
        if version != self._version:
            raise FormatError("the file was overwritten while it was open: its size or modification time has changed")
        # Programs that copy files restore the modification time. A new name or other permissions change ctime, too
        if changed_ns != self._changed_ns:
            if self._read_end() != self._end:
                raise FormatError("the file was overwritten while it was open: its index is another one")
            self._changed_ns = changed_ns

    def read(self, offset: int, n: int) -> bytes:
        file = self._stream.fileno()  # asked for each time: raises ValueError once the file is closed
        pieces = []
        while n > 0 and (piece := os.pread(file, n, offset)):  # one call gives at most 2 GiB
            pieces.append(piece)
            offset, n = offset + len(piece), n - len(piece)
        return b"".join(pieces)

    def close(self) -> None:
        pass


class _Seeking(RenewedByFork):
    """Reads a stream by ``seek`` and ``read``. A lock makes both one step."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.is_near = isinstance(stream, _IN_MEMORY)
        self._copy: BinaryIO | None = None  # opened again in a forked process
        self._lock = ForkSafeLock()
        self._is_of_parent = False
        self._pinned = pinned(stream)
        super().__init__()

    def renew_after_fork(self) -> None:
        self._is_of_parent = not isinstance(self._stream, _IN_MEMORY)  # these have their own position

    def read(self, offset: int, n: int) -> bytes:
        with self._lock:
            if self._is_of_parent:
                self._stream = self._copy = _opened_again(self._stream)
                self._pinned = pinned(self._copy, self._pinned)
                self._is_of_parent = False
            self._stream.seek(offset)
            pieces = []
            while n > 0 and (piece := self._stream.read(n)):  # a raw file may return a part
                pieces.append(piece)
                n -= len(piece)
        return b"".join(pieces)

    def check_unchanged(self) -> None:
        pass  # ``pinned`` has compared each answer of a server; nothing tells it of other streams

    def close(self) -> None:
        if self._pinned is not None:
            self._pinned.release()
        if self._copy is not None:
            self._copy.close()


def _opened_again(stream: BinaryIO) -> BinaryIO:
    try:
        again: BinaryIO = pickle.loads(pickle.dumps(stream))
    except Exception as err:
        raise OSError(f"a {type(stream).__name__} that was opened before this process was forked cannot be read in it,"
                      " since both would move one position: open it here") from err  # fmt: skip
    return again
