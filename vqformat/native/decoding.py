"""The kernels for decoding, as Python calls them: arrays are checked here and go to C as addresses."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import FormatError
from . import _address, _instruction_set, _kernels

_NARROW_PRECISION, _NARROW_ENTRIES = 12, 256  # slots of 32 bits hold these
_MORE_SLOTS = 16  # TOGETHER in trellis.h
_ROWS, _PLANE = struct.Struct("=q"), struct.Struct("=4q")  # as decoding.c reads a block and a plane
_PLACE_NBYTES, _SCALE_NBYTES = 8, 4  # of an int64, and of a float32
_ONE = np.ones(1, np.float32)
_FAULTS = {
    1: ("ANS-001", "a state is below 65536"),
    2: ("ANS-002", "the words of a payload end before its codes"),
    3: ("ANS-003", "words of a payload are left after its last code"),
    4: ("ANS-003", "a state does not end at 65536"),
}


@dataclass(frozen=True)
class TrellisSlots:
    """Look-up tables of a trellis stage by slot, see ``trellis_slots`` in trellis.h.

    Attributes:
        table: ``(n_contexts · n_books · 2**precision,)``.
        address: Of the table.
    """

    precision: int
    n_books: int
    table: npt.NDArray[Any]
    address: int

    @classmethod
    def of(cls, frequencies: npt.NDArray[np.uint32], precision: int, n_books: int) -> TrellisSlots:
        """The slots of tables ``(n_contexts · n_books, entries)``, each of which has the sum ``2**precision``."""
        assert _kernels is not None
        n_tables, entries = frequencies.shape
        is_wide = precision > _NARROW_PRECISION or entries > _NARROW_ENTRIES
        n_slots = n_tables << precision
        table = np.empty(n_slots + _MORE_SLOTS, np.uint64 if is_wide else np.uint32)
        address = _address(table)
        frequencies = np.ascontiguousarray(frequencies, np.uint32)
        _kernels.trellis_slots(_address(frequencies), n_tables, entries, precision, is_wide, address)
        return cls(precision, n_books, table[:n_slots], address)


# Bounds of a block: row, row_end, column, column_end
Bounds = tuple[int, int, int, int]


class Places:
    """Where the elements of a matrix go in a flat array: element (i, j) goes to ``rows[i] + columns[j]``.

    Args:
        rows: ``(n_rows,)``: where each row begins.
        columns: ``(n_columns,)``: what each column adds to that; None for its number.
    """

    def __init__(
        self, rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64] | None, n_columns: int
    ) -> None:  # fmt: skip
        assert _kernels is not None and rows.dtype == np.int64
        assert columns is None or (columns.dtype == np.int64 and columns.size == n_columns)
        self._arrays = rows, columns  # they live as long as their addresses are used
        self._addresses = _address(rows), _address(columns)
        self._n_rows, self._n_columns = rows.size, n_columns
        last_row = _kernels.last_place(self._addresses[0], rows.size)
        last_column = _kernels.last_place(self._addresses[1], n_columns)
        assert last_row >= 0 and last_column >= 0
        self._end = last_row + last_column + 1

    def addresses(self, block: Bounds, out: npt.NDArray[Any]) -> tuple[int, int, int]:
        """Addresses of the places of the rows and columns of a block, and of the array ``out``, C-contiguous.

        They are good while this object and ``out`` live.
        """
        row, row_end, column, column_end = block
        assert 0 <= row <= row_end <= self._n_rows and 0 <= column <= column_end <= self._n_columns
        assert self._end <= out.size
        rows, columns = self._addresses
        rows += _PLACE_NBYTES * row
        if columns:
            return rows, columns + _PLACE_NBYTES * column, _address(out)
        return rows, 0, _address(out) + out.itemsize * column


class TrellisKernel:
    """Decodes the blocks of a trellis stage of one tensor (SPEC 12.1 to 12.4).

    Args:
        slots: Look-up tables of its contexts.
        tile: Rows and columns of a tile.
        polynomials: ``feedback`` and ``forward``; zeros without a trellis.
        row_classes, column_classes: Of the rows and columns of the stored matrix, ``(n_rows,)`` and ``(n_columns,)``.
        values: The value of each symbol ``n_books · code + q``; or z and step of a progression, whose value is
            ``(symbol − z) · step``.
        row_scales: ``(n_rows,)``; None without scales.
    """

    def __init__(
        self,
        slots: TrellisSlots,
        *,
        tile: tuple[int, int],
        polynomials: tuple[int, int],
        row_classes: npt.NDArray[np.uint8] | None,
        column_classes: npt.NDArray[np.uint8] | None,
        values: npt.NDArray[np.float32] | tuple[int, float],
        row_scales: npt.NDArray[np.float32] | None,
    ) -> None:
        assert slots.table.size <= 1 << 22 and (row_scales is None or row_scales.dtype == np.float32)
        table, zero, step = (None, *values) if isinstance(values, tuple) else (values, 0, 0.0)
        self._tile = tile
        self._arrays = row_classes, column_classes, row_scales, slots, table
        self._sizes = [0 if array is None else array.size for array in (row_classes, column_classes, row_scales)]
        self._row_classes, self._column_classes = _address(row_classes), _address(column_classes)
        self._row_scales = _address(row_scales)
        self._stage = (slots.precision, slots.n_books, polynomials[0] >> 1, polynomials[1] >> 1, slots.address,
                       slots.table.itemsize == 8, slots.table.size, _address(table), zero, float(step))  # fmt: skip

    def decode(
        self, payload: bytes, block: Bounds, places: tuple[int, int, int], addend: npt.NDArray[np.float32] | None
    ) -> None:  # fmt: skip
        """Decode a block and put its values in their places.

        Args:
            payload: The plain payload of the block; its size obeys ANS-001.
            places: Of the block and an array of float32, see ``Places.addresses``.
            addend: ``(n_rows, n_columns)``, C-contiguous: what is added to the values; None for nothing. It may be the
                array in which the places are.

        Raises:
            FormatError: The payload breaks a rule of SPEC 12.3.
        """
        assert _kernels is not None
        row, row_end, column, column_end = block
        n_rows, n_columns, nbytes = row_end - row, column_end - column, len(payload)
        height, width = min(self._tile[0], n_rows), min(self._tile[1], n_columns)
        n_sequences = -(-n_rows // height) * -(-n_columns // width)
        n_elements = n_rows * n_columns
        assert 4 * n_sequences <= nbytes <= 4 * n_sequences + 2 * n_elements and n_elements <= 1 << 22
        assert addend is None or (addend.shape == (n_rows, n_columns) and addend.dtype == np.float32)
        row_classes, column_classes, row_scales = self._row_classes, self._column_classes, self._row_scales
        of_rows, of_columns, scales = self._sizes
        assert row >= 0 and column >= 0
        if row_classes:
            assert row_end <= of_rows
            row_classes += row
        if column_classes:
            assert column_end <= of_columns
            column_classes += column
        if row_scales:
            assert row_end <= scales
            row_scales += _SCALE_NBYTES * row
        found = _kernels.trellis_decode(
            _instruction_set(), _address(payload), nbytes, n_rows, n_columns, height, width, row_classes,
            column_classes, *self._stage, places[0], places[1], row_scales, _address(addend), places[2],
        )  # fmt: skip
        if found in _FAULTS:
            clause, message = _FAULTS[found]
            raise FormatError(message, clause=clause)
        if found:
            raise MemoryError("no memory for the lanes of a trellis stage")


def decode_codebook(
    blocks: Sequence[tuple[int, list[bytes]]],
    *,
    entries: int,
    dim: int,
    planes: tuple[tuple[int, int], ...],
    width: int,
    book: npt.NDArray[np.float32] | None,
    progressions: tuple[int, npt.NDArray[np.float32]] | None,
    row_groups: npt.NDArray[np.int64] | None,
    column_groups: npt.NDArray[np.int64] | None,
    scales: npt.NDArray[np.float32] | None,
    row_scales: npt.NDArray[np.int64] | None,
    scale_columns: int,
    first_column: int,
    out: npt.NDArray[np.float32],
    adds: bool,
) -> bool:
    """Decode a block of a codebook stage (SPEC 9, 10), or some whose rows follow each other.

    Args:
        blocks: For each its number of rows and its plain sections, of the sizes that ``bits.payload_nbytes`` gives.
        planes: ``(base, digits per byte)`` of each; () for codes of ``width`` bits.
        book: ``(n_groups · entries, dim)``.
        progressions: In place of ``book``: zero, and the steps ``(n_groups,)``.
        row_groups: ``(n_rows,)``: the group of each row; None for 0.
        column_groups: ``(n_subvectors,)``: what each subvector adds to that; None for 0.
        scales: All scales of the stage, flat; None without scales.
        row_scales: ``(n_rows,)``: where those of each row begin.
        scale_columns: Columns of a scale; 0 for all.
        first_column: First column of the blocks in the matrix.
        out: ``(n_rows, n_columns)``, C-contiguous: all rows.
        adds: Whether the values are added to those in ``out``; then ``dim`` is at most 512.

    Returns:
        Whether the sections obey SPEC 10. If not, ``out`` has no meaning.
    """
    n_rows, n_columns = out.shape
    n_subvectors = -(-n_columns // dim)
    assert _kernels is not None and out.dtype == np.float32 and (not adds or dim <= 512)
    n_groups = progressions[1].size if progressions is not None else len(book) // entries if book is not None else 0
    last = 0
    for groups, n in ((row_groups, n_rows), (column_groups, n_subvectors)):
        if groups is not None:
            assert groups.size == n and groups.dtype == np.int64
            last += int(groups.max())
    assert last < n_groups and (book is None or book.shape == (n_groups * entries, dim))
    if scales is not None:
        assert row_scales is not None and row_scales.size == n_rows and row_scales.dtype == np.int64
        last_scale = (first_column + n_columns - 1) // scale_columns if scale_columns else 0
        assert scales.dtype == np.float32 and int(row_scales.max()) + last_scale < scales.size
    zero, steps = progressions if progressions is not None else (0, None)
    address = _kernels.address
    assert sum([n for n, _ in blocks]) == n_rows
    table = b"".join([_table_of(sections, planes, width, n, n_subvectors) for n, sections in blocks])
    return _kernels.codebook_decode(  # type: ignore[no-any-return]
        _instruction_set(), len(blocks), n_columns, dim, n_subvectors, entries, len(planes), width, address(table),
        address(book), zero, address(steps), address(row_groups), address(column_groups),
        address(scales), address(row_scales), scale_columns, first_column, adds, address(out),
    )  # fmt: skip


def decode_integers(
    sections: list[bytes],
    zero: int,
    *,
    entries: int,
    planes: tuple[tuple[int, int], ...],
    out: npt.NDArray[np.float32],
) -> bool:
    """Write codes (SPEC 10) less ``zero`` to ``out``. The rest is as for a codebook stage."""
    assert _kernels is not None and out.dtype == np.float32
    address, n, width = _kernels.address, out.size, (entries - 1).bit_length()
    table = _table_of(sections, planes, width, 1, n)
    return _kernels.codebook_decode(  # type: ignore[no-any-return]
        _instruction_set(), 1, n, 1, n, entries, len(planes), width, address(table), 0, zero, address(_ONE), 0, 0, 0, 0,
        0, 0, False, address(out),
    )  # fmt: skip


def _table_of(
    sections: list[bytes], planes: tuple[tuple[int, int], ...], width: int, n_rows: int, n_subvectors: int
) -> bytes:
    """What the kernel is told of a block, whose sections' sizes are checked."""
    assert _kernels is not None and len(planes) <= 16 and 0 <= width <= 16
    n_codes = n_rows * n_subvectors
    assert [*map(len, sections)] == ([-(-n_codes // n) for _, n in planes] or [(n_codes * width + 7) // 8])
    address = _kernels.address
    return b"".join([_ROWS.pack(n_rows), *[_PLANE.pack(address(section), len(section), *plane)
                     for section, plane in zip(sections, planes or ((0, 0),), strict=True)]])  # fmt: skip


def decode_low_rank(
    left: npt.NDArray[np.float32],
    right: npt.NDArray[np.float32],
    row_scales: npt.NDArray[np.float32],
    column_scales: npt.NDArray[np.float32] | None,
    out: npt.NDArray[np.float32],
    *,
    adds: bool,
) -> None:
    """Compute a block of a low-rank stage (SPEC 11).

    Args:
        left, right: ``(n_rows, rank)`` and ``(rank, n_columns)``: integers, all sums of whose products are at most 2²⁴.
        row_scales, column_scales: Of each row (column); None if all are 1.
        out: ``(n_rows, n_columns)``, C-contiguous.
        adds: Whether the values are added to those in ``out``.
    """
    assert _kernels is not None and out.shape == (left.shape[0], right.shape[1]) and left.shape[1] == right.shape[0]
    assert left.dtype == right.dtype == row_scales.dtype == out.dtype == np.float32
    assert row_scales.size == out.shape[0] and (column_scales is None or column_scales.size == out.shape[1])
    address = _kernels.address
    _kernels.lowrank_decode(
        _instruction_set(), *out.shape, left.shape[1], address(left), address(right), address(row_scales),
        address(column_scales), adds, address(out),
    )  # fmt: skip


def scatter(
    values: npt.NDArray[Any], places: tuple[int, int, int], columns: npt.NDArray[np.int32] | None = None
) -> None:  # fmt: skip
    """Put the values of a block in their places.

    Args:
        values: ``(n_rows, n_columns)``, C-contiguous, of 1, 2, 4 or 8 bytes each.
        places: Of the block and an array of the same dtype, see ``Places.addresses``. Only the places are written.
        columns: ``(n_columns,)``, for values of 4 bytes: the column of ``values`` of each of the places of columns.
            None if they are in order.
    """
    assert _kernels is not None and values.itemsize in (1, 2, 4, 8)
    if columns is not None:
        assert values.itemsize == 4 and columns.dtype == np.int32 and places[1]
        assert columns.size == values.shape[1] and columns.min() >= 0 and columns.max() < columns.size
    rows, of_columns, out = places
    _kernels.scatter(_instruction_set(), *values.shape, values.itemsize, _address(values), rows, of_columns,
                     _address(columns), out)  # fmt: skip
