"""Reading a file: in one pass from any stream, or by its index (SPEC section 14)."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, islice, takewhile
from math import prod
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from . import container, limits, metadata, parse
from .codecs import tables
from .codecs.tables import Floats
from .container import CHUNK_HEAD_NBYTES, FOOTER_NBYTES, HEADER_NBYTES, ChunkHead, StreamInput
from .errors import ChecksumError, FormatError, LimitError, TensorNotFoundError, TruncatedError
from .index import Entry, Index
from .records import AliasRecord, BookRecord, Record, TensorRecord
from .tensor import TensorDecoder, allocate

Array = npt.NDArray[Any]


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
        self.take_bytes(nbytes, f"tensor {record.name!r}")

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
    def parse(cls, chunk: ChunkHead, books: list[BookRecord]) -> LayerInfo:
        """Name and records of a LAYR chunk; its section table fits them (LYR-002)."""
        name, tensors = parse.parse_layer(metadata.unpack(chunk.meta))
        records = [parse.parse_tensor(meta, books) for meta in tensors]
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


class SequentialReader:
    """Reads a stream front to back, which need not seek, checking everything (SPEC 14.1).

    Args:
        stream: Opened in binary mode.
        budget: What may be decoded.
        check_digest: Whether the SHA-256 of the file is computed and compared, besides the CRCs.
        keep_total: Whether the caller keeps all layers, so that they count together against the budget.

    Attributes:
        metadata: The user's metadata.
        digest: The SHA-256 that the index states, once all layers have been read.

    Raises:
        VqmError: The file is refused.
    """

    def __init__(self, stream: BinaryIO, budget: Budget | None = None, *, check_digest: bool = False,
                 keep_total: bool = True) -> None:  # fmt: skip
        self._input = StreamInput(stream)
        self._budget = budget or Budget()
        self._keep_total = keep_total
        self._check_digest = check_digest
        self._index = Index()
        self.digest = b""
        self._books: list[BookRecord] = []
        self._book_values: dict[int, Floats] = {}
        if check_digest:
            self._input.hasher = hashlib.sha256()
        self._header = self._input.read(HEADER_NBYTES, "the header")
        container.check_header(self._header)
        chunk = container.read_chunk_head(self._input)
        if chunk.type != b"META":
            raise FormatError(f"the first chunk is {chunk.type.decode()}, not META", clause="FIL-001",
                              offset=chunk.offset)  # fmt: skip
        self.metadata = parse_meta(chunk.meta)
        self._note(chunk, [])

    def layers(self) -> Iterator[tuple[LayerInfo, dict[str, Array]]]:
        """The layers in file order, each decoded when it is asked for; at the end the index and the footer.

        Yields:
            Records, and the arrays of the tensors that are no aliases.
        """
        while True:
            digest = self._input.hasher.digest() if self._input.hasher is not None else b""  # type: ignore[attr-defined]
            chunk = container.read_chunk_head(self._input)
            match chunk.type:
                case b"META":
                    raise FormatError("a second META chunk", clause="FIL-001", offset=chunk.offset)
                case b"INDX":
                    self._finish(chunk, digest)
                    return
                case b"BOOK":
                    self._read_book(chunk)
                case b"LAYR":
                    if not self._keep_total:
                        self._budget.used_nbytes = sum(book.nbytes for book in self._books)
                    info = LayerInfo.parse(chunk, self._books)
                    self._index.check_names(info.records)
                    arrays = self._read_tensors(chunk, info)
                    self._note(chunk, info.records)
                    yield info, arrays
                    del arrays
                case _:
                    for i, entry in enumerate(chunk.sections):
                        container.read_section(self._input, entry, None, f"section {i} of the {chunk.label}")
                    self._note(chunk, [])

    def _note(self, chunk: ChunkHead, records: list[Record]) -> None:
        if len(self._index.chunk_types) >= limits.MAX_CHUNKS:
            raise LimitError(f"more than {limits.MAX_CHUNKS} chunks", clause="LIM-001", offset=chunk.offset)
        self._index.add_chunk(chunk.type, self._input.offset - chunk.offset, records, chunk.meta)

    def _read_book(self, chunk: ChunkHead) -> None:
        record = parse_book_chunk(chunk)
        self._budget.take_bytes(record.nbytes, "a BOOK")
        section = container.read_section(self._input, chunk.sections[0], record.nbytes, f"the {chunk.label}")
        number = len(self._books)
        self._book_values[number] = tables.decode(section, record.dtype, f"BOOK {number}", "BOK-002")
        self._books.append(record)
        self._note(chunk, [])

    def _read_tensors(self, chunk: ChunkHead, info: LayerInfo) -> dict[str, Array]:
        entries = iter(chunk.sections)
        arrays: dict[str, Array] = {}

        def read(sizes: list[list[int]], where: str) -> list[bytes]:
            return [container.read_section(self._input, next(entries), nbytes, where)
                    for stage_sizes in sizes for nbytes in stage_sizes]  # fmt: skip

        for record in info.records:
            if isinstance(record, AliasRecord):
                continue
            self._budget.take(record)
            if not record.n_elements:
                arrays[record.name] = allocate(record)
                continue
            resident = read(record.resident_nbytes(), f"a resident section of tensor {record.name!r}")
            decoder = TensorDecoder(record, resident, self._book_values)
            array: Array | None = None
            for i in range(decoder.view.n_blocks):
                block = decoder.view.block(i)
                payloads = read(record.payload_nbytes(block), f"block {i} of tensor {record.name!r}")
                if array is None:  # REA-002: only now
                    array = allocate(record)
                decoder.decode_block(block, payloads, array)
            assert array is not None
            arrays[record.name] = array
        return arrays

    def _finish(self, chunk: ChunkHead, digest: bytes) -> None:
        found = Index.parse(chunk.meta)
        self._index.digest = self.digest = found.digest
        if self._index.pack() != chunk.meta:
            raise FormatError("the index does not agree with the chunks", clause="IDX-001", offset=chunk.offset)
        if self._check_digest and digest != found.digest:
            raise ChecksumError(f"the file's SHA-256 is {digest.hex()}, not {found.digest.hex()}", clause="IDX-002",
                                offset=chunk.offset)  # fmt: skip
        offset = self._input.offset
        header, index_offset = container.read_footer(self._input.read(FOOTER_NBYTES, "the footer"), offset)
        if header != self._header:
            raise FormatError("the footer does not repeat the header", clause="FTR-002", offset=offset)
        if index_offset != chunk.offset:
            raise FormatError(f"index_offset is {index_offset}, but the index is at {chunk.offset}", clause="FTR-003",
                              offset=offset)  # fmt: skip
        if not self._input.at_end():
            raise FormatError("bytes follow the footer", clause="FTR-001", offset=self._input.offset)


class RandomInput:
    """Reads any part of a seekable file; one lock keeps seek and read together."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self.nbytes = stream.seek(0, os.SEEK_END)

    def read_at(self, offset: int, n: int, what: str) -> bytes:
        """Bytes ``offset:offset + n``.

        Raises:
            TruncatedError: The file is shorter.
        """
        if offset + n <= self.nbytes:  # compared before anything is allocated
            with self._lock:
                self._stream.seek(offset)
                data = self._stream.read(n)
            if len(data) == n:
                return data
        raise TruncatedError(f"{what} needs bytes {offset} to {offset + n}, but the file has {self.nbytes}",
                             clause="REA-001", offset=offset)  # fmt: skip


