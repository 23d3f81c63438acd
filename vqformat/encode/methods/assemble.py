"""Assembling quantized stages into an encoded tensor: choosing blocks and packings, and making sections."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from math import lcm
from typing import Any

import numpy as np
import numpy.typing as npt

from ...decode import raw
from ...decode.codebook import CodebookDecoder
from ...decode.lowrank import LowRankDecoder
from ...decode.tables import Book, Floats
from ...errors import EncodeError
from ...format import bits
from ...format.chunkwriter import EncodedTensor
from ...format.dtypes import BY_NAME, DTYPES
from ...format.layout import ORDER_COLUMNS, ORDER_ROWS, Block, Layout, View, make_view
from ...format.limits import MAX_BLOCK_ELEMENTS
from ...format.records import TensorRecord
from ...format.sections import Section
from ...format.stages import CodebookStage, LowRankStage, PackedStage, RawStage, SparseStage
from . import packing, planes

BLOCK_ELEMENTS = 1 << 18  # of a block, about
Collect = Callable[[Iterable[Section]], list[Section]]
Maker = packing.SectionMaker | planes.PlaneMaker
_SMALL_NUMBERS = tuple(dtype.name for dtype in DTYPES if dtype.bits == 8 and dtype.name != "bool")


@dataclass
class QuantizedStage:
    """One arithmetic stage of a tensor, quantized but not yet packed. The stored matrix has R rows and C columns.

    Attributes:
        stage: The stage. ``with_planes`` chooses its packing.
        resident: Plain bytes of its resident sections (SPEC 7.3); for a low-rank stage only those of the scales.
        codes: ``(R, n_subvectors)``; for a low-rank stage those of the left factor, ``(R, rank)``. Only the left codes
            of a codebook stage may be other than an array.
        right_codes: Codes of the right factor of a low-rank stage, ``(rank, C)``; else None.
        shared: The BOOK that it uses; None without one.
    """

    stage: PackedStage
    resident: list[bytes]
    codes: packing.CodeMatrix
    right_codes: npt.NDArray[Any] | None = None
    shared: Book | None = None

    def values(self, view: View) -> Floats:
        """The values that a decoder computes, bit for bit: the stored matrix, ``(R, C)`` float32."""
        return sum_of_stages([self], view)

    def decode(self, view: View) -> Callable[[Block], Floats]:
        """The function that computes the same values of a block, ``(n_rows, n_columns)``."""
        match self.stage:
            case CodebookStage():
                write = CodebookDecoder(self.stage, view, self.resident, self.shared).look_up
            case LowRankStage():
                write = LowRankDecoder(self.stage, view, self._low_rank_resident()).multiply

        def decoded(block: Block) -> Floats:
            out = np.empty((block.n_rows, block.n_columns), np.float32)
            write(self._codes_of(block), block, out)
            return out

        return decoded

    def _low_rank_resident(self) -> list[bytes]:
        assert isinstance(self.stage, LowRankStage) and self.right_codes is not None
        right = packing.as_codes(self.right_codes, self.stage.entries_v)
        return self.resident + bits.pack(right, self.stage.entries_v, self.stage.planes_v)

    def with_planes(self, *, compress: bool) -> QuantizedStage:
        """The same stage with the packing that takes the fewest bytes.

        Args:
            compress: Whether sections may be compressed.
        """
        match self.stage:
            case CodebookStage():
                sample = packing.sample_of(self.codes, self.stage.entries)
                planes = packing.choose_planes(sample, self.stage.entries, compress=compress)
                return replace(self, stage=replace(self.stage, planes=planes))
            case LowRankStage():
                assert self.right_codes is not None
                left = packing.sample_of(self.codes, self.stage.entries_u)
                right = packing.sample_of(self.right_codes, self.stage.entries_v)
                planes_u = packing.choose_planes(left, self.stage.entries_u, compress=compress)
                planes_v = packing.choose_planes(right, self.stage.entries_v, compress=compress)
                return replace(self, stage=replace(self.stage, planes_u=planes_u, planes_v=planes_v))

    def resident_sections(self) -> list[bytes]:
        """Plain bytes of all resident sections."""
        return self._low_rank_resident() if isinstance(self.stage, LowRankStage) else self.resident

    def payload(self, block: Block) -> list[bytes]:
        """Plain bytes of the payload sections of a block."""
        match self.stage:
            case CodebookStage():
                entries, planes = self.stage.entries, self.stage.planes
            case LowRankStage():
                entries, planes = self.stage.entries_u, self.stage.planes_u
        return bits.pack(packing.as_codes(self._codes_of(block), entries), entries, planes)

    def _codes_of(self, block: Block) -> npt.NDArray[Any]:
        """The codes of a block; for a low-rank stage those of the left factor."""
        columns = slice(None)
        if isinstance(self.stage, CodebookStage):
            first = block.column // self.stage.dim
            columns = slice(first, first + self.stage.n_subvectors(block.n_columns))
        return self.codes[block.row : block.row_end, columns]


def sum_of_stages(stages: Sequence[QuantizedStage], view: View) -> Floats:
    """The sum of stages that a decoder computes, bit for bit: the stored matrix, ``(R, C)`` float32."""
    total = np.empty((view.n_rows, view.n_columns), np.float32)
    for block, values in blocks_of_sum(stages, view):
        total[block.row : block.row_end, block.column : block.column_end] = values
    return total


def blocks_of_sum(stages: Sequence[QuantizedStage], view: View) -> Iterator[tuple[Block, Floats]]:
    """The same block by block, the blocks in the order of their rows."""
    layout = _common_blocks(stages, view.layout, view)
    blocks = View(view.shape, layout, view.n_rows, view.n_columns)
    decode = _sum(stages, view)
    for i in range(blocks.n_blocks):
        block = blocks.block(i)
        yield block, decode(block)


def decoder_of_sum(stages: Sequence[QuantizedStage], view: View) -> Callable[[slice], Floats]:
    """The function that computes the same values of some rows."""
    decode = _sum(stages, view)
    return lambda rows: decode(Block(rows.start, rows.stop, 0, view.n_columns))


def _sum(stages: Sequence[QuantizedStage], view: View) -> Callable[[Block], Floats]:
    decoders = [stage.decode(view) for stage in stages]

    def decode(block: Block) -> Floats:
        total = decoders[0](block)
        for more in decoders[1:]:
            total += more(block)
        return total

    return decode


def _common_blocks(stages: Sequence[QuantizedStage], layout: Layout, view: View) -> Layout:
    """A layout with blocks in which all stages can be coded."""
    unit = lcm(*(q.stage.dim for q in stages if isinstance(q.stage, CodebookStage)))
    whole_rows = any(isinstance(q.stage, LowRankStage) for q in stages)
    return choose_blocks(layout, view.n_rows, view.n_columns, unit, whole_rows=whole_rows)


def choose_blocks(layout: Layout, n_rows: int, n_columns: int, unit: int = 1, *, whole_rows: bool = False) -> Layout:
    """A layout with blocks of about ``BLOCK_ELEMENTS`` elements.

    Args:
        unit: Blocks of parts of rows have a multiple of so many columns: the least common multiple of all dims.
        whole_rows: Whether a row must not be cut.

    Raises:
        EncodeError: A block would exceed the limit of LAY-005.
    """
    if n_rows * n_columns <= BLOCK_ELEMENTS * 3 // 2:
        return replace(layout, block_rows=0, block_columns=0)
    if n_columns <= BLOCK_ELEMENTS * 2 or whole_rows:
        rows, columns = max(1, BLOCK_ELEMENTS // n_columns), 0
    else:
        rows, columns = 1, max(1, BLOCK_ELEMENTS // unit) * unit
    if rows * (columns or n_columns) > MAX_BLOCK_ELEMENTS:
        raise EncodeError(f"a block would have {rows * (columns or n_columns)} elements; at most {MAX_BLOCK_ELEMENTS}"
                          " are allowed: rows are too long for this method, try axis=columns")  # fmt: skip
    if columns >= n_columns:
        columns = 0
    return replace(layout, block_rows=0 if rows >= n_rows and not columns else rows, block_columns=columns)


def assemble(
    name: str,
    dtype: str,
    shape: tuple[int, ...],
    layout: Layout,
    stages: list[QuantizedStage],
    *,
    row_classes: npt.NDArray[np.uint8] | None = None,
    column_classes: npt.NDArray[np.uint8] | None = None,
    compress: bool = True,
    is_quick: bool = False,
    collect: Collect = list,
) -> EncodedTensor:
    """Make an encoded tensor from quantized stages.

    Args:
        layout: View and order of rows and columns. Blocks are chosen here.
        stages: In order. Their codes are those of stored rows and columns.
        row_classes, column_classes: Classes, if ``layout.order`` has the bits for them.
        compress: Whether sections may be zstd frames.
        is_quick: Whether payloads are searched for matches only where a trial says that they pay.
        collect: Makes a list of the sections, which are made one after another.

    Raises:
        EncodeError: A block would exceed the limit of LAY-005.
    """
    view = make_view(shape, BY_NAME[dtype].is_complex, layout)
    layout = _common_blocks(stages, layout, view)
    stages = [q.with_planes(compress=compress) for q in stages]
    record = TensorRecord(name, dtype, shape, layout, tuple(q.stage for q in stages))
    view = record.view()
    resident = [classes.tobytes() for bit, classes in ((ORDER_ROWS, row_classes), (ORDER_COLUMNS, column_classes))
                if layout.order & bit and classes is not None]  # fmt: skip
    for q in stages:
        resident += q.resident_sections()
    payloads = ([plain for q in stages for plain in q.payload(view.block(i))] for i in range(view.n_blocks))
    makers: Sequence[Maker] | None = None
    if compress:
        makers = _quick(record, is_quick=True) if is_quick else _searching(record)
    return EncodedTensor(record, collect(_sections(resident, payloads, makers)))


def assemble_raw(
    name: str, dtype: str, array: npt.NDArray[Any], split: int, *, compress: bool = True, thorough: bool = False,
    is_quick: bool = False, is_sparse: bool = False, collect: Collect = list,
) -> EncodedTensor:  # fmt: skip
    """Make an encoded tensor with a raw or sparse raw stage, which keeps every bit.

    Args:
        array: C-contiguous, little-endian, of the dtype.
        split: See SPEC section 8.
        compress: Whether sections may be zstd frames.
        thorough: Whether all zstd parameters are tried for floats and numbers of 8 bits, as they are for others.
        is_quick: See ``planes.PlaneMaker``.
        is_sparse: Whether zeros are stored apart (SPEC 8.1).
        collect: Makes a list of the sections, which are made one after another.
    """
    info = BY_NAME[dtype]
    if not array.size:
        return EncodedTensor(TensorRecord(name, dtype, array.shape), [])
    view = _view_of_elements(array)
    stage: RawStage | SparseStage = RawStage(split)
    encode = raw.encode
    if is_sparse:
        flat = array.reshape(-1)
        stage = SparseStage(split, tuple(raw.n_marked(_elements(flat, view, i), info) for i in range(view.n_blocks)))
        encode = raw.encode_sparse
    is_searched = thorough or not (info.arithmetic or dtype in _SMALL_NUMBERS)
    record = TensorRecord(name, dtype, array.shape, view.layout, (stage,))
    makers: Sequence[Maker] | None = None
    if compress:
        makers = _searching(record) if is_searched else _quick(record, is_quick=is_quick)
    return _of_elements(record, array, lambda part: encode(part, info, split), makers, collect)


def assemble_elements(
    name: str, dtype: str, array: npt.NDArray[Any], stage: CodebookStage,
    encode: Callable[[npt.NDArray[Any]], list[bytes]], *, thorough: bool = False, collect: Collect = list,
) -> EncodedTensor:  # fmt: skip
    """Make an encoded tensor with a stage that codes each element by itself, in blocks as those of a raw stage.

    Args:
        array: C-contiguous, of the dtype, not empty.
        stage: It has no resident sections.
        encode: Makes the plain payload sections of some elements.
        thorough, collect: See ``assemble_raw``.
    """
    record = TensorRecord(name, dtype, array.shape, _view_of_elements(array).layout, (stage,))
    makers = _searching(record) if thorough else _quick(record, is_quick=True)
    return _of_elements(record, array, encode, makers, collect)


def _of_elements(
    record: TensorRecord, array: npt.NDArray[Any], encode: Callable[[npt.NDArray[Any]], list[bytes]],
    makers: Sequence[Maker] | None, collect: Collect,
) -> EncodedTensor:  # fmt: skip
    view, flat = record.view(), array.reshape(-1)
    payloads = (encode(_elements(flat, view, i)) for i in range(view.n_blocks))
    return EncodedTensor(record, collect(_sections([], payloads, makers)))


def _view_of_elements(array: npt.NDArray[Any]) -> View:
    """The view of a tensor whose elements are coded one by one."""
    layout = Layout(n_row_axes=1 if array.ndim > 1 else 0)
    view = make_view(array.shape, False, layout)
    layout = choose_blocks(layout, view.n_rows, view.n_columns)
    return make_view(array.shape, False, layout if layout.block_rows else Layout())


def _elements(flat: npt.NDArray[Any], view: View, number: int) -> npt.NDArray[Any]:
    """The elements of a block of whole rows, or of a part of a row."""
    block = view.block(number)
    start = block.row * view.n_columns + block.column
    return flat[start : start + block.n_elements]


def _searching(record: TensorRecord) -> Sequence[Maker]:
    """For each payload section of a block what makes it, and the same section of all other blocks."""
    return [packing.SectionMaker() for _ in range(record.n_payload())]


def _quick(record: TensorRecord, *, is_quick: bool = False) -> Sequence[Maker]:
    """The same at the speed of a Huffman coder.

    Args:
        is_quick: See ``planes.PlaneMaker``.
    """
    view = record.view()
    totals = [0] * record.n_payload()
    for i in range(view.n_blocks):
        for kind, nbytes in enumerate(chain.from_iterable(record.payload_nbytes(view.block(i)))):
            assert isinstance(nbytes, int)  # no entropy-coded section, whose size is not known before
            totals[kind] += nbytes
    return [planes.PlaneMaker(nbytes, is_quick=is_quick) for nbytes in totals]


def _sections(
    resident: list[bytes], payloads: Iterable[list[bytes]], makers: Sequence[Maker] | None
) -> Iterator[Section]:
    """The sections in file order.

    Args:
        payloads: For each block the plain bytes of its sections.
        makers: For each of these what makes a section of it; None if no section is compressed.
    """
    yield from (Section(plain) if makers is None else packing.SectionMaker().make(plain) for plain in resident)
    for block in payloads:
        if makers is None:
            yield from map(Section, block)
        else:
            yield from (maker.make(plain) for maker, plain in zip(makers, block, strict=True))
