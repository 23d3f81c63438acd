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
# LIM-001
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


class Refused(Exception):
    """The file breaks the rule ``clause``; ``error_class`` is as in section 1."""

    def __init__(self, error_class: str, clause: str, message: str) -> None:
        super().__init__(message)
        self.error_class, self.clause = error_class, clause


class Tensor(NamedTuple):
    dtype: str
    shape: tuple[int, ...]
    data: bytes  # the decoded bytes of 7.1


class Model(NamedTuple):
    metadata: dict[str, Any]
    tensors: dict[str, Tensor]


def need(holds: bool, clause: str, message: str, error_class: str = "format") -> None:
    if not holds:
        raise Refused(error_class, clause, message)


def within(value: int, limit: int, clause: str, what: str) -> None:
    need(value <= limit, clause, f"{what}: {value}, at most {limit}", "limit")


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def f32(x: float) -> float:
    """CNV-006. A sum or product of two binary32 values, rounded to binary64 on the way, is the same."""
    try:
        return float(struct.unpack("<f", struct.pack("<f", x))[0])
    except OverflowError:  # in a bound; VAL-002 keeps elements finite
        return math.inf


def decompress(frame: bytes, n_bytes: int) -> bytes:
    """Section 4: one zstd frame (RFC 8878, 3.1.1) of known plain size."""
    need(len(frame) > 4 and frame[:4] == b"\x28\xb5\x2f\xfd", "SEC-005", f"a zstd frame begins {frame[:5].hex()}")
    need(not frame[4] & 8, "SEC-009", "the reserved bit of the zstd frame is set")
    single_segment = frame[4] >> 5 & 1  # if not, a byte for the window precedes the dictionary's id
    size_at = 6 - single_segment + (0, 1, 2, 4)[frame[4] & 3]
    end = size_at + (single_segment, 2, 4, 8)[frame[4] >> 6]
    need(len(frame) >= end, "SEC-005", f"{len(frame)} bytes of a zstd frame whose header takes {end}")
    need(not any(frame[6 - single_segment:size_at]), "SEC-008", "the zstd frame names a dictionary")
    size = int.from_bytes(frame[size_at:end], "little") + (256 if end - size_at == 2 else 0)
    need(end > size_at and size == n_bytes, "SEC-006", f"the zstd frame states {size} bytes (0: none), not {n_bytes}")
    within(0 if single_segment else (8 + (frame[5] & 7)) << (7 + (frame[5] >> 3)), MAX_WINDOW, "SEC-007", "zstd window")
    try:
        return zstandard.ZstdDecompressor().decompress(frame, max_output_size=n_bytes, allow_extra_data=False)
    except zstandard.ZstdError as err:
        raise Refused("format", "SEC-005" if "unused data" in str(err) else "SEC-010", str(err)) from err


FORMS = {0xC4: ("bin", 1, 0), 0xC5: ("bin", 2, 1 << 8), 0xC6: ("bin", 4, 1 << 16),  # kind, width, least number
         0xCC: ("integer", 1, 1 << 7), 0xCD: ("integer", 2, 1 << 8), 0xCE: ("integer", 4, 1 << 16),
         0xCF: ("integer", 8, 1 << 32), 0xD0: ("negative", 1, 33), 0xD1: ("negative", 2, (1 << 7) + 1),
         0xD2: ("negative", 4, (1 << 15) + 1), 0xD3: ("negative", 8, (1 << 31) + 1), 0xD9: ("string", 1, 32),
         0xDA: ("string", 2, 1 << 8), 0xDB: ("string", 4, 1 << 16), 0xDC: ("array", 2, 16),
         0xDD: ("array", 4, 1 << 16), 0xDE: ("map", 2, 16), 0xDF: ("map", 4, 1 << 16)}


