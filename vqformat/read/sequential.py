"""Reading a file in one pass, from any stream (SPEC 15.1)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, BinaryIO

import numpy.typing as npt

from ..decode.batch import Batch
from ..decode.block_groups import GroupedTensor, Sections, plain
from ..decode.freed_memory import keep_freed_memory
from ..decode.tensor import FEW_ELEMENTS, MANY_ELEMENTS, TensorDecoder, allocate
from ..decode.workers import Workers
from ..errors import ChecksumError, FormatError, TruncatedError
from ..forks import cached_property
from ..format import container
from ..format.byte_stream import StreamInput
from ..format.chunks import LayerInfo, parse_book_chunk, parse_freq_chunk, parse_meta
from ..format.container import FOOTER_NBYTES, HEADER_NBYTES, ChunkHead
from ..format.copies import Copies
from ..format.index_builder import IndexBuilder
from ..format.layout import Block
from ..format.parse_records import Known
from ..format.records import AliasRecord, Record, TensorRecord
from ..format.sections import SectionEntry, StoredSection, read_section, skip_section
from ..format.stages import Size
from .budget import Budget
from .shared_tables import Shared
from .work import Work, size_of

_FEW = 1 << 15  # elements: a smaller tensor is decoded in less time than it takes to hand it to a thread

Array = npt.NDArray[Any]


class SequentialReader:
    """Reads a stream front to back and checks all of it (SPEC 15.1). The stream need not support ``seek``.

    Args:
        stream: Binary stream.
        budget: Limits on decoded bytes; None for the defaults.
        check_digest: Whether the SHA-256 of the file is computed and compared, in addition to the CRCs.
        keep_total: Whether the caller keeps the arrays of all layers, so that all count together against the budget.
        in_batches: Whether small tensors of several layers are decoded together, which is faster. Then arrays are
            filled only when all layers have been read.
        allow_partial: Whether a truncated file is read up to its end (REA-005).
        threads: Number of threads that decode.
        copies: Those of earlier shards of the model; None for one file.

    Attributes:
        metadata: The user's metadata.
        digest: The SHA-256 that the index states. It is set when all layers have been read.
        cut_at: Length of a truncated file, once its end has been met; else None.
        copies: The copies among the aliases of the layers so far, that of the last iteration included.

    Raises:
        VqmError: The file is refused.
    """

    def __init__(self, stream: BinaryIO, budget: Budget | None = None, *, check_digest: bool = False,
                 keep_total: bool = True, in_batches: bool = False, allow_partial: bool = False,
                 threads: int = 1, copies: Copies | None = None) -> None:  # fmt: skip
        self._input = StreamInput(stream)
        self._budget = budget or Budget()
        self._keep_total = keep_total
        self._check_digest = check_digest
        self._index = IndexBuilder()
        self.digest = b""
        self.cut_at: int | None = None
        self.copies = copies or Copies()
        self._work = Work(self._budget.max_total_nbytes, size_of(stream))
        self._shared = Shared()
        self._known: Known = {}
        self._in_batches = in_batches
        self._allow_partial = allow_partial
        self._threads = threads
        self._batch = Batch()
        if check_digest:
            self._input.hasher = hashlib.sha256()
        self._header = self._input.read(HEADER_NBYTES, "the header")
        container.check_header(self._header)
        chunk = container.read_chunk_head(self._input, 0)
        self.metadata = parse_meta(chunk.meta)
        self._note(chunk, [])

    def naming(self) -> AbstractContextManager[None]:
        """Context for errors of tensors, to which there is nothing to add in one file."""
        return nullcontext()

    def layers(self) -> Iterator[tuple[LayerInfo, dict[str, Array]]]:
        """Read and decode the layers in file order, one for each step of the iteration; then check index and footer.

        Yields:
            Records of a layer, and by name the arrays of its tensors that are not aliases.
        """
        if self._in_batches:
            keep_freed_memory()
        with Workers(self._threads) as workers:
            for info, tensors in self.open_layers():
                arrays: dict[str, Array] = {}
                try:
                    for tensor in tensors:
                        arrays[tensor.record.name] = self._decode(tensor, workers)
                except TruncatedError as err:
                    info = self._whole(info, arrays, err)
                if not self._in_batches or self.cut_at is not None:
                    self._batch.flush()
                    workers.wait()
                yield info, arrays
                del arrays
            self._batch.flush()

    def open_layers(self) -> Iterator[tuple[LayerInfo, Iterator[SequentialTensor]]]:
        """Read the layers in file order without decoding them; then check index and footer.

        Yields:
            Records of a layer, and its tensors that are not aliases, in file order. When the next tensor is requested,
            the sections of the tensor before it that have not been read are checked and dropped.
        """
        try:
            yield from self._open_layers()
        except TruncatedError as err:
            self._whole(None, {}, err)

    def _open_layers(self) -> Iterator[tuple[LayerInfo, Iterator[SequentialTensor]]]:
        while self.cut_at is None:
            digest = self._input.hasher.digest() if self._input.hasher is not None else b""  # type: ignore[attr-defined]
            chunk = container.read_chunk_head(self._input, self._index.n_chunks)
            match chunk.type:
                case b"INDX":
                    self._batch.flush()
                    self._finish(chunk, digest)
                    return
                case b"BOOK":
                    self._read_book(chunk)
                case b"FREQ":
                    self._read_freq(chunk)
                case b"LAYR":
                    if not self._keep_total:
                        self._budget.drop_tensors()
                    info = LayerInfo.parse(chunk, self._shared, self._known)
                    self._work.saw(self._input.offset)
                    self._work.count_records(len(info.records), info.name)
                    self._index.check_names(info.records)
                    self.copies.add_chunk(chunk, info.records)
                    tensors = self._tensors(chunk, info)
                    yield info, tensors
                    if self.cut_at is None:
                        for _ in tensors:  # check those that the caller has not requested
                            pass
                        self._note(chunk, info.records)
                case _:
                    for i, entry in enumerate(chunk.sections):
                        skip_section(self._input, entry, f"section {i} of the {chunk.label}")
                    self._note(chunk, [])

    def _tensors(self, chunk: ChunkHead, info: LayerInfo) -> Iterator[SequentialTensor]:
        bounds = zip(info.records, info.first_sections, info.first_sections[1:], strict=False)
        for record, first, last in bounds:
            if isinstance(record, TensorRecord):
                tensor = SequentialTensor(self._input, record, chunk.sections[first:last], self._shared,
                                          self._work)  # fmt: skip
                yield tensor
                tensor.skip()

    def _whole(self, info: LayerInfo | None, arrays: dict[str, Array], err: TruncatedError) -> LayerInfo:
        """The complete part of a layer at the end of a truncated file; raises ``err`` if that is not allowed (REA-005).

        Args:
            info: The layer; None if the file ends between layers.
            arrays: Its tensors that were decoded.
        """
        if not self._allow_partial:
            raise err
        self.cut_at = self._input.end
        records = info.records if info is not None else []
        there = [record for record in records if record.name in arrays
                 or (isinstance(record, AliasRecord)
                     and (record.target in arrays or self._index.has_tensor(record.target)))]  # fmt: skip
        return LayerInfo(info.name if info is not None else "", there, [])

    def _note(self, chunk: ChunkHead, records: list[Record]) -> None:
        if chunk.type != b"LAYR":  # whose aliases have been added before its tensors are given
            self.copies.add_chunk(chunk)
        self._index.add_chunk(chunk.type, self._input.offset - chunk.offset, records, chunk.meta)

    def _read_book(self, chunk: ChunkHead) -> None:
        record = parse_book_chunk(chunk)
        self._budget.take_shared(record.nbytes, f"the {chunk.label}")
        section = read_section(self._input, chunk.sections[0], record.nbytes, f"the {chunk.label}").plain()
        self._shared.add_book(record, section)
        self._note(chunk, [])

    def _read_freq(self, chunk: ChunkHead) -> None:
        record = parse_freq_chunk(chunk)
        self._budget.take_shared(record.nbytes, f"the {chunk.label}")
        section = read_section(self._input, chunk.sections[0], record.nbytes, f"the {chunk.label}").plain()
        self._shared.add_freq(record, section)
        self._note(chunk, [])

    def _decode(self, tensor: SequentialTensor, workers: Workers) -> Array:
        """The array of a tensor. It is filled when the workers have finished and the batch has been flushed."""
        record = tensor.record
        self._budget.take(record)
        array: Array | None = None
        for blocks, sections in tensor.groups(MANY_ELEMENTS if self._in_batches else FEW_ELEMENTS):
            here = tensor.decoder.is_stepwise or record.n_elements < _FEW
            if array is not None:
                workers.run(tensor.decode, blocks, sections, array, here=here)
                continue
            payloads = plain(sections)
            array = allocate(record)  # REA-002: only after the first group has been checked
            if not self._batch.add(tensor.decoder, blocks, payloads, array):
                workers.run(tensor.decoder.decode_blocks, blocks, payloads, array, here=here)
        return allocate(record) if array is None else array

    def _finish(self, chunk: ChunkHead, digest: bytes) -> None:
        self._index.compare(chunk.meta, chunk.offset)
        self.digest = self._index.digest
        if self._check_digest and digest != self.digest:
            raise ChecksumError(f"the file's SHA-256 is {digest.hex()}, not {self.digest.hex()}", clause="IDX-002",
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


class SequentialTensor(GroupedTensor):
    """The current tensor of a sequential reader. Its sections are read in order, each once.

    Attributes:
        has_passed: Whether the reader has moved on to the next tensor, so that this one cannot be read any more.
    """

    def __init__(
        self, source: StreamInput, record: TensorRecord, entries: Sequence[SectionEntry], shared: Shared, work: Work
    ) -> None:
        super().__init__(record)
        self._source, self._shared, self._work = source, shared, work
        self._entries = iter(entries)
        self.has_passed = False

    @cached_property
    def decoder(self) -> TensorDecoder:
        """The decoder of the tensor. The first access reads the resident sections."""
        resident = self._read(self.record.resident_nbytes(), f"a resident section of tensor {self.record.name!r}")
        return TensorDecoder(self.record, resident, self._shared)

    def groups(self, most_elements: int = FEW_ELEMENTS) -> Iterator[tuple[list[Block], Sections]]:
        """Read all blocks in groups that should be decoded together.

        Args:
            most_elements: Most elements of a group of several blocks.

        Yields:
            The blocks of a group, and for each its payload sections; nothing if the tensor has no elements.

        Raises:
            ValueError: The reader has moved on.
        """
        record = self.record
        if not record.n_elements:
            return
        self._work.saw(self._source.offset)
        self._work.count_tensor(record)
        self._work.count_tables(self.decoder)
        view = self.decoder.view
        for numbers in self.grouped(range(view.n_blocks), most_elements):
            if self.has_passed:
                raise self.passed()
            blocks = [view.block(i) for i in numbers]
            yield blocks, [self._stored(record.payload_nbytes(block), f"block {i} of tensor {record.name!r}")
                           for i, block in zip(numbers, blocks, strict=True)]  # fmt: skip

    def passed(self) -> ValueError:
        """The error for a tensor that cannot be decoded any more."""
        return ValueError(f"tensor {self.record.name!r} can no longer be decoded:"
                          " decode it once, before the next tensor is asked for")  # fmt: skip

    def skip(self) -> None:
        """Check the sections that have not been read, and drop them."""
        self.has_passed = True
        for entry in self._entries:
            skip_section(self._source, entry, f"a section of tensor {self.record.name!r}")

    def _stored(self, sizes: Sequence[Sequence[Size]], where: str) -> list[StoredSection]:
        return [read_section(self._source, next(self._entries), nbytes, where)
                for stage_sizes in sizes for nbytes in stage_sizes]  # fmt: skip

    def _read(self, sizes: Sequence[Sequence[Size]], where: str) -> list[bytes]:
        return [read_section(self._source, next(self._entries), nbytes, where).plain()
                for stage_sizes in sizes for nbytes in stage_sizes]  # fmt: skip
