"""The low-rank stage: a product of two integer matrices with scales (SPEC section 11)."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import native
from ..format import bits
from ..format.layout import Block, View
from ..format.stages import LowRankStage
from ..native import decoding
from . import tables
from .tables import Floats

# The kernel reads the right factor by columns. With more rows than this it leaves the CPU cache, and BLAS is faster
_MOST_RANK_OF_KERNEL = 64


class LowRankDecoder:
    """Decodes the blocks of one stage of one tensor.

    Args:
        resident: Plain bytes of the resident sections: row scales, column scales, the planes of the right factor.

    Attributes:
        bound: Upper bound of the magnitude of all values (SPEC section 11). It may be infinite, see VAL-002.
        right: The right factor as integers, ``(rank, n_columns)``.

    Raises:
        FormatError: A scale is not finite (CBK-008), or a code of the right factor breaks a rule of section 10.
    """

    def __init__(self, stage: LowRankStage, view: View, resident: list[bytes]) -> None:
        self.stage = stage
        self._row_scales, largest_row = tables.decode_with_largest(resident[0], stage.row_scale.dtype, "row scales")
        self._column_scales, largest_column = tables.decode_with_largest(resident[1], stage.column_scale.dtype,
                                                                         "column scales")  # fmt: skip
        self._of_columns: Floats | None = None  # the scale of each column
        if (self._column_scales != 1).any():  # multiplying by 1 would cost a pass
            columns = np.arange(view.n_columns) // (stage.column_scale.size or view.n_columns)
            self._of_columns = self._column_scales[columns]
        largest_sum = stage.rank * (stage.entries_u // 2) * (stage.entries_v // 2)
        # Sums of integers below 2^24 (float32) or 2^53 (float64) are exact in any order; float32 is twice as fast
        self._dtype = np.float32 if largest_sum <= tables.EXACT_IN_FLOAT32 else np.float64
        self.right = self._factor(resident[2:], (stage.rank, view.n_columns), stage.entries_v, stage.planes_v)
        with np.errstate(all="ignore"):  # a bound may be infinite, and times 0 it is NaN: VAL-002
            bound = np.float32(largest_sum) * largest_row
            self.bound = np.float32(bound * largest_column)

    def prepare(self, blocks: Sequence[Block], payloads: Sequence[list[bytes]]) -> Sequence[list[bytes]]:
        """The argument of ``decode`` for each of these blocks: here its payloads, unchanged."""
        return payloads

    def decode(self, block: Block, payloads: list[bytes], out: Floats, *, adds: bool = False) -> None:
        """Decode a block into ``out``, ``(n_rows, n_columns)`` float32.

        Args:
            adds: Whether the values are added to those in ``out``, if ``can_add``.

        Raises:
            FormatError: A code breaks a rule of SPEC section 10.
        """
        stage = self.stage
        left = self._factor(payloads, (block.n_rows, stage.rank), stage.entries_u, stage.planes_u)
        self._multiply(left, block, out, adds=adds)

    @property
    def can_add(self) -> bool:
        return native.is_used() and self._dtype is np.float32 and self.stage.rank <= _MOST_RANK_OF_KERNEL

    def multiply(self, codes: bits.Codes, block: Block, out: Floats) -> None:
        """Write the values of a block to ``out``, ``(n_rows, n_columns)`` float32.

        Args:
            codes: Codes of its rows of the left factor, ``(n_rows · rank,)``, checked.
        """
        left = self._integers(codes, self.stage.entries_u).reshape(block.n_rows, self.stage.rank)
        self._multiply(left, block, out, adds=False)

    def _multiply(self, left: npt.NDArray[Any], block: Block, out: Floats, *, adds: bool) -> None:
        """Write the values of a block to ``out`` from its rows of the left factor, ``(n_rows, rank)``."""
        stage = self.stage
        if stage.row_scale.size:
            of_rows = self._row_scales[np.arange(block.row, block.row_end) // stage.row_scale.size]
        else:
            of_rows = np.full(block.n_rows, self._row_scales[0])
        if self.can_add and out.flags.c_contiguous:
            decoding.decode_low_rank(left, self.right, of_rows, self._of_columns, out, adds=adds)
            return
        if self._dtype is np.float32 and out.flags.c_contiguous:
            np.matmul(left, self.right, out=out)
        else:
            out[...] = left @ self.right
        np.multiply(out, of_rows[:, None], out=out)
        if self._of_columns is not None:
            np.multiply(out, self._of_columns, out=out)

    def _factor(
        self, sections: list[bytes], shape: tuple[int, int], entries: int, planes: bits.Planes
    ) -> npt.NDArray[Any]:
        """The integers of a factor, or of rows of it, from its plain sections."""
        if self.can_add:
            factor = np.empty(shape, np.float32)
            if decoding.decode_integers(sections, entries // 2, entries=entries, planes=planes, out=factor):
                return factor  # otherwise NumPy finds the fault and raises
        arrays = [np.frombuffer(section, np.uint8) for section in sections]
        return self._integers(bits.unpack(arrays, prod(shape), entries, planes), entries).reshape(shape)

    def _integers(self, codes: bits.Codes, entries: int) -> npt.NDArray[Any]:
        integers: npt.NDArray[Any] = codes.astype(self._dtype)
        integers -= entries // 2
        return integers
