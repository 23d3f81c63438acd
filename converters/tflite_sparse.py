"""Sparse tensors of TensorFlow Lite made dense (tensorflow/lite/schema/schema.fbs, SparsityParameters)."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .flatbuffer import Flat, Table

_CSR = 1  # enum DimensionType
_VECTORS = {1: "<i4", 2: "<u2", 3: "u1"}  # union SparseIndexVector

_Ints = npt.NDArray[np.int64]


class Level(NamedTuple):
    """A dimension, in the order in which the values are stored.

    Attributes:
        size: Coordinates that there are.
        step: Elements of the dense tensor from one to the next.
        segments: Of a sparse one: where the coordinates below each of the level above begin and end.
        indices: Of a sparse one: the coordinates that have values.
    """

    size: int
    step: int
    segments: _Ints | None
    indices: _Ints | None


def read_levels(flat: Flat, sparsity: Table, shape: tuple[int, ...]) -> list[Level]:
    """The levels of a sparse tensor.

    Raises:
        ValueError: They do not fit its shape.
    """
    order = [int(axis) for axis in sparsity.array(0, "<i4")]
    blocked = [int(axis) for axis in sparsity.array(1, "<i4")]
    tables = [Table(flat, at) for at in sparsity.offsets(2)]
    rank = len(shape)
    if sorted(order) != list(range(len(tables))) or len(order) != rank + len(blocked):
        raise ValueError(f"its sparsity has {len(tables)} dimensions in the order {order[:8]}; {rank} and"
                         f" {len(blocked)} of blocks were expected")  # fmt: skip
    if len(set(blocked)) < len(blocked) or not set(blocked) <= set(range(rank)):
        raise ValueError(f"its sparsity has blocks along the axes {blocked[:8]}")
    sizes = {axis: tables[order.index(rank + i)].scalar(1, "<i") for i, axis in enumerate(blocked)}
    if any(size < 1 or shape[axis] % size for axis, size in sizes.items()):
        raise ValueError(f"its blocks {sizes} do not fit its shape {shape}")
    levels = []
    for axis, table in zip(order, tables, strict=True):
        whole = axis if axis < rank else blocked[axis - rank]  # the axis of the dense tensor
        step, block = prod(shape[whole + 1 :]), sizes.get(whole, 1)
        size, step = (shape[whole] // block, step * block) if axis < rank else (block, step)
        segments = indices = None
        if table.scalar(0, "<b") == _CSR:
            segments, indices = _vector(table, 2), _vector(table, 4)
        elif table.scalar(1, "<i") != size:
            raise ValueError(f"a dimension of its sparsity has size {table.scalar(1, '<i')} instead of {size}")
        levels.append(Level(size, step, segments, indices))
    return levels


def _vector(table: Table, index: int) -> _Ints:
    """Integers of a union of vectors: the field of its type, then that of its value."""
    kind, vector = table.scalar(index, "<B"), table.table(index + 1)
    if kind not in _VECTORS or vector is None:
        raise ValueError(f"its sparsity has indices of type {kind}")
    return vector.array(0, _VECTORS[kind]).astype(np.int64)


def places(levels: list[Level], n_elements: int) -> _Ints:
    """Where each stored value lies in the dense tensor of so many elements.

    Raises:
        ValueError: The indices are malformed.
    """
    found = np.zeros(1, np.int64)
    for size, step, segments, indices in levels:
        if segments is None or indices is None:
            if found.size * size > n_elements:
                raise ValueError("its sparsity has more values than the shape")
            found = (found[:, None] + step * np.arange(size, dtype=np.int64)).reshape(-1)
            continue
        counts = np.diff(segments)
        if segments.size != found.size + 1 or segments[0] or segments[-1] != indices.size or (counts < 0).any():
            raise ValueError("the segments of its sparsity are malformed")
        if indices.size and not 0 <= indices.min() <= indices.max() < size:
            raise ValueError(f"its sparsity has an index outside a dimension of size {size}")
        found = np.repeat(found, counts) + step * indices
    return found
