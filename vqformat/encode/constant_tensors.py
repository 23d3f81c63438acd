"""Tensors that nobody trained: positions, grids, masks, frequencies, filters. The networks rely on their values.

Such a tensor is told by its values, which follow a rule that values of trained weights do not.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..decode.tables import Floats
from .methods import fine

_SAMPLE = 1 << 12
_FREE_BITS = 0.25  # a value: what exact coding of a large constant may take
_WHOLE = 1 << 20  # of sixteenths: counts, positions and centres of cells are whole numbers, halves, sixteenths at most
_FEWEST_IN_ORDER = 8
_FEWEST_TAPS = 16  # of a filter
_SYMMETRIC = 1e-3  # of a filter's largest value: by how much two that should be equal may differ
_FILTERS = 0.9  # of the rows of a bank of filters


def is_constant(array: npt.NDArray[Any], dtype: str, *, is_short: bool) -> bool:
    """Whether a tensor is a constant that is to be stored exactly, which takes little.

    Args:
        array: Finite.
        dtype: Name in SPEC 7.1.
        is_short: Whether the tensor is too short to matter for the size of a file.
    """
    if np.iscomplexobj(array):
        return False
    if is_short:
        values = array.astype(np.float32)
        return is_counted(values) or is_in_order(values)
    sample = array.reshape(-1)[:: array.size // _SAMPLE + 1].astype(np.float32)
    if np.unique(sample).size > sample.size // 4:  # nearly always
        return False
    return 8 * fine.encode_exact("", dtype, array).stored_nbytes <= _FREE_BITS * array.size


def is_counted(values: Floats) -> bool:
    """Whether all values are whole numbers, halves, or so: positions, grids of anchors, masks, lengths."""
    flat = values.reshape(-1)
    if not _is_whole(flat[:64]):  # nearly always
        return False
    return _is_whole(flat)


def is_in_order(values: Floats) -> bool:
    """Whether values rise all the way, or fall: times, frequencies, edges of bins."""
    steps = np.diff(values.reshape(-1))
    return steps.size >= _FEWEST_IN_ORDER - 1 and bool((steps > 0).all() or (steps < 0).all())


def is_filter_bank(values: Floats) -> bool:
    """Whether each row, or each column of a matrix, is even or odd about its middle: kernels of Fourier transforms."""
    if values.ndim < 2 or not values.any():
        return False
    matrix = values.reshape(values.shape[0], -1)
    return _are_filters(matrix) or (values.ndim == 2 and _are_filters(matrix.T))


def _is_whole(flat: Floats) -> bool:
    scaled = flat * np.float32(16)
    return bool((scaled == np.rint(scaled)).all()) and float(np.abs(scaled).max(initial=0)) < _WHOLE


def _are_filters(rows: Floats) -> bool:
    if rows.shape[1] < _FEWEST_TAPS:
        return False
    some = rows[:: max(1, rows.shape[0] // 64)]
    some = some[np.abs(some).max(axis=1) > 0]  # a filter may be zero: the sine of frequency 0
    limit = _SYMMETRIC * np.abs(some).max(axis=1, initial=0)
    found = np.zeros(some.shape[0], bool)
    for first in (0, 1):  # a window of even length has its middle between two values, or a first value by itself
        part = some[:, first:]
        for sign in (1, -1):
            found |= np.abs(part - sign * part[:, ::-1]).max(axis=1) <= limit
    return bool(some.shape[0]) and float(found.mean()) >= _FILTERS
