"""The choice of a layout before a tensor is coded: axes of rows and columns, and their stored order (SPEC 7.2)."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from ... import native
from ...decode.placement import stable_order
from ...decode.tables import Floats
from ...forks import cached_property
from ...format.dtypes import BY_NAME
from ...format.layout import ORDER_COLUMNS, ORDER_ROWS, Layout, make_view
from ...native import encoding

ShortFloats = npt.NDArray[Any]  # float32, or f16 or bf16, of which pieces are converted to float32
_BAND = 1 << 18  # elements of the rows that are converted together

_STRIP = 64  # columns


@dataclass(frozen=True)
class Orientation:
    """A view of a tensor, and an order of its rows and columns.

    Attributes:
        layout: Layout without blocks.
        row_classes, column_classes: uint8 class of each view row and view column; None if they are not sorted.
    """

    layout: Layout
    row_classes: npt.NDArray[np.uint8] | None = None
    column_classes: npt.NDArray[np.uint8] | None = None

    def apply(self, values: npt.NDArray[Any], rows: slice = slice(None)) -> npt.NDArray[Any]:
        """Rows of the stored matrix ``(R, C)`` of a tensor.

        Args:
            values: In the shape of the tensor; for a complex tensor its reals.
            rows: Of the matrix; all where it has one row only.
        """
        if self.layout.n_row_axes != 1:
            return np.ascontiguousarray(view_matrix(values, self.layout))
        permuted = values if self.layout.axes is None else values.transpose(self.layout.axes)
        chosen = permuted[rows] if self.row_classes is None else permuted[self._row_order[rows]]
        matrix = chosen.reshape(chosen.shape[0], -1)
        return np.ascontiguousarray(matrix) if self.column_classes is None else matrix[:, self._column_order]

    @cached_property
    def _row_order(self) -> npt.NDArray[np.intp]:
        assert self.row_classes is not None
        return stable_order(self.row_classes)

    @cached_property
    def _column_order(self) -> npt.NDArray[np.intp]:
        assert self.column_classes is not None
        return stable_order(self.column_classes)


@dataclass(frozen=True)
class OrientedCodes:
    """The stored matrix ``(R, C)`` of codes in the shape of a tensor. A part of it is made when it is asked for."""

    orientation: Orientation
    codes: npt.NDArray[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        view = make_view(self.codes.shape, False, self.orientation.layout)
        return view.n_rows, view.n_columns

    def __getitem__(self, part: tuple[slice, slice], /) -> npt.NDArray[Any]:
        rows, columns = part
        return self.orientation.apply(self.codes, rows)[:, columns]


def reals(array: npt.NDArray[Any]) -> Floats:
    """A tensor as float32 in C order. A complex one gets a last axis of length 2: real part, imaginary part."""
    return np.ascontiguousarray(short_reals(array), dtype=np.float32)


def short_reals(array: npt.NDArray[Any]) -> ShortFloats:
    """As ``reals``, but f16 and bf16 stay what they are: float32 would take twice the memory."""
    if np.iscomplexobj(array):
        array = np.ascontiguousarray(array)
        array = array.reshape(-1).view(array.real.dtype).reshape(*array.shape, 2)
    return np.ascontiguousarray(array, dtype=array.dtype if array.dtype.itemsize == 2 else np.float32)


def in_rows(matrix: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A matrix in C order; a copy if it is not. A transposed one is copied in strips: twice as fast."""
    if matrix.flags.c_contiguous or not matrix.flags.f_contiguous:
        return np.ascontiguousarray(matrix)
    out = np.empty(matrix.shape, matrix.dtype)
    for start in range(0, matrix.shape[1], _STRIP):
        out[:, start : start + _STRIP] = matrix[:, start : start + _STRIP]
    return out


def largest_magnitude(values: Floats) -> float:
    """The largest magnitude of an array; 0 if it is empty, NaN if a value is NaN."""
    if native.is_used() and values.dtype == np.float32 and values.flags.c_contiguous:
        return encoding.largest_magnitude(values)
    return max(float(values.max(initial=0)), -float(values.min(initial=0)))


