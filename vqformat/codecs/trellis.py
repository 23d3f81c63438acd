"""The trellis stage: entries of one or two codebooks, chosen by entropy-coded codes (SPEC section 12)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import FormatError
from ..records import CLASSES_COLUMNS, CLASSES_ROWS, Block, ProgressionSource, TableSource, TrellisStage, View
from . import rans, tables
from .tables import Floats

_RESTS = np.uint32(1 << 30)  # in place of a first slot, where a tile has no such row or column

Codes = npt.NDArray[Any]


def entries_of(stage: TrellisStage, section: bytes) -> Floats:
    """The codebooks of a stage from the section of its source: ``(n_books, entries)`` float32 (SPEC 12.4)."""
    match stage.source:
        case TableSource(dtype):
            return tables.decode(section, dtype, "codebook").reshape(stage.n_books, stage.entries)
        case ProgressionSource(zero):
            step = tables.decode(section, "f32", "step")
            points = stage.n_books * (np.arange(stage.entries) - zero) + np.arange(stage.n_books)[:, None]
            return points.astype(np.float32) * step


class TrellisDecoder:
    """Decodes the blocks of one stage of one tensor.

    Args:
        resident: The stage's resident sections, plain.
        freq: Tables of its FREQ chunk.

    Attributes:
        bound: No value of the stage is larger in magnitude (SPEC 12.4); may be infinite, see VAL-002.

    Raises:
        FormatError: A value is not finite (CBK-008), or a context has no table (TRL-004).
    """

    def __init__(self, stage: TrellisStage, view: View, resident: list[bytes], freq: rans.Tables) -> None:
        self.stage = stage
        sections = iter(resident)
        with np.errstate(over="ignore", under="ignore"):
            book = entries_of(stage, next(sections))
            bound = tables.largest(book)
            self._scales: tables.Scales | None = None
            if stage.scale is not None:
                self._scales = tables.Scales(stage.scale, next(sections), view)
                bound = self._scales.largest * bound
        self.bound = np.float32(bound)
        self._book = np.ascontiguousarray(book.T).reshape(-1)  # value of codebook q, code i at i · n_books + q
        self._row_classes = np.frombuffer(next(sections), np.uint8) if stage.classes & CLASSES_ROWS else None
        self._column_classes = np.frombuffer(next(sections), np.uint8) if stage.classes & CLASSES_COLUMNS else None
        n_contexts = 1 + sum(int(c.max()) for c in (self._row_classes, self._column_classes) if c is not None)
        if stage.first + n_contexts * stage.n_books > len(freq.frequencies):
            raise FormatError(f"{n_contexts} contexts from table {stage.first} on, but FREQ {stage.freq} has"
                              f" {len(freq.frequencies)} tables", clause="TRL-004")  # fmt: skip
        self._slots = rans.Slots(freq, stage.first, n_contexts, stage.n_books)

    def prepare(self, blocks: Sequence[Block], payloads: Sequence[list[bytes]]) -> list[Codes]:
        """Decode the codes of blocks, side by side where they are bands of rows.

        Returns:
            For each block ``(n_rows, n_columns)``: ``n_books · code + q``.

        Raises:
            FormatError: A payload breaks a rule of SPEC 12.3.
        """
        if len({block.n_columns for block in blocks}) > 1 or blocks[0].column or blocks[-1].column:
            return [codes for block, payload in zip(blocks, payloads, strict=True)
                    for codes in self._decode_bands([block], [payload[0]])]  # fmt: skip
        return self._decode_bands(blocks, [payload[0] for payload in payloads])

    def decode(self, block: Block, codes: Codes, out: Floats) -> None:
        """Values of a block's codes, as ``prepare`` gives them, into ``out``, ``(n_rows, n_columns)`` float32."""
        np.take(self._book, codes.astype(np.intp), out=out, mode="clip")
        if self._scales is not None:
            self._scales.multiply(block, out)

    def _decode_bands(self, blocks: Sequence[Block], payloads: list[bytes]) -> list[Codes]:
        """Codes of blocks of the same columns."""
        n_rows, n_columns = self.stage.tile
        n_across = -(-blocks[0].n_columns // n_columns)  # tiles
        bands = [-(-block.n_rows // n_rows) for block in blocks]  # of tiles
        # First slots by tile row and by tile column: (n_rows, bands), (n_columns, n_across)
        rows = np.concatenate([self._first_slots(self._row_classes, b.row, b.row_end, n_rows) for b in blocks], axis=1)
        columns = self._first_slots(self._column_classes, blocks[0].column, blocks[0].column_end, n_columns)
        rows_rest: Any = (rows >= _RESTS).any(axis=1)
        columns_rest: Any = (columns >= _RESTS).any(axis=1)
        has_contexts = bool(rows.any() or columns.any())
        decoder = rans.Decoder(self._slots, payloads, [n * n_across for n in bands], self.stage.trellis)
        symbols = np.empty((n_rows, n_columns, sum(bands), n_across), self._slots.symbols.dtype)
        flat = symbols.reshape(n_rows, n_columns, -1)
        slots = np.empty(symbols.shape[2:], np.uint32)
        flat_slots = slots.reshape(-1) if has_contexts else None
        for i in range(n_rows):
            of_row = rows[i][:, None]
            for j in range(n_columns):
                some_rest = bool(rows_rest[i] or columns_rest[j])
                if has_contexts:
                    np.add(of_row, columns[j], out=slots)
                    if some_rest:
                        np.minimum(slots, self._slots.rest, out=slots)
                decoder.step(flat_slots, flat[i, j], some_rest=some_rest)
        decoder.finish()
        found = []
        end = 0
        for block, n in zip(blocks, bands, strict=True):
            start, end = end, end + n
            part = np.ascontiguousarray(symbols[:, :, start:end])  # by itself: its strides are kinder to the cache
            matrix = part.transpose(2, 0, 3, 1).reshape(n * n_rows, n_across * n_columns)
            found.append(matrix[: block.n_rows, : block.n_columns])
        return found

    def _first_slots(self, classes: Codes | None, start: int, end: int, size: int) -> npt.NDArray[np.uint32]:
        """What rows (columns) ``start:end`` add to the first slot: ``(size, n_tiles)``, a tile in each column."""
        n_tiles = -(-(end - start) // size)
        slots = np.full(n_tiles * size, _RESTS, np.uint32)
        slots[: end - start] = 0
        if classes is not None:
            slots[: end - start] = classes[start:end].astype(np.uint32) * self.stage.n_books << self._slots.precision
        return slots.reshape(n_tiles, size).T
