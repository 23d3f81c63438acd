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
# Section 13. "13" stands for the id where no rule repeats a limit, and for the caller's budget.
MAX_META, MAX_INDEX_META, MAX_DEPTH, MAX_VALUES = 1 << 24, 1 << 28, 8, 1 << 20
MAX_SECTIONS, MAX_CHUNKS, MAX_TENSORS, MAX_NAME, MAX_AXES = 1 << 22, 1 << 20, 1 << 20, 1024, 32
MAX_SIZE, MAX_STAGES, MAX_ENTRIES, MAX_DIM, MAX_GROUPS = (1 << 60) - 1, 16, 65536, 4096, 1 << 20
MAX_RANK, MAX_RESIDENT, MAX_BLOCK, MAX_WINDOW = 65536, 1 << 28, 1 << 22, 1 << 23
# Section 7.1: name and bits of each dtype, by id
DTYPES = [("bool", 8), ("u8", 8), ("i8", 8), ("u16", 16), ("i16", 16), ("u32", 32), ("i32", 32), ("u64", 64),
          ("i64", 64), ("f16", 16), ("bf16", 16), ("f32", 32), ("f64", 64), ("c64", 64), ("c128", 128),
          ("f8_e4m3fn", 8), ("f8_e5m2", 8), ("f8_e4m3fnuz", 8), ("f8_e5m2fnuz", 8), ("f8_e8m0fnu", 8),
          ("u4", 4), ("i4", 4), ("f4_e2m1fn", 4)]
BOOL, F16, BF16, F32, F64, C64, C128 = 0, 9, 10, 11, 12, 13, 14
TABLE_NBYTES = {F16: 2, BF16: 2, F32: 4}
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


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def f32(x: float) -> float:
    """CNV-006. A sum or product of two binary32 values, rounded to binary64 on the way, is the same."""
    try:
        return float(struct.unpack("<f", struct.pack("<f", x))[0])
    except OverflowError:  # in a bound; VAL-002 keeps elements finite
        return math.inf


# Section 4: sections

def decompress(frame: bytes, plain_nbytes: int) -> bytes:
    """One zstd frame (RFC 8878, 3.1.1) of known plain size."""
    need(len(frame) > 4 and frame[:4] == b"\x28\xb5\x2f\xfd", "SEC-005", f"a zstd frame begins {frame[:5].hex()}")
    descriptor = frame[4]
    need(not descriptor & 0x08, "SEC-009", "the reserved bit of the zstd frame is set")
    single_segment = bool(descriptor & 0x20)
    id_at = 5 if single_segment else 6
    size_at = id_at + (0, 1, 2, 4)[descriptor & 3]
    at = size_at + (int(single_segment), 2, 4, 8)[descriptor >> 6]
    need(len(frame) >= at, "SEC-005", f"{len(frame)} bytes of a zstd frame whose header takes {at}")
    need(not any(frame[id_at:size_at]), "SEC-008", "the zstd frame names a dictionary")
    size = int.from_bytes(frame[size_at:at], "little") + (256 if at - size_at == 2 else 0)
    need(at > size_at and size == plain_nbytes, "SEC-006", f"content size {size} (0: none), not {plain_nbytes}")
    window = 0 if single_segment else (8 + (frame[5] & 7)) << (7 + (frame[5] >> 3))
    need(window <= MAX_WINDOW, "SEC-007", f"zstd window of {window} bytes, at most {MAX_WINDOW}", "limit")
    window = min(max(MAX_WINDOW, plain_nbytes), 1 << 31)
    decoder, plain = zstandard.ZstdDecompressor(max_window_size=window).decompressobj(), bytearray()
    try:
        for at in range(0, len(frame), 64):  # 16 blocks at most, of 128 KiB at most: output is bounded
            need(not decoder.eof, "SEC-005", f"the zstd frame ends before byte {at} of {len(frame)}")
            plain += decoder.decompress(frame[at:at + 64])
            need(len(plain) <= plain_nbytes, "SEC-010", f"the zstd frame gives more than {plain_nbytes} bytes")
    except zstandard.ZstdError as err:
        raise Refused("format", "SEC-010", str(err)) from err
    need(not decoder.unused_data, "SEC-005", f"{len(decoder.unused_data)} bytes follow the zstd frame")
    need(decoder.eof and len(plain) == plain_nbytes, "SEC-010", f"{len(plain)} bytes, not {plain_nbytes}")
    return bytes(plain)


# Section 5: metadata

