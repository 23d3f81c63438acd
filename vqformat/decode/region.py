"""Parts of a tensor: the blocks that an index needs, and the elements that a block holds (SPEC 7.2)."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt

from ..format.layout import Block
from .tensor import TensorDecoder

Array = npt.NDArray[Any]
Places = range | npt.NDArray[np.intp]  # positions along an axis; a range has step 1


class Region:
    """The part of a tensor that an index selects.

    Args:
        index: As NumPy allows it: integers, slices, ``...``, None, arrays of integers or bools.
        shape: Shape of the tensor.

    Raises:
        IndexError, TypeError, ValueError: As NumPy does for an array of that shape.
    """

    def __init__(self, index: Any, shape: tuple[int, ...]) -> None:
        key = [_item(item) for item in (index if isinstance(index, tuple) else (index,))]
        n_axes = sum(map(_n_axes, key))
        if n_axes > len(shape):
            raise IndexError(f"too many indices: the tensor has {len(shape)} axes, but {n_axes} were indexed")
        if sum(item is Ellipsis for item in key) > 1:
            raise IndexError("an index can have one ellipsis ('...') only")
        self._positions: list[Places] = []  # for each axis the positions that are needed, ascending, each once
        self._inner: list[Any] = []  # the index that selects from an array of these positions
        for item in key:
            if item is Ellipsis:
                axis = len(self._positions)
                self._positions += map(range, shape[axis : axis + len(shape) - n_axes])
            if item is None or item is Ellipsis or isinstance(item, bool):
                self._inner.append(item)
                continue
            for part in [item] if isinstance(item, slice) or item.dtype != np.bool_ else _of_mask(item, shape, self):
                axis = len(self._positions)
                positions, inner = _along(part, shape[axis], axis)
                self._positions.append(positions)
                self._inner.append(inner)
        self._positions += map(range, shape[len(self._positions) :])

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array of all needed positions: for each axis their number."""
        return tuple(map(len, self._positions))

    @property
    def n_axes_met(self) -> int:
        """Number of axes that the items of the index have covered so far."""
        return len(self._positions)

    def blocks(self, decoder: TensorDecoder) -> list[int]:
        """Numbers of the blocks that hold elements of the part, ascending."""
        if not all(self.shape):
            return []
        rows, columns = self._stored(decoder)
        layout = decoder.record.layout
        if not layout.block_columns:
            return _distinct(rows, layout.block_rows or decoder.view.n_rows)
        per_row = -(-decoder.view.n_columns // layout.block_columns)
        parts = _distinct(columns, layout.block_columns)
        return [row * per_row + part for row in _distinct(rows, 1) for part in parts]

    def gather(self, decoder: TensorDecoder, blocks: Iterable[tuple[Block, Array]]) -> Array:
        """Put the part together from the values of its blocks.

        Args:
            blocks: Each block of ``blocks()`` and its values in stored order, ``(n_rows, n_columns)``.

        Returns:
            An array that owns its memory, of any strides.
        """
        rows, columns = map(_Wanted, self._stored(decoder))
        matrix = np.empty((rows.n, columns.n), decoder.placement.stored_dtype)
        for block, values in blocks:
            to_rows, from_rows = rows.within(block.row, block.row_end)
            to_columns, from_columns = columns.within(block.column, block.column_end)
            matrix[_both(to_rows, to_columns)] = values[_both(from_rows, from_columns)]
        axes = _axes(decoder)
        sizes = [len(places) for places in self._of_view(decoder)]
        found = matrix.reshape([sizes[axis] for axis in axes]).transpose(np.argsort(axes))
        dtype = decoder.record.dtype_info.numpy
        if found.dtype != dtype:  # a complex tensor, decoded as pairs of reals
            found = np.ascontiguousarray(found).view(dtype)[..., 0]
        return found[tuple(self._inner)]  # type: ignore[no-any-return]

    def _of_view(self, decoder: TensorDecoder) -> list[Places]:
        """Positions along the axes that the view permutes: those of the tensor, and the pair axis of a complex one."""
        return [*self._positions, *(range(n) for n in decoder.view.shape[len(self._positions) :])]

    def _stored(self, decoder: TensorDecoder) -> tuple[Places, Places]:
        """Numbers of the stored rows and stored columns, in the order of the view's rows and columns."""
        places, shape = self._of_view(decoder), decoder.view.shape
        axes, n = _axes(decoder), decoder.record.layout.n_row_axes
        rows, columns = (_flat([places[axis] for axis in part], [shape[axis] for axis in part])
                         for part in (axes[:n], axes[n:]))  # fmt: skip
        return _looked_up(decoder.placement.row_places, rows), _looked_up(decoder.placement.column_places, columns)


def part_of(decoder: TensorDecoder, block: Block, values: Array) -> tuple[tuple[Any, ...], Array]:
    """The place of a block's values in a tensor that is not complex.

    Args:
        values: Values of the block in stored order, ``(n_rows, n_columns)``.

    Returns:
        An index and an array, so that ``tensor[index] = array`` puts the values in place.
    """
    shape, layout = decoder.view.shape, decoder.record.layout
    axes, n = _axes(decoder), layout.n_row_axes
    rows: Any = slice(block.row, block.row_end)
    columns: Any = slice(block.column, block.column_end)
    rows = rows if decoder.placement.row_order is None else decoder.placement.row_order[rows]
    if not layout.block_columns and n <= 1:
        if decoder.placement.column_places is not None:
            values = np.take(values, decoder.placement.column_places, axis=1)
        permuted = values.reshape([block.n_rows] * n + [shape[axis] for axis in axes[n:]])
        index = (slice(None),) * axes[0] + (rows,) if n else ()
        return index, permuted.transpose(np.argsort(axes))
    columns = columns if decoder.placement.column_order is None else decoder.placement.column_order[columns]
    if len(axes) == 1:
        return (columns if n == 0 else rows,), values.reshape(-1)
    if layout.axes is None:
        flat = _counted(rows)[:, None] * decoder.view.n_columns + _counted(columns)
    else:
        row_offsets, column_offsets = decoder.placement.offsets
        flat = row_offsets[rows][:, None] + column_offsets[columns]
    return np.unravel_index(flat, shape), values


class _Wanted:
    """Stored rows (or columns) that are needed, each for one row (or column) of a result."""

    def __init__(self, places: Places) -> None:
        self.n = len(places)
        self._range = places if isinstance(places, range) else None
        if not isinstance(places, range):
            self._order = np.argsort(places, kind="stable")
            self._sorted = places[self._order]

    def within(self, start: int, end: int) -> tuple[Any, Any]:
        """The needed ones in ``start:end``: their positions in the result, and their numbers counted from ``start``."""
        if self._range is not None:
            low, high = max(start, self._range.start), min(end, self._range.stop)
            return (slice(low - self._range.start, max(high - self._range.start, 0)),
                    slice(low - start, max(high - start, 0)))  # fmt: skip
        low, high = np.searchsorted(self._sorted, (start, end))
        return self._order[low:high], self._sorted[low:high] - start


def _axes(decoder: TensorDecoder) -> Sequence[int]:
    return decoder.record.layout.axes or range(len(decoder.view.shape))


def _item(item: Any) -> Any:
    """Convert an item of an index to None, a slice, ``...``, a bool, or an array of integers or bools."""
    if item is None or item is Ellipsis or isinstance(item, slice):
        return item
    array = np.asarray(item)
    if array.dtype == object and hasattr(item, "__index__"):
        array = np.asarray(operator.index(item))
    if not array.size and not hasattr(item, "dtype"):  # an empty list
        array = array.astype(np.intp)
    if array.dtype == np.bool_:
        return array if array.ndim else bool(array)
    if not np.issubdtype(array.dtype, np.integer):
        raise IndexError(f"an index is of dtype {array.dtype}; integers, slices, '...', None and bools are allowed")
    return array


def _n_axes(item: Any) -> int:
    if item is None or item is Ellipsis or isinstance(item, bool):
        return 0
    return 1 if isinstance(item, slice) or item.dtype != np.bool_ else int(item.ndim)


def _of_mask(mask: Array, shape: tuple[int, ...], region: Region) -> tuple[Array, ...]:
    """For each axis of a mask the positions of its true elements."""
    axis = region.n_axes_met
    if mask.shape != shape[axis : axis + mask.ndim]:
        raise IndexError(f"a mask of shape {mask.shape}, for axes of shape {shape[axis : axis + mask.ndim]}")
    return np.nonzero(mask)


def _along(item: Any, size: int, axis: int) -> tuple[Places, Any]:
    """What an item of an index selects along an axis.

    Returns:
        The positions that are needed, ascending and each once, and the index that selects from an array of these.
    """
    if isinstance(item, slice):
        found = range(size)[item]
        if len(found) < 2 or found.step == 1:
            return range(found.start, found.start + len(found)), slice(None)
        ascending = found if found.step > 0 else found[::-1]
        positions = range(ascending.start, ascending.stop) if ascending.step == 1 else np.asarray(ascending)
        return positions, slice(None, None, 1 if found.step > 0 else -1)
    low, high = int(item.min(initial=0)), int(item.max(initial=0))
    if item.size and (low < -size or high >= size):
        raise IndexError(f"index {low if low < -size else high} is out of bounds for axis {axis} with size {size}")
    positions, inner = np.unique(item.astype(np.intp) % max(size, 1), return_inverse=True)
    if not item.ndim:
        at = operator.index(positions[0])
        return range(at, at + 1), 0
    first, n = (int(positions[0]), positions.size) if item.size else (0, 0)
    is_run = n > 0 and int(positions[-1]) == first + n - 1
    return range(first, first + n) if is_run or not n else positions, inner.reshape(item.shape)


def _flat(places: list[Places], sizes: list[int]) -> Places:
    """Positions along several axes as positions along one axis that joins them in C order."""

    def join(outer: Places, inner: tuple[Places, int]) -> Places:
        positions, size = inner
        if isinstance(outer, range) and isinstance(positions, range):
            if len(outer) == 1:
                return range(outer.start * size + positions.start, outer.start * size + positions.stop)
            if len(positions) == size:
                return range(outer.start * size, outer.stop * size)
        found: Places = (np.asarray(outer, np.intp)[:, None] * size + np.asarray(positions, np.intp)).reshape(-1)
        return found

    start: Places = range(1)
    return reduce(join, zip(places, sizes, strict=True), start)


def _looked_up(table: npt.NDArray[np.intp] | None, places: Places) -> Places:
    if table is None:
        return places
    return table[places.start : places.stop] if isinstance(places, range) else table[places]


def _distinct(places: Places, size: int) -> list[int]:
    """Numbers of the groups of ``size`` positions that the places lie in, ascending."""
    if isinstance(places, range):
        return list(range(places.start // size, (places.stop - 1) // size + 1))
    found: list[int] = np.unique(places // size).tolist()
    return found


def _counted(places: Any) -> npt.NDArray[np.intp]:
    return np.arange(places.start, places.stop) if isinstance(places, slice) else places


def _both(rows: Any, columns: Any) -> tuple[Any, Any]:
    return (rows, columns) if isinstance(rows, slice) or isinstance(columns, slice) else np.ix_(rows, columns)
