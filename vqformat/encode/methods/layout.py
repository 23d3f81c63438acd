"""The choice of a layout before a tensor is coded: axes of rows and columns, and their stored order (SPEC 7.2)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from ...decode.placement import stable_order
from ...decode.tables import Floats
from ...format.dtypes import BY_NAME
from ...format.layout import ORDER_COLUMNS, ORDER_ROWS, Layout

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

    def apply(self, values: npt.NDArray[Any], *, stride: int = 1) -> npt.NDArray[Any]:
        """The stored matrix ``(R, C)`` of a tensor.

        Args:
            values: In the shape of the tensor; for a complex tensor its reals.
            stride: Only every ``stride``-th row of the matrix is returned.
        """
        if self.layout.n_row_axes != 1:
            return np.ascontiguousarray(view_matrix(values, self.layout))
        permuted = values if self.layout.axes is None else values.transpose(self.layout.axes)
        rows = permuted[::stride] if self.row_classes is None else permuted[self._row_order[::stride]]
        matrix = rows.reshape(rows.shape[0], -1)
        return np.ascontiguousarray(matrix) if self.column_classes is None else matrix[:, self._column_order]

    @cached_property
    def _row_order(self) -> npt.NDArray[np.intp]:
        assert self.row_classes is not None
        return stable_order(self.row_classes)

    @cached_property
    def _column_order(self) -> npt.NDArray[np.intp]:
        assert self.column_classes is not None
        return stable_order(self.column_classes)


def reals(array: npt.NDArray[Any]) -> Floats:
    """A tensor as float32 in C order. A complex one gets a last axis of length 2: real part, imaginary part."""
    if np.iscomplexobj(array):
        array = np.ascontiguousarray(array)
        array = array.reshape(-1).view(array.real.dtype).reshape(*array.shape, 2)
    return np.ascontiguousarray(array, dtype=np.float32)


def in_rows(matrix: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A matrix in C order; a copy if it is not. A transposed one is copied in strips: twice as fast."""
    if matrix.flags.c_contiguous or not matrix.flags.f_contiguous:
        return np.ascontiguousarray(matrix)
    out = np.empty(matrix.shape, matrix.dtype)
    for start in range(0, matrix.shape[1], _STRIP):
        out[:, start : start + _STRIP] = matrix[:, start : start + _STRIP]
    return out


def largest_magnitude(values: Floats) -> float:
    """The largest magnitude of an array; 0 if it is empty."""
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


def orientations(values: Floats, *, is_table: bool) -> list[Orientation]:
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


def _sorted(plain: Orientation, values: Floats) -> Orientation:
    """The same view with rows and columns sorted by their scale, in classes of half an octave."""
    matrix = view_matrix(values, plain.layout)
    layout = plain.layout
    return Orientation(
        Layout(layout.axes, layout.n_row_axes, ORDER_ROWS | ORDER_COLUMNS),
        _classes(np.einsum("ij,ij->i", matrix, matrix) / matrix.shape[1]),
        _classes(np.einsum("ij,ij->j", matrix, matrix) / matrix.shape[0]),
    )


def _classes(energies: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    largest = float(energies.max(initial=0))
    if not largest > 0 or not np.isfinite(largest):
        return np.zeros(energies.shape, np.uint8)
    ratios = np.maximum(energies.astype(np.float64) / largest, 2.0**-60)
    return np.rint(-np.log2(ratios)).astype(np.uint8)
