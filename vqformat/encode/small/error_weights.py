"""Weights of squared errors: at low rates errors of large weights count more than those of small ones.

A large part of a small weight is its random initial value, which the network does not need.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from ...decode.tables import Floats
from ..sums import PIECE, Sum

# _POWER: the power of a weight's magnitude by which its squared error counts, at 1 bit a weight and below.
# _LESS_A_DOUBLING: decrease of the power with each doubling of the rate
_POWER, _LESS_A_DOUBLING = 0.5, 0.32


def power_at(bits: float) -> float:
    """The power of the magnitude by which squared errors count, at so many bits for each weight; 0 from 3 bits on."""
    return max(0.0, _POWER - _LESS_A_DOUBLING * math.log2(max(bits, 1.0)))


def weights_of(whole: Floats, left: Floats, power: float) -> Floats:
    """Weights of squared errors, by the magnitudes of weights or transform coefficients.

    Args:
        whole, left: Weights or coefficients, and their residuals after principal components. The geometric mean of
            both magnitudes is used.
        power: See ``power_at``.

    Returns:
        Array of the same shape, with a mean of 1, weighted by the squares.
    """
    weights = np.empty(whole.shape, np.float32)
    of_squares, of_weighted = Sum(), Sum()
    parts = zip(_pieces(whole), _pieces(left), _pieces(weights), strict=True)
    for some, some_left, part in parts:  # in pieces that stay in the cache
        squares = np.multiply(some, some_left)
        np.abs(squares, out=squares)
        np.power(squares, np.float32(power / 2), out=part)
        of_squares.add(squares)
        of_weighted.add(np.multiply(squares, part, out=squares))
    n = weights.size
    weights *= np.float32(of_squares.total() / n / max(of_weighted.total() / n, 1e-30))
    return weights


def _pieces(values: Floats) -> Iterator[Floats]:
    flat = values.reshape(-1)
    return (flat[start : start + PIECE] for start in range(0, flat.size, PIECE))
