"""A tensor of a file, decoded in groups of blocks, in threads where that helps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy.typing as npt

from ..format.layout import Block
from ..format.records import TensorRecord
from ..format.sections import StoredSection
from .tensor import TensorDecoder, allocate
from .workers import Workers

Array = npt.NDArray[Any]
Sections = list[list[StoredSection]]  # payload sections, by block

_THREADS_FROM_ELEMENTS = 1 << 20  # smaller tensors are decoded before threads have started


class GroupedTensor:
    """A tensor whose blocks come in groups that are best decoded together."""

    def __init__(self, record: TensorRecord) -> None:
        self.record = record

    @property
    def decoder(self) -> TensorDecoder:
        """Its decoder, made of its resident sections."""
        raise NotImplementedError

    def decode(self, blocks: list[Block], sections: Sections, out: Array) -> None:
        """Decode a group to its place in the tensor."""
        self.decoder.decode_blocks(blocks, plain(sections), out)

    def decode_all(self, groups: Iterable[tuple[list[Block], Sections]], out: Array | None, threads: int) -> Array:
        """Decode all groups into an array, a new one if there is none."""
        is_large = self.record.n_elements >= _THREADS_FROM_ELEMENTS
        with Workers(threads if is_large else 1) as workers:
            for blocks, sections in groups:
                if out is None:
                    payloads = plain(sections)
                    out = allocate(self.record)  # REA-002: only when the first group has been checked
                    self.decoder.decode_blocks(blocks, payloads, out)
                else:
                    workers.run(self.decode, blocks, sections, out, here=self.decoder.has_trellis)
        return allocate(self.record) if out is None else out


def plain(sections: Sections) -> list[list[bytes]]:
    """The payloads of a group, checked and decompressed."""
    return [[section.plain() for section in of_block] for of_block in sections]