FORMS = {0xC4: ("bin", 1, 0), 0xC5: ("bin", 2, 1 << 8), 0xC6: ("bin", 4, 1 << 16),  # kind, width, least number
         0xCC: ("integer", 1, 1 << 7), 0xCD: ("integer", 2, 1 << 8), 0xCE: ("integer", 4, 1 << 16),
         0xCF: ("integer", 8, 1 << 32), 0xD0: ("negative", 1, 33), 0xD1: ("negative", 2, (1 << 7) + 1),
         0xD2: ("negative", 4, (1 << 15) + 1), 0xD3: ("negative", 8, (1 << 31) + 1), 0xD9: ("string", 1, 32),
         0xDA: ("string", 2, 1 << 8), 0xDB: ("string", 4, 1 << 16), 0xDC: ("array", 2, 16),
         0xDD: ("array", 4, 1 << 16), 0xDE: ("map", 2, 16), 0xDF: ("map", 4, 1 << 16)}


class Meta:
    """The parser of one chunk's metadata."""

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
        need(depth <= MAX_DEPTH, "MET-006", f"depth {depth}, at most {MAX_DEPTH}", "limit")
        self.n_values += 1
        need(self.n_values <= MAX_VALUES, "MET-007", f"more than {MAX_VALUES} values", "limit")
        first = self.take(1)[0]
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
            need(isinstance(key, str), "MET-004", f"map key {key!r} is not a string")
            need(not pairs or next(reversed(pairs)).encode() < key.encode(), "MET-004", f"map key {key!r} out of order")
            pairs[key] = self.value(depth + 1)
        return pairs


def fields_of(value: Any, n_fields: int | None, what: str) -> list[Any]:  # MET-008
    need(type(value) is list and n_fields in (None, len(value)), "MET-008", f"{what}: no array of {n_fields} fields")
    return list(value)


def kind_of(value: Any, kind: type, what: str) -> Any:  # MET-008
    need(type(value) is kind, "MET-008", f"{what} is {value!r:.40}, not of kind {kind.__name__}")
    return value


def integer(value: Any, what: str) -> int:  # MET-008
    need(type(value) is int and value >= 0, "MET-008", f"{what} is {value!r:.40}, not an integer from 0")
    return int(value)


def count(value: Any, limit: int, what: str, clause: str) -> int:
    need(integer(value, what) >= 1, clause, f"{what} is 0")
    need(value <= limit, clause, f"{what} is {value}, at most {limit}", "limit")
    return int(value)


def column(data: bytes, n: int, what: str) -> list[int]:
    """An integer column of n integers (MET-009)."""
    width = len(data) // max(n, 1)
    need(len(data) == n * width and (n == 0 or width in (1, 2, 4, 8)), "MET-009", f"{what}: {len(data)} bytes for {n}")
    values = [int.from_bytes(data[i:i + width], "little") for i in range(0, len(data), width or 1)]
    need(width <= 1 or max(values) >= 1 << 4 * width, "MET-009", f"{what}: width {width} is more than it needs")
    return values


# Section 6: BOOK; 9.4: tables

Book = tuple[int, int, int, "array[float]"]  # dim, entries, groups, values


def table_dtype(value: Any, what: str) -> int:
    need(integer(value, what) in TABLE_NBYTES, "CBK-007", f"{what} is {value}, not f32, f16 or bf16", "unsupported")
    return int(value)


def floats(data: bytes, dtype: int, clause: str) -> array[float]:
    """Widen to f32 exactly; all must be finite."""
    if dtype == BF16:
        data = b"".join(b"\0\0" + data[i:i + 2] for i in range(0, len(data), 2))
    values = array("f", (value for (value,) in struct.iter_unpack("<e" if dtype == F16 else "<f", data)))
    need(all(map(math.isfinite, values)), clause, "a table, steps or scales hold a value that is not finite")
    return values


# Section 7.2: view and blocks; 9.2: groups

class View(NamedTuple):
    """An R x C matrix in blocks; one that spans its axis has that axis's length, where the file has 0."""

    n_rows: int
    n_columns: int
    block_rows: int
    block_columns: int

    def n_blocks(self) -> int:
        return ceil_div(self.n_rows, self.block_rows) * ceil_div(self.n_columns, self.block_columns)

    def blocks(self) -> Iterator[tuple[range, range]]:
        for r, c in product(range(0, self.n_rows, self.block_rows), range(0, self.n_columns, self.block_columns)):
            yield range(r, min(r + self.block_rows, self.n_rows)), range(c, min(c + self.block_columns, self.n_columns))


def groups_of(value: Any, n: int, what: str) -> tuple[int, int]:
    """Size (the whole axis for 0) and number of groups."""
    need(integer(value, what) < n or value == 0, "CBK-003", f"{what} is {value} on an axis of {n}")
    return value or n, ceil_div(n, value or n)


# Section 8: raw stage

