"""Detection of tensors that were not trained: positions, grids, masks, frequencies, filters, scales.

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
_FREE_NBYTES = 256  # bytes that exact coding of a constant of more than two values may take
_WHOLE = 1 << 20  # largest magnitude, in sixteenths; counts, positions and centres of cells are multiples of 1/16
_FEWEST_IN_ORDER = 8  # values of a monotonic tensor
_FEWEST_TAPS = 16  # taps of a filter
_SYMMETRIC = 1e-3  # tolerance of the symmetry of a filter, relative to its largest value
_FILTERS = 0.9  # least share of rows of a filter bank that are symmetric, or of lines that are waves
_FEW_LINES, _LINES = 8, 64  # lines of a tensor that are looked at: first few, then more
_LONGEST_LINE = 1 << 10  # values of a line that are looked at
_WAVE = 1e-2  # energy of the error of a wave's recurrence, relative to the wave's; of weights it is about 2
_VARYING = 0.25  # least share of lines that are waves around their mean: a constant line is no wave
_SOME = 64  # values for a quick test
_NONZERO = 0.875  # least share of scales that are not 0


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
    n_distinct = np.unique(sample).size
    if n_distinct > sample.size // 4:  # a quick test, true for nearly all weights
        return False
    # A mask of two values is small on a grid, where its values are errors of scale at most
    free = _FREE_BITS * array.size / 8 if n_distinct <= 2 else max(_FREE_NBYTES, _FREE_BITS * array.size / 8)
    return fine.encode_exact("", dtype, array).stored_nbytes <= free


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


def are_scales(array: npt.NDArray[Any]) -> bool:
    """Whether all values have one sign and few are 0: the scales or minima of weights that are quantized already.

    Of weights both signs are trained. An error of a scale is an error of all weights of its group.
    """
    if np.iscomplexobj(array):
        return False
    flat = array.reshape(-1)
    # The first values are a quick test, false for nearly all weights
    if not any(bool(is_so(flat[:_SOME], 0).all()) and bool(is_so(flat, 0).all())
               for is_so in (np.greater_equal, np.less_equal)):  # fmt: skip
        return False
    return int(np.count_nonzero(flat)) >= _NONZERO * flat.size


def is_designed(values: ShortFloats) -> bool:
    """Whether a tensor was designed: filters, tables of waves (the positions of a sequence, say), coordinates."""
    return is_filter_bank(values) or any(_are_waves(values, axis) for axis in range(values.ndim))


def is_filter_bank(values: ShortFloats) -> bool:
    """Whether the rows, or the columns of a matrix, are even or odd functions: kernels of Fourier transforms."""
    if values.ndim < 2 or not values.any():
        return False
    matrix = values.reshape(values.shape[0], -1)
    return _are_filters(matrix) or (values.ndim == 2 and _are_filters(matrix.T))


def _are_waves(values: ShortFloats, axis: int) -> bool:
    """Whether the lines along an axis are waves or ramps: ``x[i - 1] + x[i + 1]`` is a multiple of ``x[i]``.

    Of a wave under a window, whose height changes slowly, this holds nearly.
    """
    size = values.shape[axis]
    if size < _FEWEST_TAPS:
        return False
    moved = np.atleast_2d(np.moveaxis(values, axis, -1)[..., :_LONGEST_LINE])
    n_lines = values.size // size
    for n in (_FEW_LINES, _LINES):
        chosen = np.unravel_index(np.arange(0, n_lines, max(1, n_lines // n)), moved.shape[:-1])
        lines = moved[chosen].reshape(-1, moved.shape[-1]).astype(np.float64)
        energy = (lines**2).sum(axis=1)
        lines, energy = lines[energy > 0], energy[energy > 0]
        inner, neighbours = lines[:, 1:-1], lines[:, :-2] + lines[:, 2:]
        factor = (inner * neighbours).sum(axis=1) / np.maximum((inner**2).sum(axis=1), np.finfo(np.float64).tiny)
        error = ((neighbours - factor[:, None] * inner) ** 2).sum(axis=1)
        waves = error <= _WAVE * energy
        varying = waves & (error < _WAVE * lines.var(axis=1) * lines.shape[1])
        if not (lines.size and waves.mean() >= _FILTERS and varying.mean() >= _VARYING):
            return False
    return True


def _is_whole(flat: Floats) -> bool:
    scaled = flat * np.float32(16)
    return bool((scaled == np.rint(scaled)).all()) and float(np.abs(scaled).max(initial=0)) < _WHOLE


def _are_filters(rows: ShortFloats) -> bool:
    if rows.shape[1] < _FEWEST_TAPS:
        return False
    some = rows[:: max(1, rows.shape[0] // _LINES)]
    few = _are_symmetric(some[: len(some) // 4])
    if np.count_nonzero(~few) > (1 - _FILTERS) * len(some):  # so it is for nearly all weights
        return False
    found = _are_symmetric(some)
    return bool(found.size) and float(found.mean()) >= _FILTERS


def _are_symmetric(rows: ShortFloats) -> npt.NDArray[np.bool_]:
    """Whether rows are even or odd functions; without those of zeros, as the sine of frequency 0 is."""
    rows = rows.astype(np.float32)
    rows = rows[np.abs(rows).max(axis=1, initial=0) > 0]
    limit = _SYMMETRIC * np.abs(rows).max(axis=1, initial=0)
    found = np.zeros(rows.shape[0], bool)
    for first in (0, 1):  # symmetric about the middle, or (a periodic window) without its first value
        part = rows[:, first:]
        for sign in (1, -1):
            found |= np.abs(part - sign * part[:, ::-1]).max(axis=1, initial=0) <= limit
    return found
