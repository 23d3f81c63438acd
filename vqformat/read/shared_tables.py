"""Codebooks and tables of frequencies that tensors of a file share: the values of BOOK and FREQ chunks."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..decode import rans, tables
from ..decode.tables import Floats
from ..format.chunks import SharedRecords
from ..format.records import BookRecord, FreqRecord


@dataclass
class Shared(SharedRecords):
    """What BOOK and FREQ chunks hold, by number, with their records."""

    _books: list[Floats] = field(default_factory=list)
    _tables: list[rans.Tables] = field(default_factory=list)

    def add_book(self, record: BookRecord, section: bytes) -> None:
        """Note the next BOOK chunk, from its plain section.

        Raises:
            FormatError: A value breaks a rule.
        """
        self._books.append(book_values(section, record, self.n_books))
        self.books.append(record)

    def add_freq(self, record: FreqRecord, section: bytes) -> None:
        """Note the next FREQ chunk, likewise."""
        self._tables.append(rans.Tables.decode(section, record))
        self.freqs.append(record)

    def book_values(self, number: int) -> Floats:
        return self._books[number]

    def freq_tables(self, number: int) -> rans.Tables:
        return self._tables[number]


def book_values(section: bytes, record: BookRecord, number: int) -> Floats:
    """The values of a BOOK chunk from its plain section (BOK-002)."""
    return tables.decode(section, record.dtype, f"BOOK {number}", "BOK-002")
