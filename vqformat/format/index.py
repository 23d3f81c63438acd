"""The index at the end of a file, kept in columns as it is stored (SPEC section 13)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import FormatError, LimitError, UnsupportedError
from ..forks import cached_property
from . import metadata
from .container import CHUNK_HEAD_NBYTES, HEADER_NBYTES, KNOWN_TYPES
from .dtypes import BY_NAME, by_id
from .limits import (
    MAX_CHUNKS,
    MAX_META_COPY_NBYTES,
    MAX_NAME_NBYTES,
    MAX_RANK,
    MAX_SHAPE_PRODUCT,
    MAX_TENSORS,
)
from .records import Record, TensorRecord

FIELDS = ("digest", "metadata", "chunk_types", "chunk_lengths", "names", "dtypes", "ranks", "dims", "chunks", "targets")
NO_DIGEST = bytes(32)
_LEAST_CHUNK_NBYTES = CHUNK_HEAD_NBYTES + 4  # body_crc
_TOGETHER = 1 << 16  # tensors whose names are Python objects at a time
_SHAPES_TOGETHER = 1 << 12  # tensors whose sizes are converted to 8 bytes each at a time
_MOST_NBYTES = float(1 << 62)  # of a file: offsets are computed in 64 bits

Column = npt.NDArray[Any]


@dataclass(frozen=True)
class Entry:
    """The entry of a tensor in the index. An alias has dtype and shape of its target.

    Attributes:
        chunk: Number of its chunk in the chunk list.
        position: Number of the tensor among those of its chunk.
        target: Name of the target of an alias; else None.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunk: int
    position: int
    target: str | None


