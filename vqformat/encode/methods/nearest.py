"""The nearest codebook entry of each vector, found with exact scores.

The same input gives the same codes with any number of threads and any BLAS library: vectors and entries are rounded to
integers so small that every partial sum of a score is exact. With kernels ``nearest`` looks at rounded scores first,
and exactly only at vectors whose two best scores are so near that rounding may have changed their order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...decode.tables import Floats
from ...format.bits import Codes, code_dtype
from ...native import encoding
from .sampling import Doubles

# Scores of one matrix product: few enough to stay in the cache, with so few multiplications that OpenBLAS starts no
# threads. On cores that other processes use, waiting for threads has cost 30 times what they save
_CHUNK_SCORES = 1 << 16
_CHUNK_PRODUCTS = 1 << 18
_PART = 1 << 16  # vectors that are put on the grid together
_MOST_AGAIN = 0.3  # share of vectors to be looked at twice, above which all are looked at exactly at once
_SMALLEST, _LARGEST = 2.0**-40, 2.0**40  # magnitudes whose products float32 holds


def nearest(vectors: Floats, book: Floats) -> Codes:
    """Codes ``(n,)`` of the entries of ``book``, ``(entries, dim)``, nearest to the vectors, ``(n, dim)``."""
    dim = vectors.shape[1]
    codes = np.empty(vectors.shape[0], code_dtype(book.shape[0]))
    largest = max(np.abs(vectors).max(initial=0), np.abs(book).max(initial=0))
    grid = Grid.of(np.array([largest]), dim, np.float64)
    exact = book.astype(np.float64)
    right = grid.entries(exact[None])
    may_round = encoding.can_find_nearest(dim) and _SMALLEST < largest < _LARGEST
    if may_round:
        rounded = np.column_stack((exact, (exact**2).sum(axis=1) / -2)).astype(np.float32)
        # Rounded scores, and those on the grid, are off by at most half of this
        doubtful = (dim + 4) * dim * 2.0**-21 * float(largest) ** 2
    for start in range(0, codes.size, _PART):
        part = vectors[start : start + _PART]
        if not may_round:
            codes[start : start + _PART] = best_entries(grid.vectors(part[None]), right)[0][0]
            continue
        found, margins = encoding.likely_entries(part, rounded)
        again = np.flatnonzero(margins <= doubtful)
        found[again] = best_entries(grid.vectors(part[None, again]), right)[0][0]
        codes[start : start + _PART] = found
        may_round = again.size <= _MOST_AGAIN * len(part)
    return codes


@dataclass(frozen=True)
class Grid:
    """A grid of integers on which scores are exact in a float dtype.

    The score of entry c for vector x is ``x·c − |c|²/2``. It is largest for the nearest entry. If no component exceeds
    L, no partial sum exceeds 1.5 · dim · L², which must be below 2^24 (float32) or 2^53 (float64).

    Attributes:
        dtype: The float dtype.
        scale: Grid points per unit, ``(n_problems, 1, 1)``.
    """

    dtype: type[Any]
    scale: Doubles

    @classmethod
    def of(cls, largest: npt.NDArray[Any], dim: int, dtype: type[Any]) -> Grid:
        """The finest grid for components of magnitudes up to ``largest``, ``(n_problems,)``."""
        bits = 24 if dtype is np.float32 else 53
        limit = np.floor(np.sqrt(2.0**bits / (1.5 * dim))) - 1
        top = largest.astype(np.float64)
        return cls(dtype, (limit / np.where(top > 0, top, 1.0))[:, None, None])

    def vectors(self, vectors: Floats) -> npt.NDArray[Any]:
        """Vectors on the grid, with a further component 1 for the constant term: ``(n_problems, n, dim + 1)``."""
        out = np.empty((*vectors.shape[:2], vectors.shape[2] + 1), self.dtype)
        out[..., :-1] = np.rint(vectors * self.scale)
        out[..., -1] = 1
        return out

    def entries(self, books: Doubles) -> npt.NDArray[Any]:
        """Entries on the grid, with their constant terms −|c|²/2: ``(n_problems, dim + 1, entries)``."""
        on_grid = np.rint(books * self.scale)
        constant = np.floor((on_grid**2).sum(axis=2, keepdims=True) / 2)
        return np.ascontiguousarray(np.concatenate((on_grid, -constant), axis=2).transpose(0, 2, 1), self.dtype)


def best_entries(left: npt.NDArray[Any], right: npt.NDArray[Any]) -> tuple[npt.NDArray[np.intp], npt.NDArray[Any]]:
    """For each vector the entry with the highest score, and this score: ``(n_problems, n)`` each.

    Args:
        left: Vectors, from ``Grid.vectors``.
        right: Entries, from ``Grid.entries``.
    """
    if encoding.can_find_nearest(left.shape[2] - 1):
        return encoding.best_entries(left, right)
    n_problems, n, _ = left.shape
    entries = right.shape[2]
    codes = np.empty((n_problems, n), np.intp)
    top = np.empty((n_problems, n), left.dtype)
    n_scores = min(_CHUNK_SCORES, _CHUNK_PRODUCTS // left.shape[2])
    rows_at_once = max(4, n_scores // entries)
    problems_at_once = max(1, rows_at_once // n)
    rows_at_once = min(rows_at_once, n)
    buffer = np.empty(problems_at_once * rows_at_once * entries, left.dtype)
    picked = np.arange(problems_at_once * rows_at_once) * entries
    for problem in range(0, n_problems, problems_at_once):
        some = slice(problem, min(problem + problems_at_once, n_problems))
        for row in range(0, n, rows_at_once):
            rows = slice(row, min(row + rows_at_once, n))
            shape = (some.stop - some.start, rows.stop - rows.start, entries)
            scores = buffer[: shape[0] * shape[1] * entries].reshape(shape)
            np.matmul(left[some, rows], right[some], out=scores)
            best = scores.argmax(axis=2)
            codes[some, rows] = best
            flat = best.reshape(-1) + picked[: best.size]
            top[some, rows] = np.take(buffer, flat).reshape(best.shape)
    return codes, top