def view_matrix(values: npt.NDArray[Any], layout: Layout) -> npt.NDArray[Any]:
    """The view of SPEC 7.2, ``(R, C)``, before rows and columns are sorted."""
    permuted = values if layout.axes is None else values.transpose(layout.axes)
    return permuted.reshape(prod(permuted.shape[: layout.n_row_axes]), -1)


def layout_for(dtype: str, shape: tuple[int, ...], *, by_column: bool) -> Layout:
    """The layout of a tensor for a vector method: its first axis as rows, or as columns."""
    shape = (*shape, 2) if BY_NAME[dtype].is_complex else shape
    return by_columns(shape) if by_column else by_rows(shape)


def by_rows(shape: tuple[int, ...]) -> Layout:
    """First axis as rows, the others as columns: each row belongs to one output of a PyTorch layer."""
    return Layout(n_row_axes=1 if len(shape) > 1 else 0)


def by_columns(shape: tuple[int, ...]) -> Layout:
    """Second axis as rows: each row belongs to one input of a PyTorch layer."""
    if len(shape) < 2:
        return by_rows(shape)
    return Layout(axes=(1, 0, *range(2, len(shape))), n_row_axes=1)


def orientations(values: ShortFloats, *, is_table: bool) -> list[Orientation]:
    """The orientations of a tensor to compare, the unsorted one by rows first.

    Args:
        is_table: Whether rows are looked up one by one. Then only the first is returned, so that a row lies in one
            block.
    """
    plain = Orientation(by_rows(values.shape))
    if values.ndim < 2 or is_table:
        return [plain]
    turned = Orientation(by_columns(values.shape))
    return [plain, _sorted(plain, values), turned, _sorted(turned, values)]


def _sorted(plain: Orientation, values: ShortFloats) -> Orientation:
    """The same view with rows and columns sorted by their scale, in classes of half an octave."""
    layout = plain.layout
    permuted = values if layout.axes is None else values.transpose(layout.axes)
    if layout.axes == (1, 0):
        of_columns, of_rows = _energies(values)
    else:
        of_rows, of_columns = _energies(permuted)
    return Orientation(
        Layout(layout.axes, layout.n_row_axes, ORDER_ROWS | ORDER_COLUMNS),
        _classes(of_rows / of_columns.size), _classes(of_columns / of_rows.size),
    )  # fmt: skip


def _energies(values: ShortFloats) -> tuple[Floats, Floats]:
    """Sums of squares of each row and of each column of a matrix, computed in float32.

    Args:
        values: The rows are along the first axis.
    """
    n_rows = values.shape[0]
    n_columns = values.size // n_rows
    if values.dtype == np.float32 and values.flags.c_contiguous:
        matrix = values.reshape(n_rows, n_columns)
        return np.einsum("ij,ij->i", matrix, matrix), np.einsum("ij,ij->j", matrix, matrix)
    of_rows, of_columns = np.empty(n_rows, np.float32), np.zeros(n_columns, np.float32)
    at_once = max(1, _BAND // n_columns)
    left, right = (np.empty((at_once + 1, n_columns), np.float32) for _ in range(2))
    for start in range(0, n_rows, at_once):
        band = values[start : start + at_once].reshape(-1, n_columns)
        n = len(band) + 1
        left[1:n] = right[1:n] = band
        of_rows[start : start + at_once] = np.einsum("ij,ij->i", left[1:n], left[1:n])
        left[0], right[0] = of_columns, 1  # the sums so far come first, so that all are added in the order of the rows
        of_columns = np.einsum("ij,ij->j", left[:n], right[:n])
    return of_rows, of_columns


def _classes(energies: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    largest = float(energies.max(initial=0))
    if not largest > 0 or not np.isfinite(largest):
        return np.zeros(energies.shape, np.uint8)
    ratios = np.maximum(energies.astype(np.float64) / largest, 2.0**-60)
    return np.rint(-np.log2(ratios)).astype(np.uint8)
