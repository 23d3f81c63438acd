"""Entropy-coded uniform quantization: a grid of one step, codes compressed, reconstruction points trained."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..codecs import tables
from ..codecs.tables import Floats
from ..records import CodebookStage, Layout, TableSource, make_view
from ..writer import EncodedTensor
from . import entropy
from .assemble import QuantizedStage, assemble
from .orient import Orientation, by_rows, orientations

ROUNDING = 0.38  # |w| / step + ROUNDING is rounded down: below 0.5 more values become 0, which saves more than it costs
_ALIGNED_ZERO = 7  # the code of 0 modulo 15, so that -1, 0, 1 (or -7 .. 7) share their high digit: SPEC section 10
_MAX_CODE = 30_000
_TRIAL_CODES = 1 << 18


def quantize_uniform(
    matrix: Floats, step: float, *, rounding: float = ROUNDING, gain: bool = True, largest: float = math.inf
) -> QuantizedStage:
    """Quantize to a grid; the values are the centroids of their cells, times one gain.

    The gain restores ``<q, w> = <w, w>``: centroids shrink a tensor, by half its energy at the coarsest steps, and
    networks mind that more than the squared error that the gain adds.

    Args:
        matrix: ``(R, C)``, finite.
        step: Distance of grid points; made larger if there would be more points than a codebook holds.
        largest: No value may be larger (VAL-002).
    """
    step = max(step, float(np.abs(matrix).max(initial=0)) / _MAX_CODE, float(np.finfo(np.float32).tiny))
    codes = np.abs(matrix) * np.float32(1 / step)
    codes += np.float32(rounding)
    np.floor(codes, out=codes)
    np.copysign(codes, matrix, out=codes)
    grid = codes.astype(np.int32)
    low, high = int(grid.min()), int(grid.max())
    zero = -low
    if high - low > 4:
        zero += (_ALIGNED_ZERO - zero) % 15
    grid += zero
    entries = high + zero + 1
    flat = grid.reshape(-1)
    counts = np.bincount(flat, minlength=entries)
    sums = np.bincount(flat, weights=matrix.reshape(-1), minlength=entries)
    points = np.where(counts > 0, sums / np.maximum(counts, 1), 0.0)
    if gain:
        energy, projection = float(np.vdot(matrix, matrix)), float(points @ sums)
        if projection > 0:
            points *= min(energy / projection, 4.0)
    points = np.clip(points, -largest, largest)
    dtype = table_dtype(points)
    stage = CodebookStage(dim=1, entries=entries, source=TableSource(dtype))
    return QuantizedStage(stage, [tables.encode(points, dtype)], grid)


def table_dtype(values: npt.NDArray[np.floating]) -> str:
    """``f16`` where it holds all values to 11 bits, else ``f32``."""
    magnitudes = np.abs(values[values != 0])
    if magnitudes.size == 0 or (magnitudes.max() < 6e4 and magnitudes.min() > 6.2e-5):
        return "f16"
    return "f32"


def encode_uniform(
    name: str, dtype: str, shape: tuple[int, ...], values: Floats, step: float
) -> tuple[EncodedTensor, Floats]:
    """A tensor on a grid, in the orientation and order that take the fewest bytes.

    Args:
        shape: Of the tensor.
        values: The tensor as reals, see ``orient.reals``; at least one axis, finite.

    Returns:
        The encoded tensor, and its quantized values in the shape of ``values``.
    """
    flat_view = make_view(values.shape, False, by_rows(values.shape))
    largest = 65504.0 if dtype == "f16" else math.inf
    quantized = quantize_uniform(values.reshape(flat_view.n_rows, flat_view.n_columns), step, largest=largest)
    grid = quantized.codes.reshape(values.shape)
    candidates = orientations(name, values)
    best = candidates[0]
    if len(candidates) > 1:
        best = min(candidates, key=lambda orientation: _trial_nbytes(quantized, orientation, grid))
    stored = replace(quantized, codes=best.apply(grid))
    encoded = assemble(name, dtype, shape, best.layout, [stored], row_classes=best.row_classes,
                       column_classes=best.column_classes)  # fmt: skip
    return encoded, quantized.values(flat_view).reshape(values.shape)


def _trial_nbytes(quantized: QuantizedStage, orientation: Orientation, grid: npt.NDArray[Any]) -> float:
    """Bytes that the codes take in this orientation, judged by evenly spread rows."""
    codes = orientation.apply(grid)
    n_rows, n_columns = codes.shape
    stride = max(1, codes.size // _TRIAL_CODES)
    sample = replace(quantized, codes=codes[::stride])
    trial = assemble("", "f32", sample.codes.shape, Layout(n_row_axes=1), [sample])
    nbytes = trial.stored_nbytes * n_rows / sample.codes.shape[0]
    if orientation.row_classes is not None and orientation.column_classes is not None:
        nbytes += sum(len(section.stored) + 8 for section in entropy.sections(
            [orientation.row_classes.tobytes(), orientation.column_classes.tobytes()]))  # fmt: skip
    return nbytes
