"""A tensor of a seekable file: its sections are found by the section table, and read when they are needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy.typing as npt

from ..decode.block_groups import GroupedTensor, Sections, plain
from ..decode.tensor import FEW_ELEMENTS, SharedValues, TensorDecoder
from ..format.container import ChunkHead
from ..format.layout import Block
from ..format.records import TensorRecord
from ..format.sections import StoredSection, check_padding, check_size
from ..format.stages import Size
from .random_access import RandomInput

Array = npt.NDArray[Any]


class ChunkSections:
    """Consecutive sections of a chunk, such as those of one tensor.

    Args:
        source: The file.
        spans: Start and end offset of each section of the chunk.
        first: Number of the first of these sections in the chunk.
    """

    def __init__(self, source: RandomInput, chunk: ChunkHead, spans: list[tuple[int, int]], first: int) -> None:
        self.source, self._chunk, self._spans, self._first = source, chunk, spans, first

    def span(self, at: int, n: int) -> tuple[int, int]:
        """Start and end offset of ``n`` sections from number ``at`` on, with the padding before them."""
        first = self._first + at
        return self._spans[first - 1][1] if first else self._chunk.data_offset, self._spans[first + n - 1][1]

    def read(self, at: int, sizes: Sequence[Sequence[Size]], where: str) -> list[StoredSection]:
        """Read consecutive sections with one read of the file.

        Args:
            at: Number of the first, counted from the first section of the tensor.
            sizes: Their plain sizes, in lists, such as one for each stage.
            where: Name of the sections, for error texts.
        """
        first = self._first + at
        nbytes = [size for stage_sizes in sizes for size in stage_sizes]
        if not nbytes:
            return []
        start, end = self.span(at, len(nbytes))
        data = self.source.view_at(start, end - start, where)
        sections = []
        done = start
        for i, plain_nbytes in enumerate(nbytes, first):
            low, high = self._spans[i]
            entry = self._chunk.sections[i]
            check_size(entry, plain_nbytes, where, low)
            check_padding(bytes(data[done - start : low - start]), done)
            stored = bytes(data[low - start : high - start])
            sections.append(StoredSection(stored, entry, plain_nbytes, where, low))
            done = high
        return sections


class StoredTensor(GroupedTensor):
    """A tensor that has elements. Its resident sections are read at once, its blocks when they are needed.

    Args:
        sections: Its sections.
        shared: Contents of the BOOK and FREQ chunks.
        most_held_nbytes: Most bytes of payload sections that are read at once and kept.
    """

    def __init__(
        self, record: TensorRecord, sections: ChunkSections, shared: SharedValues, *, most_held_nbytes: int
    ) -> None:
        super().__init__(record)
        self._sections, self._most_held_nbytes = sections, most_held_nbytes
        sizes = record.resident_nbytes()
        self._n_resident = sum(map(len, sizes))
        resident = self._sections.read(0, sizes, f"a resident section of tensor {record.name!r}")
        self._decoder = TensorDecoder(record, [section.plain() for section in resident], shared)

    @property
    def decoder(self) -> TensorDecoder:
        return self._decoder

    def groups(
        self, numbers: Sequence[int], most_elements: int = FEW_ELEMENTS
    ) -> Iterator[tuple[list[Block], Sections]]:
        """Read blocks in groups that should be decoded together.

        Args:
            numbers: Numbers of the blocks, ascending.
            most_elements: Most elements of a group of several blocks.

        Yields:
            The blocks of a group, and for each its payload sections.
        """
        record, decoder, n = self.record, self.decoder, self.record.n_payload()
        at = [self._n_resident + i * n for i in numbers]
        held_end = 0
        for group in self.grouped(range(len(numbers)), most_elements):
            blocks, sections = [], []
            for k in group:
                start, end = self._sections.span(at[k], n)
                if end > held_end:  # read the sections that follow without a gap together with these
                    held_end = end
                    for k_next in range(k + 1, len(numbers)):
                        next_start, next_end = self._sections.span(at[k_next], n)
                        if next_start != held_end or next_end - start > self._most_held_nbytes:
                            break
                        held_end = next_end
                    self._sections.source.hold(b"LAYR", start, held_end)
                block = decoder.view.block(numbers[k])
                blocks.append(block)
                sections.append(self._sections.read(at[k], record.payload_nbytes(block),
                                                    f"block {numbers[k]} of tensor {record.name!r}"))  # fmt: skip
            yield blocks, sections

    def values(self, numbers: Sequence[int]) -> Iterator[tuple[Block, Array]]:
        """Decode blocks by their numbers, ascending.

        Yields:
            Each block, and its values in stored order, ``(n_rows, n_columns)``.
        """
        for blocks, sections in self.groups(numbers):
            yield from zip(blocks, self.decoder.block_values(blocks, plain(sections)), strict=True)
