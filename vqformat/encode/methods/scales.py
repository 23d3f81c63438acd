"""Scales and codebooks of stages: their values, and the dtypes in which they are stored (SPEC 9.2 to 9.4)."""

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
        values: The quotients, ``(R, C)``.
        weights: Weights of squared errors: ``(R, 1)``, ``(1, C)``, or ``(1, 1)`` without scales.
        record, resident: The stored scales and their section; None and an empty list without scales.
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
        return self.weights  # scales of columns need dim 1


def scale_matrix(matrix: Floats, scale: str) -> ScaledMatrix:
    """Divide rows or columns by their root mean square, rounded to its stored value.

    Args:
        scale: ``row``, ``column`` or ``none``.
    """
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
    """Encode scales. Returns their dtype, their section and their stored values.

    f16 is enough, because weights are divided by the stored scale; but not if a scale is subnormal or infinite in f16.
    """
    dtype = "f16" if _is_normal_f16(values) else "f32"
    section = tables.encode(values, dtype)
    return dtype, section, tables.decode(section, dtype, "scales")


def _is_normal_f16(values: npt.NDArray[Any]) -> bool:
    magnitudes = np.abs(values[values != 0])
    return bool(magnitudes.size == 0 or (magnitudes.min() >= 2.0**-14 and magnitudes.max() <= 65504))


def table_dtype(values: npt.NDArray[Any]) -> str:
    """``f16`` if all values are 0 or normal numbers in it, else ``f32``."""
    return "f16" if _is_normal_f16(values) else "f32"


def choose_table_dtype(
    books: Floats, counts: npt.NDArray[np.float64], distortion: float, n_weights: int
) -> str:
    """The dtype of codebooks with the least cost, in bits of storage and in distortion by rounding.

    Entries are means, so moving an entry by δ adds ``count · δ²`` to the squared error D. At high rates one bit for
    each weight reduces D by a factor of 4. So an increase to D' costs as much as ``n_weights / 2 · log2(D' / D)`` bits.
    The size of codebooks matters: with 256 entries for 300 rows they are larger than the codes.

    Args:
        books: ``(n_books, entries, dim)``.
        counts: How often each entry is used, ``(n_books, entries)``, weighted like the distortion.
        distortion: Squared error D with unrounded codebooks.
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
    """A group size by the rule of CBK-003: 0 if one group covers the whole axis of length n."""
    return size if 0 < size < n else 0


def narrowest(values: Floats) -> str:
    """The dtype of a table that holds these values exactly in the fewest bytes."""
    with np.errstate(over="ignore"):
        for dtype in ("f16", "bf16"):
            if np.array_equal(tables.widen(tables.encode(values, dtype), dtype), values):
                return dtype
    return "f32"
