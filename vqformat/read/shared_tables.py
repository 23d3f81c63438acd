"""Codebooks and frequency tables that tensors of a file share: the contents of BOOK and FREQ chunks."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..decode import rans, tables
from ..decode.tables import Book
from ..format.chunks import SharedRecords
from ..format.records import BookRecord, FreqRecord


@dataclass
class Shared(SharedRecords):
    """Records and contents of the BOOK and FREQ chunks read so far, by number."""

    _books: list[Book] = field(default_factory=list)
    _tables: list[rans.Tables] = field(default_factory=list)

    def add_book(self, record: BookRecord, section: bytes) -> None:
        """Add the next BOOK chunk, from its plain section.

        Raises:
            FormatError: A value breaks a rule.
        """
        self._books.append(book_values(section, record, self.n_books))
        self.books.append(record)

    def add_freq(self, record: FreqRecord, section: bytes) -> None:
        """Add the next FREQ chunk, from its plain section.

        Raises:
            FormatError: A table has no weight (FRQ-003).
        """
        self._tables.append(rans.Tables(section, record))
        self.freqs.append(record)

    def book_values(self, number: int) -> Book:
        return self._books[number]

    def freq_tables(self, number: int) -> rans.Tables:
        return self._tables[number]


def book_values(section: bytes, record: BookRecord, number: int) -> Book:
    """A BOOK chunk from its plain section (BOK-002)."""
    return Book(tables.decode(section, record.dtype, f"BOOK {number}", "BOK-002"))
