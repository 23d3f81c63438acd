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
    out: npt.NDArray[np.float32],
) -> None:
    """Decode a block of a trellis stage (SPEC 12.1 to 12.4, without scales).

    Args:
        payload: The plain payload of the block; its size obeys ANS-001.
        tile: Rows and columns of a tile.
        polynomials: ``feedback`` and ``forward``; zeros without a trellis.
        row_classes, column_classes: Of the rows and columns of the block.
        values: The value of each symbol ``n_books · code + q``; or z and step of a progression, whose value is
            ``(symbol − z) · step``.
        out: ``(n_rows, n_columns)``, C-contiguous.

    Raises:
        FormatError: The payload breaks a rule of SPEC 12.3.
    """
    assert _kernels is not None and out.dtype == np.float32 and slots.table.size <= 1 << 22
    n_rows, n_columns = out.shape
    data = np.frombuffer(payload, np.uint8)
    height, width = min(tile[0], n_rows), min(tile[1], n_columns)
    n_sequences = -(-n_rows // height) * -(-n_columns // width)
    assert 4 * n_sequences <= data.size <= 4 * n_sequences + 2 * out.size and out.size <= 1 << 22
    assert all(classes is None or classes.size == n
               for classes, n in ((row_classes, n_rows), (column_classes, n_columns)))  # fmt: skip
    table, zero, step = (None, *values) if isinstance(values, tuple) else (values, 0, 0.0)
    found = _kernels.trellis_decode(
        _instruction_set(), _address(data), data.size, n_rows, n_columns, height, width, _address(row_classes),
        _address(column_classes), slots.precision, slots.n_books, polynomials[0] >> 1, polynomials[1] >> 1,
        _address(slots.table), slots.table.itemsize == 8, slots.table.size, _address(table), zero, float(step),
        _address(out),
    )  # fmt: skip
    if found in _FAULTS:
        clause, message = _FAULTS[found]
        raise FormatError(message, clause=clause)
    if found:
        raise MemoryError("no memory for the lanes of a trellis stage")
