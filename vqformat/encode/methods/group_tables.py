"""Groups of few different floats, each with a table: weights that were dequantized by steps that no stage repeats."""

from __future__ import annotations

from math import log2
from typing import Any

import numpy as np
import numpy.typing as npt

from ...decode import tables
from ...format.layout import Layout
from ...format.limits import MAX_RESIDENT_NBYTES
from ...format.stages import CodebookStage, TableSource
from .assemble import QuantizedStage
from .groupings import Grouping, groupings
from .scales import group_size, narrowest

_MOST_ENTRIES = 256
_WORTHWHILE = 0.6  # bytes of codes and tables over those of the values
_TRIED_GROUPS = 8
_PIECE = 1 << 16  # elements that are sorted together

Keys = npt.NDArray[Any]  # unsigned integers in the order of the floats whose words they were, -0 before 0


def stages(values: npt.NDArray[Any]) -> list[tuple[Layout, list[QuantizedStage]]]:
    """The stage of such tables and its layout; none where tables do not save many bytes.

    Args:
        values: C-contiguous, finite, of at most 32 bits each.
    """
    grouping = _best_grouping(values) if values.ndim else None
    if grouping is None:
        return []
    matrix = grouping.matrix(values)
    solved = _solve(grouping.split(matrix))
    if solved is None:
        return []
    books, codes = solved
    dtype = narrowest(books.astype(np.float32).reshape(-1))
    of_books = tables.encode(books.astype(np.float32).reshape(-1), dtype)
    if len(of_books) > MAX_RESIDENT_NBYTES:
        return []
    stage = CodebookStage(dim=1, entries=books.shape[1], source=TableSource(dtype),
                          book_rows=group_size(grouping.rows, matrix.shape[0]),
                          book_columns=group_size(grouping.columns, matrix.shape[1]))  # fmt: skip
    of_stage = grouping.join(codes, (matrix.shape[0], matrix.shape[1]))
    return [(Layout(n_row_axes=grouping.n_row_axes), [QuantizedStage(stage, [of_books], of_stage)])]


def _best_grouping(values: npt.NDArray[Any]) -> Grouping | None:
    """The grouping by which codes and tables take the fewest bytes, by some groups; None if none saves many.

    Args:
        values: C-contiguous.
    """
    best, least = None, _WORTHWHILE * values.itemsize
    for grouping in groupings(values.shape):
        matrix = grouping.matrix(values)
        rows, columns = grouping.sizes(matrix)
        if rows * columns == matrix.size or matrix.shape[0] % rows or matrix.shape[1] % columns:
            continue
        n_across, n = matrix.shape[1] // columns, rows * columns
        n_groups, most = matrix.size // n, 0
        for i in range(0, n_groups, max(1, n_groups // _TRIED_GROUPS)):
            row, column = i // n_across * rows, i % n_across * columns
            group = matrix[row : row + rows, column : column + columns].reshape(-1)
            most = max(most, np.unique(group.view(f"<u{group.itemsize}")).size)
        nbytes = log2(max(2, most)) / 8 + most * values.itemsize / n
        if most <= _MOST_ENTRIES and nbytes < least:
            best, least = grouping, nbytes
    return best


def _solve(groups: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[np.uint8]] | None:
    """The values of each group, ascending, and the codes that choose them; None if a group has too many.

    Args:
        groups: ``(n_groups, n)`` floats.

    Returns:
        ``(n_groups, entries)`` of the same dtype, and ``(n_groups, n)``.
    """
    n_groups, n = groups.shape
    codes = np.empty(groups.shape, np.uint8)
    books = []
    for start in range(0, n_groups, max(1, _PIECE // n)):
        part = groups[start : start + max(1, _PIECE // n)]
        keys = _keys(np.ascontiguousarray(part))
        order = np.argsort(keys, axis=1, kind="stable")
        ordered = np.take_along_axis(keys, order, axis=1)
        ranks = np.zeros(ordered.shape, np.int64)
        np.cumsum(ordered[:, 1:] != ordered[:, :-1], axis=1, out=ranks[:, 1:])
        if int(ranks.max()) >= _MOST_ENTRIES:
            return None
        np.put_along_axis(codes[start : start + len(part)], order, ranks.astype(np.uint8), axis=1)
        book = np.repeat(ordered[:, -1:], int(ranks.max()) + 1, axis=1)  # the largest value again where there are fewer
        np.put_along_axis(book, ranks, ordered, axis=1)
        books.append(book)
    entries = max(book.shape[1] for book in books)
    filled = [np.pad(book, ((0, 0), (0, entries - book.shape[1])), mode="edge") for book in books]
    return _floats(np.concatenate(filled), groups.dtype), codes


def _keys(floats: npt.NDArray[Any]) -> Keys:
    words = floats.view(f"<u{floats.itemsize}")
    sign = words.dtype.type(1 << (8 * words.itemsize - 1))
    return np.where(words & sign, ~words, words | sign)


def _floats(keys: Keys, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    sign = keys.dtype.type(1 << (8 * keys.itemsize - 1))
    return np.where(keys & sign, keys ^ sign, ~keys).view(dtype)
