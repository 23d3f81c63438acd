"""The bytes of a file that may be inside another file: a range of that file, or bytes in memory."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from vqformat.errors import ConversionError

from .model_folder import open_regular

_MAPPED_NBYTES = 1 << 24  # so many bytes, or more, are mapped
_ALIGNMENT = 8  # of the numbers in an array


def file_bytes(path: Path, offset: int, nbytes: int) -> npt.NDArray[np.uint8]:
    """Bytes of a file. A large part is mapped: then the system holds of it in memory what it has room for.

    A part that begins at an odd place is read, since numbers in an array must be aligned.

    Returns:
        Array ``(nbytes,)``, which may be read-only. The file must not become shorter while a mapped one is used.

    Raises:
        ConversionError: The file became shorter since these bytes were in it, or it is no regular file.
    """
    shorter = f"{str(path)!r} became shorter while it was read"
    with open_regular(path) as stream:
        if nbytes >= _MAPPED_NBYTES and offset % _ALIGNMENT == 0:
            if stream.seek(0, 2) < offset + nbytes:
                raise ConversionError(shorter)
            return np.memmap(stream, np.uint8, "r", offset, (nbytes,)).view(np.ndarray)
        data = np.empty(nbytes, np.uint8)
        stream.seek(offset)
        if stream.readinto(data.data) != nbytes:  # type: ignore[attr-defined]
            raise ConversionError(shorter)
    return data


@dataclass(frozen=True)
class Region:
    """Bytes ``start`` to ``start + size`` of a file, or ``data``.

    Attributes:
        path: Path of the file.
        label: Its name in error texts.
        start, size: Offset and number of the bytes.
        member: Name of the archive member that it is; empty if it is none.
        data: The bytes, if they are compressed in the file; else None.
    """

    path: Path
    label: str
    start: int
    size: int
    member: str = ""
    data: bytes | None = None

    @classmethod
    def of_file(cls, path: Path, start: int = 0) -> Region:
        """The bytes of a file from an offset to its end.

        Raises:
            ConversionError: It is no regular file.
        """
        with open_regular(path) as stream:
            return cls(path, f"{str(path)!r}", start, stream.seek(0, 2) - start)

    def part(self, start: int, size: int, member: str) -> Region:
        """Some of the bytes, as a member of the archive that they all are.

        Raises:
            ValueError: They are not all there.
        """
        if not 0 <= start <= start + size <= self.size:
            raise ValueError(f"{size} bytes of {member!r} at {start}, beyond the end at {self.size}")
        label = f"{self.label}, member {member!r}"
        if self.data is not None:
            return Region(self.path, label, 0, size, member, self.data[start : start + size])
        return Region(self.path, label, self.start + start, size, member)

    def fill(self, array: npt.NDArray[Any], offset: int) -> None:
        """Read bytes into an array in C order.

        Args:
            array: The array to fill.
            offset: Offset of its first byte in the region.

        Raises:
            ValueError: The region is too short.
        """
        target = memoryview(array.reshape(-1).view(np.uint8).data)
        if not 0 <= offset <= self.size - len(target):
            raise ValueError(f"{len(target)} bytes at {offset}, beyond the end at {self.size}")
        if self.data is not None:
            target[:] = self.data[offset : offset + len(target)]
            return
        with open(self.path, "rb") as stream:
            stream.seek(self.start + offset)
            if stream.readinto(target) != len(target):
                raise ValueError("the file became shorter while it was read")

    def bytes(self, offset: int, nbytes: int) -> npt.NDArray[np.uint8]:
        """Some of the bytes; ``file_bytes`` says how they are had.

        Raises:
            ValueError: The region is too short.
        """
        if self.data is None and 0 <= offset <= self.size - nbytes:
            return file_bytes(self.path, self.start + offset, nbytes)
        data = np.empty(nbytes, np.uint8)
        self.fill(data, offset)
        return data

    def open(self) -> BinaryIO:
        """The bytes as a seekable binary file."""
        if self.data is not None:
            return io.BytesIO(self.data)
        return _Window(open(self.path, "rb"), self.start, self.size)  # type: ignore[return-value]


class _Window(io.RawIOBase):
    """A range of a file, as a file."""

    def __init__(self, stream: BinaryIO, start: int, size: int) -> None:
        self._stream, self._start, self._size, self._position = stream, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + (0, self._position, self._size)[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        wanted = max(0, min(len(buffer), self._size - self._position))
        self._stream.seek(self._start + self._position)
        count = self._stream.readinto(memoryview(buffer)[:wanted])  # type: ignore[attr-defined]
        self._position += count
        return int(count)

    def close(self) -> None:
        self._stream.close()
        super().close()
