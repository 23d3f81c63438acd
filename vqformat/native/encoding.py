"""Kernels of the encoder; docstrings name their twins in NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _address, _instruction_set, _kernels, is_used

_MOST_STATES, _MOST_REACH = 256, (1 << 15) - 1
_OF_FLOATS, _OF_DOUBLES, _WITH_MARGINS = range(3)  # NearestKind of nearest.h
_DIMS_PER_SET = 8  # longest vectors with AVX2; twice as long with AVX-512


def can_search(feedback: int, forward: int, n_states: int, reach: int) -> bool:
    """Whether ``search_trellis`` knows this trellis; the polynomials are shifted right by one."""
    half = n_states // 2
    is_known = 4 <= n_states <= _MOST_STATES and half <= feedback < n_states and 0 < forward < half
    return is_known and 2 <= reach <= _MOST_REACH


def search_trellis(
    points: npt.NDArray[np.float32],
    tile: tuple[int, int],
    *,
    contexts: npt.NDArray[np.uint8] | None,
    weights: npt.NDArray[np.float32] | None,
    costs: npt.NDArray[np.float32],
    polynomials: tuple[int, int],
    n_states: int,
    start: npt.NDArray[np.uint8] | None,
    out: tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8]] | None = None,
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Quantize the tiles of a matrix to grid points, with the least cost, see ``encode/small/viterbi.py``.

    Args:
        points, contexts, weights: ``(n_rows, n_columns)``, C-contiguous.
        tile: Rows and columns of a tile, which is a sequence.
        costs: ``(n_contexts, 2, 2 · reach + 1)``.
        polynomials: Feedback and forward, shifted right by one.
        start: The state of each tile, those of the first row of tiles first; None for 0.
        out: Where indices and codebooks are to be; C-contiguous. None for new arrays.

    Returns:
        Index and codebook of each value, and the final states of the tiles.
    """
    assert _kernels is not None and points.dtype == costs.dtype == np.float32 and costs.shape[1] == 2
    (n_rows, n_columns), reach = points.shape, costs.shape[2] // 2
    height, width = max(1, min(tile[0], n_rows)), max(1, min(tile[1], n_columns))
    n_tiles = -(-n_rows // height) * -(-n_columns // width)
    assert can_search(*polynomials, n_states, reach) and costs.size < 1 << 31
    assert contexts is None or (contexts.dtype == np.uint8 and contexts.shape == points.shape)
    assert contexts is None or int(contexts.max(initial=0)) < len(costs)
    assert weights is None or (weights.dtype == np.float32 and weights.shape == points.shape)
    assert start is None or (start.dtype == np.uint8 and start.shape == (n_tiles,))
    assert start is None or int(start.max(initial=0)) < n_states
    indices, books = (np.empty(points.shape, np.int16), np.empty(points.shape, np.uint8)) if out is None else out
    assert indices.dtype == np.int16 and books.dtype == np.uint8 and indices.shape == books.shape == points.shape
    end = np.zeros(n_tiles, np.uint8)
    _kernels.viterbi_search(
        _instruction_set(), n_rows, n_columns, height, width, _address(points), _address(contexts), _address(weights),
        _address(costs), reach, n_states, *polynomials, _address(start), _address(indices), _address(books),
        _address(end),
    )  # fmt: skip
    return indices, books, end


def quantize_with_feedback(
    aims: npt.NDArray[np.float32], first_row: int, tile: tuple[int, int], *, contexts: npt.NDArray[np.uint8],
    costs: npt.NDArray[np.float32], weights: npt.NDArray[np.float32], spread: npt.NDArray[np.float32],
    upper: npt.NDArray[np.float32], polynomials: tuple[int, int], n_states: int, states: npt.NDArray[np.uint8],
    indices: npt.NDArray[np.int16], books: npt.NDArray[np.uint8],
) -> npt.NDArray[np.float32]:  # fmt: skip
    """Quantize some rows of a matrix with error feedback, see ``quantize`` in ``encode/small/error_feedback.py``.

    Args:
        aims: ``(n_rows, n_columns)``, C-contiguous. Errors of the rows before it are subtracted from each row.
        first_row: Number of the first row in the matrix.
        tile: Rows and columns of a tile of the matrix.
        contexts: Of the same shape.
        costs: ``(n_contexts, 2, 2 · reach + 1)``.
        weights, spread: ``(n_rows, n_groups)``; columns are n_groups parts of equal width.
        upper: ``(n_groups, n_rows, n_rows)``: what an error in a row takes from a later row.
        polynomials: Feedback and forward, shifted right by one.
        states: The state of each tile of a row, before the first row; then those after the last row.
        indices, books: ``(n_rows, n_columns)``, C-contiguous; they are filled.

    Returns:
        The errors, divided by the spread.
    """
    assert _kernels is not None and aims.dtype == costs.dtype == weights.dtype == spread.dtype == upper.dtype == "f4"
    (n_rows, n_columns), n_groups, reach = aims.shape, len(upper), costs.shape[2] // 2
    assert n_rows and n_columns and n_columns % n_groups == 0 and upper.shape[1:] == (n_rows, n_rows)
    assert weights.shape == spread.shape == (n_rows, n_groups) and contexts.dtype == books.dtype == states.dtype == "u1"
    assert contexts.shape == indices.shape == books.shape == aims.shape and indices.dtype == np.int16
    assert can_search(*polynomials, n_states, reach) and costs.shape[1] == 2 and costs.size < 1 << 31
    assert int(contexts.max()) < len(costs) and int(states.max()) < n_states and tile[0] > 0
    width = max(1, min(tile[1], n_columns))
    assert states.shape == (-(-n_columns // width),)
    errors = np.empty(aims.shape, np.float32)
    _kernels.feedback_quantize(
        _instruction_set(), n_rows, n_columns, tile[0], width, first_row, n_groups, costs.size, reach, n_states,
        *polynomials, _address(aims), _address(contexts), _address(costs), _address(weights), _address(spread),
        _address(upper), _address(states), _address(indices), _address(books), _address(errors),
    )  # fmt: skip
    return errors


@dataclass(frozen=True)
class Codes:
    """Codes of a matrix, ``(n_rows, n_columns)``, for ``count_codes`` and ``encode_block``.

    Attributes:
        indices, books: Index and codebook of each element. The code is the index plus ``zero``.
        row_classes, column_classes: Their sum is the context of an element; None if all are 0.
        n_contexts, n_books, entries: Symbol ``(context · n_books + book) · entries + code`` is that of a code.
    """

    indices: npt.NDArray[np.int16]
    books: npt.NDArray[np.uint8]
    row_classes: npt.NDArray[np.uint8] | None
    column_classes: npt.NDArray[np.uint8] | None
    zero: int
    n_contexts: int
    n_books: int
    entries: int

    @property
    def n_symbols(self) -> int:
        """Number of symbols."""
        return self.n_contexts * self.n_books * self.entries

    def _arguments(self, rows: slice, columns: slice) -> tuple[int, ...]:
        n_rows, n_columns = self.indices.shape
        assert self.indices.dtype == np.int16 and self.books.dtype == np.uint8
        assert self.books.shape == self.indices.shape
        for classes, n in ((self.row_classes, n_rows), (self.column_classes, n_columns)):
            assert classes is None or (classes.dtype == np.uint8 and classes.shape == (n,))
        assert 0 <= rows.start < rows.stop <= n_rows and 0 <= columns.start < columns.stop <= n_columns
        first = rows.start * n_columns + columns.start
        of_rows = 0 if self.row_classes is None else _address(self.row_classes) + rows.start
        of_columns = 0 if self.column_classes is None else _address(self.column_classes) + columns.start
        return (rows.stop - rows.start, columns.stop - columns.start, n_columns, _address(self.indices) + 2 * first,
                _address(self.books) + first, of_rows, of_columns, self.zero, self.n_books, self.entries,
                self.n_symbols)  # fmt: skip


def count_codes(codes: Codes) -> npt.NDArray[np.int64]:
    """How often each symbol occurs, ``(n_contexts, n_books, entries)``, see ``encode/small/coded_tensor.py``."""
    assert _kernels is not None
    counts = np.zeros((codes.n_contexts, codes.n_books, codes.entries), np.int64)
    if codes.indices.size:
        n_rows, n_columns = codes.indices.shape
        whole = codes._arguments(slice(0, n_rows), slice(0, n_columns))
        is_outside = _kernels.count_codes(*whole, _address(counts))
        assert not is_outside, "an index is outside the range of codes"
    return counts


def encode_block(
    codes: Codes, rows: slice, columns: slice, *, tile: tuple[int, int], frequencies: npt.NDArray[np.uint32],
    starts: npt.NDArray[np.uint32], precision: int,
) -> bytes:  # fmt: skip
    """Encode a block into its payload: the states of its tiles, then its words, see ``encode`` in ``decode/rans.py``.

    Args:
        rows, columns: Of the block, with start and stop.
        tile: Rows and columns of a tile.
        frequencies, starts: Of each symbol.
    """
    assert _kernels is not None and frequencies.size == starts.size == codes.n_symbols and 1 <= precision <= 15
    table = np.ascontiguousarray(frequencies.reshape(-1) | starts.reshape(-1) << np.uint32(16), np.uint32)
    n_rows, n_columns = rows.stop - rows.start, columns.stop - columns.start
    height, width = max(1, min(tile[0], n_rows)), max(1, min(tile[1], n_columns))
    n_tiles = -(-n_rows // height) * -(-n_columns // width)
    payload = np.empty(4 * n_tiles + 2 * n_rows * n_columns + 2, np.uint8)
    n = _kernels.rans_encode(*codes._arguments(rows, columns), _address(table), _address(payload), height, width,
                             precision, _instruction_set())  # fmt: skip
    if n == -2:
        raise MemoryError("no memory for the lanes of a trellis stage")
    assert n >= 0, "an index is outside the range of codes"
    return payload[:n].tobytes()


def sum_errors(
    points: npt.NDArray[np.float32], indices: npt.NDArray[np.int16], books: npt.NDArray[np.uint8],
    factors: npt.NDArray[np.float32] | None, before: npt.NDArray[np.float32] | None,
) -> npt.NDArray[np.float32]:  # fmt: skip
    """The sums of errors by column, see ``quantize_keeping_sums`` in ``encode/small/coder.py``.

    Args:
        points, indices, books: ``(n_rows, n_columns)``, at least one row; C-contiguous.
        factors: Of the errors of each row; None for 1.
        before: The sums of earlier rows, ``(n_columns,)``; None for 0.
    """
    assert _kernels is not None and points.dtype == np.float32 and indices.dtype == np.int16 and books.dtype == np.uint8
    (n_rows, n_columns), sums = points.shape, np.zeros(points.shape[1], np.float32)
    if before is not None:
        sums += before
    assert n_rows and indices.shape == books.shape == points.shape
    assert factors is None or (factors.dtype == np.float32 and factors.shape == (n_rows,))
    _kernels.sum_errors(n_rows, n_columns, _address(points), _address(indices), _address(books), _address(factors),
                        _address(sums))  # fmt: skip
    return sums


def sum_values(values: npt.NDArray[np.float32], sums: npt.NDArray[np.float64], *, are_squared: bool) -> None:
    """Add values, or their squares, to the sums of 16 lanes, see ``encode/sums.py``; C-contiguous."""
    assert _kernels is not None and values.dtype == np.float32 and sums.dtype == np.float64 and sums.size == 16
    _kernels.sum_values(_instruction_set(), _address(values), values.size, are_squared, _address(sums))


def find_errors(
    values: npt.NDArray[np.float32], indices: npt.NDArray[np.int16], books: npt.NDArray[np.uint8], step: np.float32
) -> npt.NDArray[np.float32]:
    """Errors at grid points, see ``_errors_of_points`` in ``encode/small/coded_tensor.py``; C-contiguous."""
    assert _kernels is not None and values.dtype == np.float32 and indices.dtype == np.int16 and books.dtype == np.uint8
    assert values.shape == indices.shape == books.shape
    errors = np.empty(values.shape, np.float32)
    _kernels.find_errors(_instruction_set(), _address(values), values.size, _address(indices), _address(books), step,
                         _address(errors))  # fmt: skip
    return errors


def largest_magnitude(values: npt.NDArray[np.float32]) -> float:
    """See ``largest_magnitude`` in ``encode/methods/layout.py``; C-contiguous."""
    assert _kernels is not None and values.dtype == np.float32
    found: float = _kernels.largest_magnitude(_instruction_set(), _address(values), values.size)
    return found


def count_indices(
    contexts: npt.NDArray[np.uint8], books: npt.NDArray[np.uint8], indices: npt.NDArray[np.int32], n_contexts: int,
    reach: int,
) -> npt.NDArray[np.int64]:  # fmt: skip
    """How often each index occurs in each context, see ``_counts`` in ``encode/small/trellis.py``; C-contiguous.

    Returns:
        ``(n_contexts, 2, 2 · reach + 1)``.
    """
    assert _kernels is not None and contexts.dtype == books.dtype == np.uint8 and indices.dtype == np.int32
    assert contexts.shape == books.shape == indices.shape
    counts = np.zeros((n_contexts, 2, 2 * reach + 1), np.int64)
    is_outside = _kernels.count_indices(_address(contexts), _address(books), _address(indices), indices.size,
                                        n_contexts, reach, _address(counts))  # fmt: skip
    assert not is_outside, "an index or a context is out of range"
    return counts


def can_find_nearest(dim: int) -> bool:
    """Whether ``best_entries`` is used: for short vectors, with AVX2 or AVX-512. Else BLAS is as fast."""
    return is_used() and dim <= _DIMS_PER_SET * _instruction_set()


def best_entries(left: npt.NDArray[Any], right: npt.NDArray[Any]) -> tuple[npt.NDArray[np.intp], npt.NDArray[Any]]:
    """See ``best_entries`` in ``encode/methods/nearest.py``; of float32 or float64."""
    assert _kernels is not None and left.dtype == right.dtype and left.dtype in (np.float32, np.float64)
    n_problems, n, size = left.shape
    entries = np.ascontiguousarray(right.transpose(0, 2, 1))  # (n_problems, entries, dim + 1)
    assert entries.shape[::2] == (n_problems, size) and 1 <= entries.shape[1] < 1 << 31
    codes, top = np.empty((n_problems, n), np.int64), np.empty((n_problems, n), left.dtype)
    for vectors, book, code, score in zip(np.ascontiguousarray(left), entries, codes, top, strict=True):
        _kernels.find_nearest(_instruction_set(), _address(vectors), _address(book), n, len(book), size - 1,
                              _address(code), _address(score), _OF_DOUBLES if left.dtype == np.float64 else _OF_FLOATS)
    return codes.astype(np.intp, copy=False), top


def likely_entries(
    vectors: npt.NDArray[np.float32], entries: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """See ``nearest`` in ``encode/methods/nearest.py``. Rounded scores: the entry with the highest, and its margin.

    Args:
        vectors: ``(n, dim)``.
        entries: ``(entries, dim + 1)``, with their constant terms.
    """
    assert _kernels is not None and vectors.dtype == entries.dtype == np.float32
    (n, dim), (n_entries, size) = vectors.shape, entries.shape
    assert size == dim + 1 and 1 <= n_entries < 1 << 31
    vectors, entries = np.ascontiguousarray(vectors), np.ascontiguousarray(entries)
    codes, margins = np.empty(n, np.int64), np.empty(n, np.float32)
    _kernels.find_nearest(_instruction_set(), _address(vectors), _address(entries), n, n_entries, dim, _address(codes),
                          _address(margins), _WITH_MARGINS)  # fmt: skip
    return codes, margins
