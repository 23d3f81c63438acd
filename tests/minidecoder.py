"""A second decoder of the vqm format, written from SPEC.md alone, to be read beside it: its order, its ids.

It shares no code with the package, and favours plainness over speed. As a program it prints what a file
holds, or why it is refused, as JSON: ``python minidecoder.py FILE`` (``-`` is stdin).
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
import sys
import zlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from itertools import product, zip_longest
from typing import Any, BinaryIO, NamedTuple

import zstandard

MAGIC = b"\x89VQM\r\n\x1a\n"
# Section 13
MAX_META, MAX_INDEX_META, MAX_DEPTH, MAX_VALUES = 1 << 24, 1 << 28, 16, 1 << 20
MAX_SECTIONS, MAX_CHUNKS, MAX_TENSORS, MAX_NAME, MAX_AXES = 1 << 22, 1 << 20, 1 << 20, 1024, 32
MAX_SIZE, MAX_STAGES, MAX_ENTRIES, MAX_DIM, MAX_GROUPS = (1 << 60) - 1, 16, 65536, 4096, 1 << 20
MAX_RANK, MAX_FACTOR, MAX_RESIDENT, MAX_BLOCK, MAX_WINDOW = 65536, 1 << 24, 1 << 28, 1 << 22, 1 << 23
# Section 7.1: name and bits of each dtype, by id
DTYPES = [("bool", 8), ("u8", 8), ("i8", 8), ("u16", 16), ("i16", 16), ("u32", 32), ("i32", 32), ("u64", 64),
          ("i64", 64), ("f16", 16), ("bf16", 16), ("f32", 32), ("f64", 64), ("c64", 64), ("c128", 128),
          ("f8_e4m3fn", 8), ("f8_e5m2", 8), ("f8_e4m3fnuz", 8), ("f8_e5m2fnuz", 8), ("f8_e8m0fnu", 8),
          ("u4", 4), ("i4", 4), ("f4_e2m1fn", 4)]
BOOL, F16, BF16, F32, F64, C64, C128 = 0, 9, 10, 11, 12, 13, 14
TABLE_NBYTES = {F16: 2, BF16: 2, F32: 4}
OVERFLOW = {F16: 65520.0, BF16: float.fromhex("0x1.FFp127")}  # the least numbers that round to infinity

Read = Callable[[int], bytes]  # gives the next section of a chunk, told its plain size
Book = tuple[int, int, int, "array[float]"]  # dim, entries, groups, values
Tensor = tuple[str, tuple[int, ...], bytes]  # dtype, shape, the decoded bytes of 7.1


class Model(NamedTuple):
    metadata: dict[str, Any]
    tensors: dict[str, Tensor]


class Refused(Exception):
    """The file breaks the rule ``clause``; ``error_class`` is as in section 1."""

    def __init__(self, error_class: str, clause: str, message: str) -> None:
        super().__init__(message)
        self.error_class, self.clause = error_class, clause


def need(holds: bool, rule: str, *found: object) -> None:
    """Refuse the file unless the rule holds: its id, followed by the class of error if that is not "format"."""
    if not holds:
        clause, error_class = f"{rule} format".split()[:2]
        raise Refused(error_class, clause, " ".join(map(str, found))[:200])


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def f32(x: float) -> float:
    """CNV-006; too much is infinite. Sums and products of binary32, rounded to binary64 on the way, stay right."""
    return array("f", [x])[0]


def decompress(frame: bytes, n_bytes: int) -> bytes:
    """Section 4: one zstd frame (RFC 8878, 3.1.1) of known plain size."""
    need(len(frame) > 4 and frame[:4] == b"\x28\xb5\x2f\xfd", "SEC-005", "a frame begins", frame[:5].hex())
    need(not frame[4] & 8, "SEC-009", "the reserved bit is set")
    id_at = 5 if frame[4] & 32 else 6  # without the single-segment flag a byte for the window precedes it
    size_at = id_at + (0, 1, 2, 4)[frame[4] & 3]
    end = size_at + (6 - id_at, 2, 4, 8)[frame[4] >> 6]
    need(len(frame) >= end, "SEC-005", len(frame), "bytes of a frame whose header takes", end)
    need(not any(frame[id_at:size_at]), "SEC-008", "a dictionary is named")
    size = int.from_bytes(frame[size_at:end], "little") + (256 if end - size_at == 2 else 0)
    need(end > size_at and size == n_bytes, "SEC-006", "content size", size, "(0: none), not", n_bytes)
    window = (8 + (frame[5] & 7)) << (7 + (frame[5] >> 3)) if id_at == 6 else 0
    need(window <= MAX_WINDOW, "SEC-007 limit", "window", window)
    try:
        return zstandard.ZstdDecompressor().decompress(frame, max_output_size=n_bytes, allow_extra_data=False)
    except zstandard.ZstdError as err:
        raise Refused("format", "SEC-005" if "unused data" in str(err) else "SEC-010", str(err)) from err


FIXED = {0xC0: None, 0xC2: False, 0xC3: True} | {n & 255: n for n in range(-32, 128)}
FORMS = {0xC4: ("bin", 1, 0), 0xC5: ("bin", 2, 1 << 8), 0xC6: ("bin", 4, 1 << 16),  # kind, width, least number
         0xCC: ("integer", 1, 1 << 7), 0xCD: ("integer", 2, 1 << 8), 0xCE: ("integer", 4, 1 << 16),
         0xCF: ("integer", 8, 1 << 32), 0xD0: ("negative", 1, 33), 0xD1: ("negative", 2, (1 << 7) + 1),
         0xD2: ("negative", 4, (1 << 15) + 1), 0xD3: ("negative", 8, (1 << 31) + 1), 0xD9: ("string", 1, 32),
         0xDA: ("string", 2, 1 << 8), 0xDB: ("string", 4, 1 << 16), 0xDC: ("array", 2, 16),
         0xDD: ("array", 4, 1 << 16), 0xDE: ("map", 2, 16), 0xDF: ("map", 4, 1 << 16)}


class Meta:
    """Section 5: the metadata of one chunk."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at, self.n_values = data, 0, 0

    def take(self, n_bytes: int, n_claimed: int = 0) -> bytes:
        need(self.at + n_bytes + n_claimed <= len(self.data), "MET-005", n_bytes + n_claimed, "bytes at", self.at)
        self.at += n_bytes
        return self.data[self.at - n_bytes:self.at]

    def value(self, depth: int) -> Any:
        first, self.n_values = self.take(1)[0], self.n_values + 1
        need(depth <= MAX_DEPTH, "MET-006 limit", "depth", depth)
        need(self.n_values <= MAX_VALUES, "MET-007 limit", "too many values")
        if first in FIXED:
            return FIXED[first]
        if first < 0xC0:
            kind, n = ("map", "array", "string", "string")[(first >> 4) - 8], first & (31 if first >= 0xA0 else 15)
        else:
            need(first in FORMS, "MET-001", f"no value begins with {first:02X}")
            kind, width, least = FORMS[first]
            n = int.from_bytes(self.take(width), "big", signed=kind == "negative")
            need((-n if kind == "negative" else n) >= least, "MET-002", n, f"has a shorter form than {first:02X}")
        if kind in ("integer", "negative"):
            return n
        if kind in ("bin", "string"):
            data = self.take(n)
            text = data.decode("utf-8", "replace")
            need(kind == "bin" or text.encode() == data, "MET-003", "no UTF-8:", text)
            return data if kind == "bin" else text
        self.take(0, 2 * n if kind == "map" else n)  # MET-007: so many bytes at least
        if kind == "array":
            return [self.value(depth + 1) for _ in range(n)]
        pairs: dict[str, Any] = {}
        for _ in range(n):
            key = self.value(depth + 1)
            in_order = type(key) is str and (not pairs or next(reversed(pairs)).encode() < key.encode())
            need(in_order, "MET-004", "key", key, "is not a string, or out of order")
            pairs[key] = self.value(depth + 1)
        return pairs


