"""The records of a LAYR, BOOK or FREQ chunk as objects (SPEC sections 6 and 7); parse_records.py reads them.

A record knows the plain sizes of its sections, never their bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from math import prod
from typing import Any

from ..forks import cached_property
from .dtypes import BY_NAME, DType
from .layout import ORDER_COLUMNS, ORDER_ROWS, Block, Layout, View, make_view
from .stages import (
    CodebookStage,
    RawStage,
    SharedSource,
    Size,
    SparseStage,
    Stage,
    TrellisStage,
    minor_of,
    stage_to_metadata,
)


@dataclass(frozen=True, slots=True)
class AliasRecord:
    """An alias: a further name of an earlier tensor."""

    name: str
    target: str

    def to_metadata(self) -> list[Any]:
        return [self.name, self.target]


@dataclass(frozen=True)  # without slots: it keeps what it computes
class TensorRecord:
    """The record of a tensor in a LAYR chunk (SPEC section 7)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    layout: Layout = field(default_factory=Layout)
    stages: tuple[Stage, ...] = ()

    def __getstate__(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}  # not what was computed from these

    @cached_property
    def n_elements(self) -> int:
        return prod(self.shape)

    @cached_property
    def dtype_info(self) -> DType:
        return BY_NAME[self.dtype]

    @cached_property
    def nbytes(self) -> int:
        """Bytes of the decoded tensor; 4-bit elements count as half a byte."""
        return self.dtype_info.nbytes(self.n_elements)

    @cached_property
    def is_raw(self) -> bool:
        """Whether it is stored as bytes, by a raw or sparse raw stage."""
        return bool(self.stages) and isinstance(self.stages[0], (RawStage, SparseStage))

    def renamed(self, name: str) -> TensorRecord:
        """A record that differs in its name only. It has what this one has computed."""
        record = object.__new__(TensorRecord)
        record.__dict__.update(self.__dict__, name=name)
        return record

    def view(self) -> View:
        return self._view

    @cached_property
    def _view(self) -> View:
        return make_view(self.shape, self.dtype_info.is_complex and not self.is_raw, self.layout)

    def resident_nbytes(self) -> list[list[int]]:
        """Plain sizes of the resident sections: first a list for row and column classes, then a list for each stage."""
        return self._resident_nbytes

    @cached_property
    def _resident_nbytes(self) -> list[list[int]]:
        view = self._view
        classes = [n for bit, n in ((ORDER_ROWS, view.n_rows), (ORDER_COLUMNS, view.n_columns))
                   if self.layout.order & bit]  # fmt: skip
        return [classes] + [[] if isinstance(stage, (RawStage, SparseStage)) else stage.resident_nbytes(view)
                            for stage in self.stages]  # fmt: skip

    def payload_nbytes(self, block: Block) -> list[list[Size]]:
        """Plain sizes of the payload sections of a block, a list for each stage."""
        sizes: list[list[Size]] = []
        for stage in self.stages:
            match stage:
                case RawStage():
                    sizes.append([*stage.block_nbytes(block, self.dtype_info)])
                case SparseStage():
                    sizes.append([*stage.block_nbytes(self.view().number(block), block, self.dtype_info)])
                case _:
                    sizes.append(stage.payload_nbytes(block))
        return sizes

    def n_resident(self) -> int:
        """Number of resident sections."""
        return sum(map(len, self.resident_nbytes()))

    def n_payload(self) -> int:
        """Number of payload sections of each block."""
        return self._n_payload

    @cached_property
    def _n_payload(self) -> int:
        n = 0
        for stage in self.stages:
            if isinstance(stage, (RawStage, SparseStage)):
                n += stage.n_payload(self.dtype_info)
            else:
                n += stage.n_payload()
        return n

    @property
    def minor(self) -> int:
        """The smallest minor version of the format that has all ids of its stages (EXT-003)."""
        return max(map(minor_of, self.stages), default=0)

    def n_sections(self) -> int:
        """Number of sections of the tensor in its chunk."""
        return self._n_sections

    @cached_property
    def _n_sections(self) -> int:
        if not self.stages:
            return 0
        return self.n_resident() + self.view().n_blocks * self.n_payload()

    def book_numbers(self) -> list[int]:
        """Numbers of the BOOK chunks that its stages use."""
        return [stage.source.number for stage in self.stages
                if isinstance(stage, CodebookStage) and isinstance(stage.source, SharedSource)]  # fmt: skip

    def freq_numbers(self) -> list[int]:
        """Numbers of the FREQ chunks that its stages use."""
        return [stage.freq for stage in self.stages if isinstance(stage, TrellisStage)]

    def renumbered(self, books: Mapping[int, int], freqs: Mapping[int, int]) -> TensorRecord:
        """The record in another file, in which the BOOK and FREQ chunks that it uses have other numbers."""

        def stage_there(stage: Stage) -> Stage:
            match stage:
                case CodebookStage(source=SharedSource(number)):
                    return replace(stage, source=SharedSource(books[number]))
                case TrellisStage():
                    return replace(stage, freq=freqs[stage.freq])
            return stage

        return replace(self, stages=tuple(map(stage_there, self.stages)))

    def to_metadata(self) -> list[Any]:
        layout = self.layout
        fields = [None if layout.axes is None else list(layout.axes), layout.n_row_axes, layout.order,
                  layout.block_rows, layout.block_columns]  # fmt: skip
        return [self.name, self.dtype_info.id, list(self.shape), None if layout == Layout() else fields,
                [stage_to_metadata(stage) for stage in self.stages]]  # fmt: skip


Record = TensorRecord | AliasRecord


@dataclass(frozen=True, slots=True)
class BookRecord:
    """The record of a BOOK chunk (SPEC section 6)."""

    dim: int
    entries: int
    groups: int
    dtype: str

    @property
    def nbytes(self) -> int:
        return self.groups * self.entries * self.dim * BY_NAME[self.dtype].bits // 8

    def to_metadata(self) -> list[Any]:
        return [self.dim, self.entries, self.groups, BY_NAME[self.dtype].id]


@dataclass(frozen=True, slots=True)
class FreqRecord:
    """The record of a FREQ chunk (SPEC section 6)."""

    precision: int
    entries: int
    tables: int

    @property
    def nbytes(self) -> int:
        return self.tables * self.entries

    def to_metadata(self) -> list[Any]:
        return [self.precision, self.entries, self.tables]
