"""Tables of floats in resident sections: codebooks, steps, scales (SPEC 9.3, 9.4)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import FormatError
from ..forks import cached_property
from ..format.dtypes import BY_NAME
from ..format.layout import Block, View
from ..format.stages import Scale

_FEW = 1 << 10
EXACT_IN_FLOAT32 = 1 << 24  # float32 holds all integers up to this magnitude exactly

Floats = npt.NDArray[np.float32]


def encode(values: npt.NDArray[Any], dtype: str) -> bytes:
    """Encode values as a plain section of a dtype, rounded to nearest."""
    return values.astype(BY_NAME[dtype].numpy).tobytes()


def decode(section: bytes, dtype: str, what: str, clause: str = "CBK-008") -> Floats:
    """Decode a plain section of a dtype.

    Args:
        what, clause: Name of the table and id of its rule, for the error.

    Returns:
        ``(n,)`` float32.

    Raises:
        FormatError: A value is not finite.
    """
    return decode_with_largest(section, dtype, what, clause)[0]


def decode_with_largest(section: bytes, dtype: str, what: str, clause: str = "CBK-008") -> tuple[Floats, np.float32]:
    """What ``decode`` returns, and the largest magnitude of the values."""
    values = widen(section, dtype)
    most = largest(values)
    if not math.isfinite(most):  # without an array of bools: a table may have 256 MiB
        at = int(np.argmin(np.isfinite(values)))
        raise FormatError(f"value {at} of the {what} is {values[at]}, which is not finite", clause=clause)
    return values, most


def widen(section: bytes, dtype: str) -> Floats:
    """Decode a plain section as ``(n,)`` float32, exactly. Values may be infinite or NaN."""
    if dtype == "bf16":  # not by NumPy's dtype, which would need ml_dtypes
        return (np.frombuffer(section, "<u2").astype("<u4") << 16).view("<f4")
    return np.frombuffer(section, BY_NAME[dtype].numpy).astype(np.float32, copy=False)


def largest(values: Floats) -> np.float32:
    """The largest magnitude of the values; NaN if one of them is."""
    if values.size <= _FEW:
        return np.float32(np.maximum.reduce(np.abs(values), initial=0))
    return np.float32(max(values.max(initial=0), -values.min(initial=0)))  # without a copy


@dataclass(frozen=True)
class Book:
    """A BOOK chunk. Many tensors may use it, so what takes a pass over its values is kept.

    Attributes:
        values: ``(groups · entries · dim,)``.
    """

    values: Floats

    @cached_property
    def largest(self) -> np.float32:
        """The largest magnitude of the values."""
        return largest(self.values)


class Scales:
    """The scales of a stage, by groups of elements (SPEC 9.2).

    Attributes:
        largest: The largest magnitude of all scales.
    """

    def __init__(self, scale: Scale, section: bytes, view: View) -> None:
        self._scale, self._n_rows = scale, view.n_rows
        values, self.largest = decode_with_largest(section, scale.dtype, "scales")
        self._values = np.ascontiguousarray(values.reshape(scale.grid(view)))

    @property
    def are_of_rows(self) -> bool:
        """Whether all elements of a row have the same scale."""
        return not self._scale.columns

    @property
    def values(self) -> Floats:
        """All scales, ``(n_scales,)``: those of a row of the grid are beside each other."""
        return self._values.reshape(-1)

    @property
    def columns(self) -> int:
        """Columns of a scale; 0 if it belongs to whole rows."""
        return self._scale.columns

    def firsts(self, block: Block) -> npt.NDArray[np.int64]:
        """For each row of a block where its scales begin in ``values``, ``(n_rows,)``."""
        firsts: npt.NDArray[np.int64] = np.arange(block.row, block.row_end, dtype=np.int64)
        firsts //= self._scale.rows or block.row_end
        firsts *= self._values.shape[1]
        return firsts

    def of_rows(self) -> Floats:
        """The scale of each row of the stored matrix, ``(n_rows,)``, if ``are_of_rows``."""
        n_rows = self._n_rows
        return np.repeat(self._values[:, 0], min(self._scale.rows or n_rows, n_rows))[:n_rows]

    def _of_rows(self, block: Block) -> Floats:
        """The scales of each row of a block: ``(n_rows or 1, groups along columns)``."""
        rows = self._scale.rows
        return self._values[np.arange(block.row, block.row_end) // rows if rows else np.zeros(1, np.intp)]

    def multiply(self, block: Block, out: Floats) -> None:
        """Multiply a block's values, ``(n_rows, n_columns)``, by their scales, in place."""
        scale = self._scale
        scales = self._of_rows(block)
        if scale.columns:
            columns = np.arange(block.column, block.column_end) // scale.columns
            scales = np.take(scales, columns, axis=1)
        np.multiply(out, scales, out=out)
