"""A tensor that is quantized to the grid of a trellis stage, before it is entropy coded (SPEC section 12)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ... import native
from ...decode.tables import Floats
from ...forks import cached_property
from ...format.dtypes import BY_NAME
from ...format.layout import Layout, make_view
from ...format.stages import Trellis
from ...native import encoding
from ..methods.assemble import QuantizedStage, decoder_of_sum
from ..report import as_decoded
from .bands import bands
from .contexts import Contexts
from .transform import Transform

Counts = npt.NDArray[np.float64]


@dataclass(frozen=True)
class CodedTensor:
    """A tensor that is quantized to a grid but not yet coded, because it may share tables with others.

    The stored matrix has R rows and C columns, and B is the number of codebooks.

    Attributes:
        name, dtype, shape: Of the tensor.
        layout: Layout with blocks.
        tile: Rows and columns of a sequence.
        trellis: None if there is one codebook.
        contexts: The context of each element.
        indices: ``(R, C)``: index k of each element. Index k of codebook q stands for the grid point ``B k + q``.
        books: ``(R, C)``: codebook q of each element.
        step: Distance of grid points.
        values: The value of index k of codebook q at ``[q, k + reach]``, ``(B, 2 · reach + 1)``; None if it is
            ``(B k + q) · step``.
        row_scales: Factors of the rows, ``(R,)``, their stored values; None without.
        base: Low-rank stages, packed, whose values are added to those of the codes.
        transform: The transform whose coefficients are coded; None without. With it, ``values`` is None.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    layout: Layout
    tile: tuple[int, int]
    trellis: Trellis | None
    contexts: Contexts
    indices: npt.NDArray[np.int16]
    books: npt.NDArray[np.uint8]
    step: float
    values: Floats | None = None
    row_scales: Floats | None = None
    base: tuple[QuantizedStage, ...] = ()
    transform: Transform | None = None

    @property
    def n_books(self) -> int:
        """Number of codebooks, B."""
        return 1 if self.trellis is None else 2

    @cached_property
    def span(self) -> tuple[int, int]:
        """The least and the largest index."""
        return int(self.indices.min(initial=0)), int(self.indices.max(initial=0))

    def bands(self) -> Iterator[tuple[slice, Floats]]:
        """Slices of rows, and the values of their codes, equal to those of a decoder up to rounding."""
        for rows in bands(self.indices.shape, 1 if self.transform is None else self.transform.size):
            yield rows, self._with_base(self._values_of_codes(rows), rows)

    def errors(self, rows: slice, values: Floats) -> Floats:
        """The errors of rows of whole groups of the transform, given the values that were coded.

        Args:
            values: ``(n_rows, C)``, contiguous.
        """
        is_short = BY_NAME[self.dtype].bits < 32
        if self.values is None and self.transform is None and self.row_scales is None and not (self.base or is_short):
            step = np.float32(self.step)
            return _errors_of_points(values, self.indices[rows], self.books[rows], self.n_books, step)
        return as_decoded(self._with_base(self._values_of_codes(rows), rows), self.dtype) - values

    def _values_of_codes(self, rows: slice) -> Floats:
        found: Floats
        indices, books = self.indices[rows], self.books[rows]
        if self.values is None:
            found = _points(indices, books, self.n_books, np.float32(self.step))
        else:
            reach = (self.values.shape[1] - 1) // 2
            found = self.values[books, indices.astype(np.intp) + reach]
        if self.transform is not None:
            found = self.transform.backward(found)
        if self.row_scales is not None:
            found *= self.row_scales[rows, None]
        return found

    def with_base(self, values: Floats) -> Floats:
        """Add the values of the base stages to those of the codes, ``(R, C)``."""
        return self._with_base(values, slice(0, len(values)))

    def _with_base(self, values: Floats, rows: slice) -> Floats:
        if self.base:
            view = make_view(self.shape, BY_NAME[self.dtype].is_complex, self.layout)
            values += decoder_of_sum(self.base, view)(rows)
        return values

    def array(self) -> npt.NDArray[Any]:
        """The values in the shape of the tensor; complex if the tensor is."""
        is_complex = BY_NAME[self.dtype].is_complex
        shape = (*self.shape, 2) if is_complex else self.shape
        axes = self.layout.axes or tuple(range(len(shape)))
        matrix = np.empty(self.indices.shape, np.float32)
        for rows, of_rows in self.bands():
            matrix[rows] = of_rows
        permuted = matrix.reshape([shape[axis] for axis in axes])
        values = permuted.transpose(np.argsort(axes))
        return np.ascontiguousarray(values).view(np.complex64)[..., 0] if is_complex else values

    def codes(self, zero: int, entries: int) -> encoding.Codes:
        """The codes for a kernel in C. Arguments are those of ``counts``."""
        indices, books = np.ascontiguousarray(self.indices), np.ascontiguousarray(self.books)
        return encoding.Codes(indices, books, self.contexts.rows, self.contexts.columns, zero, self.contexts.n_contexts,
                              self.n_books, entries)  # fmt: skip

    def counts(self, zero: int, entries: int) -> Counts:
        """How often each code occurs, ``(n_contexts, n_books, entries)``.

        Args:
            zero: The code of index 0.
            entries: Number of codes.
        """
        if native.is_used():
            return encoding.count_codes(self.codes(zero, entries)).astype(np.float64)
        found = np.zeros(self.contexts.n_contexts * self.n_books * entries, np.intp)
        for rows in bands(self.indices.shape):
            contexts = self.contexts.at(rows, slice(None)).astype(np.intp)
            at = (contexts * self.n_books + self.books[rows]) * entries + (self.indices[rows].astype(np.intp) + zero)
            found += np.bincount(at.reshape(-1), minlength=found.size)
        return found.reshape(-1, self.n_books, entries).astype(np.float64)


def _points(
    indices: npt.NDArray[np.int16], books: npt.NDArray[np.uint8], n_books: int, step: np.float32
) -> Floats:  # fmt: skip
    """The values of grid points."""
    found = indices.astype(np.float32)
    found *= np.float32(n_books)
    found += books
    found *= step
    return found


def _errors_of_points(
    values: Floats, indices: npt.NDArray[np.int16], books: npt.NDArray[np.uint8], n_books: int, step: np.float32
) -> Floats:
    """The errors of grid points for values."""
    if native.is_used() and n_books == 2:
        return encoding.find_errors(np.ascontiguousarray(values), indices, books, step)
    return _points(indices, books, n_books, step) - values