def kind_of(value: Any, kind: type, length: int | None = None) -> Any:
    fits = type(value) is kind and (length is None or len(value) == length)
    need(fits, "MET-008", "not of kind", kind.__name__, "or of length", length, ":", value)
    return value


def integer(value: Any, rule: str = "MET-008", least: int = 0, most: float = math.inf, over: str = "format") -> int:
    """An integer from ``least`` to ``most``, as ``rule`` wants it; ``over`` is the class of error if it is more."""
    need(type(value) is int and value >= 0, "MET-008", value, "is not an integer from 0")
    need(value >= least, rule, value, "is less than", least)
    need(value <= most, f"{rule} {over}", value, "is more than", most)
    return int(value)


def column(data: bytes, n: int) -> list[int]:
    """An integer column of n integers."""
    width = len(data) // max(n, 1)
    need(len(data) == n * width and (n == 0 or width in (1, 2, 4, 8)), "MET-009", len(data), "bytes for", n, "integers")
    values = [int.from_bytes(data[i:i + width], "little") for i in range(0, len(data), width or 1)]
    need(width <= 1 or max(values) >= 1 << 4 * width, "MET-009", "width", width, "is more than is needed")
    return values


def table_dtype(value: Any) -> int:
    need(integer(value) in TABLE_NBYTES, "CBK-007 unsupported", "dtype", value, "of a table or scale")
    return int(value)


