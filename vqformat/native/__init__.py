"""Kernels in C for what NumPy does slowly. Each has a twin in NumPy, which is the reference that one reads.

A kernel gives the same bytes as its twin, with every instruction set. The extension module is optional: where it was
not built, the twins are used. The environment variable ``VQFORMAT_BACKEND`` chooses: ``numpy``, ``native`` (the best
instruction set that the processor has), ``native-scalar``, ``native-avx2`` or ``native-avx512``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import FormatError

try:
    from . import _kernels as _found  # type: ignore[attr-defined, unused-ignore]
except ImportError:
    _found = None
_kernels: ModuleType | None = _found

_INSTRUCTION_SETS = ("scalar", "avx2", "avx512")  # as trellis.h numbers them
_NARROW_PRECISION, _NARROW_SYMBOLS = 12, 256  # slots of 32 bits hold these
_FAULTS = {
    1: ("ANS-001", "a state is below 65536"),
    2: ("ANS-002", "the words of a payload end before its codes"),
    3: ("ANS-003", "words of a payload are left after its last code"),
    4: ("ANS-003", "a state does not end at 65536"),
}


def available() -> list[str]:
    """Names of the backends that this machine has, the best one last."""
    names = ["numpy"]
    if _kernels is not None:
        names += [f"native-{name}" for name, there in zip(_INSTRUCTION_SETS, _kernels.instruction_sets(), strict=True)
                  if there]  # fmt: skip
    return names


def _chosen(asked: str | None) -> str:
    names = available()
    if not asked:
        return names[-1]
    if asked == "native" and len(names) > 1:
        return names[-1]
    if asked not in names:
        raise ImportError(f"VQFORMAT_BACKEND is {asked!r}; this machine has {', '.join(names)}")
    return asked


_backend = _chosen(os.environ.get("VQFORMAT_BACKEND"))


def backend() -> str:
    """The backend in use: ``"numpy"`` or, for example, ``"native-avx2"``."""
    return _backend


def use(name: str) -> str:
    """Change the backend of this process.

    Args:
        name: One of ``available()``, or ``"native"`` for the best of them.

    Returns:
        The backend that was in use.

    Raises:
        ImportError: This machine does not have it.
    """
    global _backend
    before, _backend = _backend, _chosen(name)
    return before


def is_used() -> bool:
    """Whether kernels are in use."""
    return _backend != "numpy"


def _instruction_set() -> int:
    return _INSTRUCTION_SETS.index(_backend.removeprefix("native-"))


def _address(array: npt.NDArray[Any] | None) -> int:
    if array is None:
        return 0
    assert array.flags.c_contiguous
    return int(array.__array_interface__["data"][0])


@dataclass(frozen=True)
class TrellisSlots:
    """Look-up tables of a trellis stage by slot, see ``trellis_slots`` in trellis.h.

    Attributes:
        table: ``(n_contexts · n_books · 2**precision,)``.
    """

    precision: int
    n_books: int
    table: npt.NDArray[Any]

    @classmethod
    def of(cls, frequencies: npt.NDArray[np.uint32], precision: int, n_books: int) -> TrellisSlots:
        """The slots of tables ``(n_contexts · n_books, entries)``, each of which has the sum ``2**precision``."""
        assert _kernels is not None
        n_tables, entries = frequencies.shape
        is_wide = precision > _NARROW_PRECISION or n_books * entries > _NARROW_SYMBOLS
        table = np.empty(n_tables << precision, np.uint64 if is_wide else np.uint32)
        frequencies = np.ascontiguousarray(frequencies, np.uint32)
        _kernels.trellis_slots(_address(frequencies), n_tables, entries, precision, n_books, is_wide, _address(table))
        return cls(precision, n_books, table)


def decode_trellis(
    payload: bytes,
    slots: TrellisSlots,
    *,
    tile: tuple[int, int],
    polynomials: tuple[int, int],
    row_classes: npt.NDArray[np.uint8] | None,
    column_classes: npt.NDArray[np.uint8] | None,
    values: npt.NDArray[np.float32] | tuple[int, float],
    row_scales: npt.NDArray[np.float32] | None,
    addend: npt.NDArray[np.float32] | None,
    row_places: npt.NDArray[np.int64],
    column_places: npt.NDArray[np.int64] | None,
    n_columns: int,
    out: npt.NDArray[np.float32],
) -> None:
    """Decode a block of a trellis stage (SPEC 12.1 to 12.4) and put its values in their places.

    Args:
        payload: The plain payload of the block; its size obeys ANS-001.
        tile: Rows and columns of a tile.
        polynomials: ``feedback`` and ``forward``; zeros without a trellis.
        row_classes, column_classes: Of the rows and columns of the block.
        values: The value of each symbol ``n_books · code + q``; or z and step of a progression, whose value is
            ``(symbol − z) · step``.
        row_scales: ``(n_rows,)``; None without scales.
        addend: ``(n_rows, n_columns)``, C-contiguous: what is added to the values; None for nothing. It may be ``out``.
        row_places: ``(n_rows,)``: where each row begins in ``out``.
        column_places: ``(n_columns,)``: what each column adds to that; None for its number.
        out: C-contiguous. Only the places are written.

    Raises:
        FormatError: The payload breaks a rule of SPEC 12.3.
    """
    assert _kernels is not None and out.dtype == np.float32 and slots.table.size <= 1 << 22
    n_rows, n_elements = row_places.size, row_places.size * n_columns
    last_column = n_columns - 1 if column_places is None else int(column_places.max())
    assert int(row_places.min()) >= 0 and int(row_places.max()) + last_column < out.size
    assert column_places is None or (column_places.size == n_columns and int(column_places.min()) >= 0)
    assert addend is None or (addend.shape == (n_rows, n_columns) and addend.dtype == np.float32)
    assert row_scales is None or (row_scales.size == n_rows and row_scales.dtype == np.float32)
    assert all(places is None or places.dtype == np.int64 for places in (row_places, column_places))
    data = np.frombuffer(payload, np.uint8)
    height, width = min(tile[0], n_rows), min(tile[1], n_columns)
    n_sequences = -(-n_rows // height) * -(-n_columns // width)
    assert 4 * n_sequences <= data.size <= 4 * n_sequences + 2 * n_elements and n_elements <= 1 << 22
    assert all(classes is None or classes.size == n
               for classes, n in ((row_classes, n_rows), (column_classes, n_columns)))  # fmt: skip
    table, zero, step = (None, *values) if isinstance(values, tuple) else (values, 0, 0.0)
    found = _kernels.trellis_decode(
        _instruction_set(), _address(data), data.size, n_rows, n_columns, height, width, _address(row_classes),
        _address(column_classes), slots.precision, slots.n_books, polynomials[0] >> 1, polynomials[1] >> 1,
        _address(slots.table), slots.table.itemsize == 8, slots.table.size, _address(table), zero, float(step),
        _address(row_places), _address(column_places), _address(row_scales), _address(addend),
        _address(out),
    )  # fmt: skip
    if found in _FAULTS:
        clause, message = _FAULTS[found]
        raise FormatError(message, clause=clause)
    if found:
        raise MemoryError("no memory for the lanes of a trellis stage")


def decode_low_rank(
    left: npt.NDArray[np.float32],
    right: npt.NDArray[np.float32],
    row_scales: npt.NDArray[np.float32],
    column_scales: npt.NDArray[np.float32] | None,
    out: npt.NDArray[np.float32],
    *,
    adds: bool,
) -> None:
    """Compute a block of a low-rank stage (SPEC 11).

    Args:
        left, right: ``(n_rows, rank)`` and ``(rank, n_columns)``: integers, all sums of whose products are at most 2²⁴.
        row_scales, column_scales: Of each row (column); None if all are 1.
        out: ``(n_rows, n_columns)``, C-contiguous.
        adds: Whether the values are added to those in ``out``.
    """
    assert _kernels is not None and out.shape == (left.shape[0], right.shape[1]) and left.shape[1] == right.shape[0]
    assert all(array.dtype == np.float32 for array in (left, right, row_scales, out))
    assert row_scales.size == out.shape[0] and (column_scales is None or column_scales.size == out.shape[1])
    _kernels.lowrank_decode(
        _instruction_set(), *out.shape, left.shape[1], _address(left), _address(right), _address(row_scales),
        _address(column_scales), adds, _address(out),
    )  # fmt: skip


def search_trellis(
    points: npt.NDArray[np.float32],
    *,
    contexts: npt.NDArray[np.uint8] | None,
    weights: npt.NDArray[np.float32] | None,
    costs: npt.NDArray[np.float32],
    reach: int,
    before: npt.NDArray[np.int32],
    subsets: npt.NDArray[np.int32],
    start: npt.NDArray[np.uint8] | None,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Quantize sequences of values to grid points, with the least cost, see ``viterbi.quantize``.

    Args:
        points, contexts, weights: ``(n_steps, n_sequences)``, C-contiguous.
        costs: ``(n_contexts, 2, 2 · reach + 1)``.
        before, subsets: ``(2, n_states)``: the predecessors of each state, and the subsets of these transitions.
        start: ``(n_sequences,)``; None for 0.

    Returns:
        Index and codebook of each value, and the final states of the sequences.
    """
    assert _kernels is not None and points.dtype == costs.dtype == np.float32
    assert before.dtype == subsets.dtype == np.int32 and before.shape == subsets.shape and before.shape[1] <= 256
    assert all(array is None or array.shape == points.shape for array in (contexts, weights))
    assert weights is None or weights.dtype == np.float32
    assert start is None or (start.dtype == np.uint8 and int(start.max(initial=0)) < before.shape[1])
    indices, books = np.empty(points.shape, np.int32), np.empty(points.shape, np.uint8)
    end = np.empty(points.shape[1], np.uint8)
    _kernels.viterbi_search(
        _instruction_set(), *points.shape, _address(points), _address(contexts), _address(weights), _address(costs),
        costs.size, reach, before.shape[1], _address(before), _address(subsets), _address(start), _address(indices),
        _address(books), _address(end),
    )  # fmt: skip
    return indices, books, end
