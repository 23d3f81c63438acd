"""The codebook stage: entries chosen by codes (SPEC section 9)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod

import numpy as np
import numpy.typing as npt

from .. import native
from ..forks import cached_property
from ..format import bits
from ..format.layout import Block, View
from ..format.stages import CodebookStage, FloatSource, ProgressionSource, TableSource
from ..native import decoding
from . import tables
from .tables import Floats

_PAIRS_FROM_ELEMENTS = 1 << 20  # size of a tensor that earns a table for pairs of bytes
_MOST_DIM_ADDED = 512  # dim of a stage whose kernel can add
_PIECE = 1 << 14  # indices in one call: NumPy converts them to 8 bytes each, and these stay in the cache


def progression(steps: Floats, zero: int, entries: int) -> Floats:
    """Entries ``(i − zero) · step`` of arithmetic progressions (SPEC 9.3).

    Args:
        steps: ``(groups,)``.

    Returns:
        ``(groups, entries, 1)`` float32.
    """
    positions = np.arange(entries, dtype=np.int64) - zero
    return (positions.astype(np.float32) * steps.astype(np.float32)[:, None])[:, :, None]


@lru_cache(maxsize=32)
def floats(source: FloatSource) -> Floats:
    """The value of each floating-point code, ``(entries,)`` float32, read-only (SPEC 9.3)."""
    codes = np.arange(source.entries)
    fraction = codes & ((1 << source.fraction_bits) - 1)
    exponent = codes >> source.fraction_bits & ((1 << source.exponent_bits) - 1)
    significand = np.where(exponent > 0, fraction + (1 << source.fraction_bits), fraction)
    values = np.ldexp(significand.astype(np.float32), source.exponent + np.maximum(exponent - 1, 0))
    is_negative = codes >> (source.fraction_bits + source.exponent_bits) > 0
    signed: Floats = np.where(is_negative, -values, values).astype(np.float32)
    signed.flags.writeable = False
    return signed


@lru_cache(maxsize=32)
def _largest_float(source: FloatSource) -> np.float32:
    return tables.largest(floats(source))


class CodebookDecoder:
    """Decodes the blocks of one stage of one tensor.

    Args:
        resident: Plain bytes of the stage's resident sections.
        shared: Its BOOK, if its source is shared.

    Attributes:
        bound: Upper bound of the magnitude of all values of the stage (SPEC 9.4). It may be infinite, see VAL-002.

    Raises:
        FormatError: A value of a table is not finite (CBK-008).
    """

    def __init__(
        self, stage: CodebookStage, view: View, resident: list[bytes], shared: tables.Book | None = None
    ) -> None:  # fmt: skip
        self.stage = stage
        self._view = view
        self._steps: Floats | None = None  # of a progression
        self._entries: Floats | None = None  # of another source
        sections = iter(resident)
        with np.errstate(all="ignore"):  # a bound may be infinite, and times 0 it is NaN: VAL-002
            match stage.source:
                case ProgressionSource(zero):
                    self._steps, largest = tables.decode_with_largest(next(sections), "f32", "steps")
                    bound = np.float32(max(abs(zero), abs(stage.entries - 1 - zero))) * largest
                case TableSource(dtype):
                    self._entries, bound = tables.decode_with_largest(next(sections), dtype, "codebook")
                case FloatSource():
                    self._entries = floats(stage.source)
                    bound = _largest_float(stage.source)
                case _:
                    assert shared is not None
                    self._entries, bound = shared.values, shared.largest
            self._scales: tables.Scales | None = None
            if stage.scale is not None:
                self._scales = tables.Scales(stage.scale, next(sections), view)
                bound = self._scales.largest * bound
        self.bound = np.float32(bound)

    @cached_property
    def _book_columns(self) -> int:
        """Codebook groups along columns."""
        return self.stage.book_grid(self._view)[1]

    @cached_property
    def _book(self) -> Floats:
        """All entries, ``(n_groups · entries, dim)``; of progressions those of the first group."""
        if self._entries is not None:
            return self._entries.reshape(-1, self.stage.dim)
        assert self._steps is not None and isinstance(self.stage.source, ProgressionSource)
        # No table of all groups: nothing bounds its size
        return progression(self._steps[:1], self.stage.source.zero, self.stage.entries).reshape(-1, 1)

    def prepare(self, blocks: Sequence[Block], payloads: Sequence[list[bytes]]) -> Sequence[list[bytes]]:
        """The argument of ``decode`` for each of these blocks: here its payloads, unchanged."""
        return payloads

    @property
    def can_add(self) -> bool:
        """Whether ``decode`` can add."""
        return native.is_used() and self.stage.dim <= _MOST_DIM_ADDED

    def decode(self, block: Block, payloads: list[bytes], out: Floats, *, adds: bool = False) -> None:
        """Decode a block into ``out``, ``(n_rows, n_columns)`` float32, each row contiguous.

        Args:
            adds: Whether the values are added to those in ``out``, if ``can_add``; then it is C-contiguous.

        Raises:
            FormatError: A code or a padding bit breaks a rule of SPEC section 10.
        """
        has_kernel = native.is_used() and out.flags.c_contiguous
        if has_kernel and self._decode_by_kernel([(block.n_rows, payloads)], block, out, adds=adds):
            return  # otherwise NumPy finds the fault and raises
        arrays = [np.frombuffer(payload, np.uint8) for payload in payloads]
        if self._byte_table is not None and out.flags.c_contiguous:
            self._decode_bytes(arrays[0], out.reshape(-1))
        else:
            n_codes = block.n_rows * self.stage.n_subvectors(block.n_columns)
            codes = bits.unpack(arrays, n_codes, self.stage.entries, self.stage.planes)
            self.look_up(codes, block, out)
            return
        self._multiply_scales(block, out)

    def decode_run(self, blocks: Sequence[Block], payloads: Sequence[list[bytes]], out: Floats) -> bool:
        """Decode blocks of whole rows that follow each other by one call of the kernel.

        Args:
            out: The rows of all of them, C-contiguous.

        Returns:
            Whether their codes obey SPEC section 10. If not, ``decode`` tells which does not.
        """
        run = Block(blocks[0].row, blocks[-1].row_end, blocks[0].column, blocks[0].column_end)
        rows = [block.n_rows for block in blocks]
        return self._decode_by_kernel([*zip(rows, payloads, strict=True)], run, out, adds=False)

    def _decode_by_kernel(
        self, blocks: Sequence[tuple[int, list[bytes]]], run: Block, out: Floats, *, adds: bool
    ) -> bool:
        """Decode blocks, given as for the kernel, whose rows together are those of ``run``."""
        stage = self.stage
        row_groups = column_groups = None
        if stage.book_rows:
            row_groups = np.arange(run.row, run.row_end) // stage.book_rows * self._book_columns
        if stage.book_columns:
            first, n_subvectors = run.column // stage.dim, stage.n_subvectors(run.n_columns)
            column_groups = np.arange(first, first + n_subvectors) // stage.book_columns
        progressions = None
        if self._steps is not None and isinstance(stage.source, ProgressionSource):
            progressions = stage.source.zero, self._steps
        scales = self._scales
        return decoding.decode_codebook(
            blocks,
            entries=stage.entries,
            dim=stage.dim,
            planes=stage.planes,
            width=bits.code_width(stage.entries),
            book=None if progressions else self._book,
            progressions=progressions,
            row_groups=row_groups,
            column_groups=column_groups,
            scales=None if scales is None else scales.values,
            row_scales=None if scales is None else scales.firsts(run),
            scale_columns=0 if scales is None else scales.columns,
            first_column=run.column,
            out=out,
            adds=adds,
        )

    def look_up(self, codes: bits.Codes, block: Block, out: Floats) -> None:
        """Write the values of a block's codes, each below ``entries``, to ``out``, ``(n_rows, n_columns)`` float32."""
        stage = self.stage
        n_subvectors = stage.n_subvectors(block.n_columns)
        rows = codes.astype(np.intp).reshape(block.n_rows, n_subvectors)
        if stage.book_rows or stage.book_columns:
            first = block.column // stage.dim
            groups = self._groups(block, np.arange(first, first + n_subvectors))
            if self._steps is not None and isinstance(stage.source, ProgressionSource):
                np.multiply((rows - stage.source.zero).astype(np.float32), self._steps[groups], out=out)
                self._multiply_scales(block, out)
                return
            rows += groups * stage.entries
        if n_subvectors * stage.dim == block.n_columns and out.flags.c_contiguous:
            target = out.reshape(block.n_rows, n_subvectors, stage.dim)
            if stage.dim == 1:
                np.take(self._book.reshape(-1), rows, out=target[:, :, 0], mode="clip")
            else:
                np.take(self._book, rows, axis=0, out=target, mode="clip")
        else:
            values = np.take(self._book, rows, axis=0, mode="clip").reshape(block.n_rows, -1)
            out[...] = values[:, : block.n_columns]  # SPEC 9.1: the padding is dropped
        self._multiply_scales(block, out)

    def _groups(self, block: Block, subvectors: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
        """Number of the codebook of each subvector: ``(n_rows or 1, n_subvectors)``."""
        stage = self.stage
        group = np.zeros((1, subvectors.size), np.intp)
        if stage.book_columns:
            group = (subvectors // stage.book_columns)[None, :]
        if stage.book_rows:
            row_group = np.arange(block.row, block.row_end) // stage.book_rows
            group = group + row_group[:, None] * self._book_columns
        return group

    def _multiply_scales(self, block: Block, out: Floats) -> None:
        if self._scales is not None:
            self._scales.multiply(block, out)

    @cached_property
    def _byte_table(self) -> Floats | None:
        """Values of every byte, ``(256, codes per byte)``, so that one look-up gives all values of a byte.

        None unless the stage has one codebook of dim 1 and a byte holds whole codes.
        """
        stage = self.stage
        width = bits.code_width(stage.entries)
        if stage.dim != 1 or prod(stage.book_grid(self._view)) != 1:
            return None
        if stage.planes:
            base, per_byte = stage.planes[0]
            if len(stage.planes) > 1:
                return None
        elif width in (1, 2, 4, 8):
            base, per_byte = 1 << width, 8 // width
        else:
            return None
        digits = np.arange(256)[:, None] // base ** np.arange(per_byte) % base  # (256, per_byte)
        # NaN marks bytes that have a digit outside the codebook
        entries = np.append(self._book[:, 0], np.float32(np.nan))
        table: Floats = entries[np.minimum(digits, stage.entries)]
        table[base**per_byte :] = np.nan
        self._is_bad_byte: npt.NDArray[np.bool_] = np.isnan(table).max(axis=1)
        return table

    def _decode_bytes(self, payload: bits.Bytes, out: Floats) -> None:
        table = self._byte_table
        assert table is not None
        stage = self.stage
        per_byte = table.shape[1]
        if self._has_bad_bytes(payload):
            bits.unpack([payload], out.size, stage.entries, stage.planes)  # raises, unless it is padding at the end
        n_whole, n_tail = divmod(out.size, per_byte)
        if n_tail:
            codes = bits.unpack([payload[-1:]], n_tail, stage.entries, stage.planes)
            out[-n_tail:] = self._book[codes.astype(np.intp), 0]
        indices: bits.Codes = payload[:n_whole]
        if per_byte == 1 and self._pair_table is not None and n_whole % 2 == 0:
            table, indices = self._pair_table, indices.view("<u2")
        values = out[: n_whole * per_byte].reshape(-1, table.shape[1])
        for start in range(0, indices.size, _PIECE):
            piece = slice(start, start + _PIECE)
            np.take(table, indices[piece], axis=0, out=values[piece], mode="clip")

    def _has_bad_bytes(self, payload: bits.Bytes) -> bool:
        """Whether a byte has a digit outside the codebook. In the last byte that may be a padding digit."""
        is_bad = self._is_bad_byte
        first = int(is_bad.argmax())
        if not is_bad[first]:
            return False
        largest = int(payload.max(initial=0))
        if is_bad[first:].all():
            return largest >= first
        return bool(is_bad[np.flatnonzero(np.bincount(payload))].any())

    @cached_property
    def _pair_table(self) -> Floats | None:
        """Values of every pair of bytes, ``(65536, 2)``: one look-up gives both. None for a small tensor."""
        assert self._byte_table is not None
        if self._view.n_rows * self._view.n_columns < _PAIRS_FROM_ELEMENTS:
            return None
        table = np.empty((256, 256, 2), np.float32)  # high byte, low byte
        table[:, :, 0] = self._byte_table[:, 0]
        table[:, :, 1] = self._byte_table
        return table.reshape(65536, 2)
