"""Sums in float64 that are the same on every machine: the order of the additions is part of the definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .. import native
from ..decode.tables import Floats
from ..native import encoding

_LANES = 16  # every 16th value is added to one of 16 sums, first within pieces
_PIECE = 1 << 16
Array = npt.NDArray[Any]


class Total:
    """Sum of values that come in parts. How they are parted does not matter."""

    _are_squared = False

    def __init__(self) -> None:
        self._sums = np.zeros(_LANES)
        self._rest = np.empty(0, np.float32)  # values after the last whole piece

    def add(self, values: Array) -> None:
        """Add values that float32 can hold, in C order."""
        flat = values.reshape(-1)
        if self._rest.size:
            n_missing = _PIECE - self._rest.size
            piece = np.concatenate([self._rest, flat[:n_missing]])
            flat = flat[n_missing:]
            if piece.size < _PIECE:
                self._rest = piece.astype(np.float32)
                return
            _add(piece, self._sums, are_squared=self._are_squared)
        n_whole = flat.size - flat.size % _PIECE
        _add(flat[:n_whole], self._sums, are_squared=self._are_squared)
        self._rest = flat[n_whole:].astype(np.float32)

    def total(self) -> float:
        """The sum of all that were added."""
        sums = self._sums.copy()
        _add(self._rest, sums, are_squared=self._are_squared)
        return _joined(sums)


class Energy(Total):
    """Sum of the squares of values that come in parts, as ``Total``."""

    _are_squared = True


def total(values: Floats) -> float:
    """Sum of the values."""
    return _sum(values, are_squared=False)


def energy(values: Array) -> float:
    """Sum of the squares of the values, which may be f16 or bf16."""
    return _sum(values, are_squared=True)


def _sum(values: Array, *, are_squared: bool) -> float:
    sums = np.zeros(_LANES)
    _add(values.reshape(-1), sums, are_squared=are_squared)
    return _joined(sums)


def _add(flat: Array, sums: npt.NDArray[np.float64], *, are_squared: bool) -> None:
    """Add values, ``(n,)``, to the sums of lanes. Short floats are widened piece by piece."""
    if native.is_used() and flat.dtype == np.float32 and flat.flags.c_contiguous:
        encoding.sum_values(flat, sums, are_squared=are_squared)
        return
    for start in range(0, flat.size, _PIECE):
        piece = flat[start : start + _PIECE]
        if native.is_used() and piece.dtype != np.float64:
            encoding.sum_values(np.ascontiguousarray(piece, np.float32), sums, are_squared=are_squared)
            continue
        piece = piece.astype(np.float64)
        piece = np.concatenate([piece, np.zeros(-piece.size % _LANES)]).reshape(-1, _LANES)
        sums += _by_rows(np.square(piece) if are_squared else piece)


def _joined(sums: npt.NDArray[np.float64]) -> float:
    found = 0.0
    for lane in sums.tolist():
        found += lane
    return found


def _by_rows(piece: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The sums of columns. NumPy adds the rows of several columns one after another."""
    sums: npt.NDArray[np.float64] = np.add.reduce(piece, axis=0)
    return sums
