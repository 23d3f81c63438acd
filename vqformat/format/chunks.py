"""What the metadata of META, BOOK, FREQ and LAYR chunks holds (SPEC section 6)."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from ..errors import FormatError
from . import metadata
from .container import ChunkHead
from .parse_records import Known, parse_book, parse_freq, parse_layer, parse_tensor
from .parse_stages import Shared
from .records import BookRecord, FreqRecord, Record, TensorRecord


@dataclass
class SharedRecords:
    """The records of the BOOK and FREQ chunks read or written so far, by number."""

    books: list[BookRecord] = field(default_factory=list)
    freqs: list[FreqRecord] = field(default_factory=list)

    @property
    def n_books(self) -> int:
        return len(self.books)

    @property
    def n_freqs(self) -> int:
        return len(self.freqs)

    @property
    def nbytes(self) -> int:
        """Plain bytes of the sections of all these chunks."""
        return sum(book.nbytes for book in self.books) + sum(freq.nbytes for freq in self.freqs)

    def book(self, number: int) -> BookRecord:
        return self.books[number]

    def freq(self, number: int) -> FreqRecord:
        return self.freqs[number]


@dataclass(frozen=True, slots=True)
class LayerInfo:
    """Name and records of a LAYR chunk.

    Attributes:
        first_sections: For each record the number of its first section; then the number of all sections.
    """

    name: str
    records: list[Record]
    first_sections: list[int]

    @classmethod
    def parse(cls, chunk: ChunkHead, shared: Shared, known: Known | None = None) -> LayerInfo:
        """Parse the metadata of a LAYR chunk, and check that its section table fits the records (LYR-002).

        Args:
            known: Records of the layers before it in the file, for speed. It is filled.
        """
        name, tensors = parse_layer(metadata.unpack(chunk.meta))
        known = {} if known is None else known
        records = [parse_tensor(meta, shared, known) for meta in tensors]
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
    record = parse_book(metadata.unpack(chunk.meta))
    _check_one_section(chunk, "BOK-003")
    return record


def parse_freq_chunk(chunk: ChunkHead) -> FreqRecord:
    """The record of a FREQ chunk, which has one section (FRQ-002)."""
    record = parse_freq(metadata.unpack(chunk.meta))
    _check_one_section(chunk, "FRQ-002")
    return record


def _check_one_section(chunk: ChunkHead, clause: str) -> None:
    if len(chunk.sections) != 1:
        raise FormatError(f"{chunk.type.decode()} chunk has {len(chunk.sections)} sections, not 1", clause=clause,
                          offset=chunk.offset)  # fmt: skip
