"""Reading parts of a seekable file by its index (SPEC 15.2)."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy.typing as npt

from ..decode import rans
from ..decode.region import Region, part_of
from ..decode.tables import Floats
from ..decode.tensor import FEW_ELEMENTS, MANY_ELEMENTS, allocate
from ..errors import FormatError, TensorNotFoundError
from ..forks import ForkSafeLock
from ..format import container
from ..format.chunks import LayerInfo, parse_book_chunk, parse_freq_chunk, parse_meta
from ..format.container import CHUNK_HEAD_NBYTES, ChunkHead
from ..format.index import Entry
from ..format.records import AliasRecord, BookRecord, FreqRecord, TensorRecord
from ..format.stages import Size
from .budget import Budget
from .footer import read_index
from .random_access import PartInput, RandomInput
from .shared_tables import book_values
from .stored_tensor import ChunkSections, StoredTensor

Array = npt.NDArray[Any]


class IndexedReader:
    """Opens a seekable file by its index and decodes its tensors (SPEC 15.2), in several threads or forked processes.

    Args:
        stream: Binary file with ``read`` and ``seek``.

    Attributes:
        index: The index of the file.

    Raises:
        VqmError: The file is refused.
    """

    TAIL_NBYTES = 1 << 16  # read at once at the end of the file, and at the beginning of each chunk
    HELD_NBYTES = 1 << 22  # a layer of at most so many stored bytes is read at once and kept

    def __init__(self, stream: BinaryIO) -> None:
        self._input = RandomInput(stream)
        self._lock = ForkSafeLock()  # guards _layers
        self._layers: dict[int, tuple[ChunkHead, LayerInfo]] = {}
        self._books: dict[int, tuple[BookRecord, Floats]] = {}
        self._freqs: dict[int, tuple[FreqRecord, rans.Tables]] = {}
        self._last_spans: tuple[int, list[tuple[int, int]]] = -1, []
        self.index = read_index(self._input, self.TAIL_NBYTES, self.HELD_NBYTES)

    def close(self) -> None:
        """Free what is held in memory. Tensors cannot be decoded any more."""
        self._input.close()

    def check_open(self) -> None:
        """Raise ValueError if ``close`` has been called."""
        self._input.check_open()

    def metadata(self) -> dict[str, Any]:
        """The user's metadata: the copy in the index (SPEC 15.2), or META if there is no copy."""
        return parse_meta(self.index.meta_copy or self._chunk(0).meta)

    def check_metadata(self) -> None:
        """Read META and compare it with its copy in the index (IDX-001). Nothing else reads META if there is a copy."""
        meta = self._chunk(0).meta
        if self.index.meta_copy and self.index.meta_copy != meta:
            raise FormatError("the index's copy of META differs from META", clause="IDX-001",
                              offset=self.index.chunk_offsets[0])  # fmt: skip

    def entry(self, name: str) -> Entry:
        """The entry of a tensor in the index.

        Raises:
            TensorNotFoundError: There is no tensor of this name.
        """
        at = self.index.position(name)
        if at is None:
            raise TensorNotFoundError(name, self.index.names)
        return self.index.entry(at)

    def record(self, name: str) -> TensorRecord:
        """The record of a tensor; for an alias that of its target."""
        with self._input.clearing_on_error():
            return self._locate(name)[0]

    def layer_name(self, name: str) -> str:
        """Name of the layer that holds a tensor."""
        return self._layer(self.entry(name).chunk)[1].name

    def stored_nbytes(self, name: str) -> int:
        """Stored bytes of a tensor's sections; 0 for an alias."""
        if self.entry(name).target is not None:
            return 0
        record, chunk, first = self._locate(name)
        return sum(entry.nbytes for entry in chunk.sections[first : first + record.n_sections()])

    def _chunk(self, at: int) -> ChunkHead:
        """Read the head of a chunk by its number in the chunk list, and compare it with the index."""
        start, end = self.index.chunk_offsets[at], self.index.chunk_offsets[at + 1]
        first = self._input.read_at(start, min(end - start, self.TAIL_NBYTES), "a chunk")
        if len(first) < CHUNK_HEAD_NBYTES:
            raise FormatError(f"index: chunk {at} has {len(first)} bytes", clause="IDX-001", offset=start)
        chunk = container.read_chunk_head(PartInput(self._input, start, start, first))
        if chunk.type != self.index.chunk_types[at] or chunk.end() != end:
            raise FormatError(f"index: chunk {at} is said to be {self.index.chunk_types[at]!r} up to byte {end}, and is"
                              f" {chunk.type!r} up to {chunk.end()}", clause="IDX-001", offset=start)  # fmt: skip
        return chunk

    def _layer(self, at: int) -> tuple[ChunkHead, LayerInfo]:
        """Head and records of a LAYR chunk by its number in the chunk list; read once, then kept."""
        with self._lock:
            found = self._layers.get(at)
            if found is None:
                start, end = self.index.chunk_offsets[at : at + 2]
                end = min(end, start + self.TAIL_NBYTES)  # often has resident sections of its first tensor, too
                self._input.hold(b"head", self._start_of_tables(at, end, 2 * self.TAIL_NBYTES), end)
                chunk = self._chunk(at)
                info = LayerInfo.parse(chunk, _LazyShared(self, at))
                self._check_layer(at, info)
                if len(self._layers) >= 64:  # a head is small, but a model may have thousands of layers
                    self._layers.pop(next(iter(self._layers)))
                found = self._layers[at] = chunk, info
            return found

    def _check_layer(self, at: int, info: LayerInfo) -> None:
        """Compare a layer's records with the index (IDX-003)."""
        first = self.index.first_of_chunk[at]
        n = self.index.first_of_chunk[at + 1] - first
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
        """Record of a tensor (for an alias of its target), its chunk, and the number of its first section in that."""
        entry = self.entry(name)
        if entry.target is not None:
            self._layer(entry.chunk)  # compares the record of the alias with the index
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
            chunk = self._table(b"BOOK", number)
            record = parse_book_chunk(chunk)
            section = self._only_section(chunk, record.nbytes)
            self._books[number] = record, book_values(section, record, number)
            self._input.release(b"BOOK")
        return self._books[number]

    def freq(self, number: int) -> tuple[FreqRecord, rans.Tables]:
        """Record and tables of a FREQ chunk."""
        if number not in self._freqs:
            chunk = self._table(b"FREQ", number)
            record = parse_freq_chunk(chunk)
            self._freqs[number] = record, rans.Tables.decode(self._only_section(chunk, record.nbytes), record)
            self._input.release(b"FREQ")
        return self._freqs[number]

    def _table(self, type: bytes, number: int) -> ChunkHead:
        """The head of a BOOK or FREQ chunk by its number. The whole chunk is read at once, unless it is large."""
        at = self.index.chunks_of(type)[number]
        start, end = self.index.chunk_offsets[at : at + 2]
        if end - start <= self.HELD_NBYTES:
            self._input.hold(type, start, end)
        return self._chunk(at)

    def _only_section(self, chunk: ChunkHead, plain_nbytes: int) -> bytes:
        """Plain bytes of the only section of a chunk."""
        sections = ChunkSections(self._input, chunk, self._spans(chunk), 0)
        return sections.read(0, [[plain_nbytes]], f"the {chunk.label}")[0].plain()

    def _spans(self, chunk: ChunkHead) -> list[tuple[int, int]]:
        """Start and end offset of each section of a chunk. The result for the last chunk is kept."""
        last = self._last_spans
        if last[0] != chunk.offset:
            last = self._last_spans = chunk.offset, list(chunk.spans())
        return last[1]

    def tensor(self, name: str, budget: Budget | None = None, threads: int = 1) -> Array:
        """Decode a tensor into a new array.

        Args:
            budget: Limits on decoded bytes; None for the defaults.
            threads: Threads for a large tensor.

        Raises:
            TensorNotFoundError: There is no tensor of this name.
            VqmError: Its part of the file is refused.
        """
        with self._input.clearing_on_error():
            self._hold(name, 8 * self.HELD_NBYTES)
            array = self._decode(name, budget, threads, None)
        self._input.release(b"LAYR", self.HELD_NBYTES)
        return array

    def sections(self, name: str, budget: Budget | None = None) -> tuple[TensorRecord, list[bytes]]:
        """The record of a tensor, for an alias that of its target, and the plain bytes of all its sections.

        Args:
            budget: Limits on decoded bytes; None for the defaults.

        Raises:
            TensorNotFoundError: There is no tensor of this name.
            VqmError: Its part of the file is refused.
        """
        with self._input.clearing_on_error():
            record, chunk, first = self._locate(name)
            (budget or Budget()).take(record)
            if not record.stages:
                return record, []
            view = record.view()
            sizes: list[Sequence[Size]] = [*record.resident_nbytes()]
            for i in range(view.n_blocks):
                sizes += record.payload_nbytes(view.block(i))
            sections = ChunkSections(self._input, chunk, self._spans(chunk), first)
            return record, [section.plain() for section in sections.read(0, sizes, f"tensor {name!r}")]

    def decode_into(self, name: str, out: Array, threads: int = 1) -> None:
        """Decode a tensor into an array of its shape and dtype, C-contiguous."""
        with self._input.clearing_on_error():
            self._hold(name, self.HELD_NBYTES)
            self._decode(name, None, threads, out)

    def _decode(self, name: str, budget: Budget | None, threads: int, out: Array | None) -> Array:
        record, chunk, first = self._locate(name)
        if out is None:
            (budget or Budget()).take(record)
        if not record.n_elements:
            return allocate(record) if out is None else out
        stored = self._stored(record, chunk, first)
        groups = stored.groups(range(stored.decoder.view.n_blocks), MANY_ELEMENTS if out is None else FEW_ELEMENTS)
        return stored.decode_all(groups, out, threads)

    def _stored(self, record: TensorRecord, chunk: ChunkHead, first: int) -> StoredTensor:
        """A tensor with elements, from its record, its chunk and the number of its first section in that."""
        sections = ChunkSections(self._input, chunk, self._spans(chunk), first)
        return StoredTensor(record, sections, _LazyShared(self, 0), most_held_nbytes=self.HELD_NBYTES)

    def _hold(self, name: str, most_nbytes: int) -> None:
        """Read the layer of a tensor, and the BOOK and FREQ chunks directly before it, at once, unless it is large."""
        entry = self.entry(name)
        chunk = entry.chunk if entry.target is None else self.entry(entry.target).chunk
        offsets = self.index.chunk_offsets
        end = offsets[chunk + 1]
        if end - offsets[chunk] > most_nbytes:
            return
        self._input.hold(b"LAYR", self._start_of_tables(chunk, end, most_nbytes), end)

    def _start_of_tables(self, chunk: int, end: int, most_nbytes: int) -> int:
        """Offset of the first BOOK or FREQ chunk of those directly before a chunk.

        Args:
            chunk: Number of the chunk in the chunk list.
            end: Offset at which the read ends.
            most_nbytes: Chunks that are farther than this before ``end`` are left out.
        """
        offsets = self.index.chunk_offsets
        while self.index.chunk_types[chunk - 1] in (b"BOOK", b"FREQ") and end - offsets[chunk - 1] <= most_nbytes:
            chunk -= 1
        return offsets[chunk]

    def part(self, name: str, index: Any, budget: Budget | None = None) -> Array:
        """Decode the part of a tensor that an index selects. Only the blocks that it needs are decoded.

        Args:
            index: As for a NumPy array of the tensor's shape.
            budget: Limits on decoded bytes; None for the defaults.

        Raises:
            IndexError, TypeError, ValueError: As NumPy does for an invalid index.
        """
        with self._input.clearing_on_error():
            record, chunk, first = self._locate(name)
        if not record.n_elements:
            return allocate(record)[index]  # type: ignore[no-any-return]
        region = Region(index, record.shape)
        (budget or Budget()).take(TensorRecord(record.name, record.dtype, region.shape))
        with self._input.clearing_on_error():
            stored = self._stored(record, chunk, first)
            return region.gather(stored.decoder, stored.values(region.blocks(stored.decoder)))

    def parts(
        self, name: str, budget: Budget | None = None, threads: int = 1
    ) -> Iterator[tuple[tuple[Any, ...], Array]]:
        """Decode a tensor block by block. A complex tensor is decoded as one block.

        Yields:
            For each block an index and its values, so that ``tensor[index] = values`` puts them in place.
        """
        with self._input.clearing_on_error():
            record, chunk, first = self._locate(name)
        if not record.n_elements:
            return
        with self._input.clearing_on_error():
            stored = self._stored(record, chunk, first)
        if stored.decoder.placement.stored_dtype != record.dtype_info.numpy:  # blocks may part pairs of reals
            yield (), self.tensor(name, budget, threads)
            return
        with self._input.clearing_on_error():
            for block, values in stored.values(range(stored.decoder.view.n_blocks)):
                yield part_of(stored.decoder, block, values)


class _LazyShared:
    """The BOOK and FREQ chunks that come before a chunk. Each is read when it is used.

    Args:
        at: Number of the chunk in the chunk list.
    """

    def __init__(self, reader: IndexedReader, at: int) -> None:
        self._reader = reader
        self.n_books, self.n_freqs = (bisect.bisect_left(reader.index.chunks_of(t), at) for t in (b"BOOK", b"FREQ"))

    def book(self, number: int) -> BookRecord:
        return self._reader.book(number)[0]

    def freq(self, number: int) -> FreqRecord:
        return self._reader.freq(number)[0]

    def book_values(self, number: int) -> Floats:
        return self._reader.book(number)[1]

    def freq_tables(self, number: int) -> rans.Tables:
        return self._reader.freq(number)[1]
