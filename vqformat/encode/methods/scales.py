"""Scales and tables of codebook stages: their values, and the dtypes that they are stored in (SPEC 9.2 to 9.4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...decode import tables
from ...decode.tables import Floats
from ...format.stages import Scale


@dataclass(frozen=True)
class ScaledMatrix:
    """A matrix divided by its scales.

    Attributes:
        values: ``(R, C)``.
        weights: Of squared errors: ``(R, 1)``, ``(1, C)``, or ``(1, 1)`` without scales.
        record, resident: Of the scales as stored; None and nothing without.
    """

    values: Floats
    weights: npt.NDArray[np.float64]
    record: Scale | None
    resident: list[bytes]

    def weights_of(self, dim: int) -> npt.NDArray[np.float64]:
        """Weights ``(R or 1, n_subvectors)`` of subvectors."""
        n_subvectors = -(-self.values.shape[1] // dim)
        if self.weights.shape[1] == 1:
            return np.broadcast_to(self.weights, (self.weights.shape[0], n_subvectors))
        return self.weights  # by column: dim is 1


def scale_matrix(matrix: Floats, scale: str) -> ScaledMatrix:
    """Divide rows or columns by their root mean square, rounded as it is stored."""
    if scale == "none":
        return ScaledMatrix(matrix, np.ones((1, 1)), None, [])
    axis = 1 if scale == "row" else 0
    rms = np.sqrt(np.square(matrix, dtype=np.float64).mean(axis=axis, keepdims=True))
    dtype, section, scales = encode_scales(rms)
    n_rows, n_columns = matrix.shape
    record = Scale(dtype, group_size(1, n_rows), 0) if scale == "row" else Scale(dtype, 0, group_size(1, n_columns))
    factors = scales.reshape(rms.shape).astype(np.float64)
    values = np.divide(matrix, factors, out=np.zeros(matrix.shape), where=factors > 0).astype(np.float32)
    weights = np.square(factors / max(float(factors.max()), np.finfo(np.float64).tiny))
    return ScaledMatrix(values, weights, record, [section])


def encode_scales(values: npt.NDArray[Any]) -> tuple[str, bytes, Floats]:
    """Scales as a section: dtype, bytes and the values as stored.

    Weights are divided by the stored scale, so f16's 11 bits do, but for subnormals.
    """
    dtype = "f16" if _is_normal_f16(values) else "f32"
    section = tables.encode(values, dtype)
    return dtype, section, tables.decode(section, dtype, "scales")


def _is_normal_f16(values: npt.NDArray[Any]) -> bool:
    magnitudes = np.abs(values[values != 0])
    return bool(magnitudes.size == 0 or (magnitudes.min() >= 2.0**-14 and magnitudes.max() <= 65504))


def table_dtype(values: npt.NDArray[Any]) -> str:
    """``f16`` where all values are normal there, else ``f32``."""
    return "f16" if _is_normal_f16(values) else "f32"


def choose_table_dtype(
    books: Floats, counts: npt.NDArray[np.float64], distortion: float, n_weights: int
) -> str:
    """The dtype of a table that costs least: its bits, and what rounding adds to the distortion.

    Entries are means, so moving one by δ adds ``count · δ²`` to the squared error D. At high rate a bit a weight is
    worth a factor of 4 in D: an increase to D' costs as much as ``n_weights / 2 · log2(D' / D)`` bits. Tables matter:
    with 256 entries on 300 rows they outweigh the codes.

    Args:
        books: ``(n_books, entries, dim)``.
        counts: ``(n_books, entries)``, weighted like the distortion.
        distortion: Squared error with the books unrounded.
    """
    best, least = "f32", 32.0 * books.size
    for dtype in ("f16", "bf16"):
        with np.errstate(over="ignore"):
            section = tables.encode(books, dtype)
        rounded = tables.widen(section, dtype)
        if not np.isfinite(rounded).all():
            continue
        moved = np.square(rounded.reshape(books.shape).astype(np.float64) - books).sum(axis=2)
        added = float((moved * counts).sum())
        if added > 0 and distortion <= 0:
            continue
        cost = 16.0 * books.size + (n_weights / 2 * np.log2(1 + added / distortion) if added else 0.0)
        if cost < least:
            best, least = dtype, cost
    return best


def group_size(size: int, n: int) -> int:
    """A group size as CBK-003 wants it: 0 where one group serves the whole axis."""
    return size if 0 < size < n else 0
