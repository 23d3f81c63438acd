"""k-means of vectors, for many small problems together.

The same input gives the same result with any number of threads and any BLAS library: nearest entries are found with
exact scores (see nearest.py), and sums are computed in a fixed order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...decode.tables import Floats
from ...format.bits import Codes, code_dtype
from .kmeans_1d import kmeans_1d, nearest_1d
from .kmeans_points import Points, Vectors, largest_magnitudes
from .sampling import Doubles, Seed, sample_indices, uniforms

Progress = Callable[[int, int], None]  # rounds done, rounds at most

SAMPLE_PER_ENTRY = 64  # training vectors for each entry
_SMALLEST_SAMPLE = 1 << 16  # training vectors, at least
FULL_ROUNDS = 2  # rounds on all vectors, after the rounds on a sample
_STRIDE = 1.7  # factor of the movement of an entry towards the mean of its vectors
_LEAST_GAIN = 2e-4  # a round that reduces the distortion by a smaller share is the last
_PLUS_PLUS_ENTRIES = 4096  # for more entries the initial codebook is a random sample


@dataclass(frozen=True)
class Clusters:
    """Codebooks of several problems, and their codes.

    Attributes:
        books: ``(n_problems, entries, dim)`` float32; unused entries are 0.
        codes: ``(n_problems, n)``.
        distortion: Weighted squared error of all problems together.
    """

    books: Floats
    codes: Codes
    distortion: float


def kmeans(
    vectors: Floats,
    entries: int,
    *,
    seed: Seed = 0,
    iterations: int = 25,
    weights: npt.NDArray[Any] | None = None,
    progress: Progress | None = None,
) -> tuple[Floats, Codes]:
    """k-means of vectors: k-means++ (Arthur and Vassilvitskii 2007), then Lloyd's rounds.

    Args:
        vectors: ``(n, dim)``, finite, at least one.
        entries: Most entries of the codebook.
        iterations: Most rounds.
        weights: Weights of the squared errors, ``(n,)``, at least 0; None for 1.
        progress: Called with the number of rounds done, and the most rounds.

    Returns:
        The codebook, ``(k, dim)`` float32 with ``k ≤ entries``, and codes ``(n,)``. If there are at most ``entries``
        distinct vectors, the codebook has exactly these.
    """
    if vectors.shape[1] == 1:
        levels = kmeans_1d(vectors[:, 0], entries, seed=seed, iterations=max(iterations, 1000), weights=weights)
        book = levels.astype(np.float32)
        return book[:, None], nearest_1d(vectors[:, 0], book)
    clusters = kmeans_batch(vectors[None], entries, seed=seed, iterations=iterations,
                            weights=None if weights is None else weights[None], progress=progress)  # fmt: skip
    return clusters.books[0], clusters.codes[0]


def kmeans_batch(
    vectors: Vectors,
    entries: int,
    *,
    seed: Seed = 0,
    iterations: int = 25,
    weights: npt.NDArray[Any] | None = None,
    progress: Progress | None = None,
) -> Clusters:
    """k-means of several independent problems of the same size. Arguments are those of ``kmeans``, except:

    Args:
        vectors: ``(n_problems, n, dim)``, finite; with one problem, not only an array.
        weights: ``(n_problems, n)``, at least 0; None for 1.
    """
    n_problems, n, dim = vectors.shape
    if isinstance(vectors, np.ndarray):
        vectors = vectors + np.float32(0)  # turns -0 into 0: equal vectors must have equal bytes
    exact = {}
    for problem in range(n_problems):
        found = _distinct(vectors, problem, entries)
        if found is not None:
            exact[problem] = found
    rest = [problem for problem in range(n_problems) if problem not in exact]
    n_entries = entries if rest else max(book.shape[0] for book, _ in exact.values())
    books = np.zeros((n_problems, n_entries, dim), np.float32)
    codes = np.empty((n_problems, n), code_dtype(n_entries))
    for problem, (book, own) in exact.items():
        books[problem, : book.shape[0]] = book
        codes[problem] = own
    distortion = 0.0
    if rest:
        part = vectors if not exact else np.asarray(vectors)[rest]
        part_weights = None if weights is None else weights if not exact else weights[rest]
        lloyd = _Lloyd(part, part_weights, entries, seed)
        books[rest], codes[rest], distortion = lloyd.run(iterations, progress)
    return Clusters(books, codes, distortion)


def _distinct(vectors: Vectors, problem: int, entries: int) -> tuple[Floats, npt.NDArray[np.intp]] | None:
    """The distinct vectors of a problem and their codes, if there are at most ``entries``; else None."""
    one, n = slice(problem, problem + 1), vectors.shape[1]
    if n > 2 * entries:
        few = vectors[one, np.linspace(0, n - 1, 2 * entries).astype(np.intp)][0]
        if np.unique(_as_bytes(few)).size > entries:
            return None
    own = vectors[one, slice(0, n)][0]
    _, first, codes = np.unique(_as_bytes(own), return_index=True, return_inverse=True)
    return None if first.size > entries else (own[first], codes.reshape(-1))


def _as_bytes(vectors: Floats) -> npt.NDArray[np.void]:
    return np.ascontiguousarray(vectors).view(np.dtype((np.void, 4 * vectors.shape[1]))).reshape(-1)


class _Lloyd:
    """k-means of ``(n_problems, n, dim)`` vectors, each problem with more distinct vectors than entries."""

    def __init__(self, vectors: Vectors, weights: npt.NDArray[Any] | None, entries: int, seed: Seed) -> None:
        self.vectors = vectors
        self.weights = None if weights is None else weights.astype(np.float64)
        self.n_entries = entries
        self.seed = [seed] if isinstance(seed, int) else list(seed)
        self.largest = largest_magnitudes(vectors)

    def run(self, iterations: int, progress: Progress | None) -> tuple[Floats, Codes, float]:
        """Codebooks, codes and the weighted squared error."""
        n = self.vectors.shape[1]
        limit = max(_SMALLEST_SAMPLE, self.n_entries * SAMPLE_PER_ENTRY)
        points = self._sample(limit, np.float64)
        books = self._start(points)
        if points.vectors.shape[1] >= limit:  # the first half of the rounds uses a smaller sample
            few = self._sample(limit // 4, np.float64)
            books = self._rounds(few, books, iterations // 2, progress)
            points = self._sample(limit, few.dtype)
            iterations -= iterations // 2
        books = self._rounds(points, books, iterations, progress)
        if n > limit:
            points = Points(self.vectors, self.weights, self.largest, points.dtype, in_bands=True)
            books = self._rounds(points, books, min(iterations, FULL_ROUNDS), None)
        rounded = books.astype(np.float32)
        codes, distortion = points.codes(rounded.astype(np.float64))
        return rounded, codes, distortion

    def _sample(self, limit: int, dtype: type[Any]) -> Points:
        n = self.vectors.shape[1]
        if n <= limit:
            return Points(self.vectors, self.weights, self.largest, dtype)
        chosen = sample_indices(n, limit, [*self.seed, 1])
        weights = None if self.weights is None else self.weights[:, chosen]
        return Points(self.vectors[:, chosen], weights, self.largest, dtype)

    def _start(self, points: Points) -> Doubles:
        """Initial codebooks by k-means++ on a sample: vectors are drawn in proportion to their squared error."""
        n_problems, n, _ = points.vectors.shape
        chosen = sample_indices(n, max(8192, 16 * self.n_entries), [*self.seed, 2])
        rows = np.arange(n_problems)
        if self.n_entries > _PLUS_PLUS_ENTRIES:
            keys = uniforms([*self.seed, 3], n_problems * chosen.size).reshape(n_problems, -1)
            picks = np.argsort(keys, axis=1, kind="stable")[:, : self.n_entries]
        else:
            draws = uniforms([*self.seed, 3], self.n_entries * n_problems).reshape(self.n_entries, n_problems)
            mass = 1.0 if points.weights is None else points.weights[:, chosen]
            pool = points.vectors[:, chosen] / np.where(self.largest > 0, self.largest, 1)[:, None, None]
            by_axis = None
            if pool.shape[2] <= 32:  # (dim, n_problems, n): for short vectors, so that inner loops are long
                by_axis = np.ascontiguousarray(pool.transpose(2, 0, 1))
            errors = np.full(pool.shape[:2], np.float32(np.inf))
            picks = np.empty((n_problems, self.n_entries), np.intp)
            for k in range(self.n_entries):
                picks[:, k] = _draw((errors if k else np.ones_like(errors)) * mass, draws[k])
                if by_axis is None:
                    distance = np.square(pool - pool[rows, picks[:, k]][:, None]).sum(axis=2)
                else:
                    distance = np.zeros_like(errors)
                    for axis in by_axis:
                        distance += np.square(axis - axis[rows, picks[:, k]][:, None])
                np.minimum(errors, distance, out=errors)
        drawn = points.vectors[:, chosen]
        return drawn[rows[:, None], picks].astype(np.float64)

    def _rounds(self, points: Points, books: Doubles, iterations: int, progress: Progress | None) -> Doubles:
        """Lloyd's rounds, until a round gains little.

        Entries move beyond the means, except in the last round (Lee, Baek and Sung 1997). This halves the number of
        rounds for the same result.
        """
        previous = np.inf
        top = self.largest[:, None, None].astype(np.float64)
        for done in range(iterations):
            counts, sums, distortion = points.assign(books)
            means = np.where(counts[:, :, None] > 0, sums / np.where(counts > 0, counts, 1.0)[:, :, None], books)
            if progress is not None:
                progress(done + 1, iterations)
            is_last = done + 1 == iterations or previous - distortion <= _LEAST_GAIN * distortion
            is_empty = counts == 0
            if is_last and not (is_empty.any() and done + 1 < iterations):
                return means
            news = np.clip(books + _STRIDE * (means - books), -top, top)
            if is_empty.any():
                self._reseed(points, points.errors(books), news, is_empty, done)
            books, previous = news, distortion
        return books

    def _reseed(
        self, points: Points, errors: Doubles, books: Doubles, empty: npt.NDArray[np.bool_], done: int
    ) -> None:
        """Move entries that no vector uses to vectors drawn in proportion to their squared error."""
        for problem in np.flatnonzero(empty.any(axis=1)):
            entries = np.flatnonzero(empty[problem])
            draws = uniforms([*self.seed, 4, done, int(problem)], entries.size)
            sums = np.cumsum(errors[problem])
            picks = np.searchsorted(sums, draws * sums[-1], side="right")
            one = slice(problem, problem + 1)
            books[problem, entries] = points.vectors[one, np.minimum(picks, sums.size - 1)][0]


def _draw(masses: npt.NDArray[Any], draws: Doubles) -> npt.NDArray[np.intp]:
    """For each row of ``masses``, ``(n_rows, n)``, draw an index in proportion to them.

    Args:
        draws: For each row a random number in [0, 1).
    """
    n_rows, n = masses.shape
    sums = np.cumsum(masses, dtype=np.float64)
    ends = sums[n - 1 :: n]
    starts = np.append(0.0, ends[:-1])
    picks = np.searchsorted(sums, starts + draws * (ends - starts), side="right") - np.arange(n_rows) * n
    return np.asarray(np.clip(picks, 0, n - 1))
