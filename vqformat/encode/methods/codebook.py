"""Codebook stages for scalars and subvectors of a matrix: k-means, product and vector quantization (SPEC section 9)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from ...decode import tables
from ...decode.tables import Book, Floats
from ...errors import EncodeError
from ...format.bits import Codes, code_dtype
from ...format.limits import MAX_DIM, MAX_RESIDENT_NBYTES
from ...format.stages import CodebookStage, SharedSource, TableSource
from . import kmeans
from .assemble import QuantizedStage
from .kmeans_1d import kmeans_1d, nearest_1d, training_places
from .kmeans_points import Matrix, Subvectors, Vectors
from .nearest import nearest
from .sampling import Seed
from .scales import ScaledMatrix, choose_table_dtype, group_size, scale_matrix

_BAND = 1 << 22  # values whose nearest levels are found together
_BATCH_VALUES = 1 << 24  # values of all problems that are solved together


@dataclass(frozen=True)
class CodebookOptions:
    """The parameters of a codebook stage.

    Attributes:
        dim: Columns of a subvector; 0 for a whole row.
        entries: Most entries of a codebook.
        book_rows: Rows that share a codebook; 0 for all.
        book_columns: Columns of subvectors that share a codebook; 0 for all.
        scale: ``none``, ``row``, or for dim 1 ``column``.
        iterations: Most rounds of k-means.
    """

    dim: int
    entries: int
    book_rows: int = 0
    book_columns: int = 0
    scale: str = "none"
    iterations: int = 25


def quantize_codebook(matrix: Matrix, options: CodebookOptions, *, seed: Seed) -> QuantizedStage:
    """Quantize a matrix with codebooks that are trained on it.

    With dim 1 and one codebook this is scalar k-means. With ``book_columns = 1`` it is product quantization (Gong et
    al. 2014, sections 3.2.2 and 3.2.3).

    Args:
        matrix: ``(R, C)``, finite. With one codebook and no scales it may be other than an array of float32: for dim 1
            an array of f16 or bf16, or what makes its parts.

    Raises:
        EncodeError: A subvector, or all codebooks together, exceed a limit of SPEC section 14.
    """
    n_rows, n_columns = matrix.shape
    dim = min(options.dim or n_columns, n_columns)
    if dim > MAX_DIM:
        raise EncodeError(f"subvectors of {dim} columns exceed the limit of {MAX_DIM}; set dim to less")
    n_subvectors = -(-n_columns // dim)
    book_rows = group_size(options.book_rows, n_rows)
    book_columns = group_size(options.book_columns, n_subvectors)
    row_edges, column_edges = _edges(n_rows, book_rows), _edges(n_subvectors, book_columns)
    n_books = (len(row_edges) - 1) * (len(column_edges) - 1)
    members = (book_rows or n_rows) * (book_columns or n_subvectors)
    if n_books * min(options.entries, members) * dim * 4 > MAX_RESIDENT_NBYTES:
        raise EncodeError(f"{n_books} codebooks of {options.entries} entries and dim {dim} exceed"
                          f" {MAX_RESIDENT_NBYTES} bytes; let more rows or segments share one")  # fmt: skip
    scaled = scale_matrix(cast(Floats, matrix), options.scale)  # without scales the matrix stays what it is
    seeds = [seed] if isinstance(seed, int) else list(seed)
    found, codes = _solve(scaled, dim, options, (row_edges, column_edges), seed=seeds)
    entries = max(book.shape[0] for book in found)
    books = np.zeros((n_books, entries, dim), np.float32)
    for number, book in enumerate(found):
        books[number, : book.shape[0]] = book
    codes = codes.astype(code_dtype(entries), copy=False)
    stage = CodebookStage(dim, entries, TableSource("f32"), book_rows, book_columns, scaled.record)
    dtype = choose_table_dtype(books, *_measure(scaled, stage, books, codes), n_rows * n_columns)
    table = tables.encode(books, dtype)
    if dim == 1 and dtype != "f32":  # rounding moves levels, so that other ones may be nearest
        rounded = tables.decode(table, dtype, "codebook").reshape(n_books, entries)
        levels = [row[: book.shape[0]] for row, book in zip(rounded, found, strict=True)]
        _find_nearest(scaled.values, levels, row_edges, column_edges, codes)
    return QuantizedStage(replace(stage, source=TableSource(dtype)), [table, *scaled.resident], codes)


def quantize_shared(matrix: Floats, book: Floats, number: int, scale: str) -> QuantizedStage:
    """Quantize a matrix with an existing codebook.

    Args:
        matrix: ``(R, C)``, finite.
        book: ``(entries, dim)``, the stored values.
        number: Number of its BOOK chunk.
        scale: ``none``, ``row`` or ``column``.
    """
    entries, dim = book.shape
    scaled = scale_matrix(matrix, scale)
    if dim == 1:
        codes = _nearest_level(scaled.values, book[:, 0])
    else:
        codes = _nearest_subvectors(scaled.values, book)
    stage = CodebookStage(dim, entries, SharedSource(number), scale=scaled.record)
    return QuantizedStage(stage, scaled.resident, codes, shared=Book(book.reshape(-1)))


def train_book(matrices: Sequence[Floats], options: CodebookOptions, *, seed: Seed) -> tuple[Floats, str]:
    """Train one codebook for several matrices.

    Incomplete subvectors at the end of rows are not used.

    Returns:
        The codebook, ``(entries, dim)``, with its stored values, and its dtype.
    """
    dim = min(options.dim, max(matrix.shape[1] for matrix in matrices))
    vectors, weights = [], []
    for matrix in matrices:
        scaled = scale_matrix(matrix, options.scale)
        n_whole = scaled.values.shape[1] // dim
        vectors.append(scaled.values[:, : n_whole * dim].reshape(-1, dim))
        weights.append(np.broadcast_to(scaled.weights_of(dim)[:, :n_whole], (matrix.shape[0], n_whole)).reshape(-1))
    joined = np.concatenate(vectors)
    mass = None if options.scale == "none" else np.concatenate(weights)
    if dim == 1:
        levels = kmeans_1d(joined[:, 0], options.entries, seed=seed, iterations=options.iterations, weights=mass)
        book = levels.astype(np.float32)[:, None]
        codes = nearest_1d(joined[:, 0], book[:, 0])
    else:
        book, codes = kmeans.kmeans(joined, options.entries, seed=seed, iterations=options.iterations, weights=mass)
    counts = np.bincount(codes, weights=mass, minlength=book.shape[0]).astype(np.float64)
    errors = np.square(joined.astype(np.float64) - book[codes]).sum(axis=1)
    distortion = float(errors.sum() if mass is None else (errors * mass).sum())
    dtype = choose_table_dtype(book[None], counts[None], distortion, joined.size)
    return tables.decode(tables.encode(book, dtype), dtype, "codebook").reshape(book.shape), dtype



def _edges(n: int, size: int) -> list[int]:
    """Where the groups of SPEC 9.2 begin, and the end of the last one."""
    return [*range(0, n, size or n), n]


def _solve(
    scaled: ScaledMatrix,
    dim: int,
    options: CodebookOptions,
    edges: tuple[list[int], list[int]],
    *,
    seed: list[int],
) -> tuple[list[Floats], Codes]:
    """A codebook ``(≤ entries, dim)`` for each group, and codes ``(R, n_subvectors)``.

    Groups of the same width in the same rows are solved together, because product quantization has many small groups.

    Args:
        edges: Edges of the groups along rows and along subvectors.
    """
    row_edges, column_edges = edges
    n_books = (len(row_edges) - 1) * (len(column_edges) - 1)
    codes = np.empty((scaled.values.shape[0], column_edges[-1]), code_dtype(options.entries))
    weights = None if scaled.record is None else scaled.weights_of(dim)
    books: list[Floats] = []
    for rows in (slice(*pair) for pair in pairwise(row_edges)):
        mass = weights if weights is None or weights.shape[0] == 1 else weights[rows]
        for first, end in _runs(column_edges, rows.stop - rows.start, scaled.values.shape[1], dim):
            columns = slice(column_edges[first], column_edges[end])
            values = scaled.values
            if n_books > 1:
                values = values[rows, columns.start * dim : columns.stop * dim]
            own_mass = None
            if mass is not None:
                own_mass = np.broadcast_to(mass[:, columns], (values.shape[0], columns.stop - columns.start))
            own_seed = [*seed, len(books)]
            if dim == 1:
                books.append(_solve_scalars(values, own_mass, options, own_seed, codes[rows, columns]))
                continue
            found, codes[rows, columns] = _solve_run(values, own_mass, dim, options, n_groups=end - first,
                                                     seed=own_seed)  # fmt: skip
            books += found
    return books, codes


def _solve_scalars(
    values: Matrix, weights: npt.NDArray[np.float64] | None, options: CodebookOptions, seed: list[int], codes: Codes
) -> Floats:
    """The codebook of a group of scalars, ``(≤ entries, 1)``. Their codes are written to ``codes``."""
    n_rows, n_columns = values.shape
    flat_weights = None if weights is None else weights.reshape(-1)
    if isinstance(values, np.ndarray):
        flat = values.reshape(-1)
    else:
        chosen = training_places(n_rows * n_columns, options.entries, seed, are_weighted=False)
        flat = values[np.divmod(chosen, n_columns)]
    levels = kmeans_1d(flat, options.entries, seed=seed, iterations=options.iterations,
                       weights=flat_weights).astype(np.float32)  # fmt: skip
    _find_nearest(values, [levels], [0, n_rows], [0, n_columns], codes)
    return levels[:, None]


def _runs(column_edges: list[int], n_rows: int, n_columns: int, dim: int) -> Iterator[tuple[int, int]]:
    """Ranges of numbers of groups that are solved together: groups of the same width."""
    width, n_groups = column_edges[1], len(column_edges) - 1
    at_once = 1 if dim == 1 else max(1, _BATCH_VALUES // (width * dim * n_rows))
    n_alike = n_groups - (n_groups * width * dim != n_columns)
    for first in range(0, n_alike, at_once):
        yield first, min(first + at_once, n_alike)
    if n_alike < n_groups:
        yield n_alike, n_groups


def _solve_run(
    values: Matrix,
    weights: npt.NDArray[np.float64] | None,
    dim: int,
    options: CodebookOptions,
    *,
    n_groups: int,
    seed: list[int],
) -> tuple[list[Floats], Codes]:
    """Codebooks of subvectors for neighbouring groups of the same width, and codes ``(n_rows, n_subvectors)``.

    Args:
        values: ``(n_rows, n_columns)``. If n_columns is not a multiple of dim, there must be one group.
        weights: Weights of squared errors, ``(n_rows, n_subvectors)``; None for 1.
    """
    n_rows, n_columns = values.shape
    n_whole = n_columns // dim
    if n_whole == 0:  # SPEC 9.1: columns beyond the last one are dropped, so they may be 0
        values = np.pad(values[:, :], ((0, 0), (0, dim - n_columns)))
        n_whole = 1
    width = n_whole // n_groups
    vectors: Vectors
    if n_groups == 1:
        vectors = Subvectors(values, dim, n_whole)
    else:
        grouped = values[:, : n_whole * dim].reshape(n_rows, n_groups, width, dim).transpose(1, 0, 2, 3)
        vectors = grouped.reshape(n_groups, -1, dim)  # (n_groups, n_rows · width, dim)
    mass: npt.NDArray[Any] | None = None
    if weights is not None:
        mass = weights[:, :n_whole].reshape(n_rows, n_groups, width).transpose(1, 0, 2).reshape(n_groups, -1)
    clusters = kmeans.kmeans_batch(vectors, options.entries, seed=seed, iterations=options.iterations, weights=mass)
    codes = clusters.codes.reshape(n_groups, n_rows, width).transpose(1, 0, 2).reshape(n_rows, n_whole)
    if n_whole * dim < values.shape[1]:
        book = clusters.books[0]
        tail = values[:, slice(n_whole * dim, n_columns)]
        last = nearest(tail, np.ascontiguousarray(book[:, : tail.shape[1]]))
        codes = np.concatenate((codes, last[:, None]), axis=1)
    return list(clusters.books), codes


def _find_nearest(
    values: Matrix, levels: list[Floats], row_edges: list[int], column_edges: list[int], codes: Codes
) -> None:
    """Write the codes of scalars, by the levels of each group, to ``codes``."""
    groups = ((slice(*rows), slice(*columns)) for rows in pairwise(row_edges) for columns in pairwise(column_edges))
    for (rows, columns), own in zip(groups, levels, strict=True):
        at_once = max(1, _BAND // (columns.stop - columns.start))
        for start in range(rows.start, rows.stop, at_once):
            band = slice(start, min(start + at_once, rows.stop)), columns
            codes[band] = nearest_1d(values[band], own)


def _nearest_level(values: Floats, levels: Floats) -> Codes:
    """Codes of scalars, for levels in any order."""
    order = np.argsort(levels, kind="stable")
    return order.astype(code_dtype(levels.size))[nearest_1d(values, levels[order])]


def _nearest_subvectors(values: Floats, book: Floats) -> Codes:
    """Codes ``(R, n_subvectors)`` for one codebook. Missing columns of the last subvector are ignored."""
    n_rows, n_columns = values.shape
    dim = book.shape[1]
    n_whole = n_columns // dim
    codes = np.empty((n_rows, -(-n_columns // dim)), code_dtype(book.shape[0]))
    if n_whole:
        codes[:, :n_whole] = nearest(values[:, : n_whole * dim].reshape(-1, dim), book).reshape(n_rows, n_whole)
    if n_whole * dim < n_columns:
        tail = values[:, n_whole * dim :]
        codes[:, -1] = nearest(tail, np.ascontiguousarray(book[:, : tail.shape[1]]))
    return codes


def _measure(
    scaled: ScaledMatrix, stage: CodebookStage, books: Floats, codes: Codes
) -> tuple[npt.NDArray[np.float64], float]:
    """Weighted number of uses of each entry, ``(n_books, entries)``, and the weighted squared error."""
    n_books, entries, dim = books.shape
    n_rows, n_columns = scaled.values.shape
    counts = np.zeros(n_books * entries)
    distortion = 0.0
    flat = books.reshape(-1, dim)
    weights = scaled.weights_of(dim)
    column_book = np.arange(codes.shape[1]) // stage.book_columns if stage.book_columns else np.zeros(1, np.intp)
    across = int(column_book[-1]) + 1
    at_once = max(1, (1 << 18) // n_columns)
    for start in range(0, n_rows, at_once):
        rows = slice(start, min(start + at_once, n_rows))
        row_book = np.arange(rows.start, rows.stop) // stage.book_rows if stage.book_rows else np.zeros(1, np.intp)
        uses = codes[rows] + (row_book[:, None] * across + column_book) * entries
        mass = None
        if scaled.record is not None:
            mass = np.broadcast_to(weights if weights.shape[0] == 1 else weights[rows], uses.shape).reshape(-1)
        counts += np.bincount(uses.reshape(-1), weights=mass, minlength=counts.size)
        decoded = np.take(flat, uses, axis=0).reshape(uses.shape[0], -1)[:, :n_columns]
        own = scaled.values[rows, slice(0, n_columns)].astype(np.float32, copy=False)
        errors = np.square(decoded.astype(np.float64) - own)
        distortion += float((errors * scaled.weights if scaled.weights.shape[0] == 1 else
                             errors * scaled.weights[rows]).sum())  # fmt: skip
    return counts.reshape(n_books, entries), distortion
