"""FREQ chunks and trellis stages for fixtures: bytes and, by plain loops, values (SPEC 6 "FREQ" and 12).

As in vqmtensors.py, what a decoder must return comes from the codes in memory; nothing here decodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate

import numpy as np
from vqmbuilder import Chunk, chunk, section, u16, u32
from vqmtensors import F32, TABLE_DTYPES, Scale, Seal, table_bytes


def weight(byte: int) -> int:
    return 0 if byte == 0 else (16 + (byte - 1) % 16) * 2 ** ((byte - 1) // 16)


@cache
def frequencies(precision: int, table: bytes) -> tuple[int, ...]:
    """How often each code occurs in ``2**precision`` slots, from the bytes of its table."""
    weights = [weight(byte) for byte in table]
    n, total = sum(w > 0 for w in weights), sum(weights)
    found = [w and 1 + w * (2**precision - n) // total for w in weights]
    found[weights.index(max(weights))] += 2**precision - sum(found)
    return tuple(found)


@cache
def starts(precision: int, table: bytes) -> tuple[int, ...]:
    """For each code the first of its slots."""
    return tuple(accumulate(frequencies(precision, table), initial=0))


@dataclass(frozen=True)
class Freq:
    """A FREQ chunk (SPEC 6): for each table a byte for each code."""

    precision: int
    tables: tuple[bytes, ...]

    @property
    def entries(self) -> int:
        return len(self.tables[0])

    def chunk(self, seal: Seal = section) -> Chunk:
        return chunk(b"FREQ", [self.precision, self.entries, len(self.tables)], [seal(b"".join(self.tables))])


@dataclass(frozen=True)
class Trellis:
    """A trellis stage (SPEC 12).

    ``codes`` has a code for each stored row and column. The source is ``table`` ``(B, entries)``, or ``step`` with
    ``zero``, and for a transform ``matrix`` of int8. ``freq`` is what FREQ chunk ``number``
    holds. ``ends`` is a fault: the ``x`` in which each sequence ends.
    """

    codes: np.ndarray
    freq: Freq
    tile: tuple[int, int]
    table: np.ndarray | None = None
    step: float = 0
    zero: int = 0
    matrix: np.ndarray | None = None
    trellis: tuple[int, int] | None = None
    scale: Scale | None = None
    row_classes: Sequence[int] = ()
    column_classes: Sequence[int] = ()
    number: int = 0
    first: int = 0
    ends: int = 2**16

    _books: dict[tuple[int, int], int] = field(default_factory=dict, init=False)  # q of each element: by payload()

    @property
    def n_books(self) -> int:
        return 2 if self.trellis else 1

    def record(self) -> list[object]:
        source = [1, self.zero] if self.table is None else [0, TABLE_DTYPES[self.table.dtype]]
        if self.matrix is not None:
            source = [5, self.zero, len(self.matrix)]
        trellis = self.trellis and list(self.trellis)
        scale = self.scale and [TABLE_DTYPES[self.scale.values.dtype], self.scale.rows, self.scale.columns]
        classes = (len(self.row_classes) > 0) + 2 * (len(self.column_classes) > 0)
        return [4, source, trellis, scale, classes, self.number, self.first, list(self.tile)]

    def resident(self) -> list[bytes]:
        out = [table_bytes(np.array([self.step], F32) if self.table is None else self.table)]
        if self.matrix is not None:
            out[0] += self.matrix.tobytes()
        if self.scale is not None:
            out.append(table_bytes(self.scale.values))
        return out + [bytes(classes) for classes in (self.row_classes, self.column_classes) if classes]

    def payload(self, rows: range, columns: range) -> list[bytes]:
        n_rows, n_columns = self.tile
        tiles = [
            (rows[i : i + n_rows], columns[j : j + n_columns])
            for i in range(0, len(rows), n_rows)
            for j in range(0, len(columns), n_columns)
        ]
        for tile in tiles:
            self._walk(*tile)
        steps = [
            (n, tile_rows[i], tile_columns[j])
            for i in range(n_rows)
            for j in range(n_columns)
            for n, (tile_rows, tile_columns) in enumerate(tiles)
            if i < len(tile_rows) and j < len(tile_columns)
        ]
        states, words = [self.ends] * len(tiles), []
        for n, r, c in reversed(steps):
            f, start = self._slots(r, c)
            x = states[n]
            if x >= f * 2 ** (32 - self.freq.precision):
                words.append(x % 2**16)
                x //= 2**16
            states[n] = x // f * 2**self.freq.precision + x % f + start
        return [b"".join(map(u32, states)) + b"".join(map(u16, reversed(words)))]

    def _walk(self, rows: range, columns: range) -> None:
        """The states of a sequence (12.2)."""
        feedback, forward = self.trellis or (0, 0)
        s = 0
        for r in rows:
            for c in columns:
                q, p = s & 1, int(self.codes[r][c]) & 1
                self._books[r, c] = q
                s = s >> 1 ^ q * (feedback >> 1) ^ p * (forward >> 1)

    def _slots(self, r: int, c: int) -> tuple[int, int]:
        """How many slots the code of an element has, and its first (12.3)."""
        k = sum(classes[i] for classes, i in ((self.row_classes, r), (self.column_classes, c)) if classes)
        table = self.freq.tables[self.first + k * self.n_books + self._books[r, c]]
        code = int(self.codes[r][c])
        return frequencies(self.freq.precision, table)[code], starts(self.freq.precision, table)[code]

    def value(self, r: int, c: int, n_rows: int, n_columns: int) -> np.float32:
        """The stage's value at stored row ``r``, column ``c`` (12.4), after ``payload`` was asked for."""
        if self.table is not None:
            v = F32(self.table[self._books[r, c], int(self.codes[r][c])])
        elif self.matrix is not None:
            size = len(self.matrix)
            s = sum(int(self.matrix[k, r % size]) * self._point(r - r % size + k, c) for k in range(size))
            v = F32(s) * F32(self.step)
        else:
            v = F32(self._point(r, c)) * F32(self.step)
        return v if self.scale is None else self.scale.at(r, c, n_rows, n_columns) * v

    def _point(self, r: int, c: int) -> int:
        return self.n_books * (int(self.codes[r][c]) - self.zero) + self._books[r, c]
