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
from collections.abc import Callable, Sequence
from itertools import product, zip_longest
from typing import Any, BinaryIO, NamedTuple

import zstandard

MAGIC = b"\x89VQM\r\n\x1a\n"
# Section 13
MAX_META, MAX_INDEX_META, MAX_DEPTH, MAX_VALUES = 1 << 24, 1 << 28, 16, 1 << 20
MAX_SECTIONS, MAX_CHUNKS, MAX_TENSORS, MAX_NAME, MAX_AXES = 1 << 22, 1 << 20, 1 << 20, 1024, 32
MAX_SIZE, MAX_STAGES, MAX_ENTRIES, MAX_DIM, MAX_GROUPS = (1 << 60) - 1, 16, 65536, 4096, 1 << 20
MAX_RANK, MAX_FACTOR, MAX_RESIDENT, MAX_BLOCK, MAX_WINDOW = 65536, 1 << 24, 1 << 28, 1 << 22, 1 << 23
# Section 7.1: names, bits and the bytes of a word (section 8) by id
DTYPES = ["bool", "u8", "i8", "u16", "i16", "u32", "i32", "u64", "i64", "f16", "bf16", "f32", "f64", "c64", "c128", "f8_e4m3fn", "f8_e5m2", "f8_e4m3fnuz", "f8_e5m2fnuz", "f8_e8m0fnu", "u4", "i4", "f4_e2m1fn"]
BITS = [8, 8, 8, 16, 16, 32, 32, 64, 64, 16, 16, 32, 64, 64, 128, 8, 8, 8, 8, 8, 4, 4, 4]
BOOL, F16, BF16, F32, F64, C64, C128 = 0, 9, 10, 11, 12, 13, 14
WORD_NBYTES = [{C64: 4, C128: 8}.get(dtype, bits // 8) for dtype, bits in enumerate(BITS)]
OVERFLOW = {F16: 65520.0, BF16: float.fromhex("0x1.FFp127")}  # the least numbers that round to infinity

Read = Callable[[int], bytes]  # gives the next section of a chunk, told its plain size
Book = tuple[int, int, int, "array[float]"]  # dim, entries, groups, values
View = tuple[int, int, int]  # rows, columns, columns of a block (all columns, where the file has 0)
Tensor = tuple[str, tuple[int, ...], bytes]  # dtype, shape, the decoded bytes of 7.1


class Refused(Exception):  # noqa: N818
    """The file breaks the rule ``clause``; ``error_class`` is as in section 1."""

    def __init__(self, rule: str, found: object) -> None:
        self.clause, self.error_class = f"{rule} format".split()[:2]
        super().__init__(f"{self.clause}: {found!s:.200}")


def need(found: object, *rules: Any) -> None:
    """Refuse the file for the first rule that does not hold. ``rules`` are pairs: a rule, and whether it holds.

    A rule is an id, with the class of error behind it if that is not ``format``.
    """
    for rule, holds in zip(rules[::2], rules[1::2], strict=True):
        if not holds:
            raise Refused(rule, found)


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def f32(x: float) -> float:
    """CNV-006; too much is infinite. Sums and products of binary32, rounded to binary64 on the way, stay right."""
    return array("f", [x])[0]


def decompress(frame: bytes, n_bytes: int) -> bytes:
    """Section 4: one zstd frame (RFC 8878, 3.1.1) of known plain size."""
    need(frame[:5].hex(), "SEC-005", len(frame) > 4 and frame[:4] == b"\x28\xb5\x2f\xfd", "SEC-009", not frame[4:][0] & 8)
    id_at = 5 if frame[4] & 32 else 6  # without the single-segment flag a byte for the window precedes it
    size_at = id_at + (0, 1, 2, 4)[frame[4] & 3]
    end = size_at + (6 - id_at, 2, 4, 8)[frame[4] >> 6]
    size = int.from_bytes(frame[size_at:end], "little") + (256 if end - size_at == 2 else 0)
    need(frame[:end].hex(), "SEC-005", len(frame) >= end, "SEC-008", not any(frame[id_at:size_at]),
         "SEC-006", end > size_at and size == n_bytes)
    window = (8 + (frame[5] & 7)) << (7 + (frame[5] >> 3)) if id_at == 6 else 0
    need(window, "SEC-007 limit", window <= MAX_WINDOW)
    try:
        return zstandard.ZstdDecompressor().decompress(frame, max_output_size=n_bytes, allow_extra_data=False)
    except zstandard.ZstdError as err:
        raise Refused("SEC-005" if "unused data" in str(err) else "SEC-010", err) from err


# By first byte: kind, width of the number that follows, and its least value; without one, the value or length itself
FORMS: dict[int, tuple[str, int, Any]] = {
    0xC0: ("value", 0, None), 0xC2: ("value", 0, False), 0xC3: ("value", 0, True),
    **{n & 255: ("value", 0, n) for n in range(-32, 128)}, **{0xA0 + n: ("string", 0, n) for n in range(32)},
    **{0x90 + n: ("array", 0, n) for n in range(16)}, **{0x80 + n: ("map", 0, n) for n in range(16)},
    0xC4: ("bin", 1, 0), 0xC5: ("bin", 2, 1 << 8), 0xC6: ("bin", 4, 1 << 16),
    0xCC: ("value", 1, 1 << 7), 0xCD: ("value", 2, 1 << 8), 0xCE: ("value", 4, 1 << 16), 0xCF: ("value", 8, 1 << 32),
    0xD0: ("negative", 1, 33), 0xD1: ("negative", 2, (1 << 7) + 1), 0xD2: ("negative", 4, (1 << 15) + 1),
    0xD3: ("negative", 8, (1 << 31) + 1), 0xD9: ("string", 1, 32), 0xDA: ("string", 2, 1 << 8),
    0xDB: ("string", 4, 1 << 16), 0xDC: ("array", 2, 16), 0xDD: ("array", 4, 1 << 16),
    0xDE: ("map", 2, 16), 0xDF: ("map", 4, 1 << 16)}


class Meta:
    """Section 5: the metadata of one chunk."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at, self.n_values = data, 0, 0

    def take(self, n_bytes: int, n_claimed: int = 0) -> bytes:
        need(f"{n_bytes + n_claimed} bytes at {self.at}", "MET-005", self.at + n_bytes + n_claimed <= len(self.data))
        self.at += n_bytes
        return self.data[self.at - n_bytes:self.at]

    def value(self, depth: int) -> Any:
        first, self.n_values = self.take(1)[0], self.n_values + 1
        need(depth, "MET-006 limit", depth <= MAX_DEPTH, "MET-007 limit", self.n_values <= MAX_VALUES)
        need(f"{first:02X} at {self.at - 1}", "MET-001", first in FORMS)
        kind, width, n = FORMS[first]
        if width:
            n, least = int.from_bytes(self.take(width), "big", signed=kind == "negative"), n
            need(n, "MET-002", (-n if kind == "negative" else n) >= least)
        if kind in ("bin", "string"):
            data = self.take(n)
            text = data.decode("utf-8", "replace")
            need(text, "MET-003", kind == "bin" or text.encode() == data)
            return data if kind == "bin" else text
        if kind == "array":
            self.take(0, n)  # MET-007: so many bytes at least
            return [self.value(depth + 1) for _ in range(n)]
        if kind == "map":
            self.take(0, 2 * n)
            pairs: dict[str, Any] = {}
            for _ in range(n):
                key = self.value(depth + 1)
                need(key, "MET-004", type(key) is str and (not pairs or list(pairs)[-1].encode() < key.encode()))
                pairs[key] = self.value(depth + 1)
            return pairs
        return n


def kind_of(value: Any, kind: type, length: int | None = None) -> Any:
    need(value, "MET-008", type(value) is kind and (length is None or len(value) == length))
    return value


def integer(value: Any, rule: str = "MET-008", least: int = 0, most: float = math.inf, over: str = "format") -> int:
    """An integer from ``least`` to ``most``, as ``rule`` wants it; ``over`` is the class of error if it is more."""
    need(value, "MET-008", type(value) is int and value >= 0)
    need(value, rule, value >= least, f"{rule} {over}", value <= most)
    return int(value)


def table_dtype(value: Any) -> int:
    return integer(value, "CBK-007 unsupported", F16, F32)


def floats(data: bytes, dtype: int, rule: str) -> array[float]:
    """Section 9.4: values widened to f32, exactly."""
    if dtype == BF16:
        data = b"".join(b"\0\0" + data[i:i + 2] for i in range(0, len(data), 2))
    values = array("f", (value for (value,) in struct.iter_unpack("<e" if dtype == F16 else "<f", data)))
    need("a value of a table or scale is not finite", rule, all(map(math.isfinite, values)))
    return values


def raw_block(read: Read, dtype: int, split: int, n: int) -> bytes:
    """Section 8: a block's n elements as bytes; 4-bit elements come one to a byte."""
    if split == 0:
        data = read(ceil_div(n * BITS[dtype], 8))
        need(max(data), "DTY-001", dtype != BOOL or max(data) <= 1)
        if BITS[dtype] == 4:
            data = bytes(nibble for byte in data for nibble in (byte & 15, byte >> 4))
            need("unused bits", "RAW-002", not any(data[n:]))
        return data[:n] if BITS[dtype] == 4 else data
    k = WORD_NBYTES[dtype]
    planes = [read(n * BITS[dtype] // 8 // k) for _ in range(k)]
    words = [int.from_bytes(word, "little") for word in zip(*planes, strict=True)]  # RAW-003
    if split == 2:  # RAW-004
        words = [word >> 1 | (word & 1) << 8 * k - 1 for word in words]
    return b"".join(word.to_bytes(k, "little") for word in words)


class Codes:
    """Section 10."""

    def __init__(self, entries: int, planes: Any) -> None:
        self.entries, self.width, total = entries, (entries - 1).bit_length(), 1
        need(planes, "COD-004", len(kind_of(planes, list)) <= 3)
        self.planes = [kind_of(plane, list, 2) for plane in planes]
        for base, k in self.planes:
            need((base, k), "COD-003", 2 <= integer(base) <= 256 and 1 <= integer(k) <= 8 and base ** k <= 256,
                 "COD-004", total < entries)
            total *= base
        need(planes, "COD-004", not planes or total >= entries)

    def sizes(self, n: int) -> list[int]:
        return [ceil_div(n, k) for _, k in self.planes] or [ceil_div(n * self.width, 8)]

    def read(self, read: Read, n: int) -> list[int]:
        codes, unit, w = [0] * n, 1, self.width
        if not self.planes and (data := read(self.sizes(n)[0])):  # dense: eight codes fill w bytes
            words = [int.from_bytes(data[i:i + w], "little") for i in range(0, len(data), w)]
            codes = [word >> j * w & (1 << w) - 1 for word in words for j in range(8)]
            need(codes[n:], "COD-002", not any(codes[n:]))
        for base, k in self.planes:
            data = read(ceil_div(n, k))
            digits = [byte // base ** j % base for byte in data for j in range(k)]
            need((base, max(data), digits[n:]), "COD-005", max(data) < base ** k and not any(digits[n:]))
            codes, unit = [code + unit * digit for code, digit in zip(codes, digits, strict=False)], unit * base
        need(max(codes), "COD-001", max(codes) < self.entries)
        return codes[:n]


class Grid:
    """Section 9.2: a table, steps or scales: ``size`` values for each group of rows and columns."""

    def __init__(self, dtype: Any, groups: tuple[Any, Any], axes: tuple[int, int], size: int = 1) -> None:
        self.dtype, self.values = table_dtype(dtype), array("f")
        self.rows, self.columns = (integer(groups[i], "CBK-003", most=axes[i] - 1) or axes[i] for i in (0, 1))
        self.n_columns = ceil_div(axes[1], self.columns)
        self.n_groups = ceil_div(axes[0], self.rows) * self.n_columns
        self.n_bytes = self.n_groups * size * WORD_NBYTES[self.dtype]

    def group(self, r: int, c: int) -> int:
        return r // self.rows * self.n_columns + c // self.columns

    def load(self, read: Read) -> float:
        """Returns the largest absolute value."""
        self.values = self.values or floats(read(self.n_bytes), self.dtype, "CBK-008")
        return max(map(abs, self.values))


class Stage(NamedTuple):
    residents: list[int]  # plain sizes of its resident sections
    n_payloads: int  # sections for each block
    load: Callable[[Read], float]  # reads the resident sections; returns the bound of VAL-002
    block: Callable[[Read, range, range], list[float]]  # reads a block's payload; returns its elements' values


def codebook_stage(record: Any, view: View, books: Sequence[Book]) -> Stage:
    """Section 9."""
    _, dim, entries, source, choice, book_rows, book_columns, scale, planes = kind_of(record, list, 9)
    integer(dim, "CBK-001", 1, MAX_DIM, "limit")
    integer(entries, "CBK-001", 1, MAX_ENTRIES, "limit")
    source_id, detail = kind_of(source, list, 2)
    is_table, is_steps, is_shared = (integer(source_id, "CBK-007", 0, 2, "unsupported") == i for i in (0, 1, 2))
    if is_steps:
        need(detail, "CBK-005", abs(kind_of(detail, int)) <= 1 << 23)  # zero
    else:
        detail = table_dtype(detail) if is_table else integer(detail, "BOK-001", most=len(books) - 1)
    integer(choice, "CBK-004", 0, 0, "unsupported")
    subvectors = view[0], ceil_div(view[1], dim)
    table = Grid(detail if is_table else F32, (book_rows, book_columns), subvectors, 1 if is_steps else entries * dim)
    dtype, rows, columns = [F32, 0, 0] if scale is None else kind_of(scale, list, 3)
    scales = Grid(dtype, (rows, columns), view[:2])
    codes = Codes(entries, planes)
    need((dim, view), "CBK-001", dim <= view[1], "CBK-002", view[2] == view[1] or view[2] % dim == 0,
         "CBK-005", dim == 1 or not is_steps,
         "CBK-006", not is_shared or books[detail][:3] == (dim, entries, table.n_groups))
    table.values = books[detail][3] if is_shared else table.values
    residents = [table.n_bytes] * (not is_shared) + [scales.n_bytes] * (scale is not None)

    def load(read: Read) -> float:
        bound = table.load(read) * (max(abs(detail), abs(entries - 1 - detail)) if is_steps else 1)
        return f32(bound) if scale is None else f32(f32(bound) * scales.load(read))

    def block(read: Read, rows: range, columns: range) -> list[float]:
        per_row = ceil_div(len(columns), dim)  # CBK-002: a block begins with a whole subvector
        chosen, values = codes.read(read, len(rows) * per_row), []
        for (i, r), (j, c) in product(enumerate(rows), enumerate(columns)):
            code, group = chosen[i * per_row + j // dim], table.group(r, c // dim)
            v = (f32((code - detail) * table.values[group]) if is_steps else
                 table.values[(group * entries + code) * dim + c % dim])
            values.append(v if scale is None else f32(scales.values[scales.group(r, c)] * v))
        return values

    return Stage(residents, len(codes.sizes(0)), load, block)


def low_rank_stage(record: Any, view: View) -> Stage:
    """Section 11."""
    _, rank, left, right, row_scale, column_scale = kind_of(record, list, 6)
    n_rows, n_columns, block_columns = view
    integer(rank, "LOW-001", 1, MAX_RANK, "limit")
    codes_u, codes_v = (Codes(integer(entries, "LOW-001", 2, 65535), planes)
                        for entries, planes in (kind_of(factor, list, 2) for factor in (left, right)))
    dtype, size = kind_of(row_scale, list, 2)
    a = Grid(dtype, (size, 0), (n_rows, 1))
    dtype, size = kind_of(column_scale, list, 2)
    b = Grid(dtype, (0, size), (1, n_columns))
    need((rank, view), "LOW-001", rank <= min(n_rows, n_columns), "LOW-001 limit", rank * n_columns <= MAX_FACTOR,
         "LOW-002", block_columns == n_columns)
    half_u, half_v, v = codes_u.entries // 2, codes_v.entries // 2, list[int]()

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
        need(record, "MET-008", type(record) is list and len(record) in (2, 5))
        self.name, self.target, self.n_sections = kind_of(record[0], str), None, 0
        integer(len(self.name.encode()), "TEN-001", 1, MAX_NAME, "limit")
        need(self.name, "TEN-001", "\0" not in self.name)
        if len(record) == 2:
            self.target = kind_of(record[1], str)
            return
        _, self.dtype, shape, layout, stages = record
        integer(self.dtype, "TEN-006", 0, len(DTYPES) - 1, "unsupported")
        need(shape, "TEN-003 limit", len(kind_of(shape, list)) <= MAX_AXES)
        self.shape = tuple(map(integer, shape))
        need(shape, "TEN-003 limit", math.prod(size or 1 for size in shape) <= MAX_SIZE)
        self.n_bytes, self.stages = ceil_div(math.prod(shape) * BITS[self.dtype], 8), list[Stage]()
        if 0 in shape:
            need(record, "TEN-004", layout is None and stages == [])
            return
        integer(len(kind_of(stages, list)), "TEN-004", 1, MAX_STAGES, "limit")
        ids = [integer((kind_of(stage, list) or [None])[0], "TEN-006", 0, 2, "unsupported") for stage in stages]
        self.is_raw = ids == [0]
        need((ids, self.dtype), "TEN-005", self.is_raw or (0 not in ids and F16 <= self.dtype <= C128))
        view, n_blocks = self.check_layout([None, 0, 0, 0, 0] if layout is None else layout)
        if self.is_raw:
            self.split = integer(kind_of(stages[0], list, 2)[1], "RAW-001", 0, 2, "unsupported")
            need(record, "RAW-001", self.split == 0 or BITS[self.dtype] > 8)
            self.n_sections = n_blocks * (WORD_NBYTES[self.dtype] if self.split else 1)
            return
        for stage in stages:
            self.stages.append(codebook_stage(stage, view, books) if stage[0] == 1 else low_rank_stage(stage, view))
        residents = [n for i, n in enumerate(view[:2]) if self.order >> i & 1]  # the classes
        residents += [size for stage in self.stages for size in stage.residents]
        need(residents, "TEN-007 limit", max([0, *residents]) <= MAX_RESIDENT)
        self.n_sections = len(residents) + n_blocks * sum(stage.n_payloads for stage in self.stages)

    def check_layout(self, layout: Any) -> tuple[View, int]:
        """Returns the view and the number of blocks."""
        axes, n_row_axes, order, block_rows, block_columns = kind_of(layout, list, 5)
        shape = [*self.shape, 2] if self.dtype in (C64, C128) and not self.is_raw else list(self.shape)
        identity = list(range(len(shape)))
        if axes is not None:
            need(axes, "LAY-001", sorted(map(integer, kind_of(axes, list))) == identity != axes)
        integer(n_row_axes, "LAY-001", most=len(shape))
        integer(order, "LAY-003", 0, 3, "unsupported")
        need(layout, "LAY-002", not self.is_raw or (axes is None and order == 0))
        strides = [(shape[axis], math.prod(shape[axis + 1:])) for axis in axes or identity]
        self.order, self.axes = order, (strides[:n_row_axes], strides[n_row_axes:])
        rows, columns = (math.prod(size for size, _ in axes) for axes in self.axes)
        bands, ranges = integer(block_rows) < rows and block_columns == 0, block_rows == 1 and block_columns < columns
        need(layout, "LAY-004", bands or (ranges and integer(block_columns) > 0))
        self.block = block_rows or rows, block_columns or columns
        need(layout, "LAY-005 limit", math.prod(self.block) <= MAX_BLOCK)
        return (rows, columns, self.block[1]), ceil_div(rows, self.block[0]) * ceil_div(columns, self.block[1])

    def decode(self, read: Read) -> bytes:
        """Read the tensor's sections in the order of 7.3; returns its decoded bytes."""
        if self.n_sections == 0:
            return b""
        n = [math.prod(size for size, _ in axes) for axes in self.axes]
        blocks = product(*([range(at, min(at + size, end)) for at in range(0, end, size)]
                           for end, size in zip(n, self.block, strict=True)))
        if self.is_raw:  # LAY-002: its blocks follow each other in C order
            raw = b"".join(raw_block(read, self.dtype, self.split, len(r) * len(c)) for r, c in blocks)
            pairs = zip_longest(raw[::2], raw[1::2], fillvalue=0)
            return bytes(low | high << 4 for low, high in pairs) if BITS[self.dtype] == 4 else raw
        orders: list[Sequence[int]] = [range(n[0]), range(n[1])]
        for i in (0, 1):
            if self.order >> i & 1:  # 7.2; Python's sort is stable
                orders[i] = sorted(orders[i], key=read(n[i]).__getitem__)
        bound = 0.0
        for stage in self.stages:
            bound = f32(bound + stage.load(read))
        need(bound, "VAL-002", bound < OVERFLOW.get(self.dtype, math.inf))
        data, size = bytearray(), WORD_NBYTES[self.dtype]
        for rows, columns in blocks:
            t = self.stages[0].block(read, rows, columns)
            for stage in self.stages[1:]:
                t = [f32(a + b) for a, b in zip(t, stage.block(read, rows, columns), strict=True)]
            data, values = data or bytearray(self.n_bytes), narrow(t, self.dtype)  # REA-002: memory only now
            row_at = [position(orders[0][r], self.axes[0]) for r in rows]
            column_at = [position(orders[1][c], self.axes[1]) for c in columns]
            for i, (r, c) in enumerate(product(row_at, column_at)):
                data[(r + c) * size:(r + c + 1) * size] = values[i * size:(i + 1) * size]
        return bytes(data)


class Model:
    """Section 14.1: what one pass over a file gives. For users: ``metadata`` and ``tensors``."""

    def __init__(self, stream: BinaryIO, max_tensor_bytes: int, max_total_bytes: int) -> None:
        self.metadata, self.tensors = dict[str, Any](), dict[str, Tensor]()
        self.stream, self.offset, self.sha256, self.books = stream, 0, hashlib.sha256(), list[Book]()
        self.max_tensor_bytes, self.budget = max_tensor_bytes, max_total_bytes
        self.meta, self.chunks = b"", list[tuple[bytes, int]]()  # for INDX: plain meta of META; types and lengths
        self.index = dict[str, tuple[int, tuple[int, ...], int, int]]()  # dtype, shape, chunk, target of each tensor

    def read(self, n_bytes: int) -> bytes:
        data = bytearray()
        while len(data) < n_bytes:  # REA-002: what is announced takes no memory before it comes
            piece = self.stream.read(min(n_bytes - len(data), 1 << 20))
            need(f"{n_bytes} bytes at {self.offset}", "REA-001 truncated", piece)
            self.sha256.update(piece)
            data += piece
        self.offset += n_bytes
        return bytes(data)

    def chunk(self) -> bytes:
        """Read a chunk; returns its type."""
        start, digest, head = self.offset, self.sha256.digest(), self.read(24)
        kind, flags, meta_stored, meta_plain, n_sections, crc = struct.unpack("<4s5I", head)
        known, limit = kind in (b"META", b"BOOK", b"LAYR", b"INDX"), MAX_INDEX_META if kind == b"INDX" else MAX_META
        what = f"{kind!r} at {start}: flags {flags}, meta {meta_stored}, plain {meta_plain}, {n_sections} sections"
        need(what, "CHK-001 checksum", crc == zlib.crc32(head[:20]), "CHK-002", kind.isalpha(),
             "CHK-003 unsupported", known or kind[:1].islower(), "CHK-004 unsupported", flags <= 1,
             "CHK-006 limit", max(meta_stored, meta_plain) <= limit and n_sections <= MAX_SECTIONS,
             "LIM-001 limit", len(self.chunks) < MAX_CHUNKS)
        plain, table = self.read(meta_stored), self.read(8 * n_sections)
        rows = struct.iter_unpack("<II", table)
        need(what, "CHK-007 checksum", self.read(4) == struct.pack("<I", zlib.crc32(plain + table)),
             "FIL-001", (kind == b"META") == (not self.chunks), "CHK-008", n_sections == 0 or kind not in (b"META", b"INDX"))
        if known:
            need(what, "CHK-005", meta_stored < meta_plain if flags else meta_stored == meta_plain)
            plain = decompress(plain, meta_plain) if flags else plain
            parser = Meta(plain)
            fields = kind_of(parser.value(1), list, {b"META": 2, b"BOOK": 4, b"LAYR": 2, b"INDX": 10}[kind])
            need(what, "MET-005", parser.at == len(plain))
        if kind == b"META":
            kind_of(fields[0], str)
            self.metadata, self.meta = kind_of(fields[1], dict), plain if len(plain) <= 65536 else b""
        elif kind == b"INDX":
            self.check_index(fields, digest)
        elif known:
            take = self.book if kind == b"BOOK" else self.layer
            take(fields, n_sections, lambda size: self.section(next(rows), size))
        else:
            for row in rows:
                self.section(row, None)
        self.chunks.append((kind, self.offset - start))  # FIL-002
        return bytes(kind)

    def section(self, row: tuple[int, int], plain: int | None) -> bytes:
        """A section's plain bytes; without a plain size (an ancillary chunk) its stored bytes."""
        compressed, n_bytes = row[0] >> 31, row[0] & 0x7FFFFFFF
        what = f"{n_bytes} bytes at {self.offset}, plain {plain}"
        need(what, "SEC-004", plain is None or (n_bytes < plain if compressed else n_bytes == plain))
        if not compressed and n_bytes >= 4096:  # SEC-002
            need(what, "SEC-003", not any(self.read(-self.offset % 64)))
        stored = self.read(n_bytes)
        need(what, "SEC-001 checksum", zlib.crc32(stored) == row[1])
        return decompress(stored, plain) if compressed and plain is not None else stored

    def spend(self, n_bytes: int) -> None:
        need(n_bytes, "LIM-002 limit", n_bytes <= self.budget)
        self.budget -= n_bytes

    def book(self, fields: list[Any], n_sections: int, read: Read) -> None:
        dim, entries, groups, dtype = fields
        for value, limit in ((dim, MAX_DIM), (entries, MAX_ENTRIES), (groups, MAX_GROUPS)):
            integer(value, "BOK-002", 1, limit, "limit")
        size = dim * entries * groups * WORD_NBYTES[table_dtype(dtype)]
        need((size, n_sections), "LIM-001 limit", size <= MAX_RESIDENT, "BOK-003", n_sections == 1)
        self.spend(size)
        self.books.append((dim, entries, groups, floats(read(size), dtype, "BOK-002")))

    def layer(self, fields: list[Any], n_sections: int, read: Read) -> None:
        name, records = fields
        need(name, "LIM-001 limit", len(kind_of(name, str).encode()) <= MAX_NAME)
        need(name, "LYR-001", kind_of(records, list), "LIM-001 limit", len(self.index) + len(records) <= MAX_TENSORS)
        plans = [Plan(record, self.books) for record in records]
        need(n_sections, "LYR-002", sum(plan.n_sections for plan in plans) == n_sections)
        for plan in plans:  # REA-003: names and budgets come last
            need(plan.name, "TEN-002", plan.name not in self.index)
            if plan.target is None:
                need(plan.name, "LIM-002 limit", plan.n_bytes <= self.max_tensor_bytes)
                self.spend(plan.n_bytes)
                self.index[plan.name] = plan.dtype, plan.shape, len(self.chunks), 0
            else:
                need(plan.target, "ALI-001", plan.target in self.index and self.index[plan.target][3] == 0)
                dtype, shape, _, _ = self.index[plan.target]
                self.index[plan.name] = dtype, shape, len(self.chunks), 1 + list(self.index).index(plan.target)
        for plan in plans:
            self.tensors[plan.name] = ((DTYPES[plan.dtype], plan.shape, plan.decode(read)) if plan.target is None
                                       else self.tensors[plan.target])

    def check_index(self, fields: list[Any], digest: bytes) -> None:
        def column(values: Sequence[int]) -> bytes:  # MET-009: there is one way to write it
            width = next(width for width in (1, 2, 4, 8) if max(values, default=0) < 1 << 8 * width)
            return b"".join(value.to_bytes(width, "little") for value in values)

        dtypes, shapes, chunks, targets = zip(*self.index.values(), strict=True) if self.index else [()] * 4
        expected = [self.meta, b"".join(kind for kind, _ in self.chunks), column([length for _, length in self.chunks]),
                    b"".join(name.encode() + b"\0" for name in self.index), bytes(dtypes), bytes(map(len, shapes)),
                    column([size for shape in shapes for size in shape]), column(chunks), column(targets) * any(targets)]
        found = [kind_of(value, bytes) for value in fields]
        kind_of(found[0], bytes, 32)
        for i, value in enumerate(expected, 1):
            need(f"field {i}", "IDX-001", found[i] == value)  # and so IDX-004
        need(digest.hex(), "IDX-002 checksum", found[0] == digest)


def decode(stream: BinaryIO, *, max_tensor_bytes: int = 2**28, max_total_bytes: int = 2**28) -> Model:
    """Decode a vqm file, testing every rule; the stream is read once, without seeking, to its end.

    Raises:
        Refused: The file breaks a rule, or its tensors and BOOKs take more bytes than allowed (LIM-002).
    """
    model = Model(stream, max_tensor_bytes, max_total_bytes)
    header = model.read(16)
    major, _, zero = struct.unpack("<HHI", header[8:])
    need(header.hex(), "HDR-001", header[:8] == MAGIC, "HDR-002 unsupported", major == 1, "HDR-003", zero == 0)
    while model.chunk() != b"INDX":
        pass
    footer, start = model.read(28), model.offset - model.chunks[-1][1]
    index_offset, crc = struct.unpack("<QI", footer[16:])
    need(footer.hex(), "FTR-002 checksum", crc == zlib.crc32(footer[:24]), "FTR-002", footer[:16] == header,
         "FTR-003", index_offset == start - 28, "FTR-001", stream.read(1) == b"")
    return model


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
