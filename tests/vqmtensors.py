"""Tensors for fixtures: their records, their sections and, by plain loops, their decoded bytes (SPEC 7 to 11).

The expected bytes come from codes and tables in memory, element by element; nothing here reads a file.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, NamedTuple, Protocol

import ml_dtypes
import numpy as np
from vqmbuilder import Entry, Section, column, section

F32 = np.float32
BF16 = np.dtype(ml_dtypes.bfloat16)


class DType(NamedTuple):
    id: int
    bits: int
    word: int  # bytes of a word (RAW-003)
    real: Any = None  # numpy type of the arithmetic dtypes, of one part if complex
    parts: int = 1


_NAMES_BITS = [("bool", 8), ("u8", 8), ("i8", 8), ("u16", 16), ("i16", 16), ("u32", 32), ("i32", 32), ("u64", 64)]
_NAMES_BITS += [("i64", 64), ("f16", 16), ("bf16", 16), ("f32", 32), ("f64", 64), ("c64", 64), ("c128", 128)]
_NAMES_BITS += [("f8_e4m3fn", 8), ("f8_e5m2", 8), ("f8_e4m3fnuz", 8), ("f8_e5m2fnuz", 8), ("f8_e8m0fnu", 8)]
_NAMES_BITS += [("u4", 4), ("i4", 4), ("f4_e2m1fn", 4)]
_REAL = {"f16": np.float16, "bf16": BF16, "f32": F32, "f64": np.float64, "c64": F32, "c128": np.float64}

DTYPES = {
    name: DType(i, bits, max(1, bits // 8) // (2 if name[0] == "c" else 1), _REAL.get(name), 2 if name[0] == "c" else 1)
    for i, (name, bits) in enumerate(_NAMES_BITS)
}
TABLE_DTYPES = {np.dtype(np.float16): 9, BF16: 10, np.dtype(F32): 11}


def table_bytes(values: np.ndarray) -> bytes:
    """Values of a table, steps or scales, little-endian."""
    return values.astype(values.dtype.newbyteorder("<")).tobytes()


def group(index: int, size: int, n: int) -> tuple[int, int]:
    """Group of ``index`` and number of groups on an axis of ``n`` (9.2)."""
    return (0, 1) if size == 0 else (index // size, -(-n // size))


# Codes (SPEC 10).


def dense(codes: Sequence[int], entries: int) -> bytes:
    """Codes of ``w`` bits each, least significant bit first."""
    width = (entries - 1).bit_length()
    number = sum(int(code) << i * width for i, code in enumerate(codes))
    return number.to_bytes(-(-len(codes) * width // 8), "little")


def code_planes(codes: Sequence[int], planes: Sequence[Sequence[int]]) -> list[bytes]:
    """Mixed-radix digits of codes, ``n`` to a byte."""
    rest, out = [int(code) for code in codes], []
    for base, n in planes:
        digits = [code % base for code in rest]
        rest = [code // base for code in rest]
        digits += [0] * (-len(digits) % n)
        out.append(bytes(sum(digits[i + j] * base**j for j in range(n)) for i in range(0, len(digits), n)))
    return out


def encode_codes(codes: Sequence[int], entries: int, planes: Sequence[Sequence[int]]) -> list[bytes]:
    return code_planes(codes, planes) if planes else [dense(codes, entries)]


@dataclass(frozen=True)
class Layout:
    """View, order and blocks (7.2)."""

    axes: tuple[int, ...] | None = None
    n_row_axes: int = 0
    order: int = 0
    block_rows: int = 0
    block_columns: int = 0

    def record(self) -> list[object]:
        axes = None if self.axes is None else list(self.axes)
        return [axes, self.n_row_axes, self.order, self.block_rows, self.block_columns]

    def view_shape(self, shape: Sequence[int]) -> tuple[int, int]:
        permuted = [shape[axis] for axis in self.axes] if self.axes else list(shape)
        return prod(permuted[: self.n_row_axes]), prod(permuted[self.n_row_axes :])

    def blocks(self, n_rows: int, n_columns: int) -> Iterator[tuple[range, range]]:
        """Stored rows and columns of each block, in file order."""
        for row in range(0, n_rows, self.block_rows or n_rows):
            rows = range(row, min(n_rows, row + (self.block_rows or n_rows)))
            step = self.block_columns or n_columns
            for start in range(0, n_columns, step):
                yield rows, range(start, min(n_columns, start + step))


@dataclass(frozen=True)
class Scale:
    """Scales of a codebook stage: ``values`` has one for each group, groups of rows first."""

    values: np.ndarray
    rows: int = 0
    columns: int = 0

    def at(self, r: int, c: int, n_rows: int, n_columns: int) -> np.float32:
        """The scale of the element at stored row ``r``, column ``c`` (9.2)."""
        g_row, _ = group(r, self.rows, n_rows)
        g_column, n_g_columns = group(c, self.columns, n_columns)
        return F32(self.values.reshape(-1)[g_row * n_g_columns + g_column])


class Floats(NamedTuple):
    """Codes that are small floating-point numbers (9.3)."""

    signed: int
    exponent_bits: int
    fraction_bits: int
    exponent: int

    def value(self, code: int) -> np.float32:
        fraction, rest = code % 2**self.fraction_bits, code // 2**self.fraction_bits
        e, is_negative = rest % 2**self.exponent_bits, rest // 2**self.exponent_bits
        if e == 0:
            v = F32(fraction * 2.0**self.exponent)
        else:
            v = F32((2**self.fraction_bits + fraction) * 2.0 ** (self.exponent + e - 1))
        return -v if is_negative else v


@dataclass(frozen=True)
class Codebook:
    """A codebook stage (SPEC 9).

    ``codes`` has a row for each stored row and a column for each subvector. The source is ``table``
    ``(groups, entries, dim)``, or ``steps`` ``(groups,)`` with ``zero`` and ``entries``, or ``floats``; with
    ``book``, ``table`` is what that BOOK chunk holds.
    """

    codes: np.ndarray
    table: np.ndarray | None = None
    steps: np.ndarray | None = None
    zero: int = 0
    entries: int = 0
    floats: Floats | None = None
    book: int | None = None
    book_rows: int = 0
    book_columns: int = 0
    scale: Scale | None = None
    planes: tuple[tuple[int, int], ...] = ()

    @property
    def dim(self) -> int:
        return 1 if self.table is None else self.table.shape[2]

    @property
    def n_entries(self) -> int:
        if self.floats is not None:
            return 2 ** sum(self.floats[:3])
        return self.entries if self.table is None else self.table.shape[1]

    def record(self) -> list[object]:
        if self.book is not None:
            source = [2, self.book]
        elif self.floats is not None:
            source = [4, *self.floats]
        elif self.table is not None:
            source = [0, TABLE_DTYPES[self.table.dtype]]
        else:
            source = [1, self.zero]
        scale = self.scale and [TABLE_DTYPES[self.scale.values.dtype], self.scale.rows, self.scale.columns]
        planes = [list(plane) for plane in self.planes]
        return [1, self.dim, self.n_entries, source, 0, self.book_rows, self.book_columns, scale, planes]

    def resident(self) -> list[bytes]:
        out = []
        if self.book is None and self.floats is None:
            out.append(table_bytes(self.steps if self.table is None else self.table))
        if self.scale is not None:
            out.append(table_bytes(self.scale.values))
        return out

    def payload(self, rows: range, columns: range) -> list[bytes]:
        first, last = columns.start // self.dim, -(-columns.stop // self.dim)
        codes = [self.codes[row][s] for row in rows for s in range(first, last)]
        return encode_codes(codes, self.n_entries, self.planes)

    def value(self, r: int, c: int, n_rows: int, n_columns: int) -> np.float32:
        """The stage's value at stored row ``r``, column ``c`` (9.4)."""
        s = c // self.dim
        g_row, _ = group(r, self.book_rows, n_rows)
        g_column, n_g_columns = group(s, self.book_columns, -(-n_columns // self.dim))
        book, code = g_row * n_g_columns + g_column, int(self.codes[r][s])
        if self.floats is not None:
            v = self.floats.value(code)
        elif self.table is None:
            v = F32(code - self.zero) * self.steps[book]
        else:
            v = F32(self.table[book, code, c % self.dim])
        return v if self.scale is None else self.scale.at(r, c, n_rows, n_columns) * v


@dataclass(frozen=True)
class LowRank:
    """A low-rank stage (SPEC 11): codes of ``U`` (R, rank) and ``V`` (rank, C), scales with their group sizes."""

    u: np.ndarray
    v: np.ndarray
    entries_u: int
    entries_v: int
    row_scales: np.ndarray = field(default_factory=lambda: np.ones(1, F32))
    column_scales: np.ndarray = field(default_factory=lambda: np.ones(1, F32))
    size_r: int = 0
    size_c: int = 0
    planes_u: tuple[tuple[int, int], ...] = ()
    planes_v: tuple[tuple[int, int], ...] = ()

    def record(self) -> list[object]:
        factor_u = [self.entries_u, [list(plane) for plane in self.planes_u]]
        factor_v = [self.entries_v, [list(plane) for plane in self.planes_v]]
        scale_r = [TABLE_DTYPES[self.row_scales.dtype], self.size_r]
        scale_c = [TABLE_DTYPES[self.column_scales.dtype], self.size_c]
        return [2, self.v.shape[0], factor_u, factor_v, scale_r, scale_c]

    def resident(self) -> list[bytes]:
        codes = encode_codes(list(self.v.reshape(-1)), self.entries_v, self.planes_v)
        return [table_bytes(self.row_scales), table_bytes(self.column_scales), *codes]

    def payload(self, rows: range, columns: range) -> list[bytes]:
        codes = [code for row in rows for code in self.u[row]]
        return encode_codes(codes, self.entries_u, self.planes_u)

    def value(self, r: int, c: int, n_rows: int, n_columns: int) -> np.float32:
        pairs = zip(self.u[r], self.v[:, c], strict=True)
        s = sum((int(u) - self.entries_u // 2) * (int(v) - self.entries_v // 2) for u, v in pairs)
        a = F32(self.row_scales[group(r, self.size_r, n_rows)[0]])
        b = F32(self.column_scales[group(c, self.size_c, n_columns)[0]])
        return F32(s) * a * b  # one rounding each, from left to right


class Stage(Protocol):
    """An arithmetic stage: ``Codebook``, ``LowRank``, ``vqmtrellis.Trellis``."""

    def record(self) -> list[object]: ...

    def resident(self) -> list[bytes]: ...

    def payload(self, rows: range, columns: range) -> list[bytes]: ...

    def value(self, r: int, c: int, n_rows: int, n_columns: int) -> np.float32: ...


@dataclass(frozen=True)
class Tensor:
    """A tensor as written, and as a decoder must return it: the ``expected`` bytes."""

    record: list[Any]
    sections: tuple[Section, ...]
    entry: Entry
    dtype: str
    shape: tuple[int, ...]
    expected: bytes

    @property
    def name(self) -> str:
        return self.record[0]


Seal = Callable[[bytes], Section]


def _tensor(  # noqa: PLR0917
    name: str,
    dtype: str,
    shape: Sequence[int],
    layout: Layout | None,
    stages: list[object],
    sections: list[Section],
    expected: bytes,
) -> Tensor:
    record = [name, DTYPES[dtype].id, list(shape), None if layout is None else layout.record(), stages]
    entry = Entry(name.encode("utf-8", "surrogatepass"), DTYPES[dtype].id, tuple(shape))
    return Tensor(record, tuple(sections), entry, dtype, tuple(shape), expected)


def empty(name: str, dtype: str, shape: Sequence[int]) -> Tensor:
    """A tensor without elements (TEN-004)."""
    return _tensor(name, dtype, shape, None, [], [], b"")


def alias(name: str, target: Tensor) -> Tensor:
    entry = replace(target.entry, name=name.encode(), target=target.entry.name)
    return Tensor([name, target.name], (), entry, target.dtype, target.shape, target.expected)


def raw(
    name: str,
    dtype: str,
    shape: Sequence[int],
    data: bytes,
    *,
    split: int = 0,
    layout: Layout | None = None,
    seal: Seal = section,
) -> Tensor:
    """A tensor with a raw stage (SPEC 8); ``data`` are its decoded bytes (7.1)."""
    grid = layout or Layout()
    n_rows, n_columns = grid.view_shape(shape)
    sections = []
    for rows, columns in grid.blocks(n_rows, n_columns):
        first, last = rows.start * n_columns + columns.start, (rows.stop - 1) * n_columns + columns.stop
        sections += [seal(item) for item in raw_planes(data, dtype, first, last, split)]
    return _tensor(name, dtype, shape, layout, [[0, split]], sections, bytes(data))


def raw_planes(data: bytes, dtype: str, first: int, last: int, split: int) -> list[bytes]:
    """The sections of a block that holds the elements from ``first`` to ``last`` - 1 (RAW-002 to 004)."""
    if DTYPES[dtype].bits == 4:
        nibbles = [data[i // 2] >> 4 * (i % 2) & 15 for i in range(first, last)]
        nibbles += [0] * (len(nibbles) % 2)
        return [bytes(nibbles[i] | nibbles[i + 1] << 4 for i in range(0, len(nibbles), 2))]
    size, word = DTYPES[dtype].bits // 8, DTYPES[dtype].word
    block = data[first * size : last * size]
    if split == 0:
        return [block]
    words = [int.from_bytes(block[i : i + word], "little") for i in range(0, len(block), word)]
    if split == 2:
        words = [(w << 1 | w >> 8 * word - 1) & 256**word - 1 for w in words]
    return [bytes(w >> 8 * p & 255 for w in words) for p in range(word)]


def sparse(
    name: str,
    dtype: str,
    shape: Sequence[int],
    data: bytes,
    *,
    split: int = 2,
    layout: Layout | None = None,
    seal: Seal = section,
    marked: Sequence[int] = (),
) -> Tensor:
    """A tensor with a sparse raw stage (SPEC 8.1); ``data`` are its decoded bytes (7.1).

    Args:
        marked: Numbers of bare words of each block that are in the planes all the same.
    """
    grid, word, size = layout or Layout(), DTYPES[dtype].word, DTYPES[dtype].bits // 8
    n_rows, n_columns = grid.view_shape(shape)
    sections, counts = [], []
    for rows, columns in grid.blocks(n_rows, n_columns):
        first, last = rows.start * n_columns + columns.start, (rows.stop - 1) * n_columns + columns.stop
        block = data[first * size : last * size]
        words = [block[i : i + word] for i in range(0, len(block), word)]
        marks = [i in marked or w[:-1] + bytes([w[-1] & 127]) != bytes(word) for i, w in enumerate(words)]
        signs = [w[-1] >> 7 for w, mark in zip(words, marks, strict=True) if not mark]
        others = b"".join(w for w, mark in zip(words, marks, strict=True) if mark)
        planes = raw_planes(others, dtype, 0, len(others) // size, split)
        if len(others) % size:  # one part of a complex element
            planes = raw_planes(others, {4: "f32", 8: "f64"}[word], 0, len(others) // word, split)
        sections += [seal(item) for item in (dense(marks, 2), dense(signs, 2), *planes)]
        counts.append(sum(marks))
    return _tensor(name, dtype, shape, layout, [[5, split, column(counts)]], sections, bytes(data))


def tensor(
    name: str,
    dtype: str,
    shape: Sequence[int],
    *stages: Stage,
    layout: Layout | None = None,
    row_classes: Sequence[int] = (),
    column_classes: Sequence[int] = (),
    seal: Seal = section,
) -> Tensor:
    """A tensor with arithmetic stages, and its value by 7.2 and 7.4, one element after another."""
    grid, kind = layout or Layout(), DTYPES[dtype]
    view_shape = tuple(shape) + ((2,) if kind.parts == 2 else ())  # S
    n_rows, n_columns = grid.view_shape(view_shape)
    sections = [seal(bytes(classes)) for classes in (row_classes, column_classes) if classes]
    sections += [seal(item) for stage in stages for item in stage.resident()]
    for rows, columns in grid.blocks(n_rows, n_columns):
        sections += [seal(item) for stage in stages for item in stage.payload(rows, columns)]

    row_order = sorted(range(n_rows), key=lambda i: row_classes[i] if row_classes else 0)  # stable
    column_order = sorted(range(n_columns), key=lambda i: column_classes[i] if column_classes else 0)
    view = np.zeros((n_rows, n_columns), F32)
    for i in range(n_rows):
        for j in range(n_columns):
            t = stages[0].value(i, j, n_rows, n_columns)
            for stage in stages[1:]:
                t = t + stage.value(i, j, n_rows, n_columns)  # F32 + F32: one rounding
            assert type(t) is F32
            view[row_order[i], column_order[j]] = t
    axes = grid.axes or tuple(range(len(view_shape)))
    values = np.zeros(view_shape, F32)
    values.transpose(axes)[...] = view.reshape([view_shape[axis] for axis in axes])
    expected = table_bytes(np.ascontiguousarray(values).astype(kind.real))
    return _tensor(name, dtype, shape, layout, [stage.record() for stage in stages], sections, expected)


def edit(item: Tensor, path: Sequence[int], value: object) -> Tensor:
    """The tensor with one place of its record changed: ``edit(t, (4, 0, 1), 0)``. The index follows if it can."""
    record = copy.deepcopy(item.record)
    place = record
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    entry = item.entry
    name, dtype, shape = (*record, None, None)[:3] if len(record) >= 3 else (record[0], None, None)
    if isinstance(name, str):
        entry = replace(entry, name=name.encode())
    if type(dtype) is int and 0 <= dtype < 256:
        entry = replace(entry, dtype=dtype)
    if isinstance(shape, list) and all(type(size) is int and 0 <= size < 2**64 for size in shape):
        entry = replace(entry, shape=tuple(shape))
    return replace(item, record=record, entry=entry)


def with_sections(item: Tensor, *sections: Section) -> Tensor:
    """The tensor with other sections."""
    return replace(item, sections=sections)


def with_section(item: Tensor, position: int, value: Section) -> Tensor:
    """The tensor with one section replaced; negative positions count from the end."""
    sections = list(item.sections)
    sections[position] = value
    return replace(item, sections=tuple(sections))
