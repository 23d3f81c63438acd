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
from ..sums import Energy, energy
from . import packing
from .assemble import Collect, QuantizedStage, assemble
from .layout import Orientation, OrientedCodes, ShortFloats, orientations
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
    matrix: ShortFloats, step: float, *, rounding: float = ROUNDING, gain: bool = True, dtype: str = "f32"
) -> Grid:
    """Quantize a matrix to a grid. Values become the mean of their cell, times a gain; on a fine grid, the grid point.

    The gain makes ``<q, w> = <w, w>``, with w the values and q the quantized ones. Means shrink a tensor, by half its
    energy at the coarsest steps. That harms networks more than the squared error that the gain adds.

    Args:
        matrix: ``(R, C)``, finite. f16 and bf16 are converted piece by piece.
        step: Distance of grid points. It is increased if there would be more points than a codebook can have.
        rounding: See ``ROUNDING``.
        gain: Whether means are multiplied by the gain.
        dtype: dtype of the tensor, whose range no value may leave (VAL-002). Errors are computed after rounding to it.
    """
    flat = matrix.reshape(-1)
    extremes = _extremes(flat)
    furthest = max(float(extremes[1]), -float(extremes[0]), 0.0)
    step = max(step, furthest / _MAX_CODE, float(np.finfo(np.float32).tiny))
    low, high = map(int, _grid(extremes, step, rounding))  # a larger value has no smaller number
    zero = _code_of_zero(low, high)
    entries = high + zero + 1
    codes = np.empty(flat.size, bits.code_dtype(entries))
    counts, sums = np.zeros(entries, np.int64), np.zeros(entries)
    total = Energy()
    for start in range(0, flat.size, _PIECE):
        values = _piece(flat, start)
        piece = _grid(values, step, rounding) + zero
        counts += np.bincount(piece, minlength=entries)
        sums += np.bincount(piece, weights=values, minlength=entries)
        codes[start : start + _PIECE] = piece
        total.add(values)
    if np.count_nonzero(counts) * _FEW_A_POINT > flat.size and furthest + step < BY_NAME[dtype].largest:
        return _on_points(matrix, extremes, np.float32(step), dtype)
    signal = total.total()
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


def _piece(flat: ShortFloats, start: int) -> Floats:
    return flat[start : start + _PIECE].astype(np.float32, copy=False)


def _extremes(flat: ShortFloats) -> Floats:
    """The least and the largest value."""
    found = np.array([np.inf, -np.inf], np.float32)
    for start in range(0, flat.size, _PIECE):
        values = _piece(flat, start)
        found[:] = values.min(initial=found[0]), values.max(initial=found[1])
    return found


def _grid(values: Floats, step: float, rounding: float) -> npt.NDArray[np.intp]:
    """The numbers of the nearest grid points."""
    scaled = values * np.float32(1 / step)
    scaled += np.copysign(np.float32(rounding), scaled)
    return scaled.astype(np.intp)  # rounds towards 0


def _code_of_zero(low: int, high: int) -> int:
    return -low if high - low <= 4 else -low + (_ALIGNED_ZERO + low) % 15


def _on_points(matrix: ShortFloats, extremes: Floats, step: np.float32, dtype: str) -> Grid:
    """Quantize a matrix to the nearest grid points, for which only the step is stored.

    Args:
        extremes: Its least and its largest value.
    """
    least, largest = map(int, _indices(extremes, step))
    low, high = min(least, 0), max(largest, 0)
    zero = _code_of_zero(low, high)
    entries = high + zero + 1
    flat = matrix.reshape(-1)
    codes = np.empty(flat.size, bits.code_dtype(entries))
    noise = Energy()
    for start in range(0, flat.size, _PIECE):
        values = _piece(flat, start)
        indices = _indices(values, step)
        codes[start : start + _PIECE] = indices + zero
        noise.add(as_decoded(indices.astype(np.float32) * step, dtype) - values)
    stage = CodebookStage(dim=1, entries=entries, source=ProgressionSource(zero))
    resident = [tables.encode(np.array([step]), "f32")]
    return Grid(QuantizedStage(stage, resident, codes.reshape(matrix.shape)), energy(matrix), noise.total())


def _indices(values: Floats, step: np.float32) -> npt.NDArray[np.int64]:
    return np.rint(values.astype(np.float64) / float(step)).astype(np.int64)


def encode_uniform(
    name: str, dtype: str, shape: tuple[int, ...], values: ShortFloats, step: float, *, is_table: bool = False,
    collect: Collect = list,
) -> tuple[EncodedTensor, Grid]:  # fmt: skip
    """Encode a tensor on a grid, with the orientation and order that take the fewest bytes.

    Args:
        shape: Shape of the tensor.
        values: The tensor as reals, see ``layout.short_reals``; at least one axis, finite.
        step: Distance of grid points.
        is_table: Whether its rows are looked up one by one, so that they must stay rows.
        collect: See ``assemble``.

    Returns:
        The encoded tensor, and the tensor on the grid.
    """
    quantized = quantize_uniform(values.reshape(1, -1), step, dtype=dtype)
    stage = quantized.stage.with_planes(compress=True)
    codes = stage.codes[:, :].reshape(values.shape)
    candidates = orientations(values, is_table=is_table)
    best = candidates[0]
    if len(candidates) > 1:
        best = min(candidates, key=lambda orientation: _trial_nbytes(stage, orientation, codes))
    stored = replace(stage, codes=OrientedCodes(best, codes))
    encoded = assemble(name, dtype, shape, best.layout, [stored], row_classes=best.row_classes,
                       column_classes=best.column_classes, collect=collect)  # fmt: skip
    return encoded, quantized


def _trial_nbytes(quantized: QuantizedStage, orientation: Orientation, codes: npt.NDArray[Any]) -> float:
    """Estimate of the bytes of codes in an orientation, from evenly spread rows."""
    stage = quantized.stage
    assert isinstance(stage, CodebookStage)
    part = orientation.apply(codes, slice(None, None, max(1, codes.size // _TRIAL_CODES)))
    payloads = bits.pack(part.reshape(-1), stage.entries, stage.planes)
    nbytes = sum(map(packing.quick_nbytes, payloads)) * codes.size / part.size
    if orientation.row_classes is not None and orientation.column_classes is not None:
        nbytes += sum(len(section.stored) + TABLE_ENTRY_NBYTES for section in packing.sections(
            [orientation.row_classes.tobytes(), orientation.column_classes.tobytes()]))  # fmt: skip
    return nbytes
