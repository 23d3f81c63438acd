"""Uniform quantization with compressed codes: a grid of one step, and reconstruction points fitted to the values."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ...decode import tables
from ...decode.tables import Floats
from ...format import bits
from ...format.chunkwriter import EncodedTensor
from ...format.dtypes import BY_NAME
from ...format.sections import TABLE_ENTRY_NBYTES
from ...format.stages import CodebookStage, ProgressionSource, TableSource
from ..report import as_decoded
from ..sums import energy
from . import packing
from .assemble import QuantizedStage, assemble
from .layout import Orientation, orientations
from .scales import table_dtype

ROUNDING = 0.38  # |w| / step + ROUNDING is rounded down. With less than 0.5 more values become 0, which saves bits
_ALIGNED_ZERO = 7  # the code of 0, modulo 15, so that -1, 0, 1 (or -7 .. 7) have the same high digit (SPEC section 10)
_MAX_CODE = 30_000  # largest magnitude on the grid, in steps
_TRIAL_CODES = 1 << 17  # codes with which orientations are compared
_PIECE = 1 << 16  # values in one call, so that they stay in the cache
_FEW_A_POINT = 256  # with fewer values for each grid point, a table of means takes as many bits as it saves


@dataclass(frozen=True)
class Grid:
    """A matrix on a grid.

    Attributes:
        energy: Sum of squares of the values.
        noise: Sum of squares of the errors.
    """

    stage: QuantizedStage
    energy: float
    noise: float

    @property
    def sqnr_db(self) -> float:
        """Signal-to-quantization-noise ratio in dB; inf if exact."""
        if self.noise <= 1e-15 * self.energy:  # no more than float64 rounding
            return math.inf
        return 10 * math.log10(self.energy / self.noise)


def quantize_uniform(
    matrix: Floats, step: float, *, rounding: float = ROUNDING, gain: bool = True, dtype: str = "f32"
) -> Grid:
    """Quantize a matrix to a grid. Values become the mean of their cell, times a gain; on a fine grid, the grid point.

    The gain makes ``<q, w> = <w, w>``, with w the values and q the quantized ones. Means shrink a tensor, by half its
    energy at the coarsest steps. That harms networks more than the squared error that the gain adds.

    Args:
        matrix: ``(R, C)``, finite.
        step: Distance of grid points. It is increased if there would be more points than a codebook can have.
        rounding: See ``ROUNDING``.
        gain: Whether means are multiplied by the gain.
        dtype: dtype of the tensor, whose range no value may leave (VAL-002). Errors are computed after rounding to it.
    """
    furthest = max(float(matrix.max(initial=0)), -float(matrix.min(initial=0)))
    step = max(step, furthest / _MAX_CODE, float(np.finfo(np.float32).tiny))
    flat = matrix.reshape(-1)
    grid = np.empty(flat.size, np.int16)
    for start in range(0, flat.size, _PIECE):
        scaled = flat[start : start + _PIECE] * np.float32(1 / step)
        scaled += np.copysign(np.float32(rounding), scaled)
        grid[start : start + _PIECE] = scaled  # the conversion to integers rounds towards 0
    low, high = int(grid.min()), int(grid.max())
    zero = _code_of_zero(low, high)
    entries = high + zero + 1
    codes = np.empty(flat.size, bits.code_dtype(entries))
    counts, sums = np.zeros(entries, np.int64), np.zeros(entries)
    for start in range(0, flat.size, _PIECE):
        piece = grid[start : start + _PIECE].astype(np.intp) + zero
        counts += np.bincount(piece, minlength=entries)
        sums += np.bincount(piece, weights=flat[start : start + _PIECE], minlength=entries)
        codes[start : start + _PIECE] = piece
    if np.count_nonzero(counts) * _FEW_A_POINT > flat.size and furthest + step < BY_NAME[dtype].largest:
        return _on_points(matrix, np.float32(step), dtype)
    signal = energy(flat)
    points = np.where(counts > 0, sums / np.maximum(counts, 1), 0.0)
    if gain:
        projection = float(points @ sums)
        if projection > 0:
            points *= min(signal / projection, 4.0)
    points = np.clip(points, -BY_NAME[dtype].largest, BY_NAME[dtype].largest)
    of_table = table_dtype(points)
    stage = CodebookStage(dim=1, entries=entries, source=TableSource(of_table))
    table = tables.encode(points, of_table)
    stored = as_decoded(tables.decode(table, of_table, "codebook"), dtype).astype(np.float64)
    noise = signal - 2 * float(stored @ sums) + float(stored**2 @ counts)
    return Grid(QuantizedStage(stage, [table], codes.reshape(matrix.shape)), signal, max(noise, 0.0))


def _code_of_zero(low: int, high: int) -> int:
    return -low if high - low <= 4 else -low + (_ALIGNED_ZERO + low) % 15


def _on_points(matrix: Floats, step: np.float32, dtype: str) -> Grid:
    """Quantize a matrix to the nearest grid points, for which only the step is stored."""
    indices = np.rint(matrix.astype(np.float64) / float(step)).astype(np.int64)
    low, high = int(indices.min(initial=0)), int(indices.max(initial=0))
    zero = _code_of_zero(low, high)
    entries = high + zero + 1
    codes = (indices + zero).astype(bits.code_dtype(entries))
    stage = CodebookStage(dim=1, entries=entries, source=ProgressionSource(zero))
    error = as_decoded(indices.astype(np.float32) * step, dtype) - matrix
    resident = [tables.encode(np.array([step]), "f32")]
    return Grid(QuantizedStage(stage, resident, codes), energy(matrix), energy(error))


def encode_uniform(
    name: str, dtype: str, shape: tuple[int, ...], values: Floats, step: float, *, is_table: bool = False
) -> tuple[EncodedTensor, float]:
    """Encode a tensor on a grid, with the orientation and order that take the fewest bytes.

    Args:
        shape: Shape of the tensor.
        values: The tensor as reals, see ``layout.reals``; at least one axis, finite.
        step: Distance of grid points.
        is_table: Whether its rows are looked up one by one, so that they must stay rows.

    Returns:
        The encoded tensor, and its SQNR in dB.
    """
    quantized = quantize_uniform(values.reshape(1, -1), step, dtype=dtype)
    stage = quantized.stage.with_planes(compress=True)
    codes = stage.codes.reshape(values.shape)
    candidates = orientations(values, is_table=is_table)
    best = candidates[0]
    if len(candidates) > 1:
        best = min(candidates, key=lambda orientation: _trial_nbytes(stage, orientation, codes))
    stored = replace(stage, codes=best.apply(codes))
    encoded = assemble(name, dtype, shape, best.layout, [stored], row_classes=best.row_classes,
                       column_classes=best.column_classes)  # fmt: skip
    return encoded, quantized.sqnr_db


def _trial_nbytes(quantized: QuantizedStage, orientation: Orientation, codes: npt.NDArray[Any]) -> float:
    """Estimate of the bytes of codes in an orientation, from evenly spread rows."""
    stage = quantized.stage
    assert isinstance(stage, CodebookStage)
    part = orientation.apply(codes, stride=max(1, codes.size // _TRIAL_CODES))
    payloads = bits.pack(part.reshape(-1), stage.entries, stage.planes)
    nbytes = sum(map(packing.quick_nbytes, payloads)) * codes.size / part.size
    if orientation.row_classes is not None and orientation.column_classes is not None:
        nbytes += sum(len(section.stored) + TABLE_ENTRY_NBYTES for section in packing.sections(
            [orientation.row_classes.tobytes(), orientation.column_classes.tobytes()]))  # fmt: skip
    return nbytes
