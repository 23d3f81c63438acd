"""Detection of tensors that were not trained: positions, grids, masks, frequencies, filters.

Networks rely on their exact values. They are recognised by their values, which follow rules that trained weights do
not follow.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..decode.tables import Floats
from .methods import fine
from .methods.layout import ShortFloats

_SAMPLE = 1 << 12
_FREE_BITS = 0.25  # bits for each value that exact coding of a large constant may take
_WHOLE = 1 << 20  # largest magnitude, in sixteenths; counts, positions and centres of cells are multiples of 1/16
_FEWEST_IN_ORDER = 8  # values of a monotonic tensor
_FEWEST_TAPS = 16  # taps of a filter
_SYMMETRIC = 1e-3  # tolerance of the symmetry of a filter, relative to its largest value
_FILTERS = 0.9  # least share of rows of a filter bank that are symmetric


def is_constant(array: npt.NDArray[Any], dtype: str, *, is_short: bool) -> bool:
    """Whether a tensor is a constant that should be stored exactly, because that takes few bytes.

    Args:
        array: The values, all finite.
        dtype: Name in SPEC 7.1.
        is_short: Whether the tensor is too short to matter for the size of the file.
    """
    if np.iscomplexobj(array):
        return False
    if is_short:
        values = array.astype(np.float32)
        return is_counted(values) or is_in_order(values)
    sample = array.reshape(-1)[:: array.size // _SAMPLE + 1].astype(np.float32)
    if np.unique(sample).size > sample.size // 4:  # a quick test, true for nearly all weights
        return False
    return 8 * fine.encode_exact("", dtype, array).stored_nbytes <= _FREE_BITS * array.size


def is_counted(values: Floats) -> bool:
    """Whether all values are multiples of 1/16 of limited size: positions, grids of anchors, masks, lengths."""
    flat = values.reshape(-1)
    if not _is_whole(flat[:64]):  # a quick test, true for nearly all weights
        return False
    return _is_whole(flat)


def is_in_order(values: Floats) -> bool:
    """Whether the values rise or fall monotonically: times, frequencies, edges of bins."""
    steps = np.diff(values.reshape(-1))
    return steps.size >= _FEWEST_IN_ORDER - 1 and bool((steps > 0).all() or (steps < 0).all())


def is_filter_bank(values: ShortFloats) -> bool:
    """Whether the rows, or the columns of a matrix, are even or odd functions: kernels of Fourier transforms."""
    if values.ndim < 2 or not values.any():
        return False
    matrix = values.reshape(values.shape[0], -1)
    return _are_filters(matrix) or (values.ndim == 2 and _are_filters(matrix.T))


def _is_whole(flat: Floats) -> bool:
    scaled = flat * np.float32(16)
    return bool((scaled == np.rint(scaled)).all()) and float(np.abs(scaled).max(initial=0)) < _WHOLE


def _are_filters(rows: ShortFloats) -> bool:
    if rows.shape[1] < _FEWEST_TAPS:
        return False
    some = rows[:: max(1, rows.shape[0] // 64)].astype(np.float32)
    some = some[np.abs(some).max(axis=1) > 0]  # a filter may be zero: the sine of frequency 0
    limit = _SYMMETRIC * np.abs(some).max(axis=1, initial=0)
    found = np.zeros(some.shape[0], bool)
    for first in (0, 1):  # symmetric about the middle, or (a periodic window) without its first value
        part = some[:, first:]
        for sign in (1, -1):
            found |= np.abs(part - sign * part[:, ::-1]).max(axis=1) <= limit
    return bool(some.shape[0]) and float(found.mean()) >= _FILTERS
