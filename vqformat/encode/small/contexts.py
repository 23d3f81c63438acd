"""Contexts for entropy coding: classes of rows and columns by their scale (SPEC 12.3).

The scales of its row and its column tell nearly everything about the size of a weight. Neighbouring elements as
contexts would save less than 1 % more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...decode.tables import Floats
from ...format.sections import TABLE_ENTRY_NBYTES
from ..methods.sampling import sample_indices
from ..sums import total

LOWEST = -8  # variances, in squared steps of the grid, are clipped to 2**LOWEST .. 2**HIGHEST
HIGHEST = 24
PER_OCTAVE = 2  # classes for each doubling of the variance
BITS_PER_HALVING = 0.86  # bits by which a code gets longer if the step is halved, from about half a bit on
_SAMPLE = 1 << 18  # elements from which an entropy is estimated
_FINEST = 16  # the estimate uses a grid that is not finer than this many steps per deviation; see ``entropy``
_MOST = 1 << 12  # larger integers count as equal
_ROUNDS = 3  # of alternating between row and column variances
_CLASS_BITS = 2.5  # stored bits of the class of a row or column, about
_SECTION_BITS = 8 * (TABLE_ENTRY_NBYTES + 12)  # overhead of a section of classes
_TABLE_BITS = 8 * 10  # stored bits of the tables of a further context
_FINE_BITS = 0.0108  # bits by which a code of a normal variable gets shorter if classes of one axis are half as wide

Classes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Contexts:
    """The contexts of the elements of a matrix.

    ``exponent + rows[i] + columns[j]`` is the logarithm to base 2 of the variance of element (i, j) in squared steps of
    the grid, times ``PER_OCTAVE``. Its context is this number without ``exponent``.

    Attributes:
        exponent: The least of these logarithms.
        rows, columns: Classes of rows and columns, uint8 from 0; None if all are 0.
    """

    exponent: int
    rows: Classes | None
    columns: Classes | None

    @property
    def n_contexts(self) -> int:
        """Number of contexts."""
        return 1 + sum(int(classes.max()) for classes in (self.rows, self.columns) if classes is not None)

    @property
    def expected_bits(self) -> float:
        """Approximate bits of a code. The formula was fitted to normal weights with the default price of a bit."""
        return self._bits_at(self._mean_exponent)

    @property
    def busy_bits(self) -> float:
        """Mean of the expected bits, weighted by the bits themselves: the rate where most of the bits are spent."""
        counts = np.ones(1)
        for classes in (self.rows, self.columns):
            if classes is not None:
                counts = np.convolve(counts, np.bincount(classes))
        bits = np.array([self._bits_at((self.exponent + i) / PER_OCTAVE) for i in range(counts.size)])
        return float(counts @ np.square(bits) / (counts @ bits))

    @property
    def slope(self) -> float:
        """Approximate bits by which a code gets shorter if the variance is divided by 4."""
        exponent = self._mean_exponent
        return self._bits_at(exponent + 0.5) - self._bits_at(exponent - 1.5)

    @property
    def _mean_exponent(self) -> float:
        classes = sum(float(c.mean()) for c in (self.rows, self.columns) if c is not None)
        return (self.exponent + classes) / PER_OCTAVE

    @staticmethod
    def _bits_at(exponent: float) -> float:
        """Expected bits of a code for a logarithm of the variance."""
        return 1.4 + BITS_PER_HALVING / 2 * exponent if exponent >= -2 else 0.54 * math.pow(2.0, exponent + 2)

    def entropy(self, points: Floats, factor: float) -> float:
        """Estimated bits of a code if ``points · factor`` is rounded to integers, from a sample of elements.

        Contexts of large variance use a coarser grid, to which log2 of the ratio of both grids is added.
        """
        places = sample_indices(points.size, _SAMPLE, 0)
        contexts = self.at_places(places, points.shape[1])
        logarithms = (self.exponent + np.arange(self.n_contexts)) / (2 * PER_OCTAVE) - math.log2(_FINEST)
        octaves = np.maximum(logarithms, 0)  # log2 of the factor by which the grid of each context is coarser
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
        """Contexts of the elements of a part of the matrix, in a shape that can be broadcast to that of the part."""
        found = np.zeros((1, 1), np.uint8)
        if self.rows is not None:
            found = found + self.rows[rows, None]
        if self.columns is not None:
            found = found + self.columns[columns]
        return found

    def at_places(self, places: npt.NDArray[np.intp], n_columns: int) -> npt.NDArray[np.intp]:
        """Contexts of single elements.

        Args:
            places: Numbers of the elements in C order.
            n_columns: Columns of the matrix.
        """
        found = np.zeros(places.shape, np.intp)
        for classes, indices in zip((self.rows, self.columns), np.divmod(places, n_columns), strict=True):
            if classes is not None:
                found += classes[indices]
        return found


def find_contexts(points: Floats) -> Contexts:
    """Choose the contexts of a matrix.

    Args:
        points: ``(R, C)``, in steps of the grid.

    Returns:
        Contexts with classes of rows or columns only if these save more bits than they take.
    """
    energies = np.square(points, dtype=np.float32)
    overall = _log2(total(energies) / energies.size)
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
    """Round logarithms of variances to exponents: fine ones if these save bits, else multiples of ``PER_OCTAVE``.

    Args:
        logarithms: Of rows or columns.
        n_elements: Elements of each row or column.
    """
    gain = _FINE_BITS * _share(logarithms) * n_elements - math.log2(PER_OCTAVE)  # of a row
    is_fine = gain * logarithms.size > np.ptp(logarithms) * _TABLE_BITS
    unit = 1 if is_fine else PER_OCTAVE
    return unit * np.rint(logarithms * (PER_OCTAVE / unit)).astype(np.intp)


def _share(logarithms: npt.NDArray[np.float64]) -> float:
    """The part of the gain of normal variables that codes reach: less at low rates, where most codes are 0."""
    return min(1.0, max(0.1, (float(logarithms.mean()) + 6) / 8))


def _log_mean(energies: Floats, factors: Floats, axis: int) -> npt.NDArray[np.float64]:
    """For each row (axis 1) or column log2 of the mean of its energies times ``factors``."""
    means = energies @ factors / factors.size if axis == 1 else factors @ energies / factors.size
    return np.log2(np.maximum(means.astype(np.float64), 2.0**-40))


def _pays(logarithms: npt.NDArray[np.float64], n_elements: int) -> bool:
    """Whether classes for these variances save more bits than they take.

    For normal variables, an ideal code saves half the difference between the logarithm of the mean variance and the
    mean of the logarithms.

    Args:
        logarithms: log2 of the variances of rows or columns.
        n_elements: Elements of the matrix.
    """
    if logarithms.size < 2:
        return False
    spread = np.clip(logarithms - logarithms.max(), -12, 0)
    gain = 0.5 * (math.log2(float(np.exp2(spread).mean())) - float(spread.mean()))
    classes = int(np.ptp(np.rint(logarithms)))
    cost = logarithms.size * _CLASS_BITS + _SECTION_BITS + classes * _TABLE_BITS
    return classes > 0 and gain * _share(logarithms) * n_elements > cost
