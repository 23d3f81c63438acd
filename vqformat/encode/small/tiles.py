"""Tiles: cutting a block into the sequences of a trellis stage, and the order of their steps (SPEC 12)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...format.limits import MAX_BLOCK_ELEMENTS, MAX_STEPS_PER_SEQUENCE
from .bands import Rows

_SEQUENCE_BITS = 5000  # wanted bits of a sequence

Array = npt.NDArray[Any]


def cuts_rows(n_columns: int) -> bool:
    """Whether rows are so long that blocks are parts of rows. Then low-rank stages and transforms are not possible."""
    return n_columns > MAX_BLOCK_ELEMENTS // 4


def choose_tile(
    n_rows: int, n_columns: int, bits: float, columns: int | None = None, *, in_whole: bool = False
) -> tuple[int, int]:
    """Choose rows and columns of the tiles of a block.

    Args:
        n_rows, n_columns: Of the block.
        bits: Expected bits of a code.
        columns: Wanted columns of a tile; None to choose.
        in_whole: Whether the block will be reduced to whole tiles.
    """
    most = MAX_STEPS_PER_SEQUENCE
    wanted = min(_SEQUENCE_BITS / max(bits, 0.02), math.sqrt(most * n_rows * n_columns))
    while True:
        if columns is not None:
            width = columns
        else:
            width = -(-n_columns // max(1, round(n_columns / wanted)))
        height = min(max(1, round(wanted / width)), n_rows)
        n_down, n_across = n_rows // height, n_columns // width
        if not in_whole:
            n_down, n_across = -(-n_rows // height), -(-n_columns // width)
        if width * height <= most * n_down * n_across or width * height == 1:
            return height, width
        if height == 1:
            columns = None  # the wanted width is not possible
        wanted *= 0.9


def band_width(n_columns: int, wanted: int) -> int:
    """A width of tiles of about ``wanted`` columns; the same for all tiles if possible."""
    counts = range(-(-n_columns * 2 // (3 * wanted)), max(1, n_columns * 3 // (2 * wanted)) + 1)
    exact = [n_columns // n for n in counts if n_columns % n == 0]
    if exact:
        return min(exact, key=lambda width: abs(width - wanted))
    return -(-n_columns // max(1, round(n_columns / wanted)))


@dataclass(frozen=True)
class Group:
    """Tiles of the same size.

    Attributes:
        rows: ``rows[i, g]`` is the number of row i in the g-th row of tiles.
        columns: ``columns[j, l]`` is the number of column j in the l-th column of tiles.
    """

    rows: npt.NDArray[np.intp]
    columns: npt.NDArray[np.intp]

    @property
    def places(self) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        """Rows and columns of the elements, of shapes that can be broadcast together."""
        return self.rows[:, None, :, None], self.columns[None, :, None, :]

    def take(self, matrix: Rows) -> Array:
        """The elements of the tiles in the order of steps: ``(n_steps, n_sequences)``."""
        return self.in_steps(matrix[self.places])

    def in_steps(self, elements: Array) -> Array:
        """The same of the elements at ``places``."""
        return elements.reshape(self.rows.shape[0] * self.columns.shape[0], -1)

    def split(self, n_elements: int) -> Iterator[Group]:
        """Split the group into groups of at most so many elements, but at least one tile each."""
        n_down = max(1, n_elements // (self.rows.shape[0] * self.columns.size))
        n_across = max(1, n_elements // (self.rows.shape[0] * self.columns.shape[0]))
        for top in range(0, self.rows.shape[1], n_down):
            for left in range(0, self.columns.shape[1], n_across):
                yield Group(self.rows[:, top : top + n_down], self.columns[:, left : left + n_across])

    def put(self, matrix: Array, values: Array) -> None:
        """The inverse of ``take``."""
        shape = (self.rows.shape[0], self.columns.shape[0], self.rows.shape[1], self.columns.shape[1])
        matrix[self.places] = values.reshape(shape)


def groups(shape: tuple[int, int], block_rows: int, tile: tuple[int, int]) -> Iterator[Group]:
    """The tiles of a matrix, in groups of equal size.

    Args:
        shape: Rows and columns of the matrix.
        block_rows: Rows of a block, a band of rows; 0 for one block.
        tile: Rows and columns of a tile.
    """
    n_rows, n_columns = shape
    height, width = tile
    bands: dict[int, list[npt.NDArray[np.intp]]] = {}  # first rows of tiles, by their number of rows
    for block in range(0, n_rows, block_rows or n_rows):
        block_end = min(block + (block_rows or n_rows), n_rows)
        _add_starts(bands, block, block_end, height)
    strips: dict[int, list[npt.NDArray[np.intp]]] = {}
    _add_starts(strips, 0, n_columns, width)
    for band_rows, row_starts in bands.items():
        rows = np.arange(band_rows)[:, None] + np.concatenate(row_starts)
        for strip_columns, column_starts in strips.items():
            yield Group(rows, np.arange(strip_columns)[:, None] + np.concatenate(column_starts))


def _add_starts(found: dict[int, list[npt.NDArray[np.intp]]], start: int, end: int, size: int) -> None:
    """Cut a range into parts of a size, the last one maybe smaller; add their starts to those of equal size."""
    n_whole = (end - start) // size
    if n_whole:
        found.setdefault(size, []).append(start + size * np.arange(n_whole))
    if left := (end - start) % size:
        found.setdefault(left, []).append(np.array([end - left]))


def by_steps(matrix: Array, tile: tuple[int, int], fill: int = 0) -> Array:
    """Rearrange a block ``(n_rows, n_columns)`` into the order of steps, ``(n_steps, n_sequences)``.

    Incomplete tiles are padded with ``fill``.
    """
    height, width = tile
    n_down, n_across = -(-matrix.shape[0] // height), -(-matrix.shape[1] // width)
    padded = matrix
    if matrix.shape != (n_down * height, n_across * width):
        padded = np.full((n_down * height, n_across * width), fill, matrix.dtype)
        padded[: matrix.shape[0], : matrix.shape[1]] = matrix
    return padded.reshape(n_down, height, n_across, width).transpose(1, 3, 0, 2).reshape(height * width, -1)
