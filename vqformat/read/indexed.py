"""Reading parts of a seekable file by its index (SPEC 15.2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import numpy.typing as npt

from ..decode.region import Region, part_of
from ..decode.tensor import FEW_ELEMENTS, MANY_ELEMENTS, allocate
from ..errors import FormatError, TensorNotFoundError
from ..forks import ForkSafeLock, cached_property
from ..format.chunks import LayerInfo, parse_meta
from ..format.container import ChunkHead
from ..format.index import Entry
from ..format.limits import MAX_META_COPY_NBYTES
from ..format.records import AliasRecord, TensorRecord
from ..format.stages import Size
from .budget import Budget
from .footer import read_index
from .indexed_chunks import HELD_NBYTES, TAIL_NBYTES, IndexedChunks, IndexedTables
from .random_access import RandomInput
from .stored_tensor import ChunkSections, StoredTensor
from .work import Work

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class _Layer:
    """What is kept of a LAYR chunk.

    Attributes:
        chunk: Its head, without its metadata.
        stored: By the position of a tensor with sections in the layer: its record, and the number of its first section.
    """

    name: str
    chunk: ChunkHead
    stored: dict[int, tuple[TensorRecord, int]]

    @classmethod
    def of(cls, chunk: ChunkHead, info: LayerInfo) -> _Layer:
        stored = {at: (record, info.first_sections[at]) for at, record in enumerate(info.records)
                  if isinstance(record, TensorRecord) and record.stages}  # fmt: skip
        return cls(info.name, replace(chunk, meta=b""), stored)

    @cached_property
    def spans(self) -> list[tuple[int, int]]:
        """Start and end offset of each section."""
        return list(self.chunk.spans())


class IndexedReader:
    """Opens a seekable file by its index and decodes its tensors (SPEC 15.2), in several threads or forked processes.

    Args:
        stream: Binary file with ``read`` and ``seek``.
        budget: Limits on decoded bytes; None for the defaults. A tensor that has been returned does not count.
        lock: Guards the budget, if several readers share it; None for a lock of its own.

    Attributes:
        index: The index of the file.

    Raises:
        VqmError: The file is refused.
    """

    def __init__(self, stream: BinaryIO | RandomInput, budget: Budget | None = None,
                 lock: ForkSafeLock | None = None) -> None:  # fmt: skip
        self._input = stream if isinstance(stream, RandomInput) else RandomInput(stream)
        self._budget = budget or Budget()
        self._lock = lock or ForkSafeLock()  # guards _layers, _tables and _budget
        self._work = Work(self._budget.max_total_nbytes, self._input.nbytes)
        self._layers: dict[int, _Layer] = {}
        try:
            before = self._budget.index_nbytes
            self.index = read_index(self._input, TAIL_NBYTES, HELD_NBYTES, self._budget.take_index)
            self._index_nbytes = self._budget.index_nbytes - before
        except BaseException:
            self._input.close()
            raise
        self._chunks = IndexedChunks(self._input, self.index)
        self._tables = IndexedTables(self._chunks, self._budget, self._lock)

    def close(self) -> None:
        """Free what is held in memory. Tensors cannot be decoded any more."""
        self._input.close()

    def check_open(self) -> None:
        """Raise ValueError if ``close`` has been called."""
        self._input.check_open()

    @property
    def names(self) -> list[str]:
        """The names of all tensors, in file order."""
        return self.index.names

    def __len__(self) -> int:
        return len(self.index)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.index.position(name) is not None

    def release_budget(self) -> None:
        """Count what this reader keeps no more against the budget, which others share."""
        with self._lock:
            self._budget.index_nbytes -= self._index_nbytes
            self._tables.release_budget()

    def metadata(self) -> dict[str, Any]:
        """The user's metadata: the copy in the index (SPEC 15.2), or META if that is too long for a copy."""
        meta = self.index.meta_copy
        if not meta:
            meta = self._meta()
            self._check_copy(meta)
        return parse_meta(meta)

    def check_metadata(self) -> None:
        """Read META and compare it with its copy in the index (IDX-001). Nothing else reads META if there is a copy."""
        self._check_copy(self._meta())

    def _check_copy(self, meta: bytes) -> None:
        """Compare the metadata of META with its copy in the index, which is empty if the metadata is too long."""
        if self.index.meta_copy != (meta if len(meta) <= MAX_META_COPY_NBYTES else b""):
            raise FormatError("the index's copy of META is another one", clause="IDX-001", offset=self.index.span(0)[0])

    def _meta(self) -> bytes:
        """The metadata of META itself."""
        with self._input.clearing_on_error():
            return self._chunks.head(0).meta

    def entry(self, name: str) -> Entry:
        """The entry of a tensor in the index.

        Raises:
            TensorNotFoundError: There is no tensor of this name.
        """
        at = self.index.position(name)
        if at is None:
            raise TensorNotFoundError(name, self.index)
        return self.index.entry(at)

    def record(self, name: str) -> TensorRecord:
        """The record of a tensor; for an alias that of its target."""
        return self._locate(self.entry(name))[0]

    def holder(self, name: str) -> str | None:
        """For an alias that is not the same array as its target: the alias whose array it is. See ``Copies``."""
        return self.holders.get(name)

    @cached_property
    def holders(self) -> dict[str, str]:
        """For each alias that is not the same array as its target: the alias whose array it is, see ``Copies``."""
        with self._input.clearing_on_error():
            return self._chunks.copies().holders

    def described(self, name: str) -> tuple[Entry, TensorRecord | None, str, int]:
        """What the file states about a tensor.

        Returns:
            Its entry in the index, its record (None for an alias), the name of the layer that holds it, and the stored
            bytes of its sections.
        """
        entry = self.entry(name)
        if entry.target is not None:
            return entry, None, self._layer(entry.chunk).name, 0
        record, layer, first = self._locate(entry)
        sections = layer.chunk.sections[first : first + record.n_sections()]
        return entry, record, layer.name, sum(section.nbytes for section in sections)

    def _layer(self, at: int) -> _Layer:
        """A LAYR chunk by its number in the chunk list; read once, then kept.

        What is kept is in proportion to the section table, so a small file cannot fill the memory.
        """
        with self._lock, self._input.clearing_on_error():
            found = self._layers.get(at)
            if found is None:
                start, end = self.index.span(at)
                end = min(end, start + TAIL_NBYTES)  # often has resident sections of its first tensor, too
                self._input.hold(b"head", self._chunks.start_of_tables(at, end, 2 * TAIL_NBYTES), end)
                chunk = self._chunks.head(at)
                info = LayerInfo.parse(chunk, self._tables.before(at))
                self._work.count_records(len(info.records), info.name)
                self._check_layer(at, info)
                found = self._layers[at] = _Layer.of(chunk, info)
            return found

    def _check_layer(self, at: int, info: LayerInfo) -> None:
        """Compare a layer's records with the index (IDX-003)."""
        if self.index.agrees(at, info.records):
            return
        positions = self.index.tensors_of(at)
        if len(positions) != len(info.records):
            raise FormatError(f"layer {info.name!r} has {len(info.records)} tensors, in the index {len(positions)}",
                              clause="IDX-003")  # fmt: skip
        for position, record in zip(positions, info.records, strict=True):
            entry = self.index.entry(position)
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

    def _locate(self, entry: Entry) -> tuple[TensorRecord, _Layer, int]:
        """Record of a tensor (for an alias of its target), its layer, and the number of its first section in that."""
        if entry.target is not None:
            self._layer(entry.chunk)  # compares the record of the alias with the index
            entry = self.entry(entry.target)
        layer = self._layer(entry.chunk)
        found = layer.stored.get(entry.position)
        if found is None:  # no elements: the index, which agrees with the record, says all
            return TensorRecord(entry.name, entry.dtype, entry.shape), layer, 0
        return found[0], layer, found[1]

    def tensor(self, name: str, threads: int = 1) -> Array:
        """Decode a tensor into a new array.

        Args:
            threads: Threads for a large tensor.

        Raises:
            TensorNotFoundError: There is no tensor of this name.
            VqmError: Its part of the file is refused.
        """
        entry = self.entry(name)
        with self._input.clearing_on_error():
            self._hold(entry, HELD_NBYTES if self._input.is_near else 8 * HELD_NBYTES)
            array = self._decode(entry, threads, None)
        self._input.release(b"LAYR", HELD_NBYTES)
        return array

    def sections(self, name: str) -> tuple[TensorRecord, list[bytes]]:
        """The record of a tensor, for an alias that of its target, and the plain bytes of all its sections.

        Raises:
            TensorNotFoundError: There is no tensor of this name.
            VqmError: Its part of the file is refused.
        """
        record, layer, first = self._locate(self.entry(name))
        replace(self._budget).take(record)
        if not record.stages:
            return record, []
        with self._input.clearing_on_error():
            view = record.view()
            sizes: list[Sequence[Size]] = [*record.resident_nbytes()]
            for i in range(view.n_blocks):
                sizes += record.payload_nbytes(view.block(i))
            sections = ChunkSections(self._input, layer.chunk, layer.spans, first)
            return record, [section.plain() for section in sections.read(0, sizes, f"tensor {name!r}")]

    def decode_into(self, name: str, out: Array, threads: int = 1) -> None:
        """Decode a tensor into an array of its shape and dtype, C-contiguous."""
        with self._input.clearing_on_error():
            entry = self.entry(name)
            self._hold(entry, HELD_NBYTES)
            self._decode(entry, threads, out)

    def _decode(self, entry: Entry, threads: int, out: Array | None) -> Array:
        record, layer, first = self._locate(entry)
        if out is None:
            replace(self._budget).take(record)
        else:
            self._budget.check_tables(record)
        if not record.n_elements:
            return allocate(record) if out is None else out
        stored = self._stored(entry.name, record, layer, first)
        groups = stored.groups(range(stored.decoder.view.n_blocks), MANY_ELEMENTS if out is None else FEW_ELEMENTS)
        return stored.decode_all(groups, out, threads)

    def _stored(self, name: str, record: TensorRecord, layer: _Layer, first: int) -> StoredTensor:
        """A tensor with elements, from its record, its layer and the number of its first section in that.

        Args:
            name: Of the tensor, or of the alias by which it is decoded.
        """
        is_first = self._work.is_first(name)
        if is_first:
            self._work.count_tensor(record)
        sections = ChunkSections(self._input, layer.chunk, layer.spans, first)
        most_held = HELD_NBYTES // 4 if self._input.is_near else HELD_NBYTES
        stored = StoredTensor(record, sections, self._tables, most_held_nbytes=most_held)
        if is_first:
            self._work.count_tables(stored.decoder)
        return stored

    def stored(self, name: str) -> StoredTensor | None:
        """A tensor, for an alias its target, whose blocks can be read one by one; None if it has no elements."""
        record, layer, first = self._locate(self.entry(name))
        if not record.n_elements:
            return None
        self._budget.check_tables(record)
        with self._input.clearing_on_error():
            return self._stored(name, record, layer, first)

    def _hold(self, entry: Entry, most_nbytes: int) -> None:
        """Read the layer of a tensor, and the BOOK and FREQ chunks directly before it, at once, unless it is large."""
        if 0 in entry.shape:  # it has no sections
            return
        chunk = entry.chunk if entry.target is None else self.entry(entry.target).chunk
        start, end = self.index.span(chunk)
        if end - start > most_nbytes:
            return
        self._input.hold(b"LAYR", self._chunks.start_of_tables(chunk, end, most_nbytes), end)

    def part(self, name: str, index: Any) -> Array:
        """Decode the part of a tensor that an index selects. Only the blocks that it needs are decoded.

        Args:
            index: As for a NumPy array of the tensor's shape.

        Raises:
            IndexError, TypeError, ValueError: As NumPy does for an invalid index.
        """
        record, layer, first = self._locate(self.entry(name))
        if not record.n_elements:
            return allocate(record)[index]  # type: ignore[no-any-return]
        region = Region(index, record.shape)
        budget = replace(self._budget)
        budget.take(TensorRecord(record.name, record.dtype, region.shape))
        budget.check_tables(record)
        with self._input.clearing_on_error():
            stored = self._stored(name, record, layer, first)
            return region.gather(stored.decoder, stored.values(region.blocks(stored.decoder)))

    def parts(self, name: str, threads: int = 1) -> Iterator[tuple[tuple[Any, ...], Array]]:
        """Decode a tensor block by block. A complex tensor is decoded as one block.

        Yields:
            For each block an index and its values, so that ``tensor[index] = values`` puts them in place.
        """
        record, layer, first = self._locate(self.entry(name))
        if not record.n_elements:
            return
        self._budget.check_tables(record)
        with self._input.clearing_on_error():
            stored = self._stored(name, record, layer, first)
        if stored.decoder.placement.stored_dtype != record.dtype_info.numpy:  # blocks may part pairs of reals
            yield (), self.tensor(name, threads)
            return
        with self._input.clearing_on_error():
            for block, values in stored.values(range(stored.decoder.view.n_blocks)):
                yield part_of(stored.decoder, block, values)
