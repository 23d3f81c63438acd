"""The bytes of a temporary file that grows, mapped into memory."""

from __future__ import annotations

import contextlib
import mmap
from typing import IO


class GrowingMap:
    """Maps a whole file. A mapping takes a file descriptor: so the file is mapped again only when it has doubled."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._mapped = file, memoryview(b"")

    def first(self, nbytes: int) -> memoryview:
        """The first bytes of the file, read-only.

        Args:
            nbytes: At least the bytes that have been written.
        """
        descriptor = self._file.fileno()
        self._file.flush()
        if len(self._mapped) < nbytes:
            size = max(nbytes, 2 * len(self._mapped))
            try:
                self._file.truncate(size)  # what has not been written takes no place on most disks
            except OSError:  # a file cannot be so long
                size = nbytes
            self._mapped = memoryview(mmap.mmap(descriptor, size, access=mmap.ACCESS_READ))
        return self._mapped[:nbytes]

    def close(self) -> None:
        """Close the file, of which only what has been asked for can be used."""
        self._mapped = memoryview(b"")
        with contextlib.suppress(OSError):  # on a full disk the rest of the buffer cannot be written: nobody needs it
            self._file.close()
