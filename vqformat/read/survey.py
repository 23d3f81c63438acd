"""A survey of a damaged file: which of its tensors are whole, which are not, and where the damage is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import BinaryIO, TypeVar

from ..decode import rans
from ..decode.tables import Book
from ..errors import FormatError, LimitError, TruncatedError
from ..format.chunks import LayerInfo, parse_book_chunk, parse_freq_chunk, parse_meta
from ..format.container import COPY, ChunkHead, read_chunk_head
from ..format.copies import Copies
from ..format.limits import DEFAULT_MAX_TENSOR_NBYTES, MAX_CHUNKS, MAX_TENSORS
from ..format.records import AliasRecord, BookRecord, FreqRecord, TensorRecord
from ..format.sections import SectionEntry, StoredSection, check_padding, check_size, skip_section
from ..format.stages import Size
from .budget import Budget
from .chunk_search import find_chunks
from .random_access import PartInput, RandomInput
from .shared_tables import book_values
from .stored_tensor import ChunkSections, StoredTensor
from .surveyed import Survey, SurveyedLayer, SurveyedTable, SurveyedTensor, kept
from .work import Work, units_of

_MOST_FAULTS = 1000  # of a tensor that are listed

_TENSOR_IS_LOST = "it uses {}, which is damaged or lost"
_LAYER_IS_LOST = ("a tensor of its layer uses {}, whose head is damaged or lost: without that, the sections of all"
                  " tensors of the layer cannot be told apart")  # fmt: skip

_Table = TypeVar("_Table")


class _Tables:
    """Records and values of the BOOK and FREQ chunks so far, by number. Those that are damaged raise FormatError."""

    def __init__(self) -> None:
        self.n: dict[bytes, int] = {b"BOOK": 0, b"FREQ": 0}
        self.has_all = True  # whether it is known how many there are
        self.book_records: dict[int, BookRecord] = {}
        self.freq_records: dict[int, FreqRecord] = {}
        self.values_of_book: dict[int, Book] = {}
        self.tables_of_freq: dict[int, rans.Tables] = {}

    @property
    def n_books(self) -> int:
        return self.n[b"BOOK"] if self.has_all else MAX_CHUNKS

    @property
    def n_freqs(self) -> int:
        return self.n[b"FREQ"] if self.has_all else MAX_CHUNKS

    def book(self, number: int) -> BookRecord:
        return _get(self.book_records, _LAYER_IS_LOST, "BOOK", number)

    def freq(self, number: int) -> FreqRecord:
        return _get(self.freq_records, _LAYER_IS_LOST, "FREQ", number)

    def book_values(self, number: int) -> Book:
        return _get(self.values_of_book, _TENSOR_IS_LOST, "BOOK", number)

    def freq_tables(self, number: int) -> rans.Tables:
        return _get(self.tables_of_freq, _TENSOR_IS_LOST, "FREQ", number)


def _get(found: dict[int, _Table], lost: str, type: str, number: int) -> _Table:
    if number not in found:
        raise FormatError(lost.format(f"{type} {number}"))
    return found[number]


class _SoundSections(ChunkSections):
    """Sections whose CRCs are right. The padding between them may be damaged."""

    def __init__(self, source: RandomInput, chunk: ChunkHead, spans: list[tuple[int, int]], first: int) -> None:
        super().__init__(source, chunk, spans, first)
        self._entries, self._starts = chunk.sections[first:], [start for start, _ in spans[first:]]

    def read(self, at: int, sizes: Sequence[Sequence[Size]], where: str) -> list[StoredSection]:
        found = []
        for i, plain_nbytes in enumerate((size for stage_sizes in sizes for size in stage_sizes), at):
            entry, start = self._entries[i], self._starts[i]
            found.append(StoredSection(self.source.read_at(start, entry.nbytes, where), entry, plain_nbytes, where,
                                       start))  # fmt: skip
        return found


def survey(stream: BinaryIO) -> Survey:
    """Read all of a seekable file that may be damaged, and check each of its tensors by itself.

    All tensors of a layer are lost if the head of its chunk is damaged, or the head of a BOOK or FREQ chunk that one of
    them uses: where the sections of its tensors lie is not known then.

    Raises:
        FormatError: It is no ``.vqm`` file.
        UnsupportedError: It is of another major version.
    """
    return _Surveyor(RandomInput(stream)).survey()


class _Surveyor:
    def __init__(self, source: RandomInput) -> None:
        self._source = source
        self._tables = _Tables()
        self._budget = Budget()  # of the tables, which are all kept in memory
        self._work = Work(None, source.nbytes)
        self._n_tensors = 0
        self._whole: set[str] = set()  # names of whole tensors that are not aliases
        self._names: set[str] = set()
        self._copies = Copies()
        self._found = find_chunks(source)
        self._result = Survey(self._found.header, self._found.index is not None, faults=self._found.faults,
                              holders=self._copies.holders)  # fmt: skip

    def survey(self) -> Survey:
        result, index = self._result, self._found.index
        for number, place in enumerate(self._found.places):
            if isinstance(place, FormatError):
                self._pass_gap(number, place)
                continue
            try:
                self._read_chunk(read_chunk_head(PartInput(self._source, place)))
            except FormatError as err:
                self._lose_chunk(number, kept(err))
        if result.metadata is None and index is not None and index.meta_copy:
            try:
                result.metadata = parse_meta(index.meta_copy)
            except FormatError as err:
                result.faults.append(kept(err))
        return result

    def _pass_gap(self, number: int, fault: FormatError) -> None:
        """Note a chunk whose head is damaged; without an index, a gap that may be several chunks."""
        index = self._found.index
        if index is None:
            self._tables.has_all = False
        elif (type := index.chunk_type(number)) in (b"BOOK", b"FREQ"):  # the tables behind it keep their numbers
            self._tables.n[type] += 1
        self._lose_chunk(number, fault)

    def _lose_chunk(self, number: int, fault: FormatError) -> None:
        """Note a chunk that cannot be read: by its tensors, if it is a layer and the index tells their names."""
        index = self._found.index
        positions = range(0) if index is None else index.tensors_of(number)
        if index is None or not positions:
            self._result.faults.append(fault)
            return
        tensors = [SurveyedTensor(index.name(at), None, (), [fault]) for at in positions]
        self._result.parts.append(SurveyedLayer("", tensors))

    def _read_chunk(self, chunk: ChunkHead) -> None:
        spans = list(chunk.spans())
        match chunk.type:
            case b"META":
                self._result.metadata = parse_meta(chunk.meta)
            case b"BOOK" | b"FREQ":
                self._check_padding(chunk, spans)
                self._read_table(chunk, spans)
            case b"LAYR":
                info = LayerInfo.parse(chunk, self._tables)
                self._copies.add_chunk(chunk, info.records)
                self._check_padding(chunk, spans)
                self._n_tensors += len(info.records)
                self._work.count_records(len(info.records), info.name)
                if self._n_tensors > MAX_TENSORS:
                    raise LimitError(f"more than {MAX_TENSORS} tensors", clause="LIM-001", offset=chunk.offset)
                self._result.parts.append(SurveyedLayer(info.name, list(self._read_layer(chunk, spans, info))))
            case _:
                source = PartInput(self._source, chunk.data_offset)
                for i, entry in enumerate(chunk.sections):
                    skip_section(source, entry, f"section {i} of the {chunk.label}")
                if chunk.type != COPY:
                    self._result.ancillary.append(chunk.label)
        if chunk.type != b"LAYR":
            self._copies.add_chunk(chunk)

    def _check_padding(self, chunk: ChunkHead, spans: list[tuple[int, int]]) -> None:
        end = chunk.data_offset
        for start, next_end in spans:
            if end < start <= self._source.nbytes:
                try:
                    check_padding(self._source.read_at(end, start - end, "padding"), end)
                except FormatError as err:
                    self._result.faults.append(kept(err))
            end = next_end

    def _read_table(self, chunk: ChunkHead, spans: list[tuple[int, int]]) -> None:
        """Read a BOOK or FREQ chunk. After a gap without an index its number is not known: then it is of no use."""
        if not self._tables.has_all:
            raise FormatError(f"the number of the {chunk.label} is not known, as it comes after a gap")
        number = self._tables.n[chunk.type]
        self._tables.n[chunk.type] += 1
        record: BookRecord | FreqRecord
        if chunk.type == b"BOOK":
            record = self._tables.book_records[number] = parse_book_chunk(chunk)
            data = self._table_section(chunk, spans, record.nbytes)
            self._tables.values_of_book[number] = book_values(data, record, number)
        else:
            record = self._tables.freq_records[number] = parse_freq_chunk(chunk)
            data = self._table_section(chunk, spans, record.nbytes)
            self._tables.tables_of_freq[number] = rans.Tables(data, record)
        self._result.parts.append(SurveyedTable(number, record, (chunk.sections[0], spans[0][0])))

    def _table_section(self, chunk: ChunkHead, spans: list[tuple[int, int]], nbytes: int) -> bytes:
        where, entry, start = f"the {chunk.label}", chunk.sections[0], spans[0][0]
        self._budget.take_shared(nbytes, where)
        check_size(entry, nbytes, where, start)
        return self._section(entry, start, nbytes, where).plain()

    def _read_layer(
        self, chunk: ChunkHead, spans: list[tuple[int, int]], info: LayerInfo
    ) -> Iterator[SurveyedTensor]:
        bounds = zip(info.records, info.first_sections, info.first_sections[1:], strict=False)
        for record, first, last in bounds:
            sections = [(entry, start) for entry, (start, _) in
                        zip(chunk.sections[first:last], spans[first:last], strict=True)]  # fmt: skip
            faults: list[FormatError] = []
            if record.name in self._names:
                faults.append(FormatError("an earlier tensor has the same name", clause="TEN-002"))
            elif isinstance(record, AliasRecord):
                if record.target not in self._whole:
                    faults.append(FormatError(f"its target {record.target!r} is damaged or lost"))
            elif record.stages:
                faults += islice(self._faults_of_sections(record, sections), _MOST_FAULTS)
                if not faults:
                    faults += self._faults_of_values(record, _SoundSections(self._source, chunk, spans, first))
            self._names.add(record.name)
            if not faults and isinstance(record, TensorRecord):
                self._whole.add(record.name)
            yield SurveyedTensor(record.name, record, sections, faults)

    def _faults_of_sections(
        self, record: TensorRecord, sections: Sequence[tuple[SectionEntry, int]]
    ) -> Iterator[FormatError]:
        for (entry, start), (where, nbytes) in zip(sections, _section_sizes(record), strict=True):
            try:
                check_size(entry, nbytes, where, start)
                self._section(entry, start, nbytes, where).plain()
            except TruncatedError as err:
                yield kept(err)
                return
            except FormatError as err:
                yield kept(err)

    def _faults_of_values(self, record: TensorRecord, sections: _SoundSections) -> Iterator[FormatError]:
        """Decode a tensor block by block, and yield what is wrong with its values."""
        try:
            for number in record.book_numbers():
                self._tables.book_values(number)
            for number in record.freq_numbers():
                self._tables.freq_tables(number)
            if max(record.nbytes, record.n_elements) > DEFAULT_MAX_TENSOR_NBYTES or units_of(record) > self._work.left:
                return  # few bytes may stand for so many elements that decoding never ends
            self._work.count_tensor(record)
            tensor = StoredTensor(record, sections, self._tables, most_held_nbytes=0)
            self._work.count_tables(tensor.decoder)
            for _ in tensor.values(range(tensor.decoder.view.n_blocks)):
                pass
        except FormatError as err:
            yield kept(err)

    def _section(self, entry: SectionEntry, start: int, plain_nbytes: Size, where: str) -> StoredSection:
        return StoredSection(self._source.read_at(start, entry.nbytes, where), entry, plain_nbytes, where, start)


def _section_sizes(record: TensorRecord) -> Iterator[tuple[str, Size]]:
    """Name and plain size of each section of a tensor, in the order of SPEC 7.3."""
    for sizes in record.resident_nbytes():
        for size in sizes:
            yield "a resident section", size
    view = record.view()
    for i in range(view.n_blocks):
        for payload in record.payload_nbytes(view.block(i)):
            for nbytes in payload:
                yield f"block {i}", nbytes
