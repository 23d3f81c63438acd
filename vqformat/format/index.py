"""The index at the end of a file (SPEC section 13)."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate
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
from .records import AliasRecord, Record, TensorRecord

FIELDS = ("digest", "metadata", "chunk_types", "chunk_lengths", "names", "dtypes", "ranks", "dims", "chunks", "targets")
NO_DIGEST = bytes(32)
_LEAST_CHUNK_NBYTES = CHUNK_HEAD_NBYTES + 4  # body_crc


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


@dataclass
class Index:
    """The chunks and tensors of a file, in file order (SPEC section 13).

    The writer and the sequential reader fill an index with ``add_chunk``. The indexed reader gets one from ``parse``.

    Attributes:
        meta_copy: Copy of the metadata of META; empty if that is too long.
        chunk_types, chunk_lengths: Of each chunk: its type, and its bytes.
        names, dtypes, shapes: Of each tensor: its name, dtype id and shape.
        chunks: For each tensor the number of its chunk.
        targets: For each tensor 0, or for an alias the position of its target plus 1.
        digest: SHA-256 of the file before the INDX chunk; zeros if it is not stated.
    """

    meta_copy: bytes = b""
    chunk_types: list[bytes] = field(default_factory=list)
    chunk_lengths: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    dtypes: list[int] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    chunks: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    digest: bytes = NO_DIGEST
    _positions: dict[str, int] = field(default_factory=dict)

    def add_chunk(self, type: bytes, nbytes: int, records: list[Record], meta: bytes = b"") -> None:
        """Add a chunk and its tensors. ``check_names`` must have accepted the names.

        Args:
            nbytes: Bytes of the whole chunk.
            meta: Plain metadata of the chunk; only that of META is kept.
        """
        if type == b"META" and len(meta) <= MAX_META_COPY_NBYTES:
            self.meta_copy = meta
        for record in records:
            target = 0
            match record:
                case AliasRecord():
                    at = self._positions[record.target]
                    target, dtype, shape = at + 1, self.dtypes[at], self.shapes[at]
                case TensorRecord():
                    dtype, shape = record.dtype_info.id, record.shape
            self._positions[record.name] = len(self.names)
            self.names.append(record.name)
            self.dtypes.append(dtype)
            self.shapes.append(shape)
            self.chunks.append(len(self.chunk_types))
            self.targets.append(target)
        self.chunk_types.append(type)
        self.chunk_lengths.append(nbytes)

    def check_names(self, records: list[Record]) -> None:
        """Raise FormatError unless the names are new and each alias has an earlier target (TEN-002, ALI-001)."""
        new: dict[str, bool] = {}  # name -> whether it is an alias
        for record in records:
            if record.name in self._positions or record.name in new:
                raise FormatError(f"two tensors have the name {record.name!r}", clause="TEN-002")
            if isinstance(record, AliasRecord):
                at = self._positions.get(record.target)
                is_good = new.get(record.target) is False if at is None else not self.targets[at]
                if not is_good:
                    raise FormatError(f"tensor {record.name!r}: its target {record.target!r:.200} is no earlier tensor"
                                      " that is not an alias", clause="ALI-001")  # fmt: skip
            new[record.name] = isinstance(record, AliasRecord)
        if len(self.names) + len(records) > MAX_TENSORS:
            raise LimitError(f"more than {MAX_TENSORS} tensors", clause="LIM-001")

    def __len__(self) -> int:
        return len(self.names)

    def position(self, name: str) -> int | None:
        """Position of a tensor among all tensors; None if there is no tensor of this name."""
        return self._positions.get(name)

    def entry(self, at: int) -> Entry:
        """The entry of the tensor at this position among all tensors."""
        chunk = self.chunks[at]
        target = self.targets[at]
        return Entry(self.names[at], by_id(self.dtypes[at]).name, self.shapes[at], chunk,
                     at - self.first_of_chunk[chunk], self.names[target - 1] if target else None)  # fmt: skip

    @cached_property
    def first_of_chunk(self) -> list[int]:
        """For each chunk the position of its first tensor; then the number of all tensors."""
        n_tensors = [0] * len(self.chunk_types)
        for chunk in self.chunks:
            n_tensors[chunk] += 1
        return list(accumulate(n_tensors, initial=0))

    @cached_property
    def _by_type(self) -> dict[bytes, list[int]]:
        places: dict[bytes, list[int]] = {}
        for at, type in enumerate(self.chunk_types):
            places.setdefault(type, []).append(at)
        return places

    def chunks_of(self, type: bytes) -> list[int]:
        """Numbers of the chunks of this type in the chunk list, ascending."""
        return self._by_type.get(type, [])

    @cached_property
    def chunk_offsets(self) -> list[int]:
        """For each chunk the offset of its first byte; then the offset at which the last chunk ends."""
        offsets = [HEADER_NBYTES]
        for nbytes in self.chunk_lengths:
            offsets.append(offsets[-1] + nbytes)
        return offsets

    def pack(self) -> bytes:
        """The metadata of an INDX chunk."""
        return metadata.pack(self._fields())

    def compare(self, meta: bytes, offset: int) -> None:
        """Compare this index, made from the chunks, with the metadata of an INDX chunk, and take the digest from that.

        Args:
            offset: Offset of the INDX chunk, for error texts.

        Raises:
            FormatError: A field other than the digest differs (IDX-001, IDX-004), or it is not of its kind (MET-008).
        """
        stated = _bins(meta)
        self.digest = stated[0]
        for name, found, expected in zip(FIELDS, stated, self._fields(), strict=True):
            if found != expected:
                raise FormatError(f"{name} of the index does not agree with the chunks", clause="IDX-001",
                                  offset=offset)  # fmt: skip

    def _fields(self) -> list[bytes]:
        dims = [size for shape in self.shapes for size in shape]
        return [
            self.digest,
            self.meta_copy,
            b"".join(self.chunk_types),
            metadata.pack_column(self.chunk_lengths),
            b"".join(name.encode() + b"\0" for name in self.names),
            bytes(self.dtypes),
            bytes(map(len, self.shapes)),
            metadata.pack_column(dims),
            metadata.pack_column(self.chunks),
            metadata.pack_column(self.targets) if any(self.targets) else b"",
        ]

    @classmethod
    def parse(cls, meta: bytes) -> Index:
        """Parse the metadata of an INDX chunk, and check it for contradictions (IDX-001, IDX-004).

        The chunks of a damaged file may be read by an index that lists unknown types: see ``check_types``.

        Raises:
            FormatError: It breaks a rule.
        """
        digest, meta_copy, types, lengths, names, dtypes, ranks, dims, chunks, targets = _bins(meta)
        if len(meta_copy) > MAX_META_COPY_NBYTES:
            _fail(f"the copy of META has {len(meta_copy)} bytes; at most {MAX_META_COPY_NBYTES} are copied")
        if len(types) % 4 or not types:
            _fail(f"chunk_types has {len(types)} bytes, not 4 for each chunk")
        n_chunks, n = len(types) // 4, len(dtypes)
        if n_chunks + 1 > MAX_CHUNKS or n > MAX_TENSORS:  # INDX counts
            raise LimitError(f"index of {n_chunks} chunks and {n} tensors", clause="LIM-001")
        chunk_types = [types[4 * i : 4 * i + 4] for i in range(n_chunks)]
        if chunk_types[0] != b"META" or b"META" in chunk_types[1:] or b"INDX" in chunk_types:
            _fail("META is not the first chunk and the only one of its type, or INDX is listed")
        if names.count(0) != n or len(ranks) != n:  # checked before lists of these lengths are made
            _fail(f"{names.count(0)} names, {n} dtypes and {len(ranks)} ranks")
        if ranks and max(ranks) > MAX_RANK:
            raise LimitError(f"index: a shape has {max(ranks)} axes; at most {MAX_RANK} are allowed", clause="TEN-003")
        name_list = _split_names(names)
        index = cls(
            meta_copy=meta_copy,
            chunk_types=chunk_types,
            chunk_lengths=metadata.unpack_column(lengths, n_chunks, "chunk_lengths").tolist(),
            names=name_list,
            dtypes=list(dtypes),
            shapes=_split_dims(metadata.unpack_column(dims, sum(ranks), "dims"), ranks),
            chunks=metadata.unpack_column(chunks, n, "chunks").tolist(),
            targets=metadata.unpack_column(targets, n, "targets").tolist() if targets else [0] * n,
            digest=digest,
            _positions={name: at for at, name in enumerate(name_list)},
        )
        index._check()
        if targets and not any(index.targets):
            _fail("there are targets, though no tensor is an alias")
        return index

    def check_types(self) -> None:
        """Check that all types of chunks are known or ancillary (CHK-002, CHK-003).

        Raises:
            FormatError: A type is not four letters.
            UnsupportedError: A reader must know it.
        """
        for type in set(self.chunk_types).difference(KNOWN_TYPES):
            if not (type.isascii() and type.isalpha()):
                raise FormatError(f"index: chunk type {type!r} is not four letters", clause="CHK-002")
            if not type[:1].islower():
                raise UnsupportedError(f"index: unknown critical chunk type {type.decode()!r}", clause="CHK-003")

    def _check(self) -> None:
        if min(self.chunk_lengths) < _LEAST_CHUNK_NBYTES:
            _fail(f"a chunk has {min(self.chunk_lengths)} bytes, and no chunk has less than {_LEAST_CHUNK_NBYTES}")
        if len(self._positions) != len(self.names):
            raise FormatError("two tensors of the index have the same name", clause="TEN-002")
        if self.dtypes and max(self.dtypes) >= len(BY_NAME):
            by_id(max(self.dtypes))
        last = 0
        for chunk in self.chunks:
            if chunk < last or chunk >= len(self.chunk_types) or self.chunk_types[chunk] != b"LAYR":
                raise FormatError(f"index: tensor chunk {chunk} after {last}, of {len(self.chunk_types)} chunks, or no"
                                  " LAYR", clause="IDX-004")  # fmt: skip
            last = chunk
        for at, target in enumerate(self.targets):
            if target and (target > at or self.targets[target - 1]):
                raise FormatError(f"index: target {target} of tensor {at} is no earlier tensor that is not an alias",
                                  clause="ALI-001")  # fmt: skip
            if target and (self.dtypes[at], self.shapes[at]) != (self.dtypes[target - 1], self.shapes[target - 1]):
                _fail(f"alias {self.names[at]!r:.200} and its target differ in dtype or shape")


def _bins(meta: bytes) -> list[bytes]:
    """The fields of an INDX chunk, by kind (MET-008)."""
    fields = metadata.unpack(meta)
    if not isinstance(fields, list) or len(fields) != len(FIELDS) or any(not isinstance(f, bytes) for f in fields):
        raise FormatError("INDX is not an array of ten bins", clause="MET-008")
    if len(fields[0]) != len(NO_DIGEST):
        raise FormatError(f"index: digest has {len(fields[0])} bytes, not {len(NO_DIGEST)}", clause="MET-008")
    return fields


def _fail(message: str) -> None:
    raise FormatError(f"index: {message}", clause="IDX-001")


def _split_names(names: bytes) -> list[str]:
    if names and not names.endswith(b"\0"):
        _fail("names does not end with a byte 0")
    parts = names.split(b"\0")[:-1]
    if max(map(len, parts), default=0) > MAX_NAME_NBYTES:
        raise LimitError(f"index: a name has more than {MAX_NAME_NBYTES} bytes", clause="TEN-001")
    if not all(parts):
        raise FormatError("index: a name is empty", clause="TEN-001")
    try:
        return names.decode().split("\0")[:-1]
    except UnicodeDecodeError as err:
        raise FormatError(f"index: names are not UTF-8: {err.reason}", clause="TEN-001") from err


def _split_dims(dims: npt.NDArray[np.uint64], ranks: bytes) -> list[tuple[int, ...]]:
    sizes: list[Any] = dims.tolist()
    shapes = []
    at = 0
    for rank in ranks:
        shape = tuple(sizes[at : at + rank])
        if prod(size for size in shape if size) > MAX_SHAPE_PRODUCT:
            raise LimitError(f"index: shape {shape!r:.200} has a product above {MAX_SHAPE_PRODUCT}", clause="TEN-003")
        shapes.append(shape)
        at += rank
    return shapes
