"""Weights of squared errors: at low rates errors of large weights count more than those of small ones.

A large part of a small weight is its random initial value, which the network does not need.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from ...decode.tables import Floats
from ..sums import Total
from .bands import Rows, bands, is_kept, size_of

# _POWER: the power of a weight's magnitude by which its squared error counts, at 1 bit a weight and below.
# _LESS_A_DOUBLING: decrease of the power with each doubling of the rate
_POWER, _LESS_A_DOUBLING = 0.5, 0.32


def power_at(bits: float) -> float:
    """The power of the magnitude by which squared errors count, at so many bits for each weight; 0 from 3 bits on."""
    return max(0.0, _POWER - _LESS_A_DOUBLING * math.log2(max(bits, 1.0)))


class ErrorWeights:
    """Weights of squared errors, by the magnitudes of weights or transform coefficients.

    They have a mean of 1, weighted by the squares.

    Args:
        whole, left: Weights or coefficients, and their residuals after principal components. The geometric mean of
            both magnitudes is used. None for ``whole`` if both are the same.
        power: See ``power_at``.
    """

    def __init__(self, whole: Rows | None, left: Rows, power: float) -> None:
        self._whole, self._power = whole, np.float32(power / 2)
        self._kept = np.empty(left.shape, np.float32) if is_kept(left) else None
        squares, weighted = Total(), Total()
        for rows in bands(left.shape):
            products = _products(None if whole is None else whole[rows], left[rows])
            squares.add(products)
            weights = np.power(products, self._power, out=None if self._kept is None else self._kept[rows])
            products *= weights
            weighted.add(products)
        n = size_of(left)
        self._scale = np.float32(squares.total() / n / max(weighted.total() / n, 1e-30))
        if self._kept is not None:
            self._kept *= self._scale

    def of_rows(self, rows: slice, left: Floats) -> Floats:
        """Weights of rows, given their residuals."""
        if self._kept is not None:
            return self._kept[rows]
        return self._of(None if self._whole is None else self._whole[rows], left)

    def of_elements(self, rows: npt.NDArray[np.intp], columns: npt.NDArray[np.intp], left: Floats) -> Floats:
        """Weights of elements, given the numbers of their rows and columns, and their residuals."""
        if self._kept is not None:
            return self._kept[rows, columns]
        return self._of(None if self._whole is None else self._whole[rows, columns], left)

    def _of(self, whole: Floats | None, left: Floats) -> Floats:
        weights = _products(whole, left)
        np.power(weights, self._power, out=weights)
        weights *= self._scale
        return weights


def _products(whole: Floats | None, left: Floats) -> Floats:
    """The products of both magnitudes."""
    found: Floats = np.multiply(left, left if whole is None else whole)
    return found if whole is None else np.abs(found, out=found)


def weights_of(left: Floats, power: float) -> Floats:
    """The weights of squared errors of all elements of a small matrix."""
    return ErrorWeights(None, left, power).of_rows(slice(None), left)
