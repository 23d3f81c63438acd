"""Sums in float64 that are the same on every machine: the order of the additions is part of the definition."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .. import native
from ..decode.tables import Floats
from ..native import encoding

_LANES = 16  # every 16th value is added to one of 16 sums, first within pieces
_PIECE = 1 << 16


def total(values: Floats) -> float:
    """Sum of the values."""
    return _sum(values, are_squared=False)


def energy(values: Floats) -> float:
    """Sum of the squares of the values."""
    return _sum(values, are_squared=True)


def _sum(values: Floats, *, are_squared: bool) -> float:
    flat = np.ascontiguousarray(values).reshape(-1)
    if native.is_used() and flat.dtype == np.float32:
        return encoding.sum_values(flat, are_squared=are_squared)
    sums = np.zeros(_LANES)
    for start in range(0, flat.size, _PIECE):
        piece = flat[start : start + _PIECE].astype(np.float64)
        piece = np.concatenate([piece, np.zeros(-piece.size % _LANES)]).reshape(-1, _LANES)
        sums += _by_rows(np.square(piece) if are_squared else piece)
    found = 0.0
    for lane in sums.tolist():
        found += lane
    return found


def _by_rows(piece: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The sums of columns. NumPy adds the rows of several columns one after another."""
    sums: npt.NDArray[np.float64] = np.add.reduce(piece, axis=0)
    return sums