class Meta:
    """Section 5: the parser of one chunk's metadata."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at, self.n_values = data, 0, 0

    def parse(self) -> Any:
        value = self.value(1)
        need(self.at == len(self.data), "MET-005", f"{len(self.data) - self.at} bytes follow the metadata")
        return value

    def take(self, n_bytes: int, n_claimed: int = 0) -> bytes:
        left = len(self.data) - self.at
        need(n_bytes + n_claimed <= left, "MET-005", f"{n_bytes + n_claimed} bytes at {self.at}, {left} are left")
        self.at += n_bytes
        return self.data[self.at - n_bytes:self.at]

    def value(self, depth: int) -> Any:
        first, self.n_values = self.take(1)[0], self.n_values + 1
        within(depth, MAX_DEPTH, "MET-006", "depth of metadata")
        within(self.n_values, MAX_VALUES, "MET-007", "values of metadata")
        if first < 0x80 or first >= 0xE0:
            return first if first < 0x80 else first - 256
        if first in (0xC0, 0xC2, 0xC3):
            return {0xC0: None, 0xC2: False, 0xC3: True}[first]
        if first < 0xC0:
            kind, n = ("map", "array", "string", "string")[(first >> 4) - 8], first & (31 if first >= 0xA0 else 15)
        else:
            need(first in FORMS, "MET-001", f"no value begins with {first:02X}")
            kind, width, least = FORMS[first]
            n = int.from_bytes(self.take(width), "big", signed=kind == "negative")
            need((-n if kind == "negative" else n) >= least, "MET-002", f"{n} has a shorter form than {first:02X}")
        if kind in ("integer", "negative"):
            return n
        if kind == "bin":
            return self.take(n)
        if kind == "string":
            try:
                return self.take(n).decode("utf-8")
            except UnicodeDecodeError as err:
                raise Refused("format", "MET-003", f"a string is not UTF-8: {err}") from err
        self.take(0, 2 * n if kind == "map" else n)  # MET-007: so many bytes at least
        if kind == "array":
            return [self.value(depth + 1) for _ in range(n)]
        pairs: dict[str, Any] = {}
        for _ in range(n):
            key = self.value(depth + 1)
            need(type(key) is str, "MET-004", f"map key {key!r:.40} is not a string")
            need(not pairs or next(reversed(pairs)).encode() < key.encode(), "MET-004", f"key {key!r:.40} out of order")
            pairs[key] = self.value(depth + 1)
        return pairs


def fields(value: Any, n: int | None, what: str) -> list[Any]:  # MET-008
    need(type(value) is list and n in (None, len(value)), "MET-008", f"{what}: not an array, or of a wrong length")
    return list(value)


def kind_of(value: Any, kind: type, what: str) -> Any:  # MET-008
    need(type(value) is kind, "MET-008", f"{what} is {value!r:.40}, not of kind {kind.__name__}")
    return value


def integer(value: Any, what: str, clause: str = "MET-008", least: int = 0, most: float = math.inf,
            over: str = "format") -> int:
    """An integer from ``least`` to ``most``; ``over`` is the class if it is more."""
    need(type(value) is int and value >= 0, "MET-008", f"{what} is {value!r:.40}, not an integer from 0")
    need(value >= least, clause, f"{what} is {value}, at least {least}")
    need(value <= most, clause, f"{what} is {value}, at most {most}", over)
    return int(value)


def column(data: bytes, n: int, what: str) -> list[int]:
    """An integer column of n integers (MET-009)."""
    width = len(data) // max(n, 1)
    need(len(data) == n * width and (n == 0 or width in (1, 2, 4, 8)), "MET-009", f"{what}: {len(data)} bytes for {n}")
    values = [int.from_bytes(data[i:i + width], "little") for i in range(0, len(data), width or 1)]
    need(width <= 1 or max(values) >= 1 << 4 * width, "MET-009", f"{what}: width {width} is more than it needs")
    return values


def table_dtype(value: Any, what: str) -> int:
    need(integer(value, what) in TABLE_NBYTES, "CBK-007", f"{what} is {value}, not f32, f16 or bf16", "unsupported")
    return int(value)


def floats(data: bytes, dtype: int, clause: str) -> array[float]:
    """Section 9.4: values widened to f32, exactly."""
    if dtype == BF16:
        data = b"".join(b"\0\0" + data[i:i + 2] for i in range(0, len(data), 2))
    values = array("f", (value for (value,) in struct.iter_unpack("<e" if dtype == F16 else "<f", data)))
    need(all(map(math.isfinite, values)), clause, "a table, steps or scales hold a value that is not finite")
    return values


class View(NamedTuple):
    """Section 7.2: an R x C matrix in blocks; one that spans its axis has that axis's length, where the file has 0."""

    n_rows: int
    n_columns: int
    block_rows: int
    block_columns: int

    def n_blocks(self) -> int:
        return ceil_div(self.n_rows, self.block_rows) * ceil_div(self.n_columns, self.block_columns)

    def blocks(self) -> Iterator[tuple[range, range]]:
        for r, c in product(range(0, self.n_rows, self.block_rows), range(0, self.n_columns, self.block_columns)):
            yield range(r, min(r + self.block_rows, self.n_rows)), range(c, min(c + self.block_columns, self.n_columns))