def raw_block(read: Read, dtype: int, split: int, n_elements: int) -> bytes:
    """A block's elements as bytes; 4-bit elements come one to a byte."""
    bits = DTYPES[dtype][1]
    if split == 0:  # RAW-002
        data = read(ceil_div(n_elements * bits, 8))
        need(dtype != BOOL or max(data) <= 1, "DTY-001", f"a bool is {max(data)}, not 0 or 1")
        if bits == 4:
            data = bytes(nibble for byte in data for nibble in (byte & 15, byte >> 4))
            need(not any(data[n_elements:]), "RAW-002", "the unused bits of a block are not zero")
        return data[:n_elements] if bits == 4 else data
    n_words = 2 * n_elements if dtype in (C64, C128) else n_elements
    k = n_elements * bits // 8 // n_words
    words = bytearray(n_words * k)
    for p in range(k):  # RAW-003
        words[p::k] = read(n_words)
    for i in range(0, len(words) if split == 2 else 0, k):  # RAW-004
        word = int.from_bytes(words[i:i + k], "little")
        words[i:i + k] = (word >> 1 | (word & 1) << 8 * k - 1).to_bytes(k, "little")
    return bytes(words)


# Section 10: codes

class Codes:
    def __init__(self, entries: int, planes: Any, what: str) -> None:
        self.entries, self.width, total = entries, (entries - 1).bit_length(), 1
        need(len(fields_of(planes, None, what)) <= 3, "COD-004", f"{what}: {len(planes)} planes, at most 3")
        self.planes = [[integer(value, what) for value in fields_of(plane, 2, what)] for plane in planes]
        for base, n_digits in self.planes:
            need(2 <= base <= 256 and 1 <= n_digits <= 8 and base ** n_digits <= 256, "COD-003",
                 f"{what}: {n_digits} digits of base {base} in a byte")
            need(total < entries, "COD-004", f"{what}: base {base} is not needed for {entries} entries")
            total *= base
        need(not planes or total >= entries, "COD-004", f"{what}: {total} values are too few for {entries} entries")

    def sizes(self, n: int) -> list[int]:
        return [ceil_div(n, n_digits) for _, n_digits in self.planes] or [ceil_div(n * self.width, 8)]

    def read(self, read: Read, n: int) -> list[int]:
        codes, unit = [0] * n, 1
        for (base, n_digits), size in zip(self.planes, self.sizes(n)):
            data = read(size)
            need(max(data) < base ** n_digits, "COD-005", f"byte {max(data)} of {n_digits} digits of base {base}")
            for i in range(size * n_digits):
                digit = data[i // n_digits] // base ** (i % n_digits) % base
                need(i < n or digit == 0, "COD-005", f"digit {digit} after the last code")
                if i < n:
                    codes[i] += digit * unit
            unit *= base
        data, w = b"" if self.planes else read(self.sizes(n)[0]), self.width
        for at in range(0, 0 if self.planes else n, 8):  # eight codes fill w bytes
            word = int.from_bytes(data[at // 8 * w:(at // 8 + 1) * w], "little")
            codes[at:at + 8] = [word >> j * w & (1 << w) - 1 for j in range(min(8, n - at))]
            need(n - at >= 8 or word >> (n - at) * w == 0, "COD-002", "bits after the last code are not zero")
        need(max(codes) < self.entries, "COD-001", f"code {max(codes)} of {self.entries} entries")
        return codes


# Section 9: codebook stage

class CodebookStage:
    def __init__(self, record: list[Any], view: View, books: Sequence[Book]) -> None:
        _, dim, entries, source, choice, book_rows, book_columns, scale, planes = fields_of(record, 9, "stage 1")
        self.dim = count(dim, MAX_DIM, "dim", "CBK-001")
        self.entries = count(entries, MAX_ENTRIES, "entries", "CBK-001")
        self.source = integer((fields_of(source, None, "source") or [None])[0], "source")
        need(self.source <= 2, "CBK-007", f"source {self.source}", "unsupported")
        detail, self.dtype, self.book, self.zero = fields_of(source, 2, "source")[1], F32, None, 0
        if self.source == 0:
            self.dtype = table_dtype(detail, "dtype of the table")
        elif self.source == 1:
            self.zero = kind_of(detail, int, "zero")
            need(abs(detail) <= 1 << 23, "CBK-005", f"zero is {detail}, at most 2^23 from 0")
        else:
            need(integer(detail, "number") < len(books), "BOK-001", f"BOOK {detail} of {len(books)} so far")
            self.book = books[detail]
        need(integer(choice, "choice") == 0, "CBK-004", f"choice {choice}", "unsupported")
        self.book_rows, n_row_groups = groups_of(book_rows, view.n_rows, "book_rows")
        self.book_columns, self.n_books = groups_of(book_columns, ceil_div(view.n_columns, dim), "book_columns")
        groups, self.scale_dtype = n_row_groups * self.n_books, None
        per_group = 1 if self.source == 1 else entries * dim
        self.residents = [] if self.book else [groups * per_group * TABLE_NBYTES[self.dtype]]
        if scale is not None:
            scale_dtype, rows, columns = fields_of(scale, 3, "scale")
            self.scale_dtype = table_dtype(scale_dtype, "dtype of scales")
            self.scale_rows, n_row_groups = groups_of(rows, view.n_rows, "rows of scale")
            self.scale_columns, self.n_scales = groups_of(columns, view.n_columns, "columns of scale")
            self.residents.append(n_row_groups * self.n_scales * TABLE_NBYTES[self.scale_dtype])
        self.codes = Codes(entries, planes, "planes")
        self.n_payloads = len(self.codes.sizes(0))
        need(view.block_columns in (view.n_columns, view.block_columns // dim * dim), "CBK-002",
             f"block_columns {view.block_columns} is no multiple of {dim}")
        need(self.source != 1 or dim == 1, "CBK-005", f"dim {dim} with a progression")
        need(not self.book or self.book[:3] == (dim, entries, groups), "CBK-006", "dim, entries or groups of its BOOK")

    def load(self, read: Read) -> float:
        """Read the resident sections; returns the bound of 9.4."""
        self.table = self.book[3] if self.book else floats(read(self.residents[0]), self.dtype, "CBK-008")
        bound = max(map(abs, self.table))
        if self.source == 1:
            bound = f32(max(abs(self.zero), abs(self.entries - 1 - self.zero)) * bound)
        if self.scale_dtype is not None:
            self.scales = floats(read(self.residents[-1]), self.scale_dtype, "CBK-008")
            bound = f32(max(map(abs, self.scales)) * bound)
        return float(bound)

    def block(self, read: Read, rows: range, columns: range) -> list[float]:
        per_row = ceil_div(len(columns), self.dim)  # CBK-002: a block begins with a whole subvector
        codes, values = self.codes.read(read, len(rows) * per_row), []
        for (i, r), (j, c) in product(enumerate(rows), enumerate(columns)):
            code = codes[i * per_row + j // self.dim]
            group = r // self.book_rows * self.n_books + c // self.dim // self.book_columns
            if self.source == 1:
                value = f32((code - self.zero) * self.table[group])
            else:
                value = self.table[(group * self.entries + code) * self.dim + c % self.dim]
            if self.scale_dtype is not None:
                value = f32(self.scales[r // self.scale_rows * self.n_scales + c // self.scale_columns] * value)
            values.append(value)
        return values


# Section 11: low-rank stage

class LowRankStage:
    def __init__(self, record: list[Any], view: View) -> None:
        _, rank, left, right, row_scale, column_scale = fields_of(record, 6, "low-rank stage")
        self.rank, self.n_columns = count(rank, MAX_RANK, "rank", "LOW-001"), view.n_columns
        factors, scales, self.residents = [], [], []
        for factor, what in ((left, "left factor"), (right, "right factor")):
            entries, planes = fields_of(factor, 2, what)
            need(2 <= integer(entries, what) <= 65535, "LOW-001", f"{what}: {entries} entries, from 2 to 65,535")
            factors.append(Codes(entries, planes, what))
        for scale, n, what in ((row_scale, view.n_rows, "row scale"), (column_scale, view.n_columns, "column scale")):
            dtype, size = fields_of(scale, 2, what)
            scales.append((table_dtype(dtype, what), *groups_of(size, n, what)))
            self.residents.append(scales[-1][2] * TABLE_NBYTES[dtype])
        (self.left, self.right), ((self.a_dtype, self.a_size, _), (self.b_dtype, self.b_size, _)) = factors, scales
        self.residents += self.right.sizes(rank * view.n_columns)
        self.n_payloads = len(self.left.sizes(0))
        need(view.block_columns == view.n_columns, "LOW-002", f"block_columns {view.block_columns}, not 0")

    def load(self, read: Read) -> float:
        """Read the resident sections; returns the bound of section 11."""
        self.a = floats(read(self.residents[0]), self.a_dtype, "CBK-008")
        self.b = floats(read(self.residents[1]), self.b_dtype, "CBK-008")
        self.v = [code - self.right.entries // 2 for code in self.right.read(read, self.rank * self.n_columns)]
        bound = f32(self.rank * (self.left.entries // 2) * (self.right.entries // 2))
        return f32(f32(bound * max(map(abs, self.a))) * max(map(abs, self.b)))

    def block(self, read: Read, rows: range, columns: range) -> list[float]:
        u = [code - self.left.entries // 2 for code in self.left.read(read, len(rows) * self.rank)]
        values = []
        for (i, r), c in product(enumerate(rows), columns):
            s = sum(u[i * self.rank + k] * self.v[k * self.n_columns + c] for k in range(self.rank))
            values.append(f32(f32(f32(s) * self.a[r // self.a_size]) * self.b[c // self.b_size]))
        return values


# Section 7: tensors, 7.4 first

def narrow(values: Sequence[float], dtype: int) -> bytes:
    """VAL-001: f32 values as bytes of the dtype. OverflowError: one becomes infinite."""
    if dtype == BF16:
        words = [word + 0x7FFF + (word >> 16 & 1) >> 16 for (word,) in struct.iter_unpack("<I", narrow(values, F32))]
        if any(word & 0x7FFF == 0x7F80 for word in words):
            raise OverflowError
        return struct.pack(f"<{len(words)}H", *words)
    return struct.pack(f"<{len(values)}{ {F16: 'e', F64: 'd', C128: 'd'}.get(dtype, 'f') }", *values)


class Plan:
    """A checked record: the sections that a tensor has, and how its elements come from them."""

    def __init__(self, record: list[Any], books: Sequence[Book]) -> None:
        _, dtype, shape, layout, stages = record
        need(integer(dtype, "dtype") < len(DTYPES), "TEN-006", f"dtype {dtype}", "unsupported")
        need(len(fields_of(shape, None, "shape")) <= MAX_AXES, "TEN-003", f"rank {len(shape)} over {MAX_AXES}", "limit")
        self.dtype, self.shape = dtype, tuple(integer(size, "shape") for size in shape)
        need(math.prod(size or 1 for size in shape) <= MAX_SIZE, "TEN-003", f"shape {shape} is too large", "limit")
        self.name, self.bits = DTYPES[dtype]
        self.n_bytes, self.n_sections, self.residents = ceil_div(math.prod(shape) * self.bits, 8), 0, list[int]()
        self.stages: list[Any] = []
        self.split: int | None = None
        if 0 in shape:
            need(layout is None and stages == [], "TEN-004", f"layout or stages with shape {shape}")
            return
        # REA-003 has layout before stages, but a complex view depends on whether the stage is raw
        self.is_raw = bool(type(stages) is list and stages and type(stages[0]) is list and stages[0][:1] == [0])
        self.check_layout([None, 0, 0, 0, 0] if layout is None else layout)
        for record in fields_of(stages, None, "stages"):
            need(len(stages) <= MAX_STAGES, "TEN-004", f"{len(stages)} stages, at most {MAX_STAGES}", "limit")
            self.check_stage(fields_of(record, None, "stage"), len(stages), books)
        need(stages != [], "TEN-004", "no stage for a tensor with elements")
        self.residents += [size for stage in self.stages for size in stage.residents]
        need(max([0, *self.residents]) <= MAX_RESIDENT, "TEN-007", f"resident sections {self.residents}", "limit")
        payloads = sum(stage.n_payloads for stage in self.stages)
        if self.split is not None:
            payloads = self.bits // (16 if dtype in (C64, C128) else 8) if self.split else 1
        self.n_sections = len(self.residents) + self.view.n_blocks() * payloads

    def check_layout(self, layout: Any) -> None:
        axes, n_row_axes, order, block_rows, block_columns = fields_of(layout, 5, "layout")
        shape = [*self.shape, 2] if self.dtype in (C64, C128) and not self.is_raw else list(self.shape)
        identity = list(range(len(shape)))
        if axes is not None:
            same = sorted(integer(axis, "axis") for axis in fields_of(axes, None, "axes")) == identity
            need(same and axes != identity, "LAY-001", f"axes {axes} of rank {len(shape)}")
        need(integer(n_row_axes, "n_row_axes") <= len(shape), "LAY-001", f"n_row_axes {n_row_axes} of {len(shape)}")
        need(integer(order, "order") <= 3, "LAY-003", f"order {order}", "unsupported")
        need(not self.is_raw or (axes is None and order == 0), "LAY-002", f"axes {axes}, order {order} and a raw stage")
        # (size, stride in elements) of the permuted axes
        strides = [(shape[axis], math.prod(shape[axis + 1:])) for axis in axes or identity]
        self.row_axes, self.column_axes, self.order = strides[:n_row_axes], strides[n_row_axes:], order
        n_rows, n_columns = (math.prod(size for size, _ in part) for part in (self.row_axes, self.column_axes))
        block = integer(block_rows, "block_rows"), integer(block_columns, "block_columns")
        bands, ranges = block_columns == 0 and block_rows < n_rows, block_rows == 1 and block_columns < n_columns
        need(block == (0, 0) or bands or ranges, "LAY-004", f"blocks {block} in a view of {n_rows} x {n_columns}")
        self.view = View(n_rows, n_columns, block_rows or n_rows, block_columns or n_columns)
        n_elements = self.view.block_rows * self.view.block_columns
        need(n_elements <= MAX_BLOCK, "LAY-005", f"{n_elements} elements in a block, at most {MAX_BLOCK}", "limit")
        self.residents += [n for bit, n in ((1, n_rows), (2, n_columns)) if order & bit]

    def check_stage(self, record: list[Any], n_stages: int, books: Sequence[Book]) -> None:
        stage_id = integer(record[0] if record else None, "stage id")
        need(stage_id <= 2, "TEN-006", f"stage id {stage_id}", "unsupported")
        if stage_id == 0:
            need(n_stages == 1, "TEN-005", f"a raw stage among {n_stages} stages")
            self.split = integer(fields_of(record, 2, "raw stage")[1], "split")
            need(self.split <= 2, "RAW-001", f"split {self.split}", "unsupported")
            need(self.split == 0 or self.bits > 8, "RAW-001", f"split {self.split} of {self.name}")
            return
        need(F16 <= self.dtype <= C128, "TEN-005", f"stage {stage_id} of a tensor of {self.name}")
        codebook = stage_id == 1
        self.stages.append(CodebookStage(record, self.view, books) if codebook else LowRankStage(record, self.view))

    def decode(self, read: Read) -> bytes:
        """Read the tensor's sections in the order of 7.3; returns its decoded bytes."""
        if self.split is not None:  # LAY-002: its blocks follow each other in C order
            raw = b"".join(raw_block(read, self.dtype, self.split, len(r) * len(c)) for r, c in self.view.blocks())
            pairs = zip_longest(raw[::2], raw[1::2], fillvalue=0)
            return bytes(low | high << 4 for low, high in pairs) if self.bits == 4 else raw
        if self.n_sections == 0:
            return b""
        orders: list[Sequence[int]] = [range(self.view.n_rows), range(self.view.n_columns)]
        for i in (0, 1):
            if self.order & 1 << i:  # 7.2; Python's sort is stable
                orders[i] = sorted(orders[i], key=read(len(orders[i])).__getitem__)
        bound = -0.0  # so that the first sum is exact
        for stage in self.stages:
            bound = f32(bound + stage.load(read))
        try:
            narrow([bound], self.dtype)
        except OverflowError:
            bound = math.inf
        need(math.isfinite(bound), "VAL-002", f"the elements' bound is not finite in {self.name}")
        data, size = bytearray(), len(narrow([0.0], self.dtype))
        for rows, columns in self.view.blocks():
            t: list[float] = self.stages[0].block(read, rows, columns)
            for stage in self.stages[1:]:
                t = [f32(a + b) for a, b in zip(t, stage.block(read, rows, columns))]
            data, block = data or bytearray(self.n_bytes), narrow(t, self.dtype)  # REA-002: memory only now
            row_at = [position(orders[0][r], self.row_axes) for r in rows]
            column_at = [position(orders[1][c], self.column_axes) for c in columns]
            for i, (r, c) in enumerate(product(row_at, column_at)):
                data[(r + c) * size:(r + c + 1) * size] = block[i * size:(i + 1) * size]
        return bytes(data)


def position(index: int, axes: list[tuple[int, int]]) -> int:
    """Where a row or column of the view begins, in elements."""
    at = 0
    for size, stride in reversed(axes):
        at, index = at + index % size * stride, index // size
    return at


# Sections 2, 3, 6, 12 and 14.1: the file

class Entry(NamedTuple):
    """What INDX says of one tensor."""

    name: str
    dtype: int
    shape: tuple[int, ...]
    chunk: int
    target: int  # 0, or for an alias 1 + position of its target
    at: int


class Decoder:
    def __init__(self, stream: BinaryIO, max_total_bytes: int) -> None:
        self.stream, self.offset, self.sha256 = stream, 0, hashlib.sha256()
        self.budget, self.model, self.metadata = max_total_bytes, Model({}, {}), b""
        self.books, self.chunks, self.entries = list[Book](), list[tuple[bytes, int]](), dict[str, Entry]()

    def pieces(self, n_bytes: int) -> Iterator[bytes]:
        while n_bytes:
            piece = self.stream.read(min(n_bytes, 1 << 20))
            need(bool(piece), "REA-001", f"the file ends at {self.offset}, {n_bytes} bytes too early", "truncated")
            n_bytes, self.offset = n_bytes - len(piece), self.offset + len(piece)
            self.sha256.update(piece)
            yield piece

    def read(self, n_bytes: int) -> bytes:
        return b"".join(self.pieces(n_bytes))  # REA-002: what is announced takes no memory before it comes

    def decode(self) -> Model:
        header = self.read(16)
        major, minor, zero = struct.unpack("<HHI", header[8:])
        need(header[:8] == MAGIC, "HDR-001", f"magic {header[:8].hex()}, not {MAGIC.hex()}")
        need(major == 1, "HDR-002", f"version {major}.{minor}, not 1", "unsupported")
        need(zero == 0, "HDR-003", f"zero is {zero}")
        kind = b""
        while kind != b"INDX":
            index_offset, digest = self.offset, self.sha256.digest()
            kind = self.chunk(digest)
            self.chunks.append((kind, self.offset - index_offset))  # FIL-002
        footer = self.read(28)
        found, crc = struct.unpack("<QI", footer[16:])
        need(crc == zlib.crc32(footer[:24]), "FTR-002", "CRC of the footer", "checksum")
        need(footer[:16] == header, "FTR-002", f"the footer repeats the header as {footer[:16].hex()}")
        need(found == index_offset, "FTR-003", f"index_offset is {found}, not {index_offset}")
        need(self.stream.read(1) == b"", "FTR-001", f"bytes follow the footer at {self.offset}")
        return self.model

    def chunk(self, digest: bytes) -> bytes:
        """Read a chunk; returns its type. ``digest`` is that of what lies before it."""
        at, head = self.offset, self.read(24)
        kind, flags, meta_stored, meta_plain, n_sections, crc = struct.unpack("<4s5I", head)
        what = f"chunk {kind!r} at {at}"
        need(crc == zlib.crc32(head[:20]), "CHK-001", f"{what}: CRC of its header", "checksum")
        need(kind.isalpha(), "CHK-002", f"{what}: a type of other than letters")
        known = kind in (b"META", b"BOOK", b"LAYR", b"INDX")
        need(known or kind[:1].islower(), "CHK-003", f"{what}: unknown and critical", "unsupported")
        need(flags <= 1, "CHK-004", f"{what}: flags {flags:#x}", "unsupported")
        limit = MAX_INDEX_META if kind == b"INDX" else MAX_META
        need(max(meta_stored, meta_plain) <= limit, "CHK-006", f"{what}: over {limit} bytes of metadata", "limit")
        need(n_sections <= MAX_SECTIONS, "CHK-006", f"{what}: {n_sections} sections, at most {MAX_SECTIONS}", "limit")
        plain, table = self.read(meta_stored), self.read(8 * n_sections)
        need(self.read(4) == struct.pack("<I", zlib.crc32(plain + table)), "CHK-007", f"{what}: body_crc", "checksum")
        need((kind == b"META") == (not self.chunks), "FIL-001", f"{what}: META is the first alone")
        need(len(self.chunks) < MAX_CHUNKS, "13", f"more than {MAX_CHUNKS} chunks", "limit")
        need(n_sections == 0 or kind not in (b"META", b"INDX"), "CHK-008", f"{what}: {n_sections} sections, not 0")
        need(flags == 1 or meta_stored == meta_plain, "CHK-005", f"{what}: meta {meta_stored}, plain {meta_plain}")
        plain = decompress(plain, meta_plain) if flags else plain
        rows = struct.iter_unpack("<II", table)
        if not known:
            for row in rows:
                self.section(row, None)
            return bytes(kind)
        meta = Meta(plain).parse()
        if kind == b"META":
            generator, metadata = fields_of(meta, 2, "META")
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
        """A section's plain bytes; without a size its bytes are only checked."""
        length, crc, found, stored = *row, 0, bytearray()
        compressed, n_bytes = bool(length >> 31), length & 0x7FFFFFFF
        if not compressed and n_bytes >= 4096:  # SEC-002
            need(not any(self.read(-self.offset % 64)), "SEC-003", f"padding before {self.offset} is not zero")
        for piece in self.pieces(n_bytes):
            found = zlib.crc32(piece, found)
            if plain_nbytes is not None and (compressed or n_bytes == plain_nbytes):
                stored += piece
        need(found == crc, "SEC-001", f"section before {self.offset}: CRC {found:08x}, not {crc:08x}", "checksum")
        if plain_nbytes is None or compressed:
            return b"" if plain_nbytes is None else decompress(bytes(stored), plain_nbytes)
        need(n_bytes == plain_nbytes, "SEC-004", f"section before {self.offset}: {n_bytes} bytes, not {plain_nbytes}")
        return bytes(stored)

    def spend(self, n_bytes: int, what: str) -> None:
        need(n_bytes <= self.budget, "13", f"{what}: {n_bytes} bytes, {self.budget} are allowed", "limit")
        self.budget -= n_bytes

    def book(self, meta: Any, n_sections: int, read: Read) -> None:
        dim, entries, groups, dtype = fields_of(meta, 4, "BOOK")
        size = count(dim, MAX_DIM, "dim", "BOK-002") * count(entries, MAX_ENTRIES, "entries", "BOK-002")
        size *= count(groups, MAX_GROUPS, "groups", "BOK-002") * TABLE_NBYTES[table_dtype(dtype, "dtype of a BOOK")]
        need(size <= MAX_RESIDENT, "13", f"BOOK of {size} bytes, at most {MAX_RESIDENT}", "limit")
        need(n_sections == 1, "LYR-002", f"BOOK with {n_sections} sections, not 1")
        self.spend(size, f"BOOK {len(self.books)}")
        self.books.append((dim, entries, groups, floats(read(size), dtype, "BOK-002")))

    def layer(self, meta: Any, n_sections: int, read: Read) -> None:
        name, records = fields_of(meta, 2, "LAYR")
        need(len(kind_of(name, str, "name").encode()) <= MAX_NAME, "13", f"layer's name > {MAX_NAME} bytes", "limit")
        need(fields_of(records, None, "tensors") != [], "LYR-001", f"layer {name!r} has no tensor")
        plans = [self.tensor(fields_of(record, None, "tensor")) for record in records]
        total = sum(plan.n_sections for _, plan in plans if isinstance(plan, Plan))
        need(total == n_sections, "LYR-002", f"layer {name!r} has {n_sections} sections, its tensors need {total}")
        for name, plan in plans:
            try:
                self.model.tensors[name] = (self.model.tensors[plan] if isinstance(plan, str)
                                            else Tensor(plan.name, plan.shape, plan.decode(read)))
            except Refused as err:
                raise Refused(err.error_class, err.clause, f"tensor {name!r}: {err}") from err

    def tensor(self, fields: list[Any]) -> tuple[str, Plan | str]:
        """Check a record and note it for the index; returns its name, and its plan or the target of an alias."""
        need(len(fields) in (2, 5), "MET-008", f"a tensor of {len(fields)} fields, not 2 or 5")
        need(len(self.entries) < MAX_TENSORS, "13", f"more than {MAX_TENSORS} tensors", "limit")
        name, at = kind_of(fields[0], str, "name of a tensor"), len(self.entries)
        need(name != "" and "\0" not in name, "TEN-001", f"name {name!r} is empty or has U+0000")
        need(len(name.encode()) <= MAX_NAME, "TEN-001", f"name {name[:40]!r}… is over {MAX_NAME} bytes", "limit")
        need(name not in self.entries, "TEN-002", f"name {name!r} occurs twice")
        if len(fields) == 2:
            target = self.entries.get(kind_of(fields[1], str, "target"))
            if target is None or target.target:
                raise Refused("format", "ALI-001", f"target {fields[1]!r} is not there, or an alias")
            self.entries[name] = Entry(name, target.dtype, target.shape, len(self.chunks), target.at + 1, at)
            return name, target.name
        try:
            plan = Plan(fields, self.books)
            self.spend(plan.n_bytes, "decoded")
        except Refused as err:
            raise Refused(err.error_class, err.clause, f"tensor {name!r}: {err}") from err
        self.entries[name] = Entry(name, plan.dtype, plan.shape, len(self.chunks), 0, at)
        return name, plan

    def check_index(self, meta: Any, digest: bytes) -> None:
        fields = [kind_of(value, bytes, "field of INDX") for value in fields_of(meta, 10, "INDX")]
        need(len(fields[0]) == 32, "MET-008", f"digest has {len(fields[0])} bytes, not 32")
        names, dtypes, shapes, chunks, targets, _ = zip(*self.entries.values()) if self.entries else [()] * 6
        expected = [("metadata", self.metadata), ("chunk_types", b"".join(kind for kind, _ in self.chunks)),
                    ("chunk_lengths", [length for _, length in self.chunks]),
                    ("names", b"".join(name.encode() + b"\0" for name in names)), ("dtypes", bytes(dtypes)),
                    ("ranks", bytes(map(len, shapes))), ("dims", [size for shape in shapes for size in shape]),
                    ("chunks", list(chunks)), ("targets", list(targets) if any(targets) else b"")]
        for found, (what, value) in zip(fields[1:], expected):  # IDX-001, and with it IDX-004
            same = found == value if type(value) is bytes else column(found, len(value), what) == value
            need(same, "IDX-001", f"{what} of the index differs from what the chunks say")
        need(fields[0] == digest, "IDX-002", f"digest {fields[0].hex()}, not {digest.hex()}", "checksum")


def decode(stream: BinaryIO, *, max_total_bytes: int = 2**28) -> Model:
    """Decode a vqm file, testing every rule; the stream is read once, without seeking, to its end.

    Raises:
        Refused: The file breaks a rule, or its tensors and BOOKs take more than ``max_total_bytes``.
    """
    return Decoder(stream, max_total_bytes).decode()


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