def floats(data: bytes, dtype: int, clause: str) -> array[float]:
    """Section 9.4: values widened to f32, exactly."""
    if dtype == BF16:
        data = b"".join(b"\0\0" + data[i:i + 2] for i in range(0, len(data), 2))
    values = array("f", (value for (value,) in struct.iter_unpack("<e" if dtype == F16 else "<f", data)))
    need(all(map(math.isfinite, values)), clause, "a value is not finite")
    return values


class View(NamedTuple):
    """Section 7.2: an R x C matrix in blocks; one that spans its axis has that axis's length, where the file has 0."""

    n_rows: int
    n_columns: int
    block_rows: int
    block_columns: int

    def blocks(self) -> Iterator[tuple[range, range]]:
        for r, c in product(range(0, self.n_rows, self.block_rows), range(0, self.n_columns, self.block_columns)):
            yield range(r, min(r + self.block_rows, self.n_rows)), range(c, min(c + self.block_columns, self.n_columns))


def raw_block(read: Read, dtype: int, split: int, n: int) -> bytes:
    """Section 8: a block's n elements as bytes; 4-bit elements come one to a byte."""
    bits, k = DTYPES[dtype][1], word_nbytes(dtype)
    if split == 0:
        data = read(ceil_div(n * bits, 8))
        need(dtype != BOOL or max(data) <= 1, "DTY-001", max(data), "as a bool")
        if bits == 4:
            data = bytes(nibble for byte in data for nibble in (byte & 15, byte >> 4))
            need(not any(data[n:]), "RAW-002", "the unused bits are not zero")
        return data[:n] if bits == 4 else data
    planes = [read(n * bits // 8 // k) for _ in range(k)]
    words = [int.from_bytes(word, "little") for word in zip(*planes, strict=True)]  # RAW-003
    if split == 2:  # RAW-004
        words = [word >> 1 | (word & 1) << 8 * k - 1 for word in words]
    return b"".join(word.to_bytes(k, "little") for word in words)


class Codes:
    """Section 10."""

    def __init__(self, entries: int, planes: Any) -> None:
        self.entries, self.planes, product_of_bases = entries, [kind_of(p, list, 2) for p in kind_of(planes, list)], 1
        need(len(planes) <= 3, "COD-004", len(planes), "planes")
        for base, k in self.planes:
            in_byte = 2 <= integer(base) <= 256 and 1 <= integer(k) <= 8 and base ** k <= 256
            need(in_byte, "COD-003", k, "digits of base", base)
            need(product_of_bases < entries, "COD-004", "more planes than", entries, "entries need")
            product_of_bases *= base
        need(not planes or product_of_bases >= entries, "COD-004", "fewer planes than", entries, "entries need")

    def sizes(self, n: int) -> list[int]:
        return [ceil_div(n, k) for _, k in self.planes] or [ceil_div(n * (self.entries - 1).bit_length(), 8)]

    def read(self, read: Read, n: int) -> list[int]:
        codes, unit, w = [0] * n, 1, (self.entries - 1).bit_length()
        if not self.planes and (data := read(self.sizes(n)[0])):  # dense: eight codes fill w bytes
            words = [int.from_bytes(data[i:i + w], "little") for i in range(0, len(data), w)]
            codes = [word >> j * w & (1 << w) - 1 for word in words for j in range(8)]
            need(not any(codes[n:]), "COD-002", "bits after the last code are not zero")
        for base, k in self.planes:
            data = read(ceil_div(n, k))
            digits = [byte // base ** j % base for byte in data for j in range(k)]
            need(max(data) < base ** k and not any(digits[n:]), "COD-005", "byte", max(data), "of base", base)
            codes, unit = [code + unit * digit for code, digit in zip(codes, digits, strict=False)], unit * base
        need(max(codes) < self.entries, "COD-001", "code", max(codes), "of", self.entries)
        return codes[:n]


class Grid:
    """Section 9.2: a table, steps or scales: ``size`` values for each group of rows and columns."""

    def __init__(self, dtype: Any, groups: tuple[Any, Any], axes: tuple[int, int], size: int = 1) -> None:
        self.dtype, self.values = table_dtype(dtype), array("f")
        self.rows, self.columns = (integer(groups[i], "CBK-003", most=axes[i] - 1) or axes[i] for i in (0, 1))
        self.n_columns = ceil_div(axes[1], self.columns)
        self.n_groups = ceil_div(axes[0], self.rows) * self.n_columns
        self.n_bytes = self.n_groups * size * TABLE_NBYTES[self.dtype]

    def load(self, read: Read) -> float:
        """Returns the largest absolute value."""
        self.values = self.values or floats(read(self.n_bytes), self.dtype, "CBK-008")
        return max(map(abs, self.values))

    def group(self, r: int, c: int) -> int:
        return r // self.rows * self.n_columns + c // self.columns


class Stage(NamedTuple):
    residents: list[int]  # plain sizes of its resident sections
    n_payloads: int  # sections for each block
    load: Callable[[Read], float]  # reads the resident sections, returns the bound of VAL-002
    block: Callable[[Read, range, range], list[float]]  # reads a block's payload, returns the values of its elements


def codebook_stage(record: Any, view: View, books: Sequence[Book]) -> Stage:
    """Section 9."""
    _, dim, entries, source, choice, book_rows, book_columns, scale, planes = kind_of(record, list, 9)
    integer(dim, "CBK-001", 1, MAX_DIM, "limit")
    integer(entries, "CBK-001", 1, MAX_ENTRIES, "limit")
    source_id, detail = kind_of(source, list, 2)
    is_table, is_progression, is_shared = (integer(source_id, "CBK-007", 0, 2, "unsupported") == i for i in range(3))
    if is_table:
        table_dtype(detail)
    elif is_progression:
        need(abs(kind_of(detail, int)) <= 1 << 23, "CBK-005", "zero", detail)
    else:
        integer(detail, "BOK-001", most=len(books) - 1)
    integer(choice, "CBK-004", 0, 0, "unsupported")
    subvectors, per_group = (view.n_rows, ceil_div(view.n_columns, dim)), 1 if is_progression else entries * dim
    table, scales = Grid(detail if is_table else F32, (book_rows, book_columns), subvectors, per_group), None
    if scale is not None:
        dtype, rows, columns = kind_of(scale, list, 3)
        scales = Grid(dtype, (rows, columns), view[:2])
    codes = Codes(entries, planes)
    need(dim <= view.n_columns, "CBK-001", "dim", dim, "of", view.n_columns, "columns")
    need(view.block_columns in (view.n_columns, view.block_columns // dim * dim), "CBK-002", view, "dim", dim)
    need(dim == 1 or not is_progression, "CBK-005", "dim", dim)
    need(not is_shared or books[detail][:3] == (dim, entries, table.n_groups), "CBK-006", dim, entries, table.n_groups)
    table.values = books[detail][3] if is_shared else table.values
    residents = [grid.n_bytes for grid in (table, scales) if grid and not grid.values]

    def load(read: Read) -> float:
        bound = table.load(read)
        if is_progression:
            bound = f32(max(abs(detail), abs(entries - 1 - detail)) * bound)
        return f32(scales.load(read) * bound) if scales else bound

    def block(read: Read, rows: range, columns: range) -> list[float]:
        per_row = ceil_div(len(columns), dim)  # CBK-002: a block begins with a whole subvector
        block_codes, values = codes.read(read, len(rows) * per_row), []
        for (i, r), (j, c) in product(enumerate(rows), enumerate(columns)):
            code, group = block_codes[i * per_row + j // dim], table.group(r, c // dim)
            if is_progression:
                value = f32((code - detail) * table.values[group])
            else:
                value = table.values[(group * entries + code) * dim + c % dim]
            values.append(f32(scales.values[scales.group(r, c)] * value) if scales else value)
        return values

    return Stage(residents, len(codes.sizes(0)), load, block)


def low_rank_stage(record: Any, view: View) -> Stage:
    """Section 11."""
    _, rank, left, right, row_scale, column_scale = kind_of(record, list, 6)
    integer(rank, "LOW-001", 1, MAX_RANK, "limit")
    factors = [(integer(entries, "LOW-001", 2, 65535) // 2, Codes(entries, planes))
               for entries, planes in (kind_of(factor, list, 2) for factor in (left, right))]
    (half_u, codes_u), (half_v, codes_v) = factors
    (dtype_r, size_r), (n_rows, n_columns, _, block_columns) = kind_of(row_scale, list, 2), view
    a = Grid(dtype_r, (size_r, 0), (n_rows, 1))
    dtype_c, size_c = kind_of(column_scale, list, 2)
    b = Grid(dtype_c, (0, size_c), (1, n_columns))
    need(rank <= min(n_rows, n_columns), "LOW-001", "rank", rank, "of", n_rows, "x", n_columns)
    need(rank * n_columns <= MAX_FACTOR, "LOW-001 limit", rank, "x", n_columns, "elements of the right factor")
    need(block_columns == n_columns, "LOW-002", "block_columns", block_columns)
    v = list[int]()

    def load(read: Read) -> float:
        bound = f32(f32(f32(rank * half_u * half_v) * a.load(read)) * b.load(read))
        v.extend(code - half_v for code in codes_v.read(read, rank * n_columns))
        return bound

    def block(read: Read, rows: range, columns: range) -> list[float]:
        u, values = [code - half_u for code in codes_u.read(read, len(rows) * rank)], []
        for (i, r), c in product(enumerate(rows), columns):
            s = sum(u[i * rank + k] * v[k * n_columns + c] for k in range(rank))
            values.append(f32(f32(f32(s) * a.values[r // a.rows]) * b.values[c // b.columns]))
        return values

    return Stage([a.n_bytes, b.n_bytes, *codes_v.sizes(rank * n_columns)], len(codes_u.sizes(0)), load, block)


def word_nbytes(dtype: int) -> int:
    return DTYPES[dtype][1] // (16 if dtype in (C64, C128) else 8)


def narrow(values: Sequence[float], dtype: int) -> bytes:
    """VAL-001: f32 values as bytes of the dtype."""
    if dtype != BF16:
        return struct.pack(f"<{len(values)}{ {F16: 'e', F64: 'd', C128: 'd'}.get(dtype, 'f') }", *values)
    words = (word for (word,) in struct.iter_unpack("<I", narrow(values, F32)))
    return struct.pack(f"<{len(values)}H", *(word + 0x7FFF + (word >> 16 & 1) >> 16 for word in words))


def position(index: int, axes: list[tuple[int, int]]) -> int:
    """Where a row or column of the view begins, in elements; an axis is (size, stride)."""
    at = 0
    for size, stride in reversed(axes):
        at, index = at + index % size * stride, index // size
    return at


class Plan:
    """Section 7: a checked record. The sections that a tensor has, and how its elements come from them."""

    def __init__(self, record: Any, books: Sequence[Book]) -> None:
        need(type(record) is list and len(record) in (2, 5), "MET-008", "a tensor is an array of 2 or 5 fields")
        self.name, self.target, self.n_sections = kind_of(record[0], str), None, 0
        integer(len(self.name.encode()), "TEN-001", 1, MAX_NAME, "limit")
        need("\0" not in self.name, "TEN-001", "U+0000 in a name")
        if len(record) == 2:
            self.target = kind_of(record[1], str)
            return
        _, dtype, shape, layout, stages = record
        self.dtype = integer(dtype, "TEN-006", 0, len(DTYPES) - 1, "unsupported")
        need(len(kind_of(shape, list)) <= MAX_AXES, "TEN-003 limit", "rank", len(shape))
        self.shape = tuple(map(integer, shape))
        need(math.prod(size or 1 for size in shape) <= MAX_SIZE, "TEN-003 limit", "shape", shape)
        self.bits, self.residents, self.stages = DTYPES[dtype][1], list[int](), list[Stage]()
        self.n_bytes = ceil_div(math.prod(shape) * self.bits, 8)
        if 0 in shape:
            need(layout is None and stages == [], "TEN-004", "layout or stages with shape", shape)
            return
        integer(len(kind_of(stages, list)), "TEN-004", 1, MAX_STAGES, "limit")
        for stage in stages:
            integer((kind_of(stage, list) or [None])[0], "TEN-006", 0, 2, "unsupported")
        self.is_raw = [stage[0] for stage in stages] == [0]
        arithmetic = all(stage[0] for stage in stages) and F16 <= dtype <= C128
        need(self.is_raw or arithmetic, "TEN-005", stages, "for", DTYPES[dtype][0])
        self.check_layout([None, 0, 0, 0, 0] if layout is None else layout)
        if self.is_raw:
            self.split = integer(kind_of(stages[0], list, 2)[1], "RAW-001", 0, 2, "unsupported")
            need(self.split == 0 or self.bits > 8, "RAW-001", "split", self.split, "of", self.bits, "bits")
            n_payloads = word_nbytes(dtype) if self.split else 1
        else:
            self.stages = [codebook_stage(stage, self.view, books) if stage[0] == 1 else low_rank_stage(stage, self.view)
                           for stage in stages]
            n_payloads = sum(stage.n_payloads for stage in self.stages)
        self.residents += [size for stage in self.stages for size in stage.residents]
        need(max([0, *self.residents]) <= MAX_RESIDENT, "TEN-007 limit", "resident sections of", self.residents)
        n_rows, n_columns, block_rows, block_columns = self.view
        n_blocks = ceil_div(n_rows, block_rows) * ceil_div(n_columns, block_columns)
        self.n_sections = len(self.residents) + n_blocks * n_payloads

    def check_layout(self, layout: Any) -> None:
        axes, n_row_axes, order, block_rows, block_columns = kind_of(layout, list, 5)
        shape = [*self.shape, 2] if self.dtype in (C64, C128) and not self.is_raw else list(self.shape)
        identity = list(range(len(shape)))
        if axes is not None:
            need(sorted(map(integer, kind_of(axes, list))) == identity != axes, "LAY-001", "axes", axes)
        integer(n_row_axes, "LAY-001", most=len(shape))
        integer(order, "LAY-003", 0, 3, "unsupported")
        need(not self.is_raw or (axes is None and order == 0), "LAY-002", "axes", axes, "order", order)
        strides = [(shape[axis], math.prod(shape[axis + 1:])) for axis in axes or identity]
        self.row_axes, self.column_axes, self.order = strides[:n_row_axes], strides[n_row_axes:], order
        n_rows, n_columns = (math.prod(size for size, _ in part) for part in (self.row_axes, self.column_axes))
        bands = integer(block_columns) == 0 and 0 <= integer(block_rows) < n_rows
        ranges = integer(block_rows) == 1 and 1 <= block_columns < n_columns
        need(bands or ranges, "LAY-004", block_rows, block_columns, "in a view of", n_rows, "x", n_columns)
        self.view = View(n_rows, n_columns, block_rows or n_rows, block_columns or n_columns)
        n_elements = self.view.block_rows * self.view.block_columns
        need(n_elements <= MAX_BLOCK, "LAY-005 limit", n_elements, "elements in a block")
        self.residents += [n for bit, n in ((1, n_rows), (2, n_columns)) if order & bit]

    def decode(self, read: Read) -> bytes:
        """Read the tensor's sections in the order of 7.3; returns its decoded bytes."""
        if self.n_sections == 0:
            return b""
        if self.is_raw:  # LAY-002: its blocks follow each other in C order
            raw = b"".join(raw_block(read, self.dtype, self.split, len(r) * len(c)) for r, c in self.view.blocks())
            pairs = zip_longest(raw[::2], raw[1::2], fillvalue=0)
            return bytes(low | high << 4 for low, high in pairs) if self.bits == 4 else raw
        orders: list[Sequence[int]] = [range(self.view.n_rows), range(self.view.n_columns)]
        for i in (0, 1):
            if self.order >> i & 1:  # 7.2; Python's sort is stable
                orders[i] = sorted(orders[i], key=read(len(orders[i])).__getitem__)
        bound = 0.0
        for stage in self.stages:
            bound = f32(bound + stage.load(read))
        need(bound < OVERFLOW.get(self.dtype, math.inf), "VAL-002", "bound", bound)
        data, size = bytearray(), word_nbytes(self.dtype)
        for rows, columns in self.view.blocks():
            t = self.stages[0].block(read, rows, columns)
            for stage in self.stages[1:]:
                t = [f32(a + b) for a, b in zip(t, stage.block(read, rows, columns), strict=True)]
            data, block = data or bytearray(self.n_bytes), narrow(t, self.dtype)  # REA-002: memory only now
            row_at = [position(orders[0][r], self.row_axes) for r in rows]
            column_at = [position(orders[1][c], self.column_axes) for c in columns]
            for i, (r, c) in enumerate(product(row_at, column_at)):
                data[(r + c) * size:(r + c + 1) * size] = block[i * size:(i + 1) * size]
        return bytes(data)


class Decoder:
    """Section 14.1: one pass over the file."""

    def __init__(self, stream: BinaryIO, max_tensor_bytes: int, max_total_bytes: int) -> None:
        self.stream, self.offset, self.sha256 = stream, 0, hashlib.sha256()
        self.max_tensor_bytes, self.budget = max_tensor_bytes, max_total_bytes
        self.model, self.metadata, self.books = Model({}, {}), b"", list[Book]()
        self.chunks = list[tuple[bytes, int]]()  # type and length of each
        self.index = dict[str, tuple[int, tuple[int, ...], int, int, int]]()  # dtype, shape, chunk, target, position

    def read(self, n_bytes: int) -> bytes:
        data = bytearray()
        while len(data) < n_bytes:  # REA-002: what is announced takes no memory before it comes
            piece = self.stream.read(min(n_bytes - len(data), 1 << 20))
            need(piece != b"", "REA-001 truncated", n_bytes, "bytes at", self.offset)
            self.sha256.update(piece)
            data += piece
        self.offset += n_bytes
        return bytes(data)

    def spend(self, n_bytes: int) -> None:
        need(n_bytes <= self.budget, "LIM-002 limit", n_bytes, "bytes,", self.budget, "are allowed")
        self.budget -= n_bytes

    def chunk(self) -> bytes:
        """Read a chunk; returns its type."""
        start, digest, head = self.offset, self.sha256.digest(), self.read(24)
        kind, flags, meta_stored, meta_plain, n_sections, crc = struct.unpack("<4s5I", head)
        need(crc == zlib.crc32(head[:20]), "CHK-001 checksum", "chunk header at", start)
        need(kind.isalpha(), "CHK-002", kind)
        is_known = kind in (b"META", b"BOOK", b"LAYR", b"INDX")
        need(is_known or kind[:1].islower(), "CHK-003 unsupported", kind)
        need(flags <= 1, "CHK-004 unsupported", "flags", flags)
        need(max(meta_stored, meta_plain) <= (MAX_INDEX_META if kind == b"INDX" else MAX_META), "CHK-006 limit", head)
        need(n_sections <= MAX_SECTIONS, "CHK-006 limit", n_sections, "sections")
        need(len(self.chunks) < MAX_CHUNKS, "LIM-001 limit", "too many chunks")
        plain, table = self.read(meta_stored), self.read(8 * n_sections)
        need(self.read(4) == struct.pack("<I", zlib.crc32(plain + table)), "CHK-007 checksum", "body of chunk at", start)
        need((kind == b"META") == (not self.chunks), "FIL-001", kind, "as chunk", len(self.chunks))
        need(n_sections == 0 or kind not in (b"META", b"INDX"), "CHK-008", n_sections, "sections of", kind)
        rows = struct.iter_unpack("<II", table)
        if is_known:
            smaller, same = meta_stored < meta_plain, meta_stored == meta_plain
            need(smaller if flags else same, "CHK-005", "meta of", meta_stored, "bytes, plain", meta_plain)
            plain = decompress(plain, meta_plain) if flags else plain
            parser = Meta(plain)
            meta = parser.value(1)
            need(parser.at == len(plain), "MET-005", len(plain) - parser.at, "bytes follow")
        if kind == b"META":
            generator, metadata = kind_of(meta, list, 2)
            kind_of(generator, str)
            self.model.metadata.update(kind_of(metadata, dict))
            self.metadata = plain if len(plain) <= 65536 else b""
        elif kind == b"INDX":
            self.check_index(meta, digest)
        elif is_known:
            take = self.book if kind == b"BOOK" else self.layer
            take(meta, n_sections, lambda size: self.section(next(rows), size))
        else:
            for row in rows:
                self.section(row, None)
        self.chunks.append((kind, self.offset - start))  # FIL-002
        return bytes(kind)

    def section(self, row: tuple[int, int], plain_nbytes: int | None) -> bytes:
        """A section's plain bytes; without a size (an ancillary chunk) its stored bytes."""
        compressed, n_bytes = row[0] >> 31, row[0] & 0x7FFFFFFF
        if plain_nbytes is not None:
            smaller, same = n_bytes < plain_nbytes, n_bytes == plain_nbytes
            need(smaller if compressed else same, "SEC-004", n_bytes, "bytes at", self.offset, "plain", plain_nbytes)
        if not compressed and n_bytes >= 4096:  # SEC-002
            need(not any(self.read(-self.offset % 64)), "SEC-003", "padding before", self.offset)
        stored = self.read(n_bytes)
        need(zlib.crc32(stored) == row[1], "SEC-001 checksum", "section before", self.offset)
        return decompress(stored, plain_nbytes) if compressed and plain_nbytes is not None else stored

    def book(self, meta: Any, n_sections: int, read: Read) -> None:
        dim, entries, groups, dtype = kind_of(meta, list, 4)
        for value, limit in ((dim, MAX_DIM), (entries, MAX_ENTRIES), (groups, MAX_GROUPS)):
            integer(value, "BOK-002", 1, limit, "limit")
        size = dim * entries * groups * TABLE_NBYTES[table_dtype(dtype)]
        need(size <= MAX_RESIDENT, "LIM-001 limit", "BOOK of", size, "bytes")
        need(n_sections == 1, "BOK-003", n_sections, "sections")
        self.spend(size)
        self.books.append((dim, entries, groups, floats(read(size), dtype, "BOK-002")))

    def layer(self, meta: Any, n_sections: int, read: Read) -> None:
        name, records = kind_of(meta, list, 2)
        need(len(kind_of(name, str).encode()) <= MAX_NAME, "LIM-001 limit", "name of the layer")
        need(kind_of(records, list) != [], "LYR-001", "no tensor")
        need(len(self.index) + len(records) <= MAX_TENSORS, "LIM-001 limit", "too many tensors")
        plans = [Plan(record, self.books) for record in records]
        need(sum(plan.n_sections for plan in plans) == n_sections, "LYR-002", n_sections, "sections")
        for plan in plans:  # REA-003: names and budgets come last
            need(plan.name not in self.index, "TEN-002", plan.name)
            at = len(self.index)
            if plan.target is None:
                need(plan.n_bytes <= self.max_tensor_bytes, "LIM-002 limit", plan.name, "of", plan.n_bytes, "bytes")
                self.spend(plan.n_bytes)
                self.index[plan.name] = plan.dtype, plan.shape, len(self.chunks), 0, at
            else:
                need(self.index.get(plan.target, [1] * 5)[3] == 0, "ALI-001", plan.target)
                dtype, shape, _, _, target_at = self.index[plan.target]
                self.index[plan.name] = dtype, shape, len(self.chunks), target_at + 1, at
        tensors = self.model.tensors
        for plan in plans:
            tensors[plan.name] = (tensors[plan.target] if plan.target is not None else
                                  (DTYPES[plan.dtype][0], plan.shape, plan.decode(read)))

    def check_index(self, meta: Any, digest: bytes) -> None:
        found = [kind_of(value, bytes) for value in kind_of(meta, list, 10)]
        kind_of(found[0], bytes, 32)
        dtypes, shapes, chunks, targets, _ = zip(*self.index.values(), strict=True) if self.index else [()] * 5
        expected = [self.metadata, b"".join(kind for kind, _ in self.chunks), [length for _, length in self.chunks],
                    b"".join(name.encode() + b"\0" for name in self.index), bytes(dtypes), bytes(map(len, shapes)),
                    [size for shape in shapes for size in shape], list(chunks), list(targets) if any(targets) else b""]
        for i, value in enumerate(expected, 1):  # IDX-004 with it
            same = found[i] == value if type(value) is bytes else column(found[i], len(value)) == value
            need(same, "IDX-001", "field", i, "differs from what the chunks say")
        need(found[0] == digest, "IDX-002 checksum", "digest", found[0].hex(), "not", digest.hex())


def decode(stream: BinaryIO, *, max_tensor_bytes: int = 2**28, max_total_bytes: int = 2**28) -> Model:
    """Decode a vqm file, testing every rule; the stream is read once, without seeking, to its end.

    Raises:
        Refused: The file breaks a rule, or its tensors and BOOKs take more bytes than allowed (LIM-002).
    """
    decoder = Decoder(stream, max_tensor_bytes, max_total_bytes)
    header = decoder.read(16)
    major, minor, zero = struct.unpack("<HHI", header[8:])
    need(header[:8] == MAGIC, "HDR-001", "magic", header[:8].hex())
    need(major == 1, "HDR-002 unsupported", f"version {major}.{minor}")
    need(zero == 0, "HDR-003", zero)
    while decoder.chunk() != b"INDX":
        pass
    footer = decoder.read(28)
    index_offset, crc = struct.unpack("<QI", footer[16:])
    need(crc == zlib.crc32(footer[:24]), "FTR-002 checksum", "footer")
    need(footer[:16] == header, "FTR-002", "footer", footer.hex())
    need(index_offset == decoder.offset - 28 - decoder.chunks[-1][1], "FTR-003", "index_offset", index_offset)
    need(stream.read(1) == b"", "FTR-001", "bytes follow the footer at", decoder.offset)
    return decoder.model


def main(path: str) -> int:
    try:
        with sys.stdin.buffer if path == "-" else open(path, "rb") as stream:
            model = decode(stream)
    except Refused as err:
        print(json.dumps({"error": err.error_class, "clause": err.clause, "message": str(err)}))
        return 1
    tensors = {name: {"dtype": dtype, "shape": shape, "sha256": hashlib.sha256(data).hexdigest()}
               for name, (dtype, shape, data) in model.tensors.items()}
    print(json.dumps({"metadata": model.metadata, "tensors": tensors}, default=lambda data: {"bin": data.hex()}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]) if len(sys.argv) == 2 else "usage: minidecoder.py FILE")
