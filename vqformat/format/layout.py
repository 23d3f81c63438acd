"""How a tensor is seen as a matrix, stored in an order and cut into blocks (SPEC 7.2)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import NamedTuple

ORDER_ROWS, ORDER_COLUMNS = 1, 2  # bits of order


@dataclass(frozen=True, slots=True)
class Layout:
    """The fields of a layout (SPEC 7.2): axes of rows and columns, the order of both, sizes of blocks."""

    axes: tuple[int, ...] | None = None
    n_row_axes: int = 0
    order: int = 0
    block_rows: int = 0
    block_columns: int = 0


class Block(NamedTuple):  # of which a tensor may have many: a dataclass would take longer to make
    """The stored rows ``row:row_end`` and stored columns ``column:column_end`` of a matrix."""

    row: int
    row_end: int
    column: int
    column_end: int

    @property
    def n_rows(self) -> int:
        return self.row_end - self.row

    @property
    def n_columns(self) -> int:
        return self.column_end - self.column

    @property
    def n_elements(self) -> int:
        return self.n_rows * self.n_columns


@dataclass(frozen=True, slots=True)
class View:
    """The stored matrix of a tensor and its grid of blocks.

    Attributes:
        shape: The shape whose axes ``layout.axes`` permutes. It is the tensor's shape; for a complex dtype a last axis
            of length 2 (real part, imaginary part) is added.
        n_rows, n_columns: Of the stored matrix.
    """

    shape: tuple[int, ...]
    layout: Layout
    n_rows: int
    n_columns: int

    @property
    def n_blocks(self) -> int:
        rows, columns = self.layout.block_rows, self.layout.block_columns
        if columns:
            return self.n_rows * -(-self.n_columns // columns)
        return -(-self.n_rows // rows) if rows else 1

    def block(self, index: int) -> Block:
        """The block with this number."""
        rows, columns = self.layout.block_rows, self.layout.block_columns
        if columns:
            row, part = divmod(index, -(-self.n_columns // columns))
            return Block(row, row + 1, part * columns, min((part + 1) * columns, self.n_columns))
        rows = rows or self.n_rows
        return Block(index * rows, min((index + 1) * rows, self.n_rows), 0, self.n_columns)

    def number(self, block: Block) -> int:
        """The number of a block."""
        rows, columns = self.layout.block_rows, self.layout.block_columns
        if columns:
            return block.row * -(-self.n_columns // columns) + block.column // columns
        return block.row // (rows or self.n_rows)


@lru_cache(maxsize=256)
def make_view(shape: tuple[int, ...], as_pairs: bool, layout: Layout) -> View:
    """The view of a tensor.

    Args:
        shape: Shape of the tensor.
        as_pairs: Whether a last axis of length 2 is added, for the reals of complex elements.
    """
    shape = (*shape, 2) if as_pairs else shape
    axes = layout.axes or tuple(range(len(shape)))
    permuted = [shape[axis] for axis in axes]
    return View(shape, layout, prod(permuted[: layout.n_row_axes]), prod(permuted[layout.n_row_axes :]))
