"""Contexts for entropy coding: classes of rows and columns by their scale (SPEC 12.3).

The scales of its row and its column tell nearly everything about the size of a weight. Neighbouring elements as
contexts would save less than 1 % more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...decode.tables import Floats
from ...format.sections import TABLE_ENTRY_NBYTES
from ..methods.sampling import Doubles, sample_indices
from ..sums import Total
from .bands import Rows, bands, is_kept, size_of

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

    def entropy(self, points: Rows, factor: float) -> float:
        """Estimated bits of a code if ``points · factor`` is rounded to integers, from a sample of elements.

        Contexts of large variance use a coarser grid, to which log2 of the ratio of both grids is added.
        """
        places = sample_indices(size_of(points), _SAMPLE, 0)
        contexts = self.at_places(places, points.shape[1])
        logarithms = (self.exponent + np.arange(self.n_contexts)) / (2 * PER_OCTAVE) - math.log2(_FINEST)
        octaves = np.maximum(logarithms, 0)  # log2 of the factor by which the grid of each context is coarser
        coarse = points[np.divmod(places, points.shape[1])] * (factor * np.exp2(-octaves)).astype(np.float32)[contexts]
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

    def of(self, rows: npt.NDArray[np.intp], columns: npt.NDArray[np.intp]) -> npt.NDArray[np.uint8]:
        """Contexts of elements, whose numbers of rows and columns are of shapes that can be broadcast together."""
        found = np.zeros(np.broadcast_shapes(rows.shape, columns.shape), np.uint8)
        if self.rows is not None:
            found += self.rows[rows]
        if self.columns is not None:
            found += self.columns[columns]
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


def find_contexts(points: Rows) -> Contexts:
    """Choose the contexts of a matrix.

    Args:
        points: ``(R, C)``, in steps of the grid.

    Returns:
        Contexts with classes of rows or columns only if these save more bits than they take.
    """
    n = size_of(points)
    energies = _Energies(points)
    columns = np.zeros(points.shape[1])
    for _ in range(_ROUNDS):
        rows, columns = energies.log_means(columns)
        columns -= columns.mean()
    has_rows = _pays(rows, n)
    has_columns = _pays(columns, n)
    if not has_rows and not has_columns:
        return Contexts(_clip(_log2(energies.total / n)), None, None)
    if not has_rows:
        rows = np.full_like(rows, _log2(float(energies.weighted(np.exp2(-columns)).mean() / columns.size)))
    if not has_columns:
        columns = np.zeros_like(columns)
        rows, _ = energies.log_means(columns)
    row_exponents = _exponents(np.clip(rows, LOWEST, HIGHEST), columns.size)
    column_exponents = _exponents(np.clip(columns, LOWEST, -LOWEST), rows.size)
    return Contexts(
        int(row_exponents.min() + column_exponents.min()),
        (row_exponents - row_exponents.min()).astype(np.uint8) if has_rows else None,
        (column_exponents - column_exponents.min()).astype(np.uint8) if has_columns else None,
    )


class _Energies:
    """The squares of the elements of a matrix, ``(R, C)``. Of a large one, some rows are in memory at a time."""

    def __init__(self, points: Rows) -> None:
        self._points = points
        self._kept = list(self._make(None)) if is_kept(points) else None
        height = next((rows.stop for rows in bands(points.shape)), 0)
        self._memory = np.empty((1 + height, points.shape[1]), np.float32) if self._kept is None else None

    def _bands(self) -> Iterable[tuple[slice, Floats]]:
        """Slices of rows, and their squares below a row that is free."""
        return self._make(self._memory) if self._kept is None else self._kept

    def _make(self, memory: Floats | None) -> Iterator[tuple[slice, Floats]]:
        """As ``_bands``; all in the same memory, if any is given."""
        for rows in bands(self._points.shape):
            n_rows = 1 + rows.stop - rows.start
            band = np.empty((n_rows, self._points.shape[1]), np.float32) if memory is None else memory[:n_rows]
            np.square(self._points[rows], out=band[1:], dtype=np.float32)
            yield rows, band

    @property
    def total(self) -> float:
        """Their sum."""
        found = Total()
        for _, band in self._bands():
            found.add(band[1:])
        return found.total()

    def log_means(self, columns: Doubles) -> tuple[Doubles, Doubles]:
        """For each row log2 of its mean, with columns divided by their variances; then for each column that of its own.

        Args:
            columns: log2 of the variances of the columns.
        """
        n_rows, n_columns = self._points.shape
        rows, of_columns = np.empty(n_rows), np.zeros(n_columns, np.float32)
        divisors = np.exp2(-columns).astype(np.float32)
        for place, band in self._bands():
            # Not by a matrix product: on a busy machine the threads of BLAS wait for each other
            rows[place] = _log_mean(np.einsum("ij,j->i", band[1:], divisors), n_columns)
            band[0] = of_columns  # the sums so far come first, so that all are added in the order of the rows
            factors = np.append(np.float32(1), np.exp2(-rows[place]).astype(np.float32))
            of_columns = np.einsum("ij,i->j", band, factors)
        return rows, _log_mean(of_columns, n_rows)

    def weighted(self, factors: Doubles) -> Doubles:
        """The sum of each row, with the factors of columns."""
        return np.concatenate([band[1:] @ factors for _, band in self._bands()])


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


def _log_mean(sums: Floats, n: int) -> Doubles:
    """log2 of the means of n energies each, from their sums."""
    means: Floats = sums / np.float32(n)
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
