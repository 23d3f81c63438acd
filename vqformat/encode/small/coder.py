"""Quantizing the rows of a matrix to the codes of a trellis stage, some at a time, in whole tiles (SPEC section 12)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ... import native
from ...decode.tables import Floats
from ...native import encoding
from ..progress import advance
from . import viterbi
from .bands import Rows, bands
from .contexts import Contexts
from .error_weights import ErrorWeights
from .trellis import Books, Grid, Indices
from .viterbi import Rates

_DAMPING = 0.2  # cost of the squared sum of errors, relative to the sum of squared errors


class Coder:
    """Quantizes rows of a matrix to the codes with the least cost, each tile by itself.

    Args:
        points: ``(R, C)``, in steps of the grid.
        contexts: Contexts of the elements.
        grid: Tiles, blocks and trellis.
        rates: Costs of the indices.
        weights: Weights of the squared errors; an array of a shape that can be broadcast; None for 1.

    Attributes:
        indices, books: Index and codebook of each element, filled as rows are quantized.
    """

    def __init__(
        self, points: Rows, contexts: Contexts, grid: Grid, rates: Rates, weights: ErrorWeights | Floats | None = None
    ) -> None:
        self._points, self._contexts, self._grid, self._rates, self._weights = points, contexts, grid, rates, weights
        shape = points.shape[0], points.shape[1]
        self.indices, self.books = np.empty(shape, np.int16), np.empty(shape, np.uint8)

    def quantize(self) -> tuple[Indices, Books]:
        """Quantize the whole matrix. Returns index and codebook of each element."""
        for rows in self._bands(slice(0, self._points.shape[0])):
            self._quantize(rows, self._points[rows], None)
        return self.indices, self.books

    def quantize_keeping_sums(self, shares: Floats | None = None) -> tuple[Indices, Books]:
        """As ``quantize``, but the sum of the errors of each column is kept small.

        A column has the weights of one output. If inputs have a mean other than 0, as after a ReLU, a sum of errors
        shifts the output. So each further part of the rows compensates the sum of the errors before it. This is the
        feedback of Frantar et al. 2022 (GPTQ) for inputs with the second moments I + d s sᵀ, where d is ``_DAMPING``.

        Args:
            shares: s, the factors of the errors of rows in the sum; repeated if there are more rows. None for 1.
        """
        n_rows, n_columns = self._points.shape
        of_rows = np.resize(np.ones(1, np.float32) if shares is None else shares, n_rows)
        left = np.zeros(n_columns, np.float32)  # sum of the errors so far
        for start, end in halves(n_rows, self._grid.tile[0]):
            made_up = None
            if start:  # there are errors before it
                made_up = _DAMPING * of_rows[start:end] / (1 + _DAMPING * np.square(of_rows[start:]).sum())
            of_part: Floats | None = None
            for rows in self._bands(slice(start, end)):
                points = self._points[rows]
                shift = None if made_up is None else left * made_up[rows.start - start : rows.stop - start, None]
                self._quantize(rows, points, shift)
                factors = None if shares is None else of_rows[rows]
                of_part = _sum_errors(points, self.indices[rows], self.books[rows], factors, of_part)
            assert of_part is not None
            left += of_part
        return self.indices, self.books

    def _bands(self, part: slice) -> Iterator[slice]:
        """Bands of some rows, of whole tiles."""
        n_columns = self._points.shape[1]
        if n_columns == 1:  # NumPy adds the errors of a single column in an order that depends on their number
            yield part
            return
        for rows in bands((part.stop - part.start, n_columns), self._grid.tile[0]):
            yield slice(part.start + rows.start, part.start + rows.stop)

    def _quantize(self, rows: slice, points: Floats, shift: Floats | None) -> None:
        """Quantize rows.

        Args:
            shift: What is added to the points before.
        """
        # A block has whole tiles, so tiles are the same as without blocks
        weights: Floats | None = None
        if isinstance(self._weights, ErrorWeights):
            weights = self._weights.of_rows(rows, points)
        elif self._weights is not None:
            weights = self._weights[rows] if self._weights.shape[0] > 1 else self._weights
        viterbi.quantize_tiles(
            points if shift is None else points + shift, self._grid.tile, self._contexts.at(rows, slice(None)),
            self._rates, self._grid.trellis, weights=weights, out=(self.indices[rows], self.books[rows]),
        )  # fmt: skip
        advance(points.size)


def _sum_errors(
    points: Floats, indices: Indices, books: Books, factors: Floats | None, before: Floats | None
) -> Floats:
    """The sums of the errors of columns, each times the factor of its row.

    Args:
        before: The sums of earlier rows, which come first; None for 0.
    """
    if native.is_used() and points.shape[1] > 1:  # NumPy adds the elements of a single column in another order
        return encoding.sum_errors(points, indices, books, factors, before)
    errors = points - (2 * indices + books)
    if factors is not None:
        errors *= factors[:, None]
    if before is not None:
        errors = np.concatenate((before[None], errors))
    sums: Floats = errors.sum(axis=0)  # not by a matrix product, whose rounding depends on threads and BLAS
    return sums


def halves(n_rows: int, unit: int) -> list[tuple[int, int]]:
    """Ranges of rows, each half of those that remain, in multiples of ``unit``."""
    ranges = []
    start = 0
    while start < n_rows:
        units = -(-(n_rows - start) // unit)
        end = min(n_rows, start + max(1, units // 2) * unit)
        ranges.append((start, end))
        start = end
    return ranges
