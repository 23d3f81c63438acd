"""The chunks of a seekable file, found by its index; BOOK and FREQ chunks are read when a tensor uses them."""

from __future__ import annotations

import bisect
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from ..decode import rans
from ..decode.tables import Book
from ..errors import FormatError
from ..forks import ForkSafeLock
from ..format import container
from ..format.chunks import parse_book_chunk, parse_freq_chunk
from ..format.container import COPY, ChunkHead
from ..format.copies import Copies, read_copies
from ..format.index import Index
from ..format.records import BookRecord, FreqRecord
from .budget import Budget
from .random_access import PartInput, RandomInput
from .shared_tables import book_values
from .stored_tensor import ChunkSections

TAIL_NBYTES = 1 << 16  # read at once at the end of the file, and at the beginning of each chunk
HELD_NBYTES = 1 << 22  # a layer of at most so many stored bytes is read at once and kept

_BEFORE_LAYERS = (b"BOOK", b"FREQ", COPY)

_Record = TypeVar("_Record", BookRecord, FreqRecord)
_Values = TypeVar("_Values")


class IndexedChunks:
    """Reads the heads of chunks, and compares them with the index."""

    def __init__(self, source: RandomInput, index: Index) -> None:
        self.source, self.index = source, index

    def head(self, at: int) -> ChunkHead:
        """Read the head of a chunk by its number in the chunk list, and compare it with the index."""
        start, end = self.index.span(at)
        first = self.source.read_at(start, min(end - start, TAIL_NBYTES), "a chunk")
        chunk = container.read_chunk_head(PartInput(self.source, start, start, first))
        # Here only: the head has the CRCs of the sections, so those of another file are refused
        self.source.check_unchanged()
        said = self.index.chunk_type(at)
        if chunk.type != said or chunk.end() != end:
            raise FormatError(f"index: chunk {at} is said to be {said!r} up to byte {end}, and is"
                              f" {chunk.type!r} up to {chunk.end()}", clause="IDX-001", offset=start)  # fmt: skip
        return chunk

    def copies(self) -> Copies:
        """The copies among all aliases of the file."""
        copies = Copies()
        if not len(self.index.chunks_of(COPY)):
            return copies
        for at in self.index.chunks_of(b"LAYR").tolist():
            entries = map(self.index.entry, self.index.tensors_of(at))
            aliases = [(entry.name, entry.target) for entry in entries if entry.target is not None]
            is_said = bool(aliases) and self.index.chunk_type(at - 1) == COPY
            copies.add_aliases(read_copies(self.head(at - 1)) if is_said else {}, aliases)
        return copies

    def start_of_tables(self, chunk: int, end: int, most_nbytes: int) -> int:
        """Offset of the first BOOK, FREQ or ``copy`` chunk of those directly before a chunk.

        Args:
            chunk: Number of the chunk in the chunk list.
            end: Offset at which the read ends.
            most_nbytes: Chunks that are farther than this before ``end`` are left out.
        """
        index = self.index
        while index.chunk_type(chunk - 1) in _BEFORE_LAYERS and end - index.span(chunk - 1)[0] <= most_nbytes:
            chunk -= 1
        return index.span(chunk)[0]


class IndexedTables:
    """The BOOK and FREQ chunks of a file. Each is read when it is first used, counted, and kept.

    Args:
        budget: Counts what is kept.
        lock: Guards what is kept, and the budget.
    """

    def __init__(self, chunks: IndexedChunks, budget: Budget, lock: ForkSafeLock) -> None:
        self._chunks, self._budget, self._lock = chunks, budget, lock
        self._books: dict[int, tuple[BookRecord, Book]] = {}
        self._freqs: dict[int, tuple[FreqRecord, rans.Tables]] = {}

    def release_budget(self) -> None:
        """Count what is kept no more."""
        self._budget.shared_nbytes -= sum(book.nbytes for book, _ in self._books.values())
        self._budget.shared_nbytes -= sum(freq.nbytes for freq, _ in self._freqs.values())

    def before(self, at: int) -> SharedBefore:
        """Those before a chunk, by its number in the chunk list."""
        chunks_of = self._chunks.index.chunks_of
        return SharedBefore(self, *(bisect.bisect_left(chunks_of(type), at) for type in (b"BOOK", b"FREQ")))

    def book(self, number: int) -> BookRecord:
        return self._book(number)[0]

    def freq(self, number: int) -> FreqRecord:
        return self._freq(number)[0]

    def book_values(self, number: int) -> Book:
        return self._book(number)[1]

    def freq_tables(self, number: int) -> rans.Tables:
        return self._freq(number)[1]

    def _book(self, number: int) -> tuple[BookRecord, Book]:
        with self._lock:
            if number not in self._books:
                values = partial(book_values, number=number)
                self._books[number] = self._read(b"BOOK", number, parse_book_chunk, values)
            return self._books[number]

    def _freq(self, number: int) -> tuple[FreqRecord, rans.Tables]:
        with self._lock:
            if number not in self._freqs:
                self._freqs[number] = self._read(b"FREQ", number, parse_freq_chunk, rans.Tables)
            return self._freqs[number]

    def _read(
        self, type: bytes, number: int, parse: Callable[[ChunkHead], _Record], make: Callable[[bytes, _Record], _Values]
    ) -> tuple[_Record, _Values]:
        """Read a BOOK or FREQ chunk by its number.

        Args:
            parse: Makes the record.
            make: Makes the values from the plain section and the record.
        """
        chunk = self._head(type, number)
        record = parse(chunk)
        self._budget.take_shared(record.nbytes, f"the {chunk.label}")
        try:
            sections = ChunkSections(self._chunks.source, chunk, list(chunk.spans()), 0)
            section = sections.read(0, [[record.nbytes]], f"the {chunk.label}")[0].plain()
            values = make(section, record)
        except BaseException:
            self._budget.shared_nbytes -= record.nbytes  # nothing of it is kept
            raise
        self._chunks.source.release(type)
        return record, values

    def _head(self, type: bytes, number: int) -> ChunkHead:
        """The head of a BOOK or FREQ chunk by its number. The whole chunk is read at once, unless it is large."""
        at = int(self._chunks.index.chunks_of(type)[number])
        start, end = self._chunks.index.span(at)
        if end - start <= HELD_NBYTES:
            self._chunks.source.hold(type, start, end)
        return self._chunks.head(at)


class SharedBefore:
    """The records of the BOOK and FREQ chunks that come before a chunk. Each is read when it is used."""

    def __init__(self, tables: IndexedTables, n_books: int, n_freqs: int) -> None:
        self._tables, self.n_books, self.n_freqs = tables, n_books, n_freqs

    def book(self, number: int) -> BookRecord:
        return self._tables.book(number)

    def freq(self, number: int) -> FreqRecord:
        return self._tables.freq(number)
