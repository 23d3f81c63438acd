"""How much the squared error of a weight counts: at low rates more for a large one.

Much of a small weight is what training began with and the network does not miss.
"""

from __future__ import annotations

import math

import numpy as np

from ...decode.tables import Floats

# Of a weight's magnitude, with which its squared error counts: at one bit a weight and below, and how much less it is
# for each doubling of the rate
_POWER, _LESS_A_DOUBLING = 0.5, 0.32


def power_at(bits: float) -> float:
    """Of a weight's magnitude, with which its squared error counts at so many bits a weight: 0 from 3 bits on."""
    return max(0.0, _POWER - _LESS_A_DOUBLING * math.log2(max(bits, 1.0)))


def weights_of(whole: Floats, left: Floats, power: float) -> Floats:
    """How much each squared error counts; of transform coefficients, too, those of small ones count less.

    Args:
        whole, left: Weights or coefficients, and what principal components leave: it is the geometric mean that counts.
    """
    squares = np.abs(whole * left)
    weights: Floats = np.power(squares, np.float32(power / 2))
    scale = float(squares.mean(dtype=np.float64)) / max(float((squares * weights).mean(dtype=np.float64)), 1e-30)
    weights *= np.float32(scale)
    return weights
