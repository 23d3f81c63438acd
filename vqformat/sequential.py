"""Reading a file in one pass, from any stream (SPEC 15.1)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy.typing as npt

from . import container, limits
from .codecs import rans
from .container import FOOTER_NBYTES, HEADER_NBYTES, ChunkHead, StreamInput
from .errors import ChecksumError, FormatError, LimitError
from .index import Index
from .layers import Budget, LayerInfo, Shared, book_values, parse_book_chunk, parse_freq_chunk, parse_meta
from .records import AliasRecord, Record, Size
from .tensor import TensorDecoder, allocate
from .waiting import Waiting

Array = npt.NDArray[Any]


class SequentialReader:
    """Reads a stream front to back, which need not seek, checking everything (SPEC 15.1).

    Args:
        stream: Opened in binary mode.
        budget: What may be decoded.
        check_digest: Whether the SHA-256 of the file is computed and compared, besides the CRCs.
        keep_total: Whether the caller keeps all layers, so that they count together against the budget.
        at_leisure: Whether arrays need be filled only when all layers have been read, which is faster.

    Attributes:
        metadata: The user's metadata.
        digest: The SHA-256 that the index states, once all layers have been read.

    Raises:
        VqmError: The file is refused.
    """

    def __init__(self, stream: BinaryIO, budget: Budget | None = None, *, check_digest: bool = False,
                 keep_total: bool = True, at_leisure: bool = False) -> None:  # fmt: skip
        self._input = StreamInput(stream)
        self._budget = budget or Budget()
        self._keep_total = keep_total
        self._check_digest = check_digest
        self._index = Index()
        self.digest = b""
        self._shared = Shared()
        self._at_leisure = at_leisure
        self._waiting = Waiting()
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
                    self._waiting.flush()
                    self._finish(chunk, digest)
                    return
                case b"BOOK":
                    self._read_book(chunk)
                case b"FREQ":
                    self._read_freq(chunk)
                case b"LAYR":
                    if not self._keep_total:
                        self._budget.used_nbytes = self._shared.nbytes
                    info = LayerInfo.parse(chunk, self._shared)
                    self._index.check_names(info.records)
                    arrays = self._read_tensors(chunk, info)
                    if not self._at_leisure:
                        self._waiting.flush()
                    self._note(chunk, info.records)
                    yield info, arrays
                    del arrays
                case _:
                    for i, entry in enumerate(chunk.sections):
                        container.skip_section(self._input, entry, f"section {i} of the {chunk.label}")
                    self._note(chunk, [])

    def _note(self, chunk: ChunkHead, records: list[Record]) -> None:
        if len(self._index.chunk_types) >= limits.MAX_CHUNKS - 1:  # INDX counts
            raise LimitError(f"more than {limits.MAX_CHUNKS} chunks", clause="LIM-001", offset=chunk.offset)
        self._index.add_chunk(chunk.type, self._input.offset - chunk.offset, records, chunk.meta)

    def _read_book(self, chunk: ChunkHead) -> None:
        record = parse_book_chunk(chunk)
        self._budget.take_bytes(record.nbytes, "a BOOK")
        section = container.read_section(self._input, chunk.sections[0], record.nbytes, f"the {chunk.label}")
        self._shared.books.append((record, book_values(section, record, self._shared.n_books)))
        self._note(chunk, [])

    def _read_freq(self, chunk: ChunkHead) -> None:
        record = parse_freq_chunk(chunk)
        self._budget.take_bytes(record.nbytes, "a FREQ")
        section = container.read_section(self._input, chunk.sections[0], record.nbytes, f"the {chunk.label}")
        self._shared.freqs.append((record, rans.Tables.decode(section, record)))
        self._note(chunk, [])

    def _read_tensors(self, chunk: ChunkHead, info: LayerInfo) -> dict[str, Array]:
        entries = iter(chunk.sections)
        arrays: dict[str, Array] = {}

        def read(sizes: Sequence[Sequence[Size]], where: str) -> list[bytes]:
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
            decoder = TensorDecoder(record, resident, self._shared)
            array: Array | None = None
            n_blocks = decoder.view.n_blocks
            for start in range(0, n_blocks, decoder.group_size):
                numbers = range(start, min(start + decoder.group_size, n_blocks))
                blocks = [decoder.view.block(i) for i in numbers]
                payloads = [read(record.payload_nbytes(block), f"block {i} of tensor {record.name!r}")
                            for i, block in zip(numbers, blocks, strict=True)]  # fmt: skip
                if array is None:  # REA-002: only now
                    array = allocate(record)
                if not self._waiting.add(decoder, blocks, payloads, array):
                    decoder.decode_blocks(blocks, payloads, array)
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
