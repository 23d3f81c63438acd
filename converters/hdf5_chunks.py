"""Reading and decompressing the chunks of an HDF5 dataset, without libhdf5.

If a chunk decompresses to too few bytes, libhdf5 takes the memory behind them for values. If it decompresses to too
many, libhdf5 does not limit them. Here a chunk that does not have its exact size is refused.
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

ENTRY = struct.Struct("<QQI")  # an entry of a table of chunks: offset, size, bit mask of skipped filters
DEFLATE, SHUFFLE, FLETCHER32 = 1, 2, 3
_DEFLATE_RATIO = 1032  # the largest expansion by deflate


@dataclass(frozen=True)
class Chunks:
    """A dataset in chunks.

    Attributes:
        region: The file.
        shape: Shape of the dataset.
        steps: Shape of a chunk.
        filters: Code, name and parameters of each filter, in the order in which they were applied.
        table: An ``ENTRY`` for each chunk, in C order of their places.
        dtype: dtype of the elements.
    """

    region: Region
    shape: tuple[int, ...]
    steps: tuple[int, ...]
    filters: list[tuple[int, str, list[int]]]
    table: bytes
    dtype: np.dtype[Any]

    def check(self) -> int:
        """Check the chunks. Returns their stored bytes.

        Raises:
            ValueError: A filter is not supported, or the chunks cannot hold the values, or are not in the file.
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
        """Read all values.

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
        """Read a chunk and undo its filters."""
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
        plain = inflater.decompress(data, nbytes + 5)  # 4 for a checksum; 1 more to detect a chunk that is too long
    except zlib.error as err:
        raise ValueError(f"a chunk is no deflate stream: {err}") from err
    if not inflater.eof:
        raise ValueError(f"a chunk is no whole deflate stream of at most {nbytes} bytes")
    return plain


def _unshuffle(data: bytes, nbytes: int, parameters: list[int]) -> bytes:
    """Undo the shuffle filter, which groups bytes by their position in the element. Bytes left over at the end stay."""
    itemsize = parameters[0] if parameters else 1
    count = len(data) // itemsize if itemsize else 0
    if itemsize < 2 or count < 2:
        return data
    planes = np.frombuffer(data, np.uint8, count * itemsize).reshape(itemsize, count)
    return planes.T.tobytes() + data[count * itemsize :]


def _check_sum(data: bytes, nbytes: int, parameters: list[int]) -> bytes:
    """Check and remove the last 4 bytes: Fletcher's sum of 16-bit big-endian words (``H5_checksum_fletcher32``)."""
    if len(data) < 4:
        raise ValueError("a chunk is too short for its checksum")
    plain, (stored,) = data[:-4], struct.unpack("<I", data[-4:])
    words = np.frombuffer(plain + bytes(len(plain) % 2), ">u2").astype(np.uint64)
    low = high = 0
    for start in range(0, len(words), 1 << 20):  # so that sums stay below 2^56
        piece = words[start : start + (1 << 20)]
        weights = np.arange(len(piece), 0, -1, dtype=np.uint64)
        high = (high + low * len(piece) + int((piece * weights).sum())) % 65535
        low = (low + int(piece.sum())) % 65535
    if (stored & 0xFFFF) % 65535 != low or (stored >> 16) % 65535 != high:
        raise ValueError("a chunk does not have its checksum")
    return plain


_UNDO = {DEFLATE: _inflate, SHUFFLE: _unshuffle, FLETCHER32: _check_sum}
