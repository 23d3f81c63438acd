"""Values from transform coefficients (SPEC 12.5)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .. import native
from ..format.stages import TransformSource
from ..native.decoding import decode_low_rank
from . import tables
from .tables import Floats

_TOGETHER = 1 << 18  # elements that are transformed together

Codes = npt.NDArray[Any]


class TransformDecoder:
    """Computes the values of each group of rows from transform coefficients (SPEC 12.5).

    Args:
        section: Plain section of the source: the step, then the matrix.
        points: The integer of each code, at ``n_books · code + q``.

    Attributes:
        bound: Upper bound of the magnitude of all values.

    Raises:
        FormatError: The step is not finite (CBK-008).
    """

    def __init__(self, source: TransformSource, section: bytes, points: Floats) -> None:
        self._step = tables.decode(section[:4], "f32", "step")[0]
        matrix = np.frombuffer(section, np.int8, offset=4).reshape(source.size, source.size)
        largest_sum = float(tables.largest(points)) * int(np.abs(matrix.astype(np.intp)).sum(axis=0).max())
        self.bound = np.float32(largest_sum) * np.abs(self._step)
        # Sums of integers below 2^24 (float32) or 2^53 (float64) are exact in any order; float32 is twice as fast
        dtype = np.dtype(np.float32 if largest_sum <= tables.EXACT_IN_FLOAT32 else np.float64)
        self._matrix: npt.NDArray[Any] = np.ascontiguousarray(matrix.T, dtype)
        self._points = points.astype(dtype)

    def decode(self, codes: Codes, out: Floats) -> None:
        """Write the values of whole groups of rows to ``out``.

        Args:
            codes: ``(n_rows, n_columns)``: the symbol of each coefficient, or as floats the coefficients themselves.
            out: ``(n_rows, n_columns)``; it may be ``codes``.
        """
        n_rows, n_columns = out.shape
        size = len(self._matrix)
        if native.is_used() and codes.dtype == self._matrix.dtype == np.float32:
            steps = np.full(size, self._step, np.float32)
            coefficients = np.empty((size, n_columns), np.float32)
            for row in range(0, n_rows, size):
                coefficients[...] = codes[row : row + size]
                decode_low_rank(self._matrix, coefficients, steps, None, out[row : row + size], adds=False)
            return
        n = max(1, _TOGETHER // (size * n_columns)) * size
        for start in range(0, n_rows, n):
            rows = slice(start, start + n)
            if codes.dtype == np.float32:
                coefficients = codes[rows].astype(self._points.dtype, copy=False)
            else:
                coefficients = np.take(self._points, codes[rows].astype(np.intp), mode="clip")
            sums = np.matmul(self._matrix, coefficients.reshape(-1, size, n_columns))
            np.multiply(sums.reshape(-1, n_columns), self._step, out=out[rows], dtype=np.float32, casting="same_kind")
