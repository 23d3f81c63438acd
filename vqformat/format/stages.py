"""The stages of a tensor as objects: their fields, and the plain sizes of their sections (SPEC sections 8, 9, 11, 12).

A stage knows how large its sections are (of some only a range), never their bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from .bits import Planes, n_planes, payload_nbytes
from .dtypes import BY_NAME, DType
from .layout import Block, View
from .metadata import pack_column

RAW, CODEBOOK, LOW_RANK, TRELLIS, SPARSE = 0, 1, 2, 4, 5  # stage ids; 3 is never assigned
TABLE, PROGRESSION, SHARED, FLOAT, TRANSFORM = 0, 1, 2, 4, 5  # source ids; 3 is never assigned
CLASSES_ROWS, CLASSES_COLUMNS = 1, 2  # bits of classes
MAX_ZERO = 1 << 23
MAX_TRELLIS_ZERO = 1 << 22


@dataclass(frozen=True, slots=True)
class Sizes:
    """The range of plain sizes of an entropy-coded section; only even sizes are allowed (ANS-001)."""

    least: int
    most: int


Size = int | Sizes


@dataclass(frozen=True, slots=True)
class RawStage:
    """The bytes of the elements (SPEC section 8)."""

    split: int = 0

    def block_nbytes(self, block: Block, dtype: DType) -> list[int]:
        """Plain sizes of the payload sections of a block."""
        nbytes = dtype.nbytes(block.n_elements)
        return [nbytes // dtype.word_nbytes] * dtype.word_nbytes if self.split else [nbytes]

    def n_payload(self, dtype: DType) -> int:
        """Number of payload sections of each block."""
        return dtype.word_nbytes if self.split else 1


@dataclass(frozen=True, slots=True)
class SparseStage:
    """The bytes of the elements, those of zeros apart (SPEC 8.1).

    Attributes:
        counts: For each block the number of words in the byte planes.
    """

    split: int
    counts: tuple[int, ...]

    def block_nbytes(self, number: int, block: Block, dtype: DType) -> list[int]:
        """Plain sizes of the payload sections of the block with this number (SPA-003): marks, signs, byte planes."""
        n_words, count = n_words_of(block, dtype), self.counts[number]
        return [-(-n_words // 8), -(-(n_words - count) // 8), *[count] * dtype.word_nbytes]

    def n_payload(self, dtype: DType) -> int:
        """Number of payload sections of each block."""
        return 2 + dtype.word_nbytes


def n_words_of(block: Block, dtype: DType) -> int:
    """Words of a block of a dtype that can be split (RAW-003)."""
    return dtype.nbytes(block.n_elements) // dtype.word_nbytes


@dataclass(frozen=True, slots=True)
class TableSource:
    """Codebooks in a resident section."""

    dtype: str = "f32"


@dataclass(frozen=True, slots=True)
class ProgressionSource:
    """Entries ``(i − zero) · step``; the steps are in a resident section."""

    zero: int


@dataclass(frozen=True, slots=True)
class SharedSource:
    """The codebooks of a BOOK chunk."""

    number: int


@dataclass(frozen=True, slots=True)
class FloatSource:
    """Codes that are floating-point numbers (SPEC 9.3)."""

    signed: int
    exponent_bits: int
    fraction_bits: int
    exponent: int

    @property
    def entries(self) -> int:
        return 1 << (self.signed + self.exponent_bits + self.fraction_bits)


@dataclass(frozen=True, slots=True)
class TransformSource:
    """A progression of transform coefficients, each group of ``size`` rows by itself; for trellis stages (SPEC 12.5).

    The step and the matrix are in a resident section.
    """

    zero: int
    size: int


Source = TableSource | ProgressionSource | SharedSource | FloatSource
TrellisSource = TableSource | ProgressionSource | TransformSource


@dataclass(frozen=True, slots=True)
class Scale:
    """Scales of groups of ``rows`` × ``columns`` elements; 0 stands for the whole axis."""

    dtype: str
    rows: int
    columns: int

    def grid(self, view: View) -> tuple[int, int]:
        """Groups along rows and columns."""
        return _n_groups(view.n_rows, self.rows), _n_groups(view.n_columns, self.columns)

    def nbytes(self, view: View) -> int:
        return prod(self.grid(view)) * BY_NAME[self.dtype].bits // 8


@dataclass(frozen=True, slots=True)
class CodebookStage:
    """Codebook entries chosen by codes (SPEC section 9)."""

    dim: int
    entries: int
    source: Source
    book_rows: int = 0
    book_columns: int = 0
    scale: Scale | None = None
    planes: Planes = ()

    def n_subvectors(self, n_columns: int) -> int:
        """Number of codes for ``n_columns`` columns of a row; the last subvector may be padded (SPEC 9.1)."""
        return -(-n_columns // self.dim)

    def book_grid(self, view: View) -> tuple[int, int]:
        """Codebook groups along rows and columns."""
        return (_n_groups(view.n_rows, self.book_rows),
                _n_groups(self.n_subvectors(view.n_columns), self.book_columns))  # fmt: skip

    def resident_nbytes(self, view: View) -> list[int]:
        groups = prod(self.book_grid(view))
        sizes = []
        if isinstance(self.source, TableSource):
            sizes.append(groups * self.entries * self.dim * BY_NAME[self.source.dtype].bits // 8)
        elif isinstance(self.source, ProgressionSource):
            sizes.append(4 * groups)
        if self.scale is not None:
            sizes.append(self.scale.nbytes(view))
        return sizes

    def payload_nbytes(self, block: Block) -> list[Size]:
        return [*payload_nbytes(block.n_rows * self.n_subvectors(block.n_columns), self.entries, self.planes)]

    def n_payload(self) -> int:
        return n_planes(self.planes)


@dataclass(frozen=True, slots=True)
class AxisScale:
    """Scales of groups of ``size`` rows or columns; 0 stands for the whole axis."""

    dtype: str
    size: int


@dataclass(frozen=True, slots=True)
class LowRankStage:
    """A product of two integer matrices with scales (SPEC section 11)."""

    rank: int
    entries_u: int
    planes_u: Planes
    entries_v: int
    planes_v: Planes
    row_scale: AxisScale
    column_scale: AxisScale

    def resident_nbytes(self, view: View) -> list[int]:
        sizes = [_n_groups(n, scale.size) * BY_NAME[scale.dtype].bits // 8
                 for n, scale in ((view.n_rows, self.row_scale), (view.n_columns, self.column_scale))]  # fmt: skip
        return sizes + payload_nbytes(self.rank * view.n_columns, self.entries_v, self.planes_v)

    def payload_nbytes(self, block: Block) -> list[Size]:
        return [*payload_nbytes(block.n_rows * self.rank, self.entries_u, self.planes_u)]

    def n_payload(self) -> int:
        return n_planes(self.planes_u)


@dataclass(frozen=True, slots=True)
class Trellis:
    """A state machine that chooses one of two codebooks for each code (SPEC 12.2).

    Attributes:
        feedback, forward: Parity-check polynomials, as bit masks.
    """

    feedback: int
    forward: int

    @property
    def n_states(self) -> int:
        return max(2, 1 << max(self.feedback, self.forward).bit_length() >> 1)

    def next_state(self, state: int, parity: int) -> int:
        """The state after a code whose lowest bit is ``parity``."""
        return (state >> 1) ^ ((state & 1) * (self.feedback >> 1)) ^ (parity * (self.forward >> 1))


@dataclass(frozen=True, slots=True)
class TrellisStage:
    """Codebook entries chosen by entropy-coded codes (SPEC section 12).

    Attributes:
        trellis: None if there is one codebook.
        freq, first: Number of a FREQ chunk, and number of the first table that is used.
        tile: Rows and columns of a sequence.
        entries: Entries of each codebook; equal to ``entries`` of the FREQ chunk.
    """

    source: TrellisSource
    trellis: Trellis | None
    scale: Scale | None
    classes: int
    freq: int
    first: int
    tile: tuple[int, int]
    entries: int

    @property
    def n_books(self) -> int:
        return 1 if self.trellis is None else 2

    def resident_nbytes(self, view: View) -> list[int]:
        match self.source:
            case TableSource(dtype):
                sizes = [self.n_books * self.entries * BY_NAME[dtype].bits // 8]
            case ProgressionSource():
                sizes = [4]
            case TransformSource(_, size):
                sizes = [4 + size * size]
        if self.scale is not None:
            sizes.append(self.scale.nbytes(view))
        return sizes + [n for bit, n in ((CLASSES_ROWS, view.n_rows), (CLASSES_COLUMNS, view.n_columns))
                        if self.classes & bit]  # fmt: skip

    def tile_grid(self, block: Block) -> tuple[int, int]:
        """Tiles of a block along rows and columns."""
        return -(-block.n_rows // self.tile[0]), -(-block.n_columns // self.tile[1])

    def payload_nbytes(self, block: Block) -> list[Size]:
        states_nbytes = 4 * prod(self.tile_grid(block))
        return [Sizes(states_nbytes, states_nbytes + 2 * block.n_elements)]

    def n_payload(self) -> int:
        return 1


Stage = RawStage | SparseStage | CodebookStage | LowRankStage | TrellisStage
PackedStage = CodebookStage | LowRankStage  # stages whose codes are packed by SPEC section 10


def minor_of(stage: Stage) -> int:
    """The smallest minor version of the format that has all ids of a stage (EXT-003)."""
    match stage:
        case SparseStage():
            return 2
        case TrellisStage() | CodebookStage(source=FloatSource()):
            return 1
    return 0


def stage_to_metadata(stage: Stage) -> list[Any]:
    """The array that stands for a stage in a tensor record."""
    match stage:
        case RawStage():
            return [RAW, stage.split]
        case SparseStage():
            return [SPARSE, stage.split, pack_column(stage.counts)]
        case CodebookStage():
            return [CODEBOOK, stage.dim, stage.entries, _source_to_metadata(stage.source), 0, stage.book_rows,
                    stage.book_columns, _scale_to_metadata(stage.scale),
                    [list(plane) for plane in stage.planes]]  # fmt: skip
        case TrellisStage():
            trellis = stage.trellis and [stage.trellis.feedback, stage.trellis.forward]
            return [TRELLIS, _source_to_metadata(stage.source), trellis, _scale_to_metadata(stage.scale),
                    stage.classes, stage.freq, stage.first, list(stage.tile)]  # fmt: skip
        case LowRankStage():
            factors = [[entries, [list(plane) for plane in planes]] for entries, planes in
                       ((stage.entries_u, stage.planes_u), (stage.entries_v, stage.planes_v))]  # fmt: skip
            scales = [[BY_NAME[scale.dtype].id, scale.size] for scale in (stage.row_scale, stage.column_scale)]
            return [LOW_RANK, stage.rank, *factors, *scales]


def _source_to_metadata(source: Source | TransformSource) -> list[int]:
    match source:
        case TableSource(dtype):
            return [TABLE, BY_NAME[dtype].id]
        case ProgressionSource(zero):
            return [PROGRESSION, zero]
        case TransformSource(zero, size):
            return [TRANSFORM, zero, size]
        case SharedSource(number):
            return [SHARED, number]
        case FloatSource():
            return [FLOAT, source.signed, source.exponent_bits, source.fraction_bits, source.exponent]


def _scale_to_metadata(scale: Scale | None) -> list[int] | None:
    return None if scale is None else [BY_NAME[scale.dtype].id, scale.rows, scale.columns]


def _n_groups(n: int, size: int) -> int:
    return -(-n // size) if size else 1