def word_nbytes(dtype: int) -> int:
    return DTYPES[dtype][1] // (16 if dtype in (C64, C128) else 8)


def raw_block(read: Read, dtype: int, split: int, n: int) -> bytes:
    """Section 8: a block's n elements as bytes; 4-bit elements come one to a byte."""
    bits, k = DTYPES[dtype][1], word_nbytes(dtype)
    if split == 0:  # RAW-002
        data = read(ceil_div(n * bits, 8))
        need(dtype != BOOL or max(data) <= 1, "DTY-001", f"a bool is {max(data)}, not 0 or 1")
        if bits == 4:
            data = bytes(nibble for byte in data for nibble in (byte & 15, byte >> 4))
            need(not any(data[n:]), "RAW-002", "the unused bits of a block are not zero")
        return data[:n] if bits == 4 else data
    planes = [read(n * bits // 8 // k) for _ in range(k)]
    words = [int.from_bytes(word, "little") for word in zip(*planes)]  # RAW-003
    if split == 2:  # RAW-004
        words = [word >> 1 | (word & 1) << 8 * k - 1 for word in words]
    return b"".join(word.to_bytes(k, "little") for word in words)


class Codes:
    """Section 10."""

    def __init__(self, entries: int, planes: Any, what: str) -> None:
        self.entries, self.width, total = entries, (entries - 1).bit_length(), 1
        need(len(fields(planes, None, what)) <= 3, "COD-004", f"{what}: {len(planes)} planes, at most 3")
        self.planes = [fields(plane, 2, what) for plane in planes]
        for base, k in self.planes:
            integer(base, f"{what}: base", "COD-003", 2, 256)
            integer(k, f"{what}: digits to a byte", "COD-003", 1, 8)
            need(base ** k <= 256, "COD-003", f"{what}: {k} digits of base {base} in a byte")
            need(total < entries, "COD-004", f"{what}: base {base} is not needed for {entries} entries")
            total *= base
        need(not planes or total >= entries, "COD-004", f"{what}: {total} values are too few for {entries} entries")

    def sizes(self, n: int) -> list[int]:
        return [ceil_div(n, k) for _, k in self.planes] or [ceil_div(n * self.width, 8)]

    def read(self, read: Read, n: int) -> list[int]:
        codes, unit, w = [0] * n, 1, self.width
        for (base, k), size in zip(self.planes, self.sizes(n)):
            data = read(size)
            need(max(data) < base ** k, "COD-005", f"byte {max(data)} of {k} digits of base {base}")
            digits = [byte // base ** j % base for byte in data for j in range(k)]
            need(not any(digits[n:]), "COD-005", "digits after the last code are not zero")
            codes, unit = [code + digit * unit for code, digit in zip(codes, digits)], unit * base
        if not self.planes and (data := read(self.sizes(n)[0])):  # dense: eight codes fill w bytes
            words = [int.from_bytes(data[i:i + w], "little") for i in range(0, len(data), w)]
            codes = [word >> j * w & (1 << w) - 1 for word in words for j in range(8)]
            need(not any(codes[n:]), "COD-002", "bits after the last code are not zero")
        need(max(codes) < self.entries, "COD-001", f"code {max(codes)} of {self.entries} entries")
        return codes[:n]


class Book(NamedTuple):
    dim: int
    entries: int
    groups: int
    values: array[float]


class Grid:
    """Section 9.2: tables, steps or scales, ``size`` values for each group of rows and columns."""

    def __init__(self, dtype: Any, groups: tuple[Any, Any], axes: tuple[int, int], what: str, size: int = 1) -> None:
        self.dtype, (rows, columns) = table_dtype(dtype, what), groups
        self.rows = integer(rows, f"rows of {what}", "CBK-003", most=axes[0] - 1) or axes[0]
        self.columns = integer(columns, f"columns of {what}", "CBK-003", most=axes[1] - 1) or axes[1]
        self.per_row = ceil_div(axes[1], self.columns)
        self.groups = ceil_div(axes[0], self.rows) * self.per_row
        self.n_bytes = self.groups * size * TABLE_NBYTES[self.dtype]

    def load(self, read: Read) -> float:
        """Returns the largest absolute value."""
        self.values = floats(read(self.n_bytes), self.dtype, "CBK-008")
        return max(map(abs, self.values))

    def group(self, r: int, c: int) -> int:
        return r // self.rows * self.per_row + c // self.columns

    def at(self, r: int, c: int) -> float:
        return self.values[self.group(r, c)]


class CodebookStage:
    """Section 9."""

    def __init__(self, record: list[Any], view: View, books: Sequence[Book]) -> None:
        _, dim, entries, source, choice, book_rows, book_columns, scale, planes = fields(record, 9, "codebook stage")
        self.dim = integer(dim, "dim", "CBK-001", 1, MAX_DIM, "limit")
        self.entries = integer(entries, "entries", "CBK-001", 1, MAX_ENTRIES, "limit")
        self.source, detail = fields(source, 2, "source")
        integer(self.source, "source", "CBK-007", most=2, over="unsupported")
        if self.source == 0:
            table_dtype(detail, "dtype of the table")
        elif self.source == 1:
            self.zero = kind_of(detail, int, "zero")
            need(abs(detail) <= 1 << 23, "CBK-005", f"zero is {detail}, at most 2^23 from 0")
        else:
            self.book = books[integer(detail, "number of the BOOK", "BOK-001", most=len(books) - 1)]
        integer(choice, "choice", "CBK-004", most=0, over="unsupported")
        self.table = Grid(F32 if self.source else detail, (book_rows, book_columns),
                          (view.n_rows, ceil_div(view.n_columns, dim)), "codebooks", 1 if self.source == 1 else entries * dim)
        self.residents, self.scale = [self.table.n_bytes] if self.source != 2 else [], None
        if scale is not None:
            dtype, rows, columns = fields(scale, 3, "scale")
            self.scale = Grid(dtype, (rows, columns), (view.n_rows, view.n_columns), "scales")
            self.residents.append(self.scale.n_bytes)
        self.codes = Codes(entries, planes, "planes")
        self.n_payloads = len(self.codes.sizes(0))
        need(dim <= view.n_columns, "CBK-001", f"dim {dim} with {view.n_columns} columns")
        whole = view.block_columns == view.n_columns
        need(whole or view.block_columns % dim == 0, "CBK-002", f"block_columns {view.block_columns}, dim {dim}")
        need(self.source != 1 or dim == 1, "CBK-005", f"dim {dim} with a progression")
        need(self.source != 2 or self.book[:3] == (dim, entries, self.table.groups), "CBK-006",
             f"dim {dim}, {entries} entries, {self.table.groups} groups: not as in the BOOK")

    def load(self, read: Read) -> float:
        """Read the resident sections; returns the bound of 9.4."""
        if self.source == 2:
            self.table.values = self.book.values
        bound = max(map(abs, self.book.values)) if self.source == 2 else self.table.load(read)
        if self.source == 1:
            bound = f32(max(abs(self.zero), abs(self.entries - 1 - self.zero)) * bound)
        return f32(self.scale.load(read) * bound) if self.scale else bound

    def block(self, read: Read, rows: range, columns: range) -> list[float]:
        per_row = ceil_div(len(columns), self.dim)  # CBK-002: a block begins with a whole subvector
        codes, values = self.codes.read(read, len(rows) * per_row), []
        for (i, r), (j, c) in product(enumerate(rows), enumerate(columns)):
            code, group = codes[i * per_row + j // self.dim], self.table.group(r, c // self.dim)
            if self.source == 1:
                value = f32((code - self.zero) * self.table.values[group])
            else:
                value = self.table.values[(group * self.entries + code) * self.dim + c % self.dim]
            values.append(f32(self.scale.at(r, c) * value) if self.scale else value)
        return values


class LowRankStage:
    """Section 11."""

    def __init__(self, record: list[Any], view: View) -> None:
        _, rank, left, right, row_scale, column_scale = fields(record, 6, "low-rank stage")
        self.rank, self.n_columns = integer(rank, "rank", "LOW-001", 1, MAX_RANK, "limit"), view.n_columns
        factors = []
        for factor, what in ((left, "left factor"), (right, "right factor")):
            entries, planes = fields(factor, 2, what)
            factors.append(Codes(integer(entries, f"{what}: entries", "LOW-001", 2, 65535), planes, what))
        self.left, self.right = factors
        (row_dtype, size_r), (column_dtype, size_c) = fields(row_scale, 2, "row scale"), fields(column_scale, 2, "column scale")
        self.a = Grid(row_dtype, (size_r, 0), (view.n_rows, 1), "row scale")
        self.b = Grid(column_dtype, (0, size_c), (1, view.n_columns), "column scale")
        need(rank <= min(view.n_rows, view.n_columns), "LOW-001", f"rank {rank} of {view.n_rows} x {view.n_columns}")
        within(rank * view.n_columns, MAX_FACTOR, "LOW-001", "elements of the right factor")
        need(view.block_columns == view.n_columns, "LOW-002", f"block_columns {view.block_columns}, not 0")
        self.residents = [self.a.n_bytes, self.b.n_bytes, *self.right.sizes(rank * view.n_columns)]
        self.n_payloads = len(self.left.sizes(0))

    def load(self, read: Read) -> float:
        """Read the resident sections; returns the bound."""
        bound = f32(self.rank * (self.left.entries // 2) * (self.right.entries // 2))
        bound = f32(f32(bound * self.a.load(read)) * self.b.load(read))
        self.v = [code - self.right.entries // 2 for code in self.right.read(read, self.rank * self.n_columns)]
        return bound

    def block(self, read: Read, rows: range, columns: range) -> list[float]:
        u, values = [code - self.left.entries // 2 for code in self.left.read(read, len(rows) * self.rank)], []
        for (i, r), c in product(enumerate(rows), columns):
            s = sum(u[i * self.rank + k] * self.v[k * self.n_columns + c] for k in range(self.rank))
            values.append(f32(f32(f32(s) * self.a.at(r, 0)) * self.b.at(0, c)))
        return values


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
        need(type(record) is list and len(record) in (2, 5), "MET-008", "not an array of 2 or 5 fields")
        self.name, self.target, self.n_sections = kind_of(record[0], str, "name"), None, 0
        need(self.name != "", "TEN-001", "the name is empty")
        within(len(self.name.encode()), MAX_NAME, "TEN-001", "bytes of the name")
        need("\0" not in self.name, "TEN-001", "the name has U+0000")
        if len(record) == 2:
            self.target = kind_of(record[1], str, "target")
            return
        _, dtype, shape, layout, stages = record
        self.dtype = integer(dtype, "dtype", "TEN-006", most=len(DTYPES) - 1, over="unsupported")
        within(len(fields(shape, None, "shape")), MAX_AXES, "TEN-003", "sizes in shape")
        self.shape = tuple(integer(size, "size in shape") for size in shape)
        within(math.prod(size or 1 for size in shape), MAX_SIZE, "TEN-003", "product of shape")
        self.bits = DTYPES[dtype][1]
        self.n_bytes, self.residents = ceil_div(math.prod(shape) * self.bits, 8), list[int]()
        if 0 in shape:
            need(layout is None and stages == [], "TEN-004", f"layout or stages with shape {shape}")
            return
        need(fields(stages, None, "stages") != [], "TEN-004", "no stage for a tensor with elements")
        within(len(stages), MAX_STAGES, "TEN-004", "stages")
        ids = [(fields(stage, None, "stage") or [None])[0] for stage in stages]
        for stage_id in ids:
            integer(stage_id, "stage id", "TEN-006", most=2, over="unsupported")
        self.is_raw = ids == [0]
        need(self.is_raw or 0 not in ids, "TEN-005", f"a raw stage among stages {ids}")
        need(self.is_raw or F16 <= dtype <= C128, "TEN-005", f"stages {ids} of a tensor of {DTYPES[dtype][0]}")
        self.check_layout([None, 0, 0, 0, 0] if layout is None else layout)
        if self.is_raw:
            self.split = integer(fields(stages[0], 2, "raw stage")[1], "split", "RAW-001", most=2, over="unsupported")
            need(self.split == 0 or self.bits > 8, "RAW-001", f"split {self.split} of {self.bits} bits")
            n_payloads = word_nbytes(dtype) if self.split else 1
        else:
            self.stages = [CodebookStage(stage, self.view, books) if stage[0] == 1 else LowRankStage(stage, self.view)
                           for stage in stages]
            self.residents += [size for stage in self.stages for size in stage.residents]
            n_payloads = sum(stage.n_payloads for stage in self.stages)
        within(max([0, *self.residents]), MAX_RESIDENT, "TEN-007", "bytes of a resident section")
        self.n_sections = len(self.residents) + self.view.n_blocks() * n_payloads

    def check_layout(self, layout: Any) -> None:
        axes, n_row_axes, order, block_rows, block_columns = fields(layout, 5, "layout")
        shape = [*self.shape, 2] if self.dtype in (C64, C128) and not self.is_raw else list(self.shape)
        identity = list(range(len(shape)))
        if axes is not None:
            same = sorted(integer(axis, "axis") for axis in fields(axes, None, "axes")) == identity
            need(same and axes != identity, "LAY-001", f"axes {axes} of rank {len(shape)}")
        integer(n_row_axes, "n_row_axes", "LAY-001", most=len(shape))
        integer(order, "order", "LAY-003", most=3, over="unsupported")
        need(not self.is_raw or (axes is None and order == 0), "LAY-002", f"axes {axes}, order {order} and a raw stage")
        strides = [(shape[axis], math.prod(shape[axis + 1:])) for axis in axes or identity]
        self.row_axes, self.column_axes, self.order = strides[:n_row_axes], strides[n_row_axes:], order
        n_rows, n_columns = (math.prod(size for size, _ in part) for part in (self.row_axes, self.column_axes))
        block = integer(block_rows, "block_rows"), integer(block_columns, "block_columns")
        bands, ranges = block_columns == 0 and block_rows < n_rows, block_rows == 1 and 0 < block_columns < n_columns
        need(bands or ranges, "LAY-004", f"blocks {block} in a view of {n_rows} x {n_columns}")
        self.view = View(n_rows, n_columns, block_rows or n_rows, block_columns or n_columns)
        within(self.view.block_rows * self.view.block_columns, MAX_BLOCK, "LAY-005", "elements of a block")
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
        need(bound < OVERFLOW.get(self.dtype, math.inf), "VAL-002", f"the elements' bound is {bound}")
        data, size = bytearray(), word_nbytes(self.dtype)
        for rows, columns in self.view.blocks():
            t = self.stages[0].block(read, rows, columns)
            for stage in self.stages[1:]:
                t = [f32(a + b) for a, b in zip(t, stage.block(read, rows, columns))]
            data, block = data or bytearray(self.n_bytes), narrow(t, self.dtype)  # REA-002: memory only now
            row_at = [position(orders[0][r], self.row_axes) for r in rows]
            column_at = [position(orders[1][c], self.column_axes) for c in columns]
            for i, (r, c) in enumerate(product(row_at, column_at)):
                data[(r + c) * size:(r + c + 1) * size] = block[i * size:(i + 1) * size]
        return bytes(data)


class Entry(NamedTuple):
    """What INDX says of one tensor."""

    dtype: int
    shape: tuple[int, ...]
    chunk: int
    target: int  # 0, or for an alias 1 + position of its target
    at: int


class Decoder:
    """Section 14.1: one pass over the file."""

    def __init__(self, stream: BinaryIO, max_tensor_bytes: int, max_total_bytes: int) -> None:
        self.stream, self.offset, self.sha256, self.where = stream, 0, hashlib.sha256(), "header"
        self.max_tensor_bytes, self.budget = max_tensor_bytes, max_total_bytes
        self.model, self.metadata, self.books = Model({}, {}), b"", list[Book]()
        self.chunks, self.entries = list[tuple[bytes, int]](), dict[str, Entry]()

    def read(self, n_bytes: int) -> bytes:
        data = bytearray()
        while len(data) < n_bytes:  # REA-002: what is announced takes no memory before it comes
            piece = self.stream.read(min(n_bytes - len(data), 1 << 20))
            need(piece != b"", "REA-001", f"{n_bytes - len(data)} bytes are missing", "truncated")
            self.sha256.update(piece)
            data += piece
        self.offset += n_bytes
        return bytes(data)

    def decode(self) -> Model:
        header, kind = self.read(16), b""
        major, minor, zero = struct.unpack("<HHI", header[8:])
        need(header[:8] == MAGIC, "HDR-001", f"magic {header[:8].hex()}, not {MAGIC.hex()}")
        need(major == 1, "HDR-002", f"version {major}.{minor}, not 1", "unsupported")
        need(zero == 0, "HDR-003", f"zero is {zero}")
        while kind != b"INDX":
            start, digest = self.offset, self.sha256.digest()
            kind = self.chunk(digest)
            self.chunks.append((kind, self.offset - start))  # FIL-002
        self.where = "footer"
        footer = self.read(28)
        index_offset, crc = struct.unpack("<QI", footer[16:])
        need(crc == zlib.crc32(footer[:24]), "FTR-002", "its CRC", "checksum")
        need(footer[:16] == header, "FTR-002", f"it repeats the header as {footer[:16].hex()}")
        need(index_offset == start, "FTR-003", f"index_offset is {index_offset}, not {start}")
        need(self.stream.read(1) == b"", "FTR-001", "bytes follow it")
        return self.model

    def chunk(self, digest: bytes) -> bytes:
        """Read a chunk; returns its type. ``digest`` is that of what lies before it."""
        self.where = f"chunk at {self.offset}"
        head = self.read(24)
        kind, flags, meta_stored, meta_plain, n_sections, crc = struct.unpack("<4s5I", head)
        self.where = f"{kind!r} at {self.offset - 24}"
        need(crc == zlib.crc32(head[:20]), "CHK-001", "CRC of the chunk header", "checksum")
        need(kind.isalpha(), "CHK-002", "a type of other than letters")
        known = kind in (b"META", b"BOOK", b"LAYR", b"INDX")
        need(known or kind[:1].islower(), "CHK-003", "unknown and critical", "unsupported")
        need(flags <= 1, "CHK-004", f"flags {flags:#x}", "unsupported")
        limit = MAX_INDEX_META if kind == b"INDX" else MAX_META
        within(max(meta_stored, meta_plain), limit, "CHK-006", "bytes of metadata")
        within(n_sections, MAX_SECTIONS, "CHK-006", "sections")
        within(len(self.chunks) + 1, MAX_CHUNKS, "LIM-001", "chunks")
        plain, table = self.read(meta_stored), self.read(8 * n_sections)
        need(self.read(4) == struct.pack("<I", zlib.crc32(plain + table)), "CHK-007", "body_crc", "checksum")
        need((kind == b"META") == (not self.chunks), "FIL-001", "META is the first chunk, and no other")
        need(n_sections == 0 or kind not in (b"META", b"INDX"), "CHK-008", f"{n_sections} sections, not 0")
        rows = struct.iter_unpack("<II", table)
        if not known:
            for row in rows:
                self.section(row, None)
            return bytes(kind)
        sizes_fit = meta_stored < meta_plain if flags else meta_stored == meta_plain
        need(sizes_fit, "CHK-005", f"{meta_stored} bytes of metadata, plain {meta_plain}, flags {flags}")
        plain = decompress(plain, meta_plain) if flags else plain
        meta = Meta(plain).parse()
        if kind == b"META":
            generator, metadata = fields(meta, 2, "META")
            kind_of(generator, str, "generator")
            self.model.metadata.update(kind_of(metadata, dict, "metadata"))
            self.metadata = plain if len(plain) <= 65536 else b""
        elif kind == b"INDX":
            self.check_index(meta, digest)
        else:
            take = self.book if kind == b"BOOK" else self.layer
            take(meta, n_sections, lambda size: self.section(next(rows), size))
        return bytes(kind)

    def section(self, row: tuple[int, int], plain_nbytes: int | None) -> bytes:
        """A section's plain bytes; without a size (an unknown ancillary chunk) they are only checked."""
        compressed, n_bytes = row[0] >> 31, row[0] & 0x7FFFFFFF
        if plain_nbytes is not None:
            sizes_fit = n_bytes < plain_nbytes if compressed else n_bytes == plain_nbytes
            need(sizes_fit, "SEC-004", f"section at {self.offset}: {n_bytes} bytes, plain {plain_nbytes}")
        if not compressed and n_bytes >= 4096:  # SEC-002
            need(not any(self.read(-self.offset % 64)), "SEC-003", f"padding before {self.offset} is not zero")
        stored = self.read(n_bytes)
        need(zlib.crc32(stored) == row[1], "SEC-001", f"CRC of the section before {self.offset}", "checksum")
        return decompress(stored, plain_nbytes) if compressed and plain_nbytes is not None else stored

    def spend(self, n_bytes: int) -> None:  # LIM-002
        within(n_bytes, self.budget, "LIM-002", "decoded bytes")
        self.budget -= n_bytes

    def book(self, meta: Any, n_sections: int, read: Read) -> None:
        dim, entries, groups, dtype = fields(meta, 4, "BOOK")
        size = integer(dim, "dim", "BOK-002", 1, MAX_DIM, "limit")
        size *= integer(entries, "entries", "BOK-002", 1, MAX_ENTRIES, "limit")
        size *= integer(groups, "groups", "BOK-002", 1, MAX_GROUPS, "limit") * TABLE_NBYTES[table_dtype(dtype, "dtype")]
        within(size, MAX_RESIDENT, "LIM-001", "bytes of the section")
        need(n_sections == 1, "BOK-003", f"{n_sections} sections, not 1")
        self.spend(size)
        self.books.append(Book(dim, entries, groups, floats(read(size), dtype, "BOK-002")))

    def layer(self, meta: Any, n_sections: int, read: Read) -> None:
        where, (name, records), plans = self.where, fields(meta, 2, "LAYR"), []
        within(len(kind_of(name, str, "name").encode()), MAX_NAME, "LIM-001", "bytes of the layer's name")
        need(fields(records, None, "tensors") != [], "LYR-001", "no tensor")
        within(len(self.entries) + len(records), MAX_TENSORS, "LIM-001", "tensors")
        for i, record in enumerate(records):
            self.where = f"{where}, tensor {i}"
            plans.append(Plan(record, self.books))
        self.where, total = where, sum(plan.n_sections for plan in plans)
        need(total == n_sections, "LYR-002", f"{n_sections} sections, the tensors need {total}")
        for plan in plans:  # REA-003: names and budgets come last
            self.note(plan)
        for plan in plans:
            self.where = f"{where}, tensor {plan.name!r}"
            self.model.tensors[plan.name] = (Tensor(DTYPES[plan.dtype][0], plan.shape, plan.decode(read))
                                             if plan.target is None else self.model.tensors[plan.target])

    def note(self, plan: Plan) -> None:
        """Note a tensor for the index."""
        need(plan.name not in self.entries, "TEN-002", f"name {plan.name!r} occurs twice")
        if plan.target is None:
            within(plan.n_bytes, self.max_tensor_bytes, "LIM-002", f"decoded bytes of {plan.name!r}")
            self.spend(plan.n_bytes)
            self.entries[plan.name] = Entry(plan.dtype, plan.shape, len(self.chunks), 0, len(self.entries))
            return
        target = self.entries.get(plan.target)
        if target is None or target.target:
            raise Refused("format", "ALI-001", f"target {plan.target!r} is not there, or an alias")
        self.entries[plan.name] = Entry(target.dtype, target.shape, len(self.chunks), target.at + 1, len(self.entries))

    def check_index(self, meta: Any, digest: bytes) -> None:
        found = [kind_of(value, bytes, "field") for value in fields(meta, 10, "INDX")]
        need(len(found[0]) == 32, "MET-008", f"digest has {len(found[0])} bytes, not 32")
        dtypes, shapes, chunks, targets, _ = zip(*self.entries.values()) if self.entries else [()] * 5
        expected = {"metadata": self.metadata, "chunk_types": b"".join(kind for kind, _ in self.chunks),
                    "chunk_lengths": [length for _, length in self.chunks],
                    "names": b"".join(name.encode() + b"\0" for name in self.entries), "dtypes": bytes(dtypes),
                    "ranks": bytes(map(len, shapes)), "dims": [size for shape in shapes for size in shape],
                    "chunks": list(chunks), "targets": list(targets) if any(targets) else b""}
        for data, (what, value) in zip(found[1:], expected.items()):  # IDX-001, and with it IDX-004
            same = data == value if type(value) is bytes else column(data, len(value), what) == value
            need(same, "IDX-001", f"{what} differs from what the chunks say")
        need(found[0] == digest, "IDX-002", f"digest {found[0].hex()}, not {digest.hex()}", "checksum")


def decode(stream: BinaryIO, *, max_tensor_bytes: int = 2**28, max_total_bytes: int = 2**28) -> Model:
    """Decode a vqm file, testing every rule; the stream is read once, without seeking, to its end.

    Raises:
        Refused: The file breaks a rule, or its tensors and BOOKs take more bytes than allowed (LIM-002).
    """
    decoder = Decoder(stream, max_tensor_bytes, max_total_bytes)
    try:
        return decoder.decode()
    except Refused as err:
        raise Refused(err.error_class, err.clause, f"{decoder.where}: {err}") from err


def main(path: str) -> int:
    try:
        with sys.stdin.buffer if path == "-" else open(path, "rb") as stream:
            model = decode(stream)
    except Refused as err:
        print(json.dumps({"error": err.error_class, "clause": err.clause, "message": str(err)}))
        return 1
    tensors = {name: {"dtype": tensor.dtype, "shape": tensor.shape, "sha256": hashlib.sha256(tensor.data).hexdigest()}
               for name, tensor in model.tensors.items()}
    print(json.dumps({"metadata": model.metadata, "tensors": tensors}, default=lambda data: {"bin": data.hex()}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]) if len(sys.argv) == 2 else "usage: minidecoder.py FILE")