class _Part:
    """A part of a file in memory, and what follows it from the file: read like a stream."""

    def __init__(self, source: RandomInput, offset: int, start: int = 0, data: bytes = b"") -> None:
        self._source, self.offset, self._start, self._data = source, offset, start, data

    def read(self, n: int, what: str) -> bytes:
        at = self.offset - self._start
        if at >= 0 and at + n <= len(self._data):
            piece = self._data[at : at + n]
        else:
            piece = self._source.read_at(self.offset, n, what)
        self.offset += n
        return piece


class IndexedReader:
    """Opens a seekable file by its index and decodes the tensors that are asked for (SPEC 14.2).

    Args:
        stream: Opened in binary mode; with ``read`` and ``seek``.

    Raises:
        VqmError: The file is refused.
    """

    TAIL_NBYTES = 1 << 16

    def __init__(self, stream: BinaryIO) -> None:
        self._input = RandomInput(stream)
        self._layers: dict[int, tuple[ChunkHead, LayerInfo]] = {}
        self._books: dict[int, tuple[BookRecord, Floats]] = {}
        self._last_spans: tuple[int, list[tuple[int, int]]] = -1, []
        self.index = self._open()

    def _open(self) -> Index:
        size = self._input.nbytes
        if size < HEADER_NBYTES + FOOTER_NBYTES:
            start = self._input.read_at(0, min(size, HEADER_NBYTES), "the header")
            if len(start) == HEADER_NBYTES:
                container.check_header(start)
            raise TruncatedError(f"a file of {size} bytes is too short for a .vqm", clause="REA-001", offset=size)
        tail_offset = max(0, size - self.TAIL_NBYTES)
        tail = self._input.read_at(tail_offset, size - tail_offset, "the end of the file")
        footer_offset = size - FOOTER_NBYTES
        try:
            header, index_offset = container.read_footer(tail[-FOOTER_NBYTES:], footer_offset)
        except ChecksumError as err:
            container.check_header(self._input.read_at(0, HEADER_NBYTES, "the header"))
            if tail[-FOOTER_NBYTES:].startswith(container.MAGIC):
                raise
            raise TruncatedError("the file does not end in a footer: it is cut short or something follows it",
                                 clause="FTR-002", offset=footer_offset) from err  # fmt: skip
        container.check_header(header)
        if self._input.read_at(0, HEADER_NBYTES, "the header") != header:
            raise FormatError("the footer does not repeat the header", clause="FTR-002", offset=footer_offset)
        if index_offset >= footer_offset:
            raise FormatError(f"index_offset is {index_offset}, not below {footer_offset}", clause="FTR-003",
                              offset=footer_offset)  # fmt: skip
        part = _Part(self._input, index_offset, tail_offset, tail)
        chunk = container.read_chunk_head(part)
        if chunk.type != b"INDX" or part.offset != footer_offset:
            raise FormatError(f"index_offset {index_offset} is not that of an INDX chunk before the footer",
                              clause="FTR-003", offset=footer_offset)  # fmt: skip
        index = Index.parse(chunk.meta)
        if index.chunk_offsets[-1] != index_offset:
            raise FormatError(f"the chunks of the index end at {index.chunk_offsets[-1]}, not at {index_offset}",
                              clause="IDX-001", offset=index_offset)  # fmt: skip
        return index

    def metadata(self) -> dict[str, Any]:
        """The user's metadata, from the index or else from META."""
        return parse_meta(self.index.meta_copy or self._chunk(0).meta)

    def entry(self, name: str) -> Entry:
        """The index's entry of a tensor.

        Raises:
            TensorNotFoundError: There is none of that name.
        """
        at = self.index.position(name)
        if at is None:
            raise TensorNotFoundError(name, self.index.names)
        return self.index.entry(at)

    def record(self, name: str) -> TensorRecord:
        """The record of a tensor; of its target, if it is an alias."""
        return self._locate(name)[0]

    def layer_name(self, name: str) -> str:
        """Name of the layer that holds a tensor."""
        return self._layer(self.entry(name).chunk)[1].name

    def stored_nbytes(self, name: str) -> int:
        """Bytes of a tensor's sections as stored; 0 for an alias."""
        if self.entry(name).target is not None:
            return 0
        record, chunk, first = self._locate(name)
        return sum(entry.nbytes for entry in chunk.sections[first : first + record.n_sections()])

    def _chunk(self, at: int) -> ChunkHead:
        """The head of the chunk at this place of the chunk list."""
        start, end = self.index.chunk_offsets[at], self.index.chunk_offsets[at + 1]
        first = self._input.read_at(start, min(end - start, self.TAIL_NBYTES), "a chunk")
        if len(first) < CHUNK_HEAD_NBYTES:
            raise FormatError(f"index: chunk {at} has {len(first)} bytes", clause="IDX-001", offset=start)
        chunk = container.read_chunk_head(_Part(self._input, start, start, first))
        if chunk.type != self.index.chunk_types[at] or chunk.end() != end:
            raise FormatError(f"index: chunk {at} is said to be {self.index.chunk_types[at]!r} up to byte {end}, and is"
                              f" {chunk.type!r} up to {chunk.end()}", clause="IDX-001", offset=start)  # fmt: skip
        return chunk

    def _layer(self, at: int) -> tuple[ChunkHead, LayerInfo]:
        if at not in self._layers:
            chunk = self._chunk(at)
            n_before = self.index.chunk_types[:at].count(b"BOOK")
            info = LayerInfo.parse(chunk, _LazyBooks(self, n_before))  # type: ignore[arg-type]
            self._check_layer(at, info)
            if len(self._layers) >= 64:  # heads only, but a model may have thousands
                self._layers.pop(next(iter(self._layers)))
            self._layers[at] = chunk, info
        return self._layers[at]

    def _check_layer(self, at: int, info: LayerInfo) -> None:
        """Compare a layer's records with the index (IDX-003)."""
        first = self.index.first_of_chunk.get(at, 0)
        n = sum(1 for _ in takewhile(lambda chunk: chunk == at, islice(self.index.chunks, first, None)))
        if n != len(info.records):
            raise FormatError(f"layer {info.name!r} has {len(info.records)} tensors, in the index {n}",
                              clause="IDX-003")  # fmt: skip
        for position, record in enumerate(info.records):
            entry = self.index.entry(first + position)
            said = (entry.name, entry.target)
            found: tuple[str, str | None] = (record.name, None)
            if isinstance(record, AliasRecord):
                found = (record.name, record.target)
            else:
                said += (entry.dtype, entry.shape)  # type: ignore[assignment]
                found += (record.dtype, record.shape)  # type: ignore[assignment]
            if said != found:
                raise FormatError(f"tensor {record.name!r} is {found} in its layer, in the index {said}",
                                  clause="IDX-003")  # fmt: skip

    def _locate(self, name: str) -> tuple[TensorRecord, ChunkHead, int]:
        """Record of a tensor or its target, its chunk, and the number of its first section."""
        entry = self.entry(name)
        if entry.target is not None:
            self._layer(entry.chunk)  # the alias's own record is compared too
            target = self.entry(entry.target)
            if (target.dtype, target.shape) != (entry.dtype, entry.shape):
                raise FormatError(f"index: alias {name!r} and its target differ in dtype or shape", clause="IDX-001")
            entry = target
        chunk, info = self._layer(entry.chunk)
        record = info.records[entry.position]
        assert isinstance(record, TensorRecord)
        return record, chunk, info.first_sections[entry.position]

    def book(self, number: int) -> tuple[BookRecord, Floats]:
        """Record and values of a BOOK chunk."""
        if number not in self._books:
            places = [at for at, type in enumerate(self.index.chunk_types) if type == b"BOOK"]
            chunk = self._chunk(places[number])
            record = parse_book_chunk(chunk)
            start, end = next(chunk.spans())
            container.check_size(chunk.sections[0], record.nbytes, f"BOOK {number}", start)
            self._check_padding(chunk.data_offset, start)
            stored = self._input.read_at(start, end - start, f"BOOK {number}")
            section = container.plain_section(stored, chunk.sections[0], record.nbytes, f"BOOK {number}", start)
            self._books[number] = record, tables.decode(section, record.dtype, f"BOOK {number}", "BOK-002")
        return self._books[number]

    def _check_padding(self, start: int, end: int) -> None:
        if end > start:
            container.check_padding(self._input.read_at(start, end - start, "padding"), start)

    def _spans(self, chunk: ChunkHead) -> list[tuple[int, int]]:
        """Where the sections of a chunk lie; the last chunk asked for is remembered."""
        if self._last_spans[0] != chunk.offset:
            self._last_spans = chunk.offset, list(chunk.spans())
        return self._last_spans[1]

    def tensor(self, name: str, budget: Budget | None = None) -> Array:
        """A tensor, decoded.

        Raises:
            TensorNotFoundError: There is none of that name.
            VqmError: Its part of the file is refused.
        """
        record, chunk, first = self._locate(name)
        (budget or Budget()).take(record)
        return self._decode(record, chunk, first, None)

    def rows(self, name: str, start: int, stop: int, budget: Budget | None = None) -> Array:
        """Elements ``start:stop`` of the first axis, decoding only the blocks that hold some of them.

        Where the tensor is stored in another order than its own, all of it is decoded.
        """
        record, chunk, first = self._locate(name)
        if not record.n_elements or record.layout.axes is not None or record.layout.order:
            return self.tensor(name, budget)[start:stop]
        part = TensorRecord(record.name, record.dtype, (max(stop - start, 0), *record.shape[1:]))
        (budget or Budget()).take(part)
        if not part.n_elements:
            return allocate(part)
        return self._decode(record, chunk, first, (start, stop))

    def _decode(self, record: TensorRecord, chunk: ChunkHead, first: int, rows: tuple[int, int] | None) -> Array:
        if not record.n_elements:
            return allocate(record)
        entries = chunk.sections[first : first + record.n_sections()]
        all_spans = self._spans(chunk)
        before = chunk.data_offset if first == 0 else all_spans[first - 1][1]
        spans = all_spans[first : first + len(entries)]

        def read(at: int, sizes: list[list[int]], where: str) -> list[bytes]:
            """Consecutive sections, in one read."""
            flat = [nbytes for stage_sizes in sizes for nbytes in stage_sizes]
            if not flat:
                return []
            start = before if at == 0 else spans[at - 1][1]
            end = spans[at + len(flat) - 1][1]
            data = self._input.read_at(start, end - start, where)
            sections = []
            for i, nbytes in enumerate(flat, at):
                section_start, section_end = spans[i]
                container.check_size(entries[i], nbytes, where, section_start)
                padding = data[(before if i == 0 else spans[i - 1][1]) - start : section_start - start]
                container.check_padding(padding, section_start - len(padding))
                stored = data[section_start - start : section_end - start]
                sections.append(container.plain_section(stored, entries[i], nbytes, where, section_start))
            return sections

        resident = read(0, record.resident_nbytes(), f"a resident section of tensor {record.name!r}")
        books = {number: self.book(number)[1] for number in record.book_numbers()}
        decoder = TensorDecoder(record, resident, books)
        n_payload = record.n_payload()
        array: Array | None = None
        row_elements = prod(record.shape[1:])
        pairs = 2 if record.dtype_info.is_complex and not record.is_raw else 1
        low, high = (0, record.n_elements) if rows is None else (rows[0] * row_elements, rows[1] * row_elements)
        # Runs of whole elements that the wanted blocks cover; the surplus is cut off at the end
        wanted, origin, end = [], record.n_elements, 0
        for i in range(decoder.view.n_blocks):
            block = decoder.view.block(i)
            start = (block.row * decoder.view.n_columns + block.column) // pairs
            stop = -(-(block.row * decoder.view.n_columns + block.column + block.n_elements) // pairs)
            if rows is None or (start < high and stop > low):
                wanted.append((i, block))
                origin, end = min(origin, start), max(end, stop)
        for i, block in wanted:
            at = len(resident) + i * n_payload
            payloads = read(at, record.payload_nbytes(block), f"block {i} of tensor {record.name!r}")
            if array is None:  # REA-002: only now
                array = allocate(record) if rows is None else np.empty(end - origin, record.dtype_info.numpy)
            decoder.decode_block(block, payloads, array, 0 if rows is None else origin)
        assert array is not None
        if rows is None:
            return array
        return array[low - origin : high - origin].reshape(-1, *record.shape[1:]) if row_elements else array


class _LazyBooks:
    """The BOOK records before a layer, read when one is used."""

    def __init__(self, reader: IndexedReader, n: int) -> None:
        self._reader, self._n = reader, n

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, number: int) -> BookRecord:
        return self._reader.book(number)[0]

