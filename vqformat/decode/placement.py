"""Where the elements of blocks are in the tensor: the order of rows and columns, and the axes (SPEC 7.2)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import native
from ..forks import cached_property
from ..format.layout import ORDER_COLUMNS, ORDER_ROWS, Block
from ..format.records import TensorRecord
from ..native import decoding

# If the bytes of a row are a multiple of _CACHE_NBYTES, the elements of a column fall into few sets of the CPU cache
# and evict each other. Then _UNEVEN elements are added to each row.
_CACHE_NBYTES, _UNEVEN = 1024, 16

Order = npt.NDArray[np.intp]


def stable_order(classes: bytes | npt.NDArray[np.uint8]) -> Order:
    """For each stored row (column) the number of its view row (column) (SPEC 7.2, "Order")."""
    return np.argsort(np.frombuffer(classes, np.uint8), kind="stable")


class Placement:
    """The places of the blocks of one tensor.

    Args:
        record: Record of a tensor that has elements.
        classes: Plain bytes of its sections of row and column classes; the others are left.

    Attributes:
        row_order, column_order: For each stored row (column) the number of its view row (column); None if equal.
        stored_dtype: dtype of the elements of the view: that of the tensor; for pairs of a complex one, of its reals.
        is_float32: Whether that is float32.
    """

    def __init__(self, record: TensorRecord, classes: Iterator[bytes]) -> None:
        self.view, self.layout = record.view(), record.layout
        order = record.layout.order
        self.row_order = stable_order(next(classes)) if order & ORDER_ROWS else None
        self.column_order = stable_order(next(classes)) if order & ORDER_COLUMNS else None
        dtype = np.dtype(record.dtype_info.numpy)
        self._has_pairs = record.dtype_info.is_complex and not record.is_raw  # one axis more, of length 2
        self.stored_dtype: np.dtype[Any] = np.empty(0, dtype).real.dtype if self._has_pairs else dtype
        self.is_float32 = self.stored_dtype == np.float32

    def addresses(self, block: Block, out: npt.NDArray[Any]) -> tuple[int, int, int]:
        """Where the elements of a block go in the tensor ``out``, for kernels: see ``decoding.Places.addresses``."""
        return self._places.addresses(block, self._reals(out))

    @cached_property
    def _places(self) -> decoding.Places:
        """Where the stored rows and columns go in the tensor."""
        are_beside = self.layout.axes is None and self.column_order is None
        return decoding.Places(self._of_rows, None if are_beside else self._of_columns, self.view.n_columns)

    @cached_property
    def _of_rows(self) -> npt.NDArray[np.int64]:
        """Where each stored row begins in the tensor."""
        rows = self.offsets[0]
        return np.ascontiguousarray(rows if self.row_order is None else rows[self.row_order], np.int64)

    @property
    def _of_columns(self) -> npt.NDArray[np.int64]:
        """What each stored column adds to that."""
        columns = self.offsets[1]
        return np.ascontiguousarray(columns if self.column_order is None else columns[self.column_order], np.int64)

    @cached_property
    def _ascending(self) -> tuple[npt.NDArray[np.int32], decoding.Places] | None:
        """All stored columns in the order of their places in a row of the tensor, and the places in this order.

        None if that is the order of the columns, if a block has only some of them, or if few places are beside each
        other: then a row alone does not fill lines of the cache.
        """
        layout = self.layout
        if layout.block_columns or (layout.axes is None and self.column_order is None):
            return None
        places = self._of_columns
        columns = np.argsort(places, kind="stable").astype(np.int32)
        ascending = places[columns]
        if 2 * np.count_nonzero(np.diff(ascending) == 1) < places.size:
            return None
        return columns, decoding.Places(self._of_rows, ascending, self.view.n_columns)

    def _reals(self, out: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The array of the tensor with the elements of the view: reals, with one axis more, if they are pairs."""
        return out.reshape(-1).view(self.stored_dtype).reshape(self.view.shape) if self._has_pairs else out

    def part_of(self, block: Block, out: npt.NDArray[Any]) -> npt.NDArray[Any] | None:
        """The block's elements as a NumPy view of the tensor; None if stored order is not C order."""
        if self.layout.axes is not None or self.row_order is not None or self.column_order is not None:
            return None
        start = block.row * self.view.n_columns + block.column
        flat = self._reals(out).reshape(-1)
        return flat[start : start + block.n_elements].reshape(block.n_rows, block.n_columns)

    def scatter(self, block: Block, values: npt.NDArray[Any], out: npt.NDArray[Any]) -> None:
        """Write a block's values to their places in the tensor, by the order of rows and columns (SPEC 7.2)."""
        reals = self._reals(out)
        if native.is_used() and reals.itemsize in (1, 2, 4, 8):
            if reals.itemsize == 4 and self._ascending is not None:
                ascending, places = self._ascending
                decoding.scatter(values, places.addresses(block, reals), ascending)
            else:
                decoding.scatter(values, self.addresses(block, out))
            return
        layout = self.layout
        rows: slice | Order = slice(block.row, block.row_end)
        if self.row_order is not None:
            rows = self.row_order[rows]
        if layout.block_columns or (layout.axes is not None and layout.n_row_axes > 1):
            columns: slice | Order = slice(block.column, block.column_end)
            if self.column_order is not None:
                columns = self.column_order[columns]
            row_offsets, column_offsets = self.offsets
            reals.reshape(-1)[row_offsets[rows][:, None] + column_offsets[columns]] = values
            return
        if self.column_places is not None:
            values = np.take(values, self.column_places, axis=1)
        if layout.axes is None:
            reals.reshape(self.view.n_rows, self.view.n_columns)[rows] = values
            return
        if block.n_columns * values.itemsize % _CACHE_NBYTES == 0:
            uneven = np.empty((block.n_rows, block.n_columns + _UNEVEN), values.dtype)[:, : block.n_columns]
            uneven[...] = values
            values = uneven
        permuted = reals.transpose(layout.axes)
        if layout.n_row_axes == 0:
            permuted = permuted[None]
        permuted[rows] = values.reshape(block.n_rows, *permuted.shape[1:])

    @cached_property
    def row_places(self) -> Order | None:
        """For each view row the number of its stored row; None if equal."""
        return None if self.row_order is None else _inverse(self.row_order)

    @cached_property
    def column_places(self) -> Order | None:
        """For each view column the number of its stored column; None if equal."""
        return None if self.column_order is None else _inverse(self.column_order)

    @cached_property
    def offsets(self) -> tuple[Order, Order]:
        """Offsets of view rows, ``(n_rows,)``, and of view columns, ``(n_columns,)``, in the tensor in C order.

        They count elements. Element (i, j) of the view is at the sum of the offsets of row i and column j.
        """
        shape, layout = self.view.shape, self.layout
        if layout.axes is None:
            return np.arange(self.view.n_rows) * self.view.n_columns, np.arange(self.view.n_columns)
        axes = layout.axes or tuple(range(len(shape)))
        strides = np.cumprod((1, *shape[:0:-1]))[::-1] if shape else ()
        parts = []
        for chosen in (axes[: layout.n_row_axes], axes[layout.n_row_axes :]):
            offsets = np.zeros(1, np.intp)
            for axis in chosen:
                offsets = (offsets[:, None] + np.arange(shape[axis]) * strides[axis]).reshape(-1)
            parts.append(offsets)
        return parts[0], parts[1]


def _inverse(order: Order) -> Order:
    places = np.empty_like(order)
    places[order] = np.arange(order.size)
    return places
