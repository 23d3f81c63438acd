"""The vectors of k-means, as integers of a grid; those of a large matrix some at a time, to save memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ...decode.tables import Floats
from ...format.bits import Codes, code_dtype
from .layout import ShortFloats
from .nearest import Grid, best_entries
from .sampling import Doubles

_BAND = 1 << 18  # values of all problems that are in memory together


class Matrix(Protocol):
    """A matrix ``(R, C)``: an array, or something that makes a part of one when it is asked for."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, part: tuple[Any, Any], /) -> ShortFloats: ...


class Vectors(Protocol):
    """Vectors ``(n_problems, n, dim)``: an array, or something that makes a part of one when it is asked for."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, part: tuple[slice, Any], /) -> Floats: ...


@dataclass(frozen=True)
class Subvectors:
    """The subvectors of a matrix as one problem of k-means, ``(1, n_rows · n_whole, dim)``; no -0 is among them.

    Attributes:
        n_whole: Number of whole subvectors of a row.
    """

    matrix: Matrix
    dim: int
    n_whole: int

    @property
    def shape(self) -> tuple[int, ...]:
        return 1, self.matrix.shape[0] * self.n_whole, self.dim

    def __getitem__(self, part: tuple[slice, Any], /) -> Floats:
        chosen = part[1]
        if isinstance(chosen, slice):
            start, end, _ = chosen.indices(self.shape[1])
            rows = slice(start // self.n_whole, -(-end // self.n_whole))
            of_rows = self.matrix[rows, slice(0, self.n_whole * self.dim)].reshape(-1, self.dim)
            first = start - rows.start * self.n_whole
            found = of_rows[first : first + end - start]
        else:
            at_row, subvectors = np.divmod(chosen, self.n_whole)
            found = self.matrix[at_row[:, None], subvectors[:, None] * self.dim + np.arange(self.dim)]
        return found[None] + np.float32(0)


def largest_magnitudes(vectors: Vectors) -> Floats:
    """The largest magnitude of each problem, ``(n_problems,)``."""
    found = [np.abs(vectors[:, place]).max(axis=(1, 2)) for place in _places(vectors.shape)]
    largest: Floats = np.max(found, axis=0)
    return largest


def _places(shape: tuple[int, ...]) -> list[slice]:
    """The bands of vectors of this shape."""
    n_problems, n, dim = shape
    at_once = max(1, _BAND // (n_problems * dim))
    return [slice(start, min(start + at_once, n)) for start in range(0, n, at_once)]


class Points:
    """Vectors to be clustered.

    Args:
        largest: Largest magnitude of each problem, ``(n_problems,)``.
        dtype: dtype of the grid.
        in_bands: Whether only some of the vectors are on the grid at a time.

    Attributes:
        vectors: ``(n_problems, n, dim)``.
        weights: ``(n_problems, n)`` or None.
        dtype: dtype of the grid.
    """

    def __init__(
        self, vectors: Vectors, weights: npt.NDArray[Any] | None, largest: Floats, dtype: type[Any], *,
        in_bands: bool = False,
    ) -> None:  # fmt: skip
        self.vectors, self.weights, self.dtype, self._largest = vectors, weights, dtype, largest
        self._places = _places(vectors.shape) if in_bands else [slice(0, vectors.shape[1])]
        self._band: _Band | None = None  # the only one
        self._errors: Doubles | None = None  # those of the last round, if there is one band

    def assign(self, books: Doubles) -> tuple[Doubles, Doubles, float]:
        """Assign each vector to its nearest entry.

        Then it changes to the coarser grid of float32, if the rounding to that adds less than a thousandth to the
        squared error.

        Returns:
            Weight ``(n_problems, entries)`` and weighted sum ``(n_problems, entries, dim)`` of the vectors of each
            entry, and the weighted squared error.
        """
        n_problems, n, dim = self.vectors.shape
        counts: Doubles | None = None
        sums: list[Doubles | None] = [None] * dim
        of_problems = np.zeros(n_problems)
        distortion = 0.0
        for _, band in self._bands():
            codes, errors = band.assign(books)
            bins = (codes + (np.arange(n_problems) * books.shape[1])[:, None]).reshape(-1)
            mass = None if band.weights is None else band.weights.reshape(-1)
            counts = _add(counts, bins, mass, n_problems * books.shape[1])
            sums = [_add(of_axis, bins, axis if mass is None else axis * mass, n_problems * books.shape[1])
                    for of_axis, axis in zip(sums, band.axes, strict=True)]  # fmt: skip
            of_problems += errors.sum(axis=1)
            self._errors = band.weighted(errors)
            distortion += float(self._errors.sum())
        if self.dtype is np.float64:
            coarse = Grid.of(self._largest, dim, np.float32)
            if (of_problems / n * coarse.scale[:, 0, 0] ** 2 >= 100 * dim).all():
                self.dtype, self._band = np.float32, None
        assert counts is not None
        of_entries = np.stack([of_axis for of_axis in sums if of_axis is not None], axis=1)
        return counts.reshape(books.shape[:2]), of_entries.reshape(books.shape), distortion

    def codes(self, books: Doubles) -> tuple[Codes, float]:
        """Nearest entries, ``(n_problems, n)``, and the weighted squared error."""
        codes = np.empty(self.vectors.shape[:2], code_dtype(books.shape[1]))
        distortion = 0.0
        for place, band in self._bands():
            codes[:, place], errors = band.assign(books)
            distortion += float(band.weighted(errors).sum())
        return codes, distortion

    def errors(self, books: Doubles) -> Doubles:
        """Weighted squared errors with the codebooks of the last round, ``(n_problems, n)``."""
        if self._errors is not None and len(self._places) == 1:
            return self._errors
        return np.concatenate([band.weighted(band.assign(books)[1]) for _, band in self._bands()], axis=1)

    def _bands(self) -> Iterator[tuple[slice, _Band]]:
        for place in self._places:
            band = self._band
            if band is None:
                weights = None if self.weights is None else self.weights[:, place]
                band = _Band(self.vectors[:, place], weights, Grid.of(self._largest, self.vectors.shape[2], self.dtype))
            if len(self._places) == 1:
                self._band = band
            yield place, band


class _Band:
    """Some vectors on a grid.

    Attributes:
        weights: ``(n_problems, n)`` or None.
        axes: ``(dim, n_problems · n)``, the vectors themselves.
    """

    def __init__(self, vectors: Floats, weights: npt.NDArray[Any] | None, grid: Grid) -> None:
        self.weights = weights
        self.axes = np.ascontiguousarray(vectors.transpose(2, 0, 1)).reshape(vectors.shape[2], -1)
        self._grid = grid
        self._left = grid.vectors(vectors)
        self._norms = np.square(self._left[..., :-1]).sum(axis=2)

    def assign(self, books: Doubles) -> tuple[npt.NDArray[np.intp], Doubles]:
        """Nearest entries, and squared errors without weights, ``(n_problems, n)`` each."""
        codes, top = best_entries(self._left, self._grid.entries(books))
        units = np.maximum(self._norms - 2 * top.astype(np.float64), 0)
        errors: Doubles = units / self._grid.scale[:, :, 0] ** 2
        return codes, errors

    def weighted(self, errors: Doubles) -> Doubles:
        """Squared errors times their weights."""
        return errors if self.weights is None else errors * self.weights


def _add(sums: Doubles | None, bins: npt.NDArray[np.intp], values: npt.NDArray[Any] | None, size: int) -> Doubles:
    """Sums of values by their bins, ``(size,)``.

    Args:
        sums: Those of earlier values; None for 0. They come first, so that all values of a bin are added in order.
        values: None for 1.
    """
    if sums is not None and values is not None:
        bins, values = np.concatenate((np.arange(size), bins)), np.concatenate((sums, values))
        sums = None
    found = np.bincount(bins, values, size).astype(np.float64, copy=False)
    return found if sums is None else sums + found