class Index:
    """The chunks and tensors of a file, in file order (SPEC section 13), from the metadata of its INDX chunk.

    A megabyte of a file may hold the index of a million tensors of 32 axes. So it stays as it is stored, and objects
    are made for the entries that are asked for. It is checked for contradictions (IDX-001, IDX-004).

    Attributes:
        nbytes: Bytes of the metadata.
        digest: SHA-256 of the file before the INDX chunk.
        meta_copy: Copy of the metadata of META; empty if that is too long.
        n_chunks: Number of chunks.

    Raises:
        FormatError: It breaks a rule.
    """

    def __init__(self, meta: bytes) -> None:
        self.nbytes = len(meta)
        columns = bins_of(meta)
        self.digest, self.meta_copy, self._types, lengths, self._names = columns[:5]
        self._dtypes, self._ranks, dims, chunks, targets = columns[5:]
        if len(self.meta_copy) > MAX_META_COPY_NBYTES:
            _fail(f"the copy of META has {len(self.meta_copy)} bytes; at most {MAX_META_COPY_NBYTES} are copied")
        if len(self._types) % 4 or not self._types:
            _fail(f"chunk_types has {len(self._types)} bytes, not 4 for each chunk")
        self.n_chunks, n = len(self._types) // 4, len(self._dtypes)
        if self.n_chunks + 1 > MAX_CHUNKS or n > MAX_TENSORS:  # INDX counts
            raise LimitError(f"index of {self.n_chunks} chunks and {n} tensors", clause="LIM-001")
        self._type_column = np.frombuffer(self._types, "S4")
        if self.chunk_type(0) != b"META" or len(self.chunks_of(b"META")) > 1 or len(self.chunks_of(b"INDX")):
            _fail("META is not the first chunk and the only one of its type, or INDX is listed")
        if self._names.count(0) != n or len(self._ranks) != n:
            _fail(f"{self._names.count(0)} names, {n} dtypes and {len(self._ranks)} ranks")
        if max(self._ranks, default=0) > MAX_RANK:
            raise LimitError(f"index: a shape has {max(self._ranks)} axes; at most {MAX_RANK} are allowed",
                             clause="TEN-003")  # fmt: skip
        self._check_names()
        self._lengths = metadata.unpack_column(lengths, self.n_chunks, "chunk_lengths")
        self._dims = metadata.unpack_column(dims, sum(self._ranks), "dims")
        self._chunks = metadata.unpack_column(chunks, n, "chunks")
        self._targets = metadata.unpack_column(targets, n, "targets") if targets else None
        if self._lengths.min() < _LEAST_CHUNK_NBYTES:
            _fail(f"a chunk has {self._lengths.min()} bytes, and no chunk has less than {_LEAST_CHUNK_NBYTES}")
        if self._lengths.sum(dtype=np.float64) > _MOST_NBYTES:
            _fail(f"the chunks have {self._lengths.sum(dtype=np.float64):.0f} bytes")
        self._offsets = np.empty(self.n_chunks + 1, np.int64)
        self._offsets[0] = HEADER_NBYTES
        np.cumsum(self._lengths, out=self._offsets[1:])
        self._offsets[1:] += HEADER_NBYTES
        self._check_shapes()
        self._check_positions()

    def check_types(self) -> None:
        """Check that all types of chunks are known or ancillary (CHK-002, CHK-003).

        The chunks of a damaged file may be read by an index that lists unknown types.

        Raises:
            FormatError: A type is not four letters.
            UnsupportedError: A reader must know it.
        """
        for found in np.unique(self._type_column).tolist():
            type = found.ljust(4, b"\0")  # NumPy drops bytes 0 at the end
            if type in KNOWN_TYPES:
                continue
            if not (type.isascii() and type.isalpha()):
                raise FormatError(f"index: chunk type {type!r} is not four letters", clause="CHK-002")
            if not type[:1].islower():
                raise UnsupportedError(f"index: unknown critical chunk type {type.decode()!r}", clause="CHK-003")

    def __len__(self) -> int:
        return len(self._dtypes)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    @property
    def names(self) -> list[str]:
        """The names of all tensors: a new list."""
        return self._names.decode().split("\0")[:-1]

    @property
    def end(self) -> int:
        """Offset at which the last chunk ends."""
        return int(self._offsets[-1])

    def chunk_type(self, at: int) -> bytes:
        """The type of a chunk by its number in the chunk list."""
        return self._types[4 * at : 4 * at + 4]

    def span(self, at: int) -> tuple[int, int]:
        """Offsets of the first byte of a chunk, and of the byte after its last one."""
        return int(self._offsets[at]), int(self._offsets[at + 1])

    def chunks_of(self, type: bytes) -> Column:
        """Numbers of the chunks of this type in the chunk list, ascending."""
        found = self._places.get(type)
        if found is None:
            found = self._places[type] = np.flatnonzero(self._type_column == type)
        return found

    @cached_property
    def _places(self) -> dict[bytes, Column]:
        return {}

    def tensors_of(self, chunk: int) -> range:
        """Positions of the tensors of a chunk among all tensors."""
        return range(int(self._first_of_chunk[chunk]), int(self._first_of_chunk[chunk + 1]))

    @cached_property
    def _first_of_chunk(self) -> Column:
        return np.searchsorted(self._chunks, np.arange(self.n_chunks + 1, dtype=self._chunks.dtype))

    def agrees(self, chunk: int, records: Sequence[Record]) -> bool:
        """Whether the records of a chunk are known to be what the index says. If not, look at each."""
        tensors = self.tensors_of(chunk)
        here = slice(tensors.start, tensors.stop)
        if len(tensors) != len(records) or (self._targets is not None and self._targets[here].any()):
            return False
        names = b"".join(record.name.encode() + b"\0" for record in records)
        first, end = (int(self._name_ends[at - 1]) + 1 if at else 0 for at in (here.start, here.stop))
        if self._names[first:end] != names:
            return False
        found = [record for record in records if isinstance(record, TensorRecord)]
        dims = self._dims[int(self._first_dims[here.start]) : int(self._first_dims[here.stop])]
        return (len(found) == len(records) and self._dtypes[here] == bytes(record.dtype_info.id for record in found)
                and self._ranks[here] == bytes(len(record.shape) for record in found)
                and dims.tolist() == [size for record in found for size in record.shape])  # fmt: skip

    def name(self, at: int) -> str:
        """The name of the tensor at this position among all tensors."""
        return self._stored_name(at).decode()

    def _stored_name(self, at: int) -> bytes:
        return self._names[int(self._name_ends[at - 1]) + 1 if at else 0 : int(self._name_ends[at])]

    @cached_property
    def _name_ends(self) -> Column:
        return np.flatnonzero(np.frombuffer(self._names, np.uint8) == 0).astype(np.uint32)

    @cached_property
    def _first_dims(self) -> Column:
        ends = np.cumsum(np.frombuffer(self._ranks, np.uint8), dtype=np.uint32)
        return np.concatenate([np.zeros(1, np.uint32), ends])

    def entry(self, at: int) -> Entry:
        """The entry of the tensor at this position among all tensors."""
        chunk = int(self._chunks[at])
        target = 0 if self._targets is None else int(self._targets[at])
        return Entry(self.name(at), by_id(self._dtypes[at]).name, self._shape(at), chunk,
                     at - int(self._first_of_chunk[chunk]), self.name(target - 1) if target else None)  # fmt: skip

    def _shape(self, at: int) -> tuple[int, ...]:
        first = int(self._first_dims[at])
        return tuple(self._dims[first : first + self._ranks[at]].tolist())

    def position(self, name: str) -> int | None:
        """Position of a tensor among all tensors; None if there is no tensor of this name."""
        stored = name.encode("utf-8", "surrogatepass")
        hashes, order = self._by_hash
        wanted = hash(stored)
        at = int(hashes.searchsorted(wanted))
        while at < len(hashes) and hashes[at] == wanted:
            if self._stored_name(int(order[at])) == stored:
                return int(order[at])
            at += 1
        return None

    @cached_property
    def _by_hash(self) -> tuple[Column, Column]:
        """The hashes of all names, ascending, and the positions of the names. Python seeds hashes by chance."""
        hashes = np.empty(len(self), np.int64)
        for start in range(0, len(self), _TOGETHER):
            end = min(start + _TOGETHER, len(self))
            first = int(self._name_ends[start - 1]) + 1 if start else 0
            pieces = self._names[first : int(self._name_ends[end - 1])].split(b"\0")
            hashes[start:end] = np.fromiter(map(hash, pieces), np.int64, end - start)
        order = np.argsort(hashes, kind="stable").astype(np.uint32)
        return hashes[order], order

    def _check_names(self) -> None:
        if self._names and not self._names.endswith(b"\0"):
            _fail("names does not end with a byte 0")
        try:
            self._names.decode()
        except UnicodeDecodeError as err:
            raise FormatError(f"index: names are not UTF-8: {err.reason}", clause="TEN-001") from err
        ends = self._name_ends.astype(np.int64)
        lengths = np.diff(ends, prepend=-1) - 1
        if lengths.max(initial=0) > MAX_NAME_NBYTES:
            raise LimitError(f"index: a name has more than {MAX_NAME_NBYTES} bytes", clause="TEN-001")
        if not lengths.all():
            raise FormatError("index: a name is empty", clause="TEN-001")
        hashes, order = self._by_hash
        same = np.flatnonzero(hashes[1:] == hashes[:-1])
        names = [self._stored_name(int(at)) for at in order[np.union1d(same, same + 1)]]
        if len(set(names)) < len(names):
            raise FormatError("two tensors of the index have the same name", clause="TEN-002")

    def _check_shapes(self) -> None:
        for start in range(0, len(self), _SHAPES_TOGETHER):
            firsts = self._first_dims[start : start + _SHAPES_TOGETHER + 1].astype(np.int64)
            sizes = self._dims[firsts[0] : firsts[-1]].astype(np.float64)
            sizes[sizes == 0] = 1
            with_axes = np.flatnonzero(np.diff(firsts))
            products = np.multiply.reduceat(sizes, firsts[with_axes] - firsts[0]) if len(with_axes) else sizes
            for at in with_axes[products > MAX_SHAPE_PRODUCT / 2]:  # a product of floats is not exact
                shape = self._shape(start + int(at))
                if prod(size for size in shape if size) > MAX_SHAPE_PRODUCT:
                    raise LimitError(f"index: shape {shape!r:.200} has a product above {MAX_SHAPE_PRODUCT}",
                                     clause="TEN-003")  # fmt: skip

    def _check_positions(self) -> None:
        if self._dtypes and max(self._dtypes) >= len(BY_NAME):
            by_id(max(self._dtypes))
        chunks = self._chunks
        bad = chunks >= self.n_chunks
        if not bad.any():
            bad = self._type_column[chunks] != b"LAYR"
            bad[1:] |= chunks[1:] < chunks[:-1]
        if bad.any():
            raise FormatError(f"index: tensor {int(bad.argmax())} is in chunk {int(chunks[bad.argmax()])} of"
                              f" {self.n_chunks}, which is no LAYR or before that of the tensor before it",
                              clause="IDX-004")  # fmt: skip
        targets = self._targets
        if targets is None:
            return
        aliases = np.flatnonzero(targets)
        of_aliases = targets[aliases]
        bad = of_aliases > aliases
        if not bad.any():
            bad = targets[of_aliases - 1] != 0
        if bad.any():
            at = int(aliases[bad.argmax()])
            raise FormatError(f"index: target {int(targets[at])} of tensor {at} is no earlier tensor that is not an"
                              " alias", clause="ALI-001")  # fmt: skip
        if not len(aliases):
            _fail("there are targets, though no tensor is an alias")
        self._check_aliases(aliases, of_aliases.astype(np.int64) - 1)

    def _check_aliases(self, aliases: Column, targets: Column) -> None:
        """Check that aliases have dtype and shape of their targets."""
        dtypes, ranks = np.frombuffer(self._dtypes, np.uint8), np.frombuffer(self._ranks, np.uint8)
        for start in range(0, len(aliases), _TOGETHER):
            ours, theirs = aliases[start : start + _TOGETHER], targets[start : start + _TOGETHER]
            differ = (dtypes[ours] != dtypes[theirs]) | (ranks[ours] != ranks[theirs])
            for axis in range(int(ranks[ours].max())):
                has_axis = np.flatnonzero(~differ & (ranks[ours] > axis))
                sizes, others = (self._dims[self._first_dims[at[has_axis]] + np.uint32(axis)] for at in (ours, theirs))
                differ[has_axis] = sizes != others
            if differ.any():
                _fail(f"alias {self.name(int(ours[differ.argmax()]))!r:.200} and its target differ in dtype or shape")


def bins_of(meta: bytes) -> list[bytes]:
    """The fields of an INDX chunk, by kind (MET-008)."""
    fields = metadata.unpack(meta)
    if not isinstance(fields, list) or len(fields) != len(FIELDS) or any(not isinstance(f, bytes) for f in fields):
        raise FormatError("INDX is not an array of ten bins", clause="MET-008")
    if len(fields[0]) != len(NO_DIGEST):
        raise FormatError(f"index: digest has {len(fields[0])} bytes, not {len(NO_DIGEST)}", clause="MET-008")
    return fields


def _fail(message: str) -> None:
    raise FormatError(f"index: {message}", clause="IDX-001")
