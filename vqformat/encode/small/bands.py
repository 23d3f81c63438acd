"""Matrices of which rows are made when they are asked for, so that a large tensor is in memory once at most."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ...decode.tables import Floats
from ...forks import cached_property
from ...format.layout import Layout
from ..methods.layout import ShortFloats, in_rows, largest_magnitude, view_matrix
from ..sums import Energy

_BAND = 1 << 19  # elements of the rows that are in memory together
_KEPT = 1 << 22  # elements of a matrix of which results are kept, since it takes little memory


class Rows(Protocol):
    """A matrix ``(R, C)``: an array, or something that makes a part of one when it is asked for.

    The part is a slice of rows, or slices or arrays of numbers for rows and for columns.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, part: Any, /) -> Any: ...


def bands(shape: tuple[int, ...], unit: int = 1) -> Iterator[slice]:
    """Slices of rows of a matrix, of about ``_BAND`` elements.

    Args:
        unit: Each band but the last one has a multiple of so many rows.
    """
    n_rows, n_columns = shape
    size = max(1, _BAND // (unit * max(n_columns, 1))) * unit
    for start in range(0, n_rows, size):
        yield slice(start, min(start + size, n_rows))


def largest(matrix: Rows) -> float:
    """The largest magnitude of a matrix; 0 if it is empty."""
    if isinstance(matrix, np.ndarray):
        return float(largest_magnitude(matrix))
    if isinstance(matrix, Points) and not isinstance(matrix.unit, np.ndarray):  # rounded quotients keep the order
        found = np.float32(largest(matrix.matrix) if matrix.largest is None else matrix.largest) / matrix.unit
        return float(found if matrix.finer is None else found / matrix.finer)
    return max((largest_magnitude(matrix[rows]) for rows in bands(matrix.shape)), default=0.0)


def size_of(matrix: Rows) -> int:
    """Number of elements."""
    return prod(matrix.shape)


def is_kept(matrix: Rows) -> bool:
    """Whether an array of the same size may be kept, so that nothing is computed twice."""
    return size_of(matrix) <= _KEPT


class Source:
    """A tensor as a matrix in the view of a layout, float32.

    Args:
        values: The tensor as reals, see ``methods.layout.short_reals``.
        layout: Layout without order.
    """

    def __init__(self, values: ShortFloats, layout: Layout) -> None:
        permuted = values if layout.axes is None else values.transpose(layout.axes)
        self.shape = prod(permuted.shape[: layout.n_row_axes]), prod(permuted.shape[layout.n_row_axes :])
        self._values, self._layout, self._permuted = values, layout, permuted
        self._height = prod(permuted.shape[1 : layout.n_row_axes])  # rows for each element of the first axis
        self._held: ShortFloats | None = None

    @classmethod
    def of(cls, matrix: ShortFloats | Source) -> Source:
        """A matrix as a source."""
        return matrix if isinstance(matrix, Source) else cls(matrix, Layout(n_row_axes=1))

    def array(self) -> ShortFloats:
        """The matrix in C order, in the dtype of the tensor. It is held until ``release`` is called."""
        if self._held is None:
            self._held = in_rows(view_matrix(self._values, self._layout))
        return self._held

    def release(self) -> None:
        """Free the array that is held."""
        self._held = None

    def __getitem__(self, part: Any, /) -> Floats:
        if self._held is None and isinstance(part, slice) and self._layout.n_row_axes:
            start, end, _ = part.indices(self.shape[0])
            first = start // self._height
            of_axis = self._permuted[first : -(-end // self._height)].reshape(-1, self.shape[1])
            found = in_rows(of_axis[start - first * self._height : end - first * self._height])
        else:
            found = self.array()[part]
        return found.astype(np.float32, copy=False)

    @cached_property
    def largest(self) -> float:
        """The largest magnitude."""
        return largest_magnitude(self._values)

    @property
    def energy(self) -> float:
        """Sum of squares."""
        found = Energy()
        for rows in bands(self.shape):
            found.add(self[rows])
        return found.total()


@dataclass(frozen=True)
class Points:
    """A matrix in steps of a grid.

    Attributes:
        matrix: ``(R, C)``.
        unit: The step, or those of the rows, ``(R, 1)``.
        finer: A further divisor.
        largest: The largest magnitude of the matrix; None if it is not known.
    """

    matrix: Rows
    unit: Floats | np.float32
    finer: np.float32 | None = None
    largest: float | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.matrix.shape

    def __getitem__(self, part: Any, /) -> Floats:
        unit = self.unit
        if isinstance(unit, np.ndarray):
            unit = unit[part[0], 0] if isinstance(part, tuple) else unit[part]
        found: Floats = np.divide(np.asarray(self.matrix[part], np.float32), unit, dtype=np.float32)
        if self.finer is not None:
            found /= self.finer
        return found


@dataclass(frozen=True)
class Grouped:
    """A matrix of which only groups of rows can be made, such as transform coefficients.

    Attributes:
        shape: ``(R, C)``.
        height: Rows of a group.
        make: Makes the values of whole groups, given a slice of rows.
    """

    shape: tuple[int, ...]
    height: int
    make: Callable[[slice], Floats]

    def __getitem__(self, part: Any, /) -> Floats:
        if not isinstance(part, slice):
            return self._pick(*part)
        start, end, _ = part.indices(self.shape[0])
        first = start // self.height * self.height
        found = self.make(slice(first, -(-end // self.height) * self.height))
        return found[start - first : end - first]

    def _pick(self, rows: npt.NDArray[np.intp], columns: npt.NDArray[np.intp]) -> Floats:
        """Elements, whose numbers of rows and columns are of shapes that can be broadcast together."""
        rows, columns = np.broadcast_arrays(rows, columns)
        found = np.empty(rows.shape, np.float32)
        for band in bands(self.shape, self.height):
            chosen = (rows >= band.start) & (rows < band.stop)
            if chosen.any():
                found[chosen] = self[band][rows[chosen] - band.start, columns[chosen]]
        return found
