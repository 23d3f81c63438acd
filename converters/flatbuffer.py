"""FlatBuffers read from a file: tables, vectors and strings, every offset checked (flatbuffers.dev, "Internals")."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vqformat.errors import ConversionError


class Flat:
    """A file that is one FlatBuffer; a context manager.

    Every method raises ConversionError where the file ends before what it should have.
    """

    def __init__(self, path: Path, what: str) -> None:
        self.path, self._what = path, what
        self._stream = open(path, "rb")  # noqa: SIM115
        self.size = self._stream.seek(0, 2)

    def __enter__(self) -> Flat:
        return self

    def __exit__(self, *reason: object) -> None:
        self._stream.close()

    def error(self, why: str) -> ConversionError:
        return ConversionError(f"{str(self.path)!r} is {self._what} that cannot be read: {why}")

    def bytes(self, at: int, nbytes: int) -> bytes:
        if at < 0 or nbytes > self.size - at:
            raise self.error(f"{nbytes} bytes at {at} are beyond the end at {self.size}; it is cut short or damaged")
        self._stream.seek(at)
        data = self._stream.read(nbytes)
        if len(data) < nbytes:
            raise self.error("it became shorter while it was read")
        return data

    def number(self, layout: str, at: int) -> int:
        """An integer of a struct layout, such as ``"<I"``."""
        return int(struct.unpack(layout, self.bytes(at, struct.calcsize(layout)))[0])

    def root(self) -> Table:
        return Table(self, self.number("<I", 0))

    def offsets(self, at: int) -> npt.NDArray[np.int64]:
        """Where the elements of a vector of tables lie."""
        starts = self.array(at, "<u4").astype(np.int64)
        return starts + (at + 4 + 4 * np.arange(len(starts), dtype=np.int64))

    def array(self, at: int, dtype: str) -> npt.NDArray[np.generic]:
        """A vector of numbers."""
        start, count = self.span(at, np.dtype(dtype).itemsize)
        return np.frombuffer(self.bytes(start, count * np.dtype(dtype).itemsize), dtype)

    def span(self, at: int, itemsize: int = 1) -> tuple[int, int]:
        """Where the elements of a vector begin, and how many they are; nothing is read."""
        count = self.number("<I", at)
        if count * itemsize > self.size - at - 4:
            raise self.error(f"a vector of {count} elements of {itemsize} bytes at {at} is beyond the end at"
                             f" {self.size}; it is cut short or damaged")  # fmt: skip
        return at + 4, count


class Table:
    """A table, whose fields may be absent."""

    def __init__(self, flat: Flat, at: int) -> None:
        self._flat, self._at = flat, at
        self._vtable = at - flat.number("<i", at)
        self._n_fields = (flat.number("<H", self._vtable) - 4) // 2

    def field(self, index: int) -> int | None:
        """Where a field lies, or None."""
        if index >= self._n_fields:
            return None
        return self._at + offset if (offset := self._flat.number("<H", self._vtable + 4 + 2 * index)) else None

    def scalar(self, index: int, layout: str) -> int:
        """An integer, 0 where it is absent."""
        at = self.field(index)
        return 0 if at is None else self._flat.number(layout, at)

    def target(self, index: int) -> int | None:
        """Where a vector, a string or a table of a field lies, or None."""
        at = self.field(index)
        return None if at is None else at + self._flat.number("<I", at)

    def table(self, index: int) -> Table | None:
        at = self.target(index)
        return None if at is None else Table(self._flat, at)

    def text(self, index: int) -> str:
        """A string, empty where it is absent."""
        at = self.target(index)
        if at is None:
            return ""
        start, count = self._flat.span(at)
        return self._flat.bytes(start, count).decode(errors="replace")

    def array(self, index: int, dtype: str) -> npt.NDArray[np.generic]:
        """A vector of numbers, empty where it is absent."""
        at = self.target(index)
        return np.empty(0, dtype) if at is None else self._flat.array(at, dtype)

    def offsets(self, index: int) -> list[int]:
        """Where the tables of a vector lie, none where it is absent."""
        at = self.target(index)
        return [] if at is None else [int(start) for start in self._flat.offsets(at)]
