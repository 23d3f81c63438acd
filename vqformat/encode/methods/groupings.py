"""Which elements of a tensor may have a scale in common: rows, columns, groups that quantizers use (SPEC 9.2)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from ...format.layout import Layout
from .grids import Groups
from .layout import view_matrix

SAMPLE = 256  # values of a group on which a grid is found
_TRIED_GROUPS = 4
_GROUP_SIZES = (256, 128, 64, 32, 16)
_FLAT_SIZES = (4096, 2048, 1024, 512, 256, 128, 64)  # of groups that go over the ends of rows, as in bitsandbytes
_SQUARE = 128


@dataclass(frozen=True)
class Grouping:
    """Which elements have a scale in common: groups of rows × columns of a view, 0 for all of an axis."""

    n_row_axes: int
    rows: int
    columns: int

    def matrix(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The view of a tensor whose groups these are (SPEC 7.2)."""
        return view_matrix(values, Layout(n_row_axes=self.n_row_axes))

    def sizes(self, matrix: npt.NDArray[Any]) -> tuple[int, int]:
        return self.rows or matrix.shape[0], self.columns or matrix.shape[1]

    def samples(self, matrix: npt.NDArray[Any], dtype: str) -> list[Groups]:
        """Samples of some groups that are not zero, from all over the tensor."""
        rows, columns = self.sizes(matrix)
        n_columns = -(-matrix.shape[1] // columns)
        n_groups = -(-matrix.shape[0] // rows) * n_columns
        found = []
        for i in range(0, n_groups, max(1, n_groups // (4 * _TRIED_GROUPS))):
            row, column = divmod(i * 31 % n_groups, n_columns)
            group = matrix[row * rows : (row + 1) * rows, column * columns : (column + 1) * columns].reshape(1, -1)
            peak = np.abs(group.astype(np.float32)).max(axis=1).astype(np.float64)
            if peak[0]:
                found.append(Groups(group[:, :: max(1, group.size // SAMPLE)], peak, dtype))
            if len(found) == _TRIED_GROUPS:
                break
        return found

    def split(self, matrix: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """All groups, ``(n_groups, rows · columns)``; those at the ends are filled up with zeros."""
        rows, columns = self.sizes(matrix)
        padding = [(0, -matrix.shape[0] % rows), (0, -matrix.shape[1] % columns)]
        padded = np.pad(matrix, padding) if any(after for _, after in padding) else matrix
        n_rows, n_columns = padded.shape[0] // rows, padded.shape[1] // columns
        return padded.reshape(n_rows, rows, n_columns, columns).swapaxes(1, 2).reshape(-1, rows * columns)

    def join(self, groups: npt.NDArray[Any], shape: tuple[int, int]) -> npt.NDArray[Any]:
        """The matrix of this shape that was split."""
        rows, columns = self.rows or shape[0], self.columns or shape[1]
        n_rows, n_columns = -(-shape[0] // rows), -(-shape[1] // columns)
        padded = groups.reshape(n_rows, n_columns, rows, columns).swapaxes(1, 2)
        return padded.reshape(n_rows * rows, n_columns * columns)[: shape[0], : shape[1]]


def groupings(shape: tuple[int, ...]) -> Iterator[Grouping]:
    """Ways to group, those with the fewest scales first."""
    yield Grouping(min(1, len(shape) - 1), 0, 0)
    if len(shape) < 2:
        return
    n_columns, n_rows = shape[-1], prod(shape[:-1])
    for n_row_axes in dict.fromkeys((1, len(shape) - 1)):
        if prod(shape[:n_row_axes]) > 1:
            yield Grouping(n_row_axes, 1, 0)
    last = len(shape) - 1
    if n_columns > 1:
        yield Grouping(last, 0, 1)
    if n_rows > _SQUARE and n_columns > _SQUARE:
        yield Grouping(last, _SQUARE, _SQUARE)
    for size in _GROUP_SIZES:
        if n_columns > size:
            yield Grouping(last, 1, size)
        if n_rows > size and n_columns > 1:
            yield Grouping(last, size, 1)
    for size in _FLAT_SIZES:
        if prod(shape) > size and n_columns % size:
            yield Grouping(0, 0, size)
