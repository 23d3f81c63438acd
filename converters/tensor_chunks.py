"""Chunks of a tensor: whether they fill it exactly, and how they are put together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from itertools import product
from math import prod
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

_MAX_SPLIT_AXES = 8  # axes along which a tensor is cut; frameworks cut along one to three


class Box(NamedTuple):
    """Where a part lies in its tensor."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def slices(self) -> tuple[slice, ...]:
        return tuple(slice(at, at + size) for at, size in zip(self.offsets, self.sizes, strict=True))


def check_boxes(shape: tuple[int, ...], boxes: Iterable[Box]) -> None:
    """Refuse parts that lie outside their tensor, overlap, or leave a gap.

    The signed corners of disjoint boxes that fill a box cancel, but for those of the whole; and only then, since they
    are the mixed derivative of the number of boxes at each place. So no two boxes need to be compared.

    Raises:
        ValueError: They do not fill the tensor exactly.
    """
    boxes = list(boxes)
    for offsets, sizes in boxes:
        if len(offsets) != len(shape) or len(sizes) != len(shape):
            raise ValueError(f"a part at {offsets} of size {sizes} has other axes than the shape {shape}")
        if any(at < 0 or size < 0 or at + size > end for at, size, end in zip(offsets, sizes, shape, strict=True)):
            raise ValueError(f"the part at {offsets} of size {sizes} lies outside the shape {shape}")
    if not prod(shape):
        return
    axes = [axis for axis, end in enumerate(shape) if any(box.sizes[axis] != end for box in boxes)]
    if len(axes) > _MAX_SPLIT_AXES:
        raise ValueError(f"it is cut along {len(axes)} axes; at most {_MAX_SPLIT_AXES} are allowed")
    corners: Counter[tuple[int, ...]] = Counter()
    for box in boxes:
        if prod(box.sizes):
            _count_corners(corners, [(box.offsets[axis], box.sizes[axis]) for axis in axes], 1)
    _count_corners(corners, [(0, shape[axis]) for axis in axes], -1)
    wrong = min((corner for corner, count in corners.items() if count), default=None)
    if wrong is not None:
        where = dict(zip(axes, wrong, strict=True))
        place = tuple(where.get(axis, 0) for axis in range(len(shape)))
        raise ValueError(f"its parts overlap, or leave a gap, at {place} of the shape {shape}")


def _count_corners(corners: Counter[tuple[int, ...]], extents: list[tuple[int, int]], sign: int) -> None:
    for ends in product((0, 1), repeat=len(extents)):
        corner = tuple(at + size * end for (at, size), end in zip(extents, ends, strict=True))
        corners[corner] += sign * (-1) ** sum(ends)


def put_together(shape: tuple[int, ...], dtype: np.dtype[Any],
                 parts: list[tuple[Box, Callable[[], npt.NDArray[Any]]]]) -> npt.NDArray[Any]:  # fmt: skip
    """The tensor of parts that ``check_boxes`` has accepted; one part is in memory beside it."""
    parts = [part for part in parts if prod(part[0].sizes)]
    if len(parts) == 1:
        return parts[0][1]()
    whole = np.empty(shape, dtype)
    for box, load in parts:
        whole[box.slices] = load()
    return whole
