"""A tensor of a file, decoded in groups of blocks, by several threads if it is large."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy.typing as npt

from ..format.layout import Block
from ..format.records import TensorRecord
from ..format.sections import StoredSection
from .freed_memory import keep_freed_memory
from .tensor import TensorDecoder, allocate
from .workers import Workers

Array = npt.NDArray[Any]
Sections = list[list[StoredSection]]  # for each block its payload sections

_THREADS_FROM_ELEMENTS = 1 << 20  # a smaller tensor is decoded in less time than it takes to start threads


class GroupedTensor:
    """Base of tensors whose blocks are read in groups; the blocks of a group are decoded together."""

    def __init__(self, record: TensorRecord) -> None:
        self.record = record

    @property
    def decoder(self) -> TensorDecoder:
        """The decoder of the tensor, made from its resident sections."""
        raise NotImplementedError

    def grouped(self, numbers: range, most_elements: int) -> Iterator[range]:
        """Divide the numbers of blocks into groups.

        Before any other thread begins, the first group is checked (REA-002). So it is small if there are several.

        Args:
            most_elements: Most elements of a group of several blocks.
        """
        size = self.decoder.group_size(most_elements)
        if len(numbers) > size and not self.decoder.is_stepwise:
            yield numbers[:1]
            numbers = numbers[1:]
        for first in range(0, len(numbers), size):
            yield numbers[first : first + size]

    def decode(self, blocks: list[Block], sections: Sections, out: Array) -> None:
        """Decode a group of blocks into ``out``, the array of the whole tensor."""
        self.decoder.decode_blocks(blocks, plain(sections), out)

    def decode_all(self, groups: Iterable[tuple[list[Block], Sections]], out: Array | None, threads: int) -> Array:
        """Decode all groups.

        Args:
            groups: Blocks, and for each block its payload sections.
            out: Array of the tensor's shape and dtype, C-contiguous; None for a new one.
            threads: Threads for a large tensor.

        Returns:
            ``out``, or the new array.
        """
        is_large = self.record.n_elements >= _THREADS_FROM_ELEMENTS
        if is_large:
            keep_freed_memory()
        with Workers(threads if is_large else 1) as workers:
            for blocks, sections in groups:
                if out is None:
                    payloads = plain(sections)
                    out = allocate(self.record)  # REA-002: only after the first group has been checked
                    self.decoder.decode_blocks(blocks, payloads, out)
                else:
                    workers.run(self.decode, blocks, sections, out, here=self.decoder.is_stepwise)
        return allocate(self.record) if out is None else out


def plain(sections: Sections) -> list[list[bytes]]:
    """Check and decompress the payload sections of each block."""
    return [[section.plain() for section in of_block] for of_block in sections]
