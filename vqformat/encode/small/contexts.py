"""Contexts of entropy-coded codes: classes of rows and columns by their scale (SPEC 12.3).

On weights the scales of an element's row and column tell nearly all that there is to know of it: neighbours add less
than 1 % to them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...decode.tables import Floats
from ...format.sections import TABLE_ENTRY_NBYTES
from ..methods.sampling import sample_indices

LOWEST = -8  # variances in steps of the grid are 2**LOWEST to 2**HIGHEST; below the one nearly all codes are 0
HIGHEST = 24
PER_OCTAVE = 2  # exponents for each doubling of the variance
BITS_PER_HALVING = 0.86  # by which codes get longer where the step is half as large, from about half a bit on
_SAMPLE = 1 << 18  # elements by which entropies are found
_FINEST = 16  # deviation of integers by which entropies are found; those of a finer grid are larger by its logarithm
_MOST = 1 << 12  # magnitude of an integer that is told from larger ones
_ROUNDS = 3  # of making row and column variances agree
_CLASS_BITS = 2.5  # of a class, about
_SECTION_BITS = 8 * (TABLE_ENTRY_NBYTES + 12)
_TABLE_BITS = 8 * 10  # of the tables of a further context
_FINE_BITS = 0.0108  # that a code of a normal variable is shorter where the classes of an axis are half as wide

Classes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Contexts:
    """The context of each element of a matrix is ``exponent + rows[i] + columns[j]``: the logarithm of its variance.

    Attributes:
        exponent: Such a logarithm, times ``PER_OCTAVE``.
        rows, columns: Classes, from 0; None for one class.
    """

    exponent: int
    rows: Classes | None
    columns: Classes | None

    @property
    def n_contexts(self) -> int:
        return 1 + sum(int(classes.max()) for classes in (self.rows, self.columns) if classes is not None)

    @property
    def expected_bits(self) -> float:
        """Of a code, about: measured on normal weights at the price of a bit that is usual."""
        return self._bits_at(self._mean_exponent)

    @property
    def busy_bits(self) -> float:
        """The same, each code counting by its bits: the rate of the part that most bits go to."""
        counts = np.ones(1)
        for classes in (self.rows, self.columns):
            if classes is not None:
                counts = np.convolve(counts, np.bincount(classes))
        bits = np.array([self._bits_at((self.exponent + i) / PER_OCTAVE) for i in range(counts.size)])
        return float(counts @ np.square(bits) / (counts @ bits))

    @property
    def slope(self) -> float:
        """Bits by which codes get shorter where the variance is a quarter, about."""
        exponent = self._mean_exponent
        return self._bits_at(exponent + 0.5) - self._bits_at(exponent - 1.5)

    @property
    def _mean_exponent(self) -> float:
        classes = sum(float(c.mean()) for c in (self.rows, self.columns) if c is not None)
        return (self.exponent + classes) / PER_OCTAVE

    @staticmethod
    def _bits_at(exponent: float) -> float:
        return 1.4 + BITS_PER_HALVING / 2 * exponent if exponent >= -2 else 0.54 * math.pow(2.0, exponent + 2)

    def entropy(self, points: Floats, factor: float) -> float:
        """Bits of a code, if each point of the matrix, times a factor, is rounded; by a sample of its elements."""
        places = sample_indices(points.size, _SAMPLE, 0)
        contexts = self.at_places(places, points.shape[1])
        logarithms = (self.exponent + np.arange(self.n_contexts)) / (2 * PER_OCTAVE) - math.log2(_FINEST)
        octaves = np.maximum(logarithms, 0)  # by which the grid of each context is made coarser
        coarse = points.reshape(-1)[places] * (factor * np.exp2(-octaves)).astype(np.float32)[contexts]
        integers = np.rint(np.clip(coarse, -_MOST, _MOST)).astype(np.intp) + _MOST
        size = 2 * _MOST + 1
        at = contexts * size + integers
        counts = np.bincount(at, minlength=self.n_contexts * size).reshape(-1, size).astype(np.float64)
        of_contexts = counts.sum(axis=1)
        used = counts > 0
        shares = counts / np.maximum(of_contexts, 1)[:, None]
        bits = float(of_contexts @ octaves) - float((counts[used] * np.log2(shares[used])).sum())
        return bits / float(max(1, integers.size))

    def at(self, rows: slice, columns: slice) -> npt.NDArray[np.uint8]:
        """``rows[i] + columns[j]`` of the elements of a part of the matrix; to be broadcast to its shape."""
        found = np.zeros((1, 1), np.uint8)
        if self.rows is not None:
            found = found + self.rows[rows, None]
        if self.columns is not None:
            found = found + self.columns[columns]
        return found

    def at_places(self, places: npt.NDArray[np.intp], n_columns: int) -> npt.NDArray[np.intp]:
        """The contexts of elements that are told by their number in C order, in a matrix of so many columns."""
        found = np.zeros(places.shape, np.intp)
        for classes, indices in zip((self.rows, self.columns), np.divmod(places, n_columns), strict=True):
            if classes is not None:
                found += classes[indices]
        return found


def find_contexts(points: Floats) -> Contexts:
    """The contexts of a matrix ``(R, C)`` in steps of its grid; classes only where they earn their bytes."""
    energies = np.square(points, dtype=np.float32)
    overall = _log2(float(energies.mean(dtype=np.float64)))
    rows, columns = np.zeros(points.shape[0]), np.zeros(points.shape[1])
    for _ in range(_ROUNDS):
        rows = _log_mean(energies, np.exp2(-columns).astype(np.float32), axis=1)
        columns = _log_mean(energies, np.exp2(-rows).astype(np.float32), axis=0)
        columns -= columns.mean()
    has_rows = _pays(rows, points.size)
    has_columns = _pays(columns, points.size)
    if not has_rows and not has_columns:
        return Contexts(_clip(overall), None, None)
    if not has_rows:
        rows = np.full_like(rows, _log2(float((energies @ np.exp2(-columns)).mean() / columns.size)))
    if not has_columns:
        rows, columns = _log_mean(energies, np.ones_like(columns, np.float32), axis=1), np.zeros_like(columns)
    row_exponents = _exponents(np.clip(rows, LOWEST, HIGHEST), columns.size)
    column_exponents = _exponents(np.clip(columns, LOWEST, -LOWEST), rows.size)
    return Contexts(
        int(row_exponents.min() + column_exponents.min()),
        (row_exponents - row_exponents.min()).astype(np.uint8) if has_rows else None,
        (column_exponents - column_exponents.min()).astype(np.uint8) if has_columns else None,
    )


def _log2(mean: float) -> float:
    return math.log2(max(mean, 2.0**-40))


def _clip(logarithm: float) -> int:
    return round(PER_OCTAVE * min(max(logarithm, LOWEST), HIGHEST))


def _exponents(logarithms: npt.NDArray[np.float64], n_elements: int) -> npt.NDArray[np.intp]:
    """Of rows with so many elements: fine ones, or where those do not earn their bytes multiples of ``PER_OCTAVE``."""
    gain = _FINE_BITS * _share(logarithms) * n_elements - math.log2(PER_OCTAVE)  # of a row
    is_fine = gain * logarithms.size > np.ptp(logarithms) * _TABLE_BITS
    unit = 1 if is_fine else PER_OCTAVE
    return unit * np.rint(logarithms * (PER_OCTAVE / unit)).astype(np.intp)


def _share(logarithms: npt.NDArray[np.float64]) -> float:
    """How much of what normal variables would gain codes do: where most are 0 there is less to gain."""
    return min(1.0, max(0.1, (float(logarithms.mean()) + 6) / 8))


def _log_mean(energies: Floats, factors: Floats, axis: int) -> npt.NDArray[np.float64]:
    """log2 of the mean energy of each row (axis 1) or column, its elements times ``factors``."""
    means = energies @ factors / factors.size if axis == 1 else factors @ energies / factors.size
    return np.log2(np.maximum(means.astype(np.float64), 2.0**-40))


def _pays(logarithms: npt.NDArray[np.float64], n_elements: int) -> bool:
    """Whether classes of these scales save more than they take.

    An ideal code of normal variables gains half the difference between the logarithm of their mean variance and the
    mean of their logarithms.
    """
    if logarithms.size < 2:
        return False
    spread = np.clip(logarithms - logarithms.max(), -12, 0)
    gain = 0.5 * (math.log2(float(np.exp2(spread).mean())) - float(spread.mean()))
    classes = int(np.ptp(np.rint(logarithms)))
    cost = logarithms.size * _CLASS_BITS + _SECTION_BITS + classes * _TABLE_BITS
    return classes > 0 and gain * _share(logarithms) * n_elements > cost
