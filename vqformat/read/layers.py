"""What both readers need: the parts of chunks that hold records, and the caller's bounds (SPEC sections 6 and 14)."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from ..decode import rans, tables
from ..decode.tables import Floats
from ..errors import FormatError, LimitError
from ..format import limits, metadata, parse
from ..format.container import ChunkHead
from ..format.records import BookRecord, FreqRecord, Record, TensorRecord

_FREE_RESIDENT_NBYTES = 1 << 20


@dataclass
class Budget:
    """How much a caller lets a file decode to; both tested before allocation.

    Attributes:
        max_tensor_nbytes: For one tensor.
        max_total_nbytes: For all tensors together; None for what memory is available.
    """

    max_tensor_nbytes: int = limits.DEFAULT_MAX_TENSOR_NBYTES
    max_total_nbytes: int | None = None
    used_nbytes: int = 0

    def take(self, record: TensorRecord) -> None:
        """Count a tensor that is about to be decoded.

        Raises:
            LimitError: It is too large, or all together are.
        """
        # Memory, not decoded bytes: 4-bit elements take a byte each
        nbytes = max(record.nbytes, record.n_elements)
        if nbytes > self.max_tensor_nbytes:
            raise LimitError(f"tensor {record.name!r} has {nbytes} bytes; max_tensor_bytes is {self.max_tensor_nbytes}",
                             clause="LIM-002")  # fmt: skip
        resident_nbytes = sum(map(sum, record.resident_nbytes())) if record.stages else 0
        if resident_nbytes <= _FREE_RESIDENT_NBYTES:  # so that a bound can be the bytes of the tensors, exactly
            resident_nbytes = 0
        self.take_bytes(nbytes + resident_nbytes, f"tensor {record.name!r}")
        self.used_nbytes -= resident_nbytes  # held only while it is decoded

    def take_bytes(self, nbytes: int, what: str) -> None:
        """Count bytes that are about to be held.

        Raises:
            LimitError: All together are too many.
        """
        if self.max_total_nbytes is None:
            self.max_total_nbytes = limits.available_memory()
        self.used_nbytes += nbytes
        if self.used_nbytes > self.max_total_nbytes:
            raise LimitError(f"with {what} there are {self.used_nbytes} bytes; max_total_bytes is"
                             f" {self.max_total_nbytes}", clause="LIM-002")  # fmt: skip


@dataclass
class Shared:
    """The BOOK and FREQ chunks met so far, by number; who needs records only leaves the values out."""

    books: list[tuple[BookRecord, Floats | None]] = field(default_factory=list)
    freqs: list[tuple[FreqRecord, rans.Tables | None]] = field(default_factory=list)

    @property
    def n_books(self) -> int:
        return len(self.books)

    @property
    def n_freqs(self) -> int:
        return len(self.freqs)

    @property
    def nbytes(self) -> int:
        """Plain bytes of their sections."""
        return sum(book.nbytes for book, _ in self.books) + sum(freq.nbytes for freq, _ in self.freqs)

    def book(self, number: int) -> BookRecord:
        return self.books[number][0]

    def freq(self, number: int) -> FreqRecord:
        return self.freqs[number][0]

    def book_values(self, number: int) -> Floats:
        values = self.books[number][1]
        assert values is not None
        return values

    def freq_tables(self, number: int) -> rans.Tables:
        values = self.freqs[number][1]
        assert values is not None
        return values


@dataclass(frozen=True, slots=True)
class LayerInfo:
    """A LAYR chunk without its data.

    Attributes:
        first_sections: Number of the first section of each record, and at the end the number of all.
    """

    name: str
    records: list[Record]
    first_sections: list[int]

    @classmethod
    def parse(cls, chunk: ChunkHead, shared: parse.Shared) -> LayerInfo:
        """Name and records of a LAYR chunk; its section table fits them (LYR-002)."""
        name, tensors = parse.parse_layer(metadata.unpack(chunk.meta))
        records = [parse.parse_tensor(meta, shared) for meta in tensors]
        counts = (record.n_sections() if isinstance(record, TensorRecord) else 0 for record in records)
        first = list(accumulate(counts, initial=0))
        if first[-1] != len(chunk.sections):
            raise FormatError(f"layer {name!r} has {len(chunk.sections)} sections; its tensors need {first[-1]}",
                              clause="LYR-002", offset=chunk.offset)  # fmt: skip
        return cls(name, records, first)


def parse_meta(meta: bytes) -> dict[str, Any]:
    """The user's metadata from the meta of a META chunk."""
    value = metadata.unpack(meta)
    if not (isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], dict)):
        raise FormatError("META is not an array of a string and a map", clause="MET-008")
    return value[1]


def parse_book_chunk(chunk: ChunkHead) -> BookRecord:
    """The record of a BOOK chunk, which has one section (BOK-003)."""
    record = parse.parse_book(metadata.unpack(chunk.meta))
    if len(chunk.sections) != 1:
        raise FormatError(f"BOOK chunk has {len(chunk.sections)} sections, not 1", clause="BOK-003",
                          offset=chunk.offset)  # fmt: skip
    return record


def parse_freq_chunk(chunk: ChunkHead) -> FreqRecord:
    """The record of a FREQ chunk, which has one section (FRQ-002)."""
    record = parse.parse_freq(metadata.unpack(chunk.meta))
    if len(chunk.sections) != 1:
        raise FormatError(f"FREQ chunk has {len(chunk.sections)} sections, not 1", clause="FRQ-002",
                          offset=chunk.offset)  # fmt: skip
    return record


def book_values(section: bytes, record: BookRecord, number: int) -> Floats:
    """The values of a BOOK chunk from its plain section (BOK-002)."""
    return tables.decode(section, record.dtype, f"BOOK {number}", "BOK-002")
