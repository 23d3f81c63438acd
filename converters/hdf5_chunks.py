"""The chunks of an HDF5 dataset, read and decompressed here.

libhdf5 takes a chunk that decompresses to less than it should as if it were whole, and what is behind it in memory for
values; and to more without a bound. Here a chunk has the size that it must have, or is refused.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from .file_region import Region

ENTRY = struct.Struct("<QQI")  # of a table of chunks: offset, size, filters that were skipped
DEFLATE, SHUFFLE, FLETCHER32 = 1, 2, 3
_DEFLATE_RATIO = 1032  # the most that deflate expands


@dataclass(frozen=True)
class Chunks:
    """A dataset in chunks.

    Attributes:
        steps: Shape of a chunk.
        filters: Code, name and parameters of each, in the order in which they were applied.
        table: An ``ENTRY`` for each chunk, in the order of their places.
    """

    region: Region
    shape: tuple[int, ...]
    steps: tuple[int, ...]
    filters: list[tuple[int, str, list[int]]]
    table: bytes
    dtype: np.dtype[Any]

    def check(self) -> int:
        """Bytes that the chunks take.

        Raises:
            ValueError: A filter is unknown, or the chunks cannot hold the values, or are not in the file.
        """
        for code, name, _ in self.filters:
            if code not in _UNDO:
                raise ValueError(f"uses the HDF5 filter {code} {name!r}; gzip, shuffle and fletcher32 are read: run"
                                 " h5repack -f NONE on the file")  # fmt: skip
        n_chunks = prod(-(-size // step) for size, step in zip(self.shape, self.steps, strict=True))
        if len(self.table) != ENTRY.size * n_chunks:
            raise ValueError(f"of shape {self.shape} has chunks that are not all stored")
        stored = 0
        for offset, size, _ in ENTRY.iter_unpack(self.table):
            if offset + size > self.region.size:
                raise ValueError(f"has a chunk of {size} bytes at {offset}, beyond the end at {self.region.size}")
            stored += size
        nbytes = n_chunks * self._chunk_nbytes
        if nbytes > stored * (_DEFLATE_RATIO if any(code == DEFLATE for code, *_ in self.filters) else 1):
            raise ValueError(f"of shape {self.shape} needs {nbytes} bytes, more than the {stored} stored can expand to")
        return stored

    @property
    def _chunk_nbytes(self) -> int:
        return prod(self.steps) * self.dtype.itemsize

    def read(self) -> npt.NDArray[Any]:
        """The values.

        Raises:
            ValueError: A chunk is damaged.
        """
        array = np.empty(self.shape, self.dtype)
        for start, data in zip(self._starts(), ENTRY.iter_unpack(self.table), strict=True):
            part = array[tuple(slice(first, first + step) for first, step in zip(start, self.steps, strict=True))]
            chunk = np.frombuffer(self._plain(*data), self.dtype).reshape(self.steps)
            part[...] = chunk[tuple(slice(size) for size in part.shape)]
        return array

    def _starts(self) -> Iterator[tuple[int, ...]]:
        return product(*(range(0, size, step) for size, step in zip(self.shape, self.steps, strict=True)))

    def _plain(self, offset: int, size: int, skipped: int) -> bytes:
        """A chunk, its filters undone."""
        stored = np.empty(size, np.uint8)
        self.region.fill(stored, offset)
        data = stored.tobytes()
        for number in reversed(range(len(self.filters))):
            if not skipped >> number & 1:
                code, _, parameters = self.filters[number]
                data = _UNDO[code](data, self._chunk_nbytes, parameters)
        if len(data) != self._chunk_nbytes:
            raise ValueError(f"a chunk has {len(data)} bytes instead of {self._chunk_nbytes}")
        return data


def _inflate(data: bytes, nbytes: int, parameters: list[int]) -> bytes:
    inflater = zlib.decompressobj()
    try:
        plain = inflater.decompress(data, nbytes + 5)  # 4 for a checksum inside; one more shows what is too long
    except zlib.error as err:
        raise ValueError(f"a chunk is no deflate stream: {err}") from err
    if not inflater.eof:
        raise ValueError(f"a chunk is no whole deflate stream of at most {nbytes} bytes")
    return plain


def _unshuffle(data: bytes, nbytes: int, parameters: list[int]) -> bytes:
    """Bytes of equal rank in their elements stand together; what is left over at the end stays."""
    itemsize = parameters[0] if parameters else 1
    count = len(data) // itemsize if itemsize else 0
    if itemsize < 2 or count < 2:
        return data
    planes = np.frombuffer(data, np.uint8, count * itemsize).reshape(itemsize, count)
    return planes.T.tobytes() + data[count * itemsize :]


def _check_sum(data: bytes, nbytes: int, parameters: list[int]) -> bytes:
    """Fletcher's sum of 16-bit big-endian words (HDF5, ``H5_checksum_fletcher32``), in the last 4 bytes."""
    if len(data) < 4:
        raise ValueError("a chunk is too short for its checksum")
    plain, (stored,) = data[:-4], struct.unpack("<I", data[-4:])
    words = np.frombuffer(plain + bytes(len(plain) % 2), ">u2").astype(np.uint64)
    low = high = 0
    for start in range(0, len(words), 1 << 20):  # sums of at most 2^56
        piece = words[start : start + (1 << 20)]
        weights = np.arange(len(piece), 0, -1, dtype=np.uint64)
        high = (high + low * len(piece) + int((piece * weights).sum())) % 65535
        low = (low + int(piece.sum())) % 65535
    if (stored & 0xFFFF) % 65535 != low or (stored >> 16) % 65535 != high:
        raise ValueError("a chunk does not have its checksum")
    return plain


_UNDO = {DEFLATE: _inflate, SHUFFLE: _unshuffle, FLETCHER32: _check_sum}
