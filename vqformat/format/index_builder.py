"""The index of a file, collected chunk by chunk by whoever writes the file or reads it in order (SPEC section 13)."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence

from ..errors import FormatError, LimitError
from . import metadata
from .index import FIELDS, NO_DIGEST, bins_of
from .limits import MAX_META_COPY_NBYTES, MAX_TENSORS
from .records import AliasRecord, Record

_WIDTHS = "BHIQ"  # unsigned integers of 1, 2, 4 and 8 bytes


class Column:
    """Non-negative integers, kept as an integer column stores them: in as few bytes as the largest needs (MET-009)."""

    def __init__(self) -> None:
        self._values = array(_WIDTHS[0])

    def extend(self, values: Sequence[int]) -> None:
        while True:
            try:
                self._values.fromlist(list(values))
                return
            except OverflowError:  # nothing has been added
                self._values = array(_WIDTHS[_WIDTHS.index(self._values.typecode) + 1], self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, at: slice) -> list[int]:
        return self._values[at].tolist()

    def pack(self) -> bytes:
        """The bytes of the integer column."""
        values = self._values
        if sys.byteorder == "big":
            values = values[:]
            values.byteswap()
        return values.tobytes()


class IndexBuilder:
    """Collects what the index says. Little is kept of a tensor: a file may have a million of them.

    Attributes:
        digest: SHA-256 of the file before the INDX chunk; zeros as long as it is not known.
    """

    def __init__(self) -> None:
        self.digest = NO_DIGEST
        self._meta_copy = b""
        self._chunk_types = bytearray()
        self._chunk_lengths = Column()
        self._positions: dict[str, int] = {}  # of each tensor, in file order
        self._dtypes, self._ranks = bytearray(), bytearray()
        self._dims, self._first_dims, self._chunks, self._targets = Column(), Column(), Column(), Column()
        self._has_aliases = False

    @property
    def n_chunks(self) -> int:
        return len(self._chunk_lengths)

    def add_chunk(self, type: bytes, nbytes: int, records: Sequence[Record], meta: bytes = b"") -> None:
        """Add a chunk and its tensors. ``check_names`` must have accepted the names.

        Args:
            nbytes: Bytes of the whole chunk.
            meta: Plain metadata of the chunk; only that of META is kept.
        """
        if type == b"META" and len(meta) <= MAX_META_COPY_NBYTES:
            self._meta_copy = meta
        for record in records:
            target = 0
            if isinstance(record, AliasRecord):
                at = self._positions[record.target]
                self._has_aliases = True
                target, dtype, shape = at + 1, self._dtypes[at], self._shape(at)
            else:
                dtype, shape = record.dtype_info.id, record.shape
            self._positions[record.name] = len(self._positions)
            self._dtypes.append(dtype)
            self._ranks.append(len(shape))
            self._first_dims.extend((len(self._dims),))
            self._dims.extend(shape)
            self._targets.extend((target,))
        self._chunks.extend([self.n_chunks] * len(records))
        self._chunk_types += type
        self._chunk_lengths.extend((nbytes,))

    def _shape(self, at: int) -> Sequence[int]:
        (first,) = self._first_dims[at : at + 1]
        return self._dims[first : first + self._ranks[at]]

    def has_tensor(self, name: str) -> bool:
        return name in self._positions

    def check_names(self, records: Sequence[Record]) -> None:
        """Raise FormatError unless the names are new and each alias has an earlier target (TEN-002, ALI-001)."""
        new: dict[str, bool] = {}  # name -> whether it is an alias
        for record in records:
            if record.name in self._positions or record.name in new:
                raise FormatError(f"two tensors have the name {record.name!r}", clause="TEN-002")
            if isinstance(record, AliasRecord):
                at = self._positions.get(record.target)
                is_good = new.get(record.target) is False if at is None else self._targets[at : at + 1] == [0]
                if not is_good:
                    raise FormatError(f"tensor {record.name!r}: its target {record.target!r:.200} is no earlier tensor"
                                      " that is not an alias", clause="ALI-001")  # fmt: skip
            new[record.name] = isinstance(record, AliasRecord)
        if len(self._positions) + len(records) > MAX_TENSORS:
            raise LimitError(f"more than {MAX_TENSORS} tensors", clause="LIM-001")

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
        stated = bins_of(meta)
        self.digest = stated[0]
        for name, found, expected in zip(FIELDS, stated, self._fields(), strict=True):
            if found != expected:
                raise FormatError(f"{name} of the index does not agree with the chunks", clause="IDX-001",
                                  offset=offset)  # fmt: skip

    def _fields(self) -> list[bytes]:
        return [
            self.digest,
            self._meta_copy,
            bytes(self._chunk_types),
            self._chunk_lengths.pack(),
            b"".join(name.encode() + b"\0" for name in self._positions),
            bytes(self._dtypes),
            bytes(self._ranks),
            self._dims.pack(),
            self._chunks.pack(),
            self._targets.pack() if self._has_aliases else b"",
        ]
