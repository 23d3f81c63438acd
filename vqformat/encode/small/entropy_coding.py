"""Entropy coding of a trellis stage: from quantized indices to frequency tables and payloads (SPEC 6 "FREQ", 12)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt

from ... import native
from ...decode import rans, tables, transform, trellis
from ...decode.tables import Floats
from ...format.chunkwriter import EncodedTensor
from ...format.dtypes import BY_NAME
from ...format.layout import Block
from ...format.limits import MAX_PRECISION
from ...format.records import FreqRecord, TensorRecord
from ...format.sections import Section
from ...format.stages import (
    CLASSES_COLUMNS,
    CLASSES_ROWS,
    ProgressionSource,
    Scale,
    TableSource,
    TransformSource,
    TrellisSource,
    TrellisStage,
)
from ...native import encoding
from ..methods import packing
from ..methods.scales import encode_scales, group_size, table_dtype
from . import tiles
from .coded_tensor import CodedTensor, Counts

_COARSE_PRECISION = 12  # for up to _COARSE_ENTRIES entries: smaller tables fit the CPU cache and are faster
_COARSE_ENTRIES = 256
_BLOCKS = 16  # that NumPy codes together

@dataclass(frozen=True)
class Pool:
    """The frequency tables that tensors share: a FREQ chunk for ``ChunkWriter.add_freq``.

    Attributes:
        record, section: Of the chunk.
        tables: The frequencies as a decoder reads them.
        zero: The code of index 0.
        exponent: Exponent of the first context, see ``Contexts``.
        n_books: Number of codebooks of each tensor.
    """

    record: FreqRecord
    section: Section
    tables: rans.Tables
    zero: int
    exponent: int
    n_books: int

    @classmethod
    def of(cls, tensors: Sequence[CodedTensor]) -> Pool:
        """Make the tables for tensors with the same number of codebooks."""
        n_books = tensors[0].n_books
        low, high = min(t.span[0] for t in tensors), max(t.span[1] for t in tensors)
        zero = -low + (low & 1)  # even, so that code and index have the same parity
        entries = high + zero + 1
        exponent = min(t.contexts.exponent for t in tensors)
        last = max(t.contexts.exponent + t.contexts.n_contexts for t in tensors)
        counts = np.zeros((last - exponent, n_books, entries))
        for tensor in tensors:
            first = tensor.contexts.exponent - exponent
            counts[first : first + tensor.contexts.n_contexts] += tensor.counts(zero, entries)
        weights = _weights(counts.reshape(-1, entries))
        precision = _COARSE_PRECISION if entries <= _COARSE_ENTRIES else MAX_PRECISION
        record = FreqRecord(precision, entries, len(weights))
        plain = weights.tobytes()
        return cls(record, packing.sections([plain])[0], rans.Tables(plain, record), zero, exponent, n_books)

    def first_table(self, tensor: CodedTensor) -> int:
        """Number of the first table that a tensor uses."""
        return (tensor.contexts.exponent - self.exponent) * self.n_books

    def encode(self, tensor: CodedTensor, number: int) -> EncodedTensor:
        """Code a tensor with these tables, which are FREQ chunk ``number``."""
        record, resident = self._record(tensor, number)
        view = record.view()
        blocks = [view.block(i) for i in range(view.n_blocks)]
        sections = [packing.sections([plain])[0] for plain in resident]
        of_base = [packing.sections(kind) for stage in tensor.base
                   for kind in zip(*map(stage.payload, blocks), strict=True)]  # fmt: skip
        first = self.first_table(tensor)
        used = slice(first, first + tensor.contexts.n_contexts * self.n_books)
        frequencies = self.tables.frequencies(used)
        starts = rans.starts(frequencies)
        if native.is_used():
            codes = tensor.codes(self.zero, self.record.entries)
            coded = [encoding.encode_block(codes, slice(block.row, block.row_end),
                                           slice(block.column, block.column_end), tile=tensor.tile,
                                           frequencies=frequencies, starts=starts, precision=self.record.precision)
                     for block in blocks]  # fmt: skip
        else:
            coded = []
            for first in range(0, len(blocks), _BLOCKS):
                some = blocks[first : first + _BLOCKS]
                coded += self._encode_blocks(tensor, record, some, frequencies, starts)
        return EncodedTensor(record, sections + _by_block([*of_base, [*map(Section, coded)]]))

    def _encode_blocks(
        self, tensor: CodedTensor, record: TensorRecord, blocks: list[Block], frequencies: npt.NDArray[np.uint32],
        starts: npt.NDArray[np.uint32],
    ) -> list[bytes]:  # fmt: skip
        """The payloads of blocks (the twin of ``encoding.encode_block``)."""
        tables = [array.astype(np.uint16).reshape(-1) for array in (frequencies, starts)]
        parts = []
        for block in blocks:
            place = slice(block.row, block.row_end), slice(block.column, block.column_end)
            contexts = tensor.contexts.at(*place).astype(np.intp)
            at = (contexts * self.n_books + tensor.books[place]) * self.record.entries
            at += tensor.indices[place].astype(np.intp) + self.zero
            parts.append([tiles.by_steps(np.take(table, at), tensor.tile) for table in tables])
        stage = record.stages[-1]
        assert isinstance(stage, TrellisStage)
        n_sequences = [prod(stage.tile_grid(block)) for block in blocks]
        of_all = [np.concatenate(part, axis=1) for part in zip(*parts, strict=True)]
        return rans.encode(of_all[0], of_all[1], self.record.precision, n_sequences)

    def _record(self, tensor: CodedTensor, number: int) -> tuple[TensorRecord, list[bytes]]:
        """The record of a tensor, and the plain bytes of its resident sections."""
        source: TrellisSource
        values = self._values(tensor)
        if tensor.transform is not None:
            source = TransformSource(self.zero, tensor.transform.size)
            step = tables.encode(np.array([tensor.step * tensor.transform.unit]), "f32")
            resident = [step + tensor.transform.matrix.tobytes()]
        elif values is None:
            source, resident = ProgressionSource(self.zero), [tables.encode(np.array([tensor.step]), "f32")]
        else:
            reach = (values.shape[1] - 1) // 2
            book = np.zeros((self.n_books, self.record.entries), np.float32)
            low, high = tensor.span
            book[:, low + self.zero : high + self.zero + 1] = values[:, low + reach : high + reach + 1]
            source = TableSource(table_dtype(book))
            resident = [tables.encode(book, source.dtype)]
        scale = None
        if tensor.row_scales is not None:
            dtype, section, _ = encode_scales(tensor.row_scales)
            scale = Scale(dtype, group_size(1, tensor.row_scales.size), 0)
            resident.append(section)
        contexts = tensor.contexts
        classes = 0
        for bit, found in ((CLASSES_ROWS, contexts.rows), (CLASSES_COLUMNS, contexts.columns)):
            if found is not None:
                classes |= bit
                resident.append(found.tobytes())
        stage = TrellisStage(source, tensor.trellis, scale, classes, number, self.first_table(tensor), tensor.tile,
                             self.record.entries)  # fmt: skip
        stages = (*(q.stage for q in tensor.base), stage)
        of_base = [section for q in tensor.base for section in q.resident_sections()]
        return TensorRecord(tensor.name, tensor.dtype, tensor.shape, tensor.layout, stages), of_base + resident

    def _values(self, tensor: CodedTensor) -> Floats | None:
        """Values for a codebook; None if a progression or a transform is stored instead.

        The bound of VAL-002 includes grid points that only other tensors with the same tables use. If such a point
        could exceed the range of the dtype, the tensor's own points are stored as a codebook. With a transform no point
        of any tensor is that large, see ``small``.
        """
        if tensor.transform is not None:
            return None
        largest = BY_NAME[tensor.dtype].largest
        scale = 1.0 if tensor.row_scales is None else float(tensor.row_scales.max())
        room = largest / scale if not tensor.base else largest / scale / 2
        if tensor.values is not None:
            return np.clip(tensor.values, -room, room)
        furthest = self.n_books * max(self.zero, self.record.entries - self.zero)
        if furthest * tensor.step * scale < largest / 2:
            return None
        reach = max(map(abs, tensor.span))
        points = self.n_books * np.arange(-reach, reach + 1) + np.arange(self.n_books)[:, None]
        clipped: Floats = np.clip(points * tensor.step, -room, room).astype(np.float32)
        return clipped

    def decoded(self, tensor: CodedTensor) -> Floats:
        """The values that a decoder computes, bit for bit: the stored matrix, ``(R, C)`` float32."""
        record, resident = self._record(tensor, 0)
        stage = record.stages[-1]
        assert isinstance(stage, TrellisStage)
        section = resident[sum(len(q.resident_sections()) for q in tensor.base)]
        book = trellis.entries_of(stage, section)
        codes = tensor.indices.astype(np.intp) + self.zero
        values: Floats
        if isinstance(stage.source, TransformSource):
            values = np.empty(codes.shape, np.float32)
            decoder = transform.TransformDecoder(stage.source, section, book.T.reshape(-1))
            decoder.decode(self.n_books * codes + tensor.books, values)
        else:
            values = book[tensor.books, codes]
        if tensor.row_scales is not None:
            values *= tensor.row_scales[:, None]
        return tensor.with_base(values)

    def n_bits(self, tensor: CodedTensor) -> float:
        """Bits that the codes of a tensor take with these tables."""
        first = self.first_table(tensor)
        counts = tensor.counts(self.zero, self.record.entries).reshape(-1, self.record.entries)
        frequencies = self.tables.frequencies(slice(first, first + len(counts)))
        used = counts > 0
        return float(-(counts[used] * np.log2(frequencies[used] / (1 << self.record.precision))).sum())


def _by_block(kinds: Sequence[Sequence[Section]]) -> list[Section]:
    """Rearrange sections, which are by kind, into file order, which is by block."""
    return [section for of_block in zip(*kinds, strict=True) for section in of_block]


def _weights(counts: Counts) -> npt.NDArray[np.uint8]:
    """Encode counts ``(n_tables, entries)`` as the bytes of a FREQ chunk. A table without counts gets those of the
    nearest table that has some."""
    used = np.flatnonzero(counts.any(axis=1))  # a context between others may have no elements
    counts = counts[used[np.abs(np.arange(len(counts))[:, None] - used).argmin(axis=1)]]
    scaled = counts * ((30 << 15) / counts.max(axis=1, keepdims=True))
    scaled = np.where(counts > 0, np.maximum(scaled, 16), 0)
    exponent = np.floor(np.log2(np.maximum(scaled, 16))).astype(int) - 4
    significand = np.rint(scaled / np.exp2(exponent)).astype(int)
    is_next = significand == 32
    exponent, significand = exponent + is_next, np.where(is_next, 16, significand)
    return np.where(counts > 0, 16 * exponent + significand - 16 + 1, 0).astype(np.uint8)
