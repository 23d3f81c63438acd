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
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, product, zip_longest
from typing import Any, BinaryIO

import zstandard

MAGIC = b"\x89VQM\r\n\x1a\n"
MAX_META, MAX_INDEX_META, MAX_DEPTH, MAX_VALUES = 1 << 24, 1 << 28, 16, 1 << 20  # section 14
MAX_SECTIONS, MAX_CHUNKS, MAX_TENSORS, MAX_NAME, MAX_AXES = 1 << 22, 1 << 20, 1 << 20, 1024, 32
MAX_SIZE, MAX_STAGES, MAX_ENTRIES, MAX_DIM, MAX_GROUPS = (1 << 58) - 1, 16, 65536, 4096, 1 << 20
MAX_RANK, MAX_FACTOR, MAX_RESIDENT, MAX_BLOCK, MAX_WINDOW, MAX_FREQ = 65536, 1 << 24, 1 << 28, 1 << 22, 1 << 23, 1 << 22
DTYPES = ["bool", "u8", "i8", "u16", "i16", "u32", "i32", "u64", "i64", "f16", "bf16", "f32", "f64", "c64", "c128",
          "f8_e4m3fn", "f8_e5m2", "f8_e4m3fnuz", "f8_e5m2fnuz", "f8_e8m0fnu", "u4", "i4", "f4_e2m1fn"]  # section 7.1
BITS = [8, 8, 8, 16, 16, 32, 32, 64, 64, 16, 16, 32, 64, 64, 128, 8, 8, 8, 8, 8, 4, 4, 4]
BOOL, F16, BF16, F32, F64, C64, C128 = 0, 9, 10, 11, 12, 13, 14
WORD_NBYTES = [{C64: 4, C128: 8}.get(dtype, bits // 8) for dtype, bits in enumerate(BITS)]  # section 8
TABLE_DTYPE = "CBK-007 unsupported", F16, F32  # of tables, scales and BOOKs, as arguments of integer()
N_FIELDS = {b"META": 2, b"BOOK": 4, b"FREQ": 3, b"LAYR": 2, b"INDX": 10}  # of a chunk's metadata
OVERFLOW = {F16: 65520.0, BF16: float.fromhex("0x1.FFp127")}  # the least numbers that round to infinity
Read = Callable[..., bytes]  # gives the next section of a chunk, told its plain size (ANS-001: at least, and the rest)
Book = tuple[int, int, int, "array[float]"]  # dim, entries, groups, values
Freq = tuple[int, int, list["array[int]"]]  # precision, entries, each table as the starts of its codes and the end
View = tuple[int, int, int, int]  # rows, columns, rows and columns of a block (all, where the file has 0)
# Sizes of the resident sections, number of sections for a block, what reads the resident sections and gives the bound
# of VAL-002, what reads a block's payload and gives its elements' values
Stage = tuple[list[int], int, Callable[[Read], float], Callable[[Read, range, range], list[float]]]
Tensor = tuple[str, tuple[int, ...], bytes, int]  # dtype, shape, the decoded bytes of 7.1, position of its layer


class Refused(Exception):  # noqa: N818
    """The file breaks the rule ``clause``; ``error_class`` is as in section 1."""
    def __init__(self, rule: str, found: object) -> None:
        self.clause, self.error_class = f"{rule} format".split()[:2]
        super().__init__(f"{self.clause}: {found!s:.200}")


def need(found: object, *rules: Any) -> None:
    """Refuse the file for the first of ``rules`` (an id, if need be a class of error; whether it holds) broken."""
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
    head = frame + b"\0\0\0\0\0\0"  # so that a frame that is cut short can be read up to its descriptor
    id_at = 5 if head[4] & 32 else 6  # without the single-segment flag a byte for the window precedes it
    size_at = id_at + (0, 1, 2, 4)[head[4] & 3]
    end = size_at + (6 - id_at, 2, 4, 8)[head[4] >> 6]
    size = int.from_bytes(head[size_at:end], "little") + (256 if end - size_at == 2 else 0)
    window = (8 + (head[5] & 7)) << (7 + (head[5] >> 3)) if id_at == 6 else 0
    need(frame[:end].hex(), "SEC-005", head[:4] == b"\x28\xb5\x2f\xfd", "SEC-009", not head[4] & 8,
         "SEC-005", len(frame) >= end, "SEC-008", not any(head[id_at:size_at]),
         "SEC-006", size == n_bytes,  # without the field it is 0, and no frame is of a plain size of 0 (SEC-004)
         "SEC-007 limit", window <= MAX_WINDOW)
    try:
        return zstandard.ZstdDecompressor().decompress(frame, max_output_size=n_bytes, allow_extra_data=False)
    except zstandard.ZstdError as err:
        raise Refused("SEC-005" if "unused data" in str(err) else "SEC-010", err) from err


# By first byte: kind, width of the number that follows and its least value (for a negative one, that of ~n);
# if no number follows, width 0 and the value or length itself
FORMS: dict[int, tuple[str, int, Any]] = {0xC0: ("value", 0, None), 0xC2: ("value", 0, False), 0xC3: ("value", 0, True)}
FORMS |= {n & 255: ("value", 0, n) for n in range(-32, 128)}
for kind, first, n_forms in (("map", 0x80, 16), ("array", 0x90, 16), ("string", 0xA0, 32)):
    FORMS |= {first + n: (kind, 0, n) for n in range(n_forms)}
for kind, first, widths, least in (("bin", 0xC4, (1, 2, 4), 0), ("value", 0xCC, (1, 2, 4, 8), 128),
                                   ("negative", 0xD0, (1, 2, 4, 8), 32), ("string", 0xD9, (1, 2, 4), 32),
                                   ("array", 0xDC, (2, 4), 16), ("map", 0xDE, (2, 4), 16)):
    for i, width in enumerate(widths):
        FORMS[first + i] = kind, width, 1 << 8 * widths[i - 1] - (kind == "negative") if i else least


class Meta:  # section 5: the metadata of one chunk
    def __init__(self, data: bytes) -> None:
        self.data, self.at, self.n_values = data, 0, 0

    def take(self, n_bytes: int, n_claimed: int = 0) -> bytes:
        need(self.at, "MET-005", self.at + n_bytes + n_claimed <= len(self.data))
        self.at += n_bytes
        return self.data[self.at - n_bytes:self.at]

    def value(self, depth: int) -> Any:
        first, self.n_values = self.take(1)[0], self.n_values + 1
        need((depth, first), "MET-006 limit", depth <= MAX_DEPTH, "MET-007 limit", self.n_values <= MAX_VALUES,
             "MET-001", first in FORMS)
        kind, width, n = FORMS[first]
        if width:
            n, least = int.from_bytes(self.take(width), "big", signed=kind == "negative"), n
            need(n, "MET-002", (~n if kind == "negative" else n) >= least)
        if kind in ("bin", "string"):
            data = self.take(n)
            need(data, "MET-003", kind == "bin" or data.decode("utf-8", "replace").encode() == data)
            return data if kind == "bin" else data.decode()
        if kind == "array":
            self.take(0, n)  # MET-007: so many bytes at least
            return [self.value(depth + 1) for _ in range(n)]
        if kind == "map":
            self.take(0, 2 * n)
            pairs: dict[str, Any] = {}
            for _ in range(n):
                key = self.value(depth + 1)
                in_order = type(key) is str and (not pairs or next(reversed(pairs)).encode() < key.encode())
                need(key, "MET-004", in_order)
                pairs[key] = self.value(depth + 1)
            return pairs
        return n


def kind_of(value: Any, kind: Any, length: int | None = None) -> Any:
    need(value, "MET-008", type(value) is kind and length in (None, length and len(value)))
    return value


def integer(value: Any, rule: str = "MET-008", least: int = 0, most: float = math.inf, over: str = "format") -> int:
    """An integer from ``least`` to ``most``, as ``rule`` wants it; ``over`` is the class of error if it is more."""
    need(value, "MET-008", type(value) is int and value >= 0)
    need(value, rule, value >= least, f"{rule} {over}", value <= most)
    return int(value)


def id_of(record: Any, rule: str, *known: int) -> int:  # the first field, tested before the number of the others
    found = integer((kind_of(record, list) or [None])[0])
    need(record, f"{rule} unsupported", found in known)
    return found


def floats(data: bytes, dtype: int, rule: str) -> array[float]:  # widened to f32, exactly
    if dtype == BF16:
        data = b"".join(b"\0\0" + data[i:i + 2] for i in range(0, len(data), 2))
    values = array("f", (value for (value,) in struct.iter_unpack("<e" if dtype == F16 else "<f", data)))
    need("a value of a table or scale is not finite", rule, all(map(math.isfinite, values)))
    return values


def starts_of_codes(data: bytes, precision: int) -> array[int]:  # section 6: one table of a FREQ
    weights = [b and (16 + (b - 1) % 16) << (b - 1) // 16 for b in data]
    need("a table of zeros", "FRQ-003", any(weights))
    rest, total = (1 << precision) - len(data) + weights.count(0), sum(weights)
    frequencies = [w and 1 + w * rest // total for w in weights]
    frequencies[weights.index(max(weights))] += (1 << precision) - sum(frequencies)
    return array("H", accumulate(frequencies, initial=0))


def column(values: Sequence[int]) -> bytes:  # MET-009: there is one way to write it
    width = next(width for width in (1, 2, 4, 8) if max(values, default=0) < 1 << 8 * width)
    return b"".join(value.to_bytes(width, "little") for value in values)


class Codes:  # section 10
    def __init__(self, entries: int, planes: Any) -> None:
        self.entries, self.width, total = entries, (entries - 1).bit_length(), 1
        need(planes, "COD-004", len(kind_of(planes, list)) <= 3)
        self.planes = [kind_of(plane, list, 2) for plane in planes]
        for base, k in self.planes:
            need((base, k), "COD-003", integer(base) >= 2 and 1 <= integer(k) <= 8 and base ** k <= 256,
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


class Grid:  # section 9.2: a table, steps or scales: ``size`` values for each group of rows and columns
    def __init__(self, dtype: Any, groups: tuple[Any, Any], axes: Sequence[int], size: int = 1) -> None:
        self.dtype, self.values = integer(dtype, *TABLE_DTYPE), array("f")
        self.rows, self.columns = (integer(groups[i], "CBK-003", most=axes[i] - 1) or axes[i] for i in (0, 1))
        self.n_columns = ceil_div(axes[1], self.columns)
        self.n_groups = ceil_div(axes[0], self.rows) * self.n_columns
        self.n_bytes = self.n_groups * size * WORD_NBYTES[self.dtype]

    def group(self, r: int, c: int) -> int:
        return r // self.rows * self.n_columns + c // self.columns

    def load(self, read: Read) -> float:  # the largest absolute value
        self.values = self.values or floats(read(self.n_bytes), self.dtype, "CBK-008")
        return max(map(abs, self.values))


def scales_of(scale: Any, view: View) -> Grid:
    dtype, *groups = [F32, 0, 0] if scale is None else kind_of(scale, list, 3)
    scales = Grid(dtype, (groups[0], groups[1]), view)
    if scale is None:
        scales.values.append(1.0)  # changes nothing
    return scales


def float_codes(signed: Any, exponent_bits: Any, fraction_bits: Any, exponent: Any) -> Book:  # section 9.3
    for value, most in ((signed, 1), (exponent_bits, 5), (fraction_bits, 10)):
        integer(value, "CBK-009", most=most)
    need(exponent, "CBK-009", -120 <= kind_of(exponent, int) <= 60)
    values = [math.ldexp(f + (1 << fraction_bits) * (e > 0), exponent + max(e - 1, 0))
              for e, f in product(range(1 << exponent_bits), range(1 << fraction_bits))]
    values += [-value for value in values] * signed
    return 1, len(values), 1, array("f", values)


def codebook_stage(record: Any, view: View, books: Sequence[Book]) -> Stage:  # section 9
    _, dim, entries, source, choice, book_rows, book_columns, scale, planes = kind_of(record, list, 9)
    integer(dim, "CBK-001", 1, MAX_DIM, "limit")
    integer(entries, "CBK-001", 1, MAX_ENTRIES, "limit")
    source_id = id_of(source, "CBK-007", 0, 1, 2, 4)
    _, detail, *details = kind_of(source, list, 5 if source_id == 4 else 2)
    dtype = integer(detail, *TABLE_DTYPE) if source_id == 0 else F32
    zero = kind_of(detail, int) if source_id == 1 else None
    need(zero, "CBK-005", zero is None or abs(zero) <= 1 << 23)
    book = (books[integer(detail, "BOK-001", most=len(books) - 1)] if source_id == 2 else
            float_codes(detail, *details) if source_id == 4 else None)
    integer(choice, "CBK-004", 0, 0, "unsupported")
    subvectors, size = (view[0], ceil_div(view[1], dim)), entries * dim if zero is None else 1
    table, scales = Grid(dtype, (book_rows, book_columns), subvectors, size), scales_of(scale, view)
    codes = Codes(entries, planes)
    need((dim, view), "CBK-001", dim <= view[1], "CBK-002", view[3] == view[1] or view[3] % dim == 0,
         "CBK-005", dim == 1 or zero is None, "CBK-006" if source_id == 2 else "CBK-009",
         book is None or book[:3] == (dim, entries, table.n_groups))
    table.values = table.values if book is None else book[3]
    residents = [grid.n_bytes for grid in (table, scales) if not grid.values]

    def load(read: Read) -> float:
        largest = 1 if zero is None else max(abs(zero), abs(entries - 1 - zero))
        return f32(f32(largest * table.load(read)) * scales.load(read))

    def block(read: Read, rows: range, columns: range) -> list[float]:
        per_row = ceil_div(len(columns), dim)  # CBK-002: a block begins with a whole subvector
        chosen, values = codes.read(read, len(rows) * per_row), []
        for (i, r), (j, c) in product(enumerate(rows), enumerate(columns)):
            code, group = chosen[i * per_row + j // dim], table.group(r, c // dim)
            v = (table.values[(group * entries + code) * dim + c % dim] if zero is None else
                 f32((code - zero) * table.values[group]))
            values.append(f32(scales.values[scales.group(r, c)] * v))
        return values

    return residents, len(codes.sizes(0)), load, block


def low_rank_stage(record: Any, view: View) -> Stage:  # section 11
    _, rank, left, right, row_scale, column_scale = kind_of(record, list, 6)
    n_rows, n_columns, _, block_columns = view
    integer(rank, "LOW-001", 1, MAX_RANK, "limit")
    codes_u, codes_v = (Codes(integer(entries, "LOW-001", 2, 65535), planes) for factor in (left, right)
                        for entries, planes in [kind_of(factor, list, 2)])
    a, b = (Grid(dtype, (size, 0), (n, 1)) for scale, n in ((row_scale, n_rows), (column_scale, n_columns))
            for dtype, size in [kind_of(scale, list, 2)])
    need((rank, view), "LOW-001", rank <= min(n_rows, n_columns), "LOW-001 limit", rank * n_columns <= MAX_FACTOR,
         "LOW-002", block_columns == n_columns)
    half_u, half_v, v = codes_u.entries // 2, codes_v.entries // 2, list[int]()

    def load(read: Read) -> float:
        bound = f32(f32(f32(rank * half_u * half_v) * a.load(read)) * b.load(read))
        v.extend(code - half_v for code in codes_v.read(read, rank * n_columns))
        return bound

    def block(read: Read, rows: range, columns: range) -> list[float]:
        u = [code - half_u for code in codes_u.read(read, len(rows) * rank)]
        sums = ((sum(u[i * rank + k] * v[k * n_columns + c] for k in range(rank)), r, c)
                for (i, r), c in product(enumerate(rows), columns))
        return [f32(f32(f32(s) * a.values[r // a.rows]) * b.values[c // b.rows]) for s, r, c in sums]

    return [a.n_bytes, b.n_bytes, *codes_v.sizes(rank * n_columns)], len(codes_u.sizes(0)), load, block


def trellis_stage(record: Any, view: View, freqs: Sequence[Freq]) -> Stage:  # section 12
    _, source, trellis, scale, classes, freq, first, tile = kind_of(record, list, 8)
    kind = id_of(source, "CBK-007", 0, 1, 5)
    _, detail, *sizes = kind_of(source, list, 3 if kind == 5 else 2)
    dtype, zero = (F32, kind_of(detail, int)) if kind else (integer(detail, *TABLE_DTYPE), None)
    need(zero, "TRL-005", zero is None or abs(zero) <= 1 << 22)
    size = integer(sizes[0], "TRL-006", 2, 128, "limit") if sizes else 1
    n_books, polynomials = (1, [0, 0]) if trellis is None else (2, kind_of(trellis, list, 2))
    feedback, forward = (integer(polynomial, "TRL-003", most=511) >> 1 for polynomial in polynomials)
    scales = scales_of(scale, view)
    integer(classes, "TRL-004", 0, 3, "unsupported")
    precision, entries, tables = freqs[integer(freq, "FRQ-004", most=len(freqs) - 1)]
    integer(first, "TRL-004", most=len(tables) - n_books)
    i_end, j_end = (integer(n, "TRL-001", 1, most) for n, most in zip(kind_of(tile, list, 2), view[2:], strict=True))
    need(tile, "TRL-002", i_end * j_end <= 64 * ceil_div(view[2], i_end) * ceil_div(view[3], j_end))
    need((size, view), "TRL-006", view[0] % size == view[2] % size == 0)
    table = Grid(dtype, (0, 0), view, n_books * entries if zero is None else 1)
    n_classes, classes_of = [n * (classes >> i & 1) for i, n in enumerate(view[:2])], list[bytes]()  # rows, columns
    n_matrix, matrix = size * size if sizes else 0, array("b")
    residents = [table.n_bytes + n_matrix, 0 if scales.values else scales.n_bytes, *n_classes]  # 0: there is none

    def load(read: Read) -> float:
        largest = 1 if zero is None else max(abs(n_books * zero), abs(n_books * (entries - 1 - zero) + n_books - 1))
        data = read(table.n_bytes + n_matrix)
        step = table.load(lambda n: data[:n])
        matrix.frombytes(data[table.n_bytes:])
        if sizes:
            largest = f32(largest * max(sum(map(abs, matrix[t::size])) for t in range(size)))
        bound = f32(f32(largest * step) * scales.load(read))
        classes_of.extend(read(n) if n else b"" for n in n_classes)
        k = sum(max(found, default=0) for found in classes_of)
        need((first, k), "TRL-004", first + (k + 1) * n_books <= len(tables))
        return bound

    def block(read: Read, rows: range, columns: range) -> list[float]:
        tiles = list(product(rows[::i_end], columns[::j_end]))  # 12.1: where they begin
        data = read(4 * len(tiles), 2 * len(rows) * len(columns))
        xs = [x for (x,) in struct.iter_unpack("<I", data[:4 * len(tiles)])]
        words = struct.iter_unpack("<H", data[4 * len(tiles):])
        need(min(xs), "ANS-001", min(xs) >= 1 << 16)
        states, values = [0] * len(tiles), [0.0] * (len(rows) * len(columns))
        for i, j, (t, (r, c)) in product(range(i_end), range(j_end), enumerate(tiles)):
            r, c, q = r + i, c + j, states[t] & 1
            if r >= rows.stop or c >= columns.stop:
                continue
            k = sum(found[at] for found, at in zip(classes_of, (r, c), strict=True) if found)
            starts, slot = tables[first + k * n_books + q], xs[t] & (1 << precision) - 1
            code = bisect_right(starts, slot) - 1  # the last of those that start there: it alone is not of frequency 0
            xs[t] = (starts[code + 1] - starts[code]) * (xs[t] >> precision) + slot - starts[code]
            if xs[t] < 1 << 16:
                need((r, c), "ANS-002", word := next(words, ()))
                xs[t] = xs[t] << 16 | word[0]
            states[t] = states[t] >> 1 ^ q * feedback ^ (code & 1) * forward
            v = table.values[q * entries + code] if zero is None else n_books * (code - zero) + q
            values[(r - rows.start) * len(columns) + c - columns.start] = v
        need(xs, "ANS-003", {*xs} == {1 << 16} and not [*words])
        if sizes:  # 12.5
            n = len(columns)
            values = [f32(sum(matrix[k * size + i % size] * values[(i - i % size + k) * n + c] for k in range(size)))
                      for i, c in product(range(len(rows)), range(n))]
        step = 1.0 if zero is None else table.values[0]
        return [f32(scales.values[scales.group(r, c)] * f32(v * step))
                for v, (r, c) in zip(values, product(rows, columns), strict=True)]

    return [n for n in residents if n], 1, load, block


class Plan:  # section 7: a checked record; which sections its tensor has, and how its elements come from them
    def __init__(self, record: Any, books: Sequence[Book], freqs: Sequence[Freq]) -> None:
        need(record, "MET-008", type(record) is list and len(record) in (2, 5))
        self.name, self.target, self.n_bytes, self.n_resident, self.n_sections = kind_of(record[0], str), None, 0, 0, 0
        need(self.name, "TEN-001", self.name, "TEN-001 limit", len(self.name.encode()) <= MAX_NAME,
             "TEN-001", "\0" not in self.name)
        if len(record) == 2:
            self.target = kind_of(record[1], str)
            need(self.target, "ALI-001 limit", len(self.target.encode()) <= MAX_NAME)
            return
        _, self.dtype, shape, layout, stages = record
        integer(self.dtype, "TEN-006", 0, len(DTYPES) - 1, "unsupported")
        need(shape, "TEN-003 limit", len(kind_of(shape, list)) <= MAX_AXES)
        self.shape = tuple(map(integer, shape))
        need(shape, "TEN-003 limit", math.prod(size or 1 for size in shape) <= MAX_SIZE)
        self.bits, self.stages, self.split = BITS[self.dtype], list[Stage](), 0
        self.n_bytes = ceil_div(math.prod(shape) * self.bits, 8)
        if 0 in shape:
            need(record, "TEN-004", layout is None and stages == [])
            return
        integer(len(kind_of(stages, list)), "TEN-004", 1, MAX_STAGES, "limit")
        ids = [id_of(stage, "TEN-006", 0, 1, 2, 4, 5) for stage in stages]
        self.is_raw, self.is_sparse = ids in ([0], [5]), ids == [5]
        need((ids, self.dtype), "TEN-005", self.is_raw or (not {0, 5} & {*ids} and F16 <= self.dtype <= C128))
        # Section 7.2
        layout = [None, 0, 0, 0, 0] if layout is None else layout
        axes, n_row_axes, self.order, *block = kind_of(layout, list, 5)
        sizes = [*shape, 2] if self.dtype in (C64, C128) and not self.is_raw else shape
        identity = list(range(len(sizes)))
        need(axes, "LAY-001", axes is None or sorted(map(integer, kind_of(axes, list))) == identity != axes)
        integer(n_row_axes, "LAY-001", most=len(sizes))
        integer(self.order, "LAY-003", 0, 3, "unsupported")
        block_rows, block_columns = map(integer, block)
        need(layout, "LAY-002", not self.is_raw or (axes is None and self.order == 0))
        strides = [(sizes[axis], math.prod(sizes[axis + 1:])) for axis in axes or identity]
        self.axes = strides[:n_row_axes], strides[n_row_axes:]
        rows, columns = (math.prod(size for size, _ in part) for part in self.axes)
        need(layout, "LAY-004", block_rows < rows if block_columns == 0 else block_rows == 1 <= block_columns < columns)
        self.block = block_rows or rows, block_columns or columns
        view = self.view = rows, columns, *self.block
        need(layout, "LAY-005 limit", math.prod(self.block) <= MAX_BLOCK)
        n_blocks = ceil_div(rows, self.block[0]) * ceil_div(columns, self.block[1])
        if self.is_sparse:
            _, self.split, counts = kind_of(stages[0], list, 3)
            need(record, "SPA-001 unsupported", integer(self.split) in (1, 2), "SPA-001", self.bits > 8)
            width = len(kind_of(counts, bytes)) // n_blocks
            need(counts, "MET-009", width)  # before a list of so many
            values = [int.from_bytes(counts[i * width:(i + 1) * width], "little") for i in range(n_blocks)]
            per_element = self.bits // 8 // WORD_NBYTES[self.dtype]
            need(values, "MET-009", counts == column(values), "SPA-002",
                 all(m <= len(r) * len(c) * per_element for m, (r, c) in zip(values, self.blocks(), strict=True)))
            self.counts = iter(values)
        elif self.is_raw:
            self.split = integer(kind_of(stages[0], list, 2)[1], "RAW-001", 0, 2, "unsupported")
            need(record, "RAW-001", self.split == 0 or self.bits > 8)
        else:
            self.stages = [codebook_stage(stage, view, books) if stage[0] == 1 else
                           low_rank_stage(stage, view) if stage[0] == 2 else trellis_stage(stage, view, freqs)
                           for stage in stages]
        residents = [n for i, n in enumerate((rows, columns)) if self.order >> i & 1]  # the classes
        residents += [size for sizes, *_ in self.stages for size in sizes]
        self.n_resident = sum(residents) if sum(residents) > 1 << 20 else 0  # LIM-002
        need(residents, "TEN-007 limit", max([0, *residents]) <= MAX_RESIDENT)
        self.k = WORD_NBYTES[self.dtype] if self.split or self.stages else 1  # bytes of a word
        per_block = self.k + 2 * self.is_sparse if self.is_raw else sum(n for _, n, _, _ in self.stages)
        self.n_sections = len(residents) + n_blocks * per_block

    def blocks(self) -> Iterable[tuple[range, range]]:  # of rows and columns
        rows, columns = ([range(at, min(at + size, n)) for at in range(0, n, size)]
                         for n, size in zip(self.view, self.block, strict=False))
        return product(rows, columns)

    def raw_block(self, read: Read, n: int) -> bytes:  # section 8; 4-bit elements come one to a byte
        nbytes = n_words = ceil_div(n * self.bits, 8 * self.k)
        if self.is_sparse:  # SPA-003
            nbytes = next(self.counts)
            marks, signs = self.flags(read, n_words), self.flags(read, n_words - nbytes)
            need((marks, nbytes), "SPA-004", sum(marks) == nbytes)
        planes = [read(nbytes) for _ in range(self.k)]
        if self.k == 1 and self.bits != 4 and self.dtype != BOOL:
            return planes[0]
        words = [int.from_bytes(word, "little") for word in zip(*planes, strict=True)]  # RAW-003
        if self.split == 2:  # RAW-004
            words = [word >> 1 | (word & 1) << 8 * self.k - 1 for word in words]
        if self.is_sparse:
            marked, bare = iter(words), iter(signs)
            words = [next(marked) if mark else next(bare) << 8 * self.k - 1 for mark in marks]
        if self.bits == 4:
            words = [nibble for byte in words for nibble in (byte & 15, byte >> 4)]
            need(words[n:], "RAW-002", not any(words[n:]))
        need(max(words), "DTY-001", self.dtype != BOOL or max(words) <= 1)
        return b"".join(word.to_bytes(self.k, "little") for word in (words[:n] if self.bits == 4 else words))

    def flags(self, read: Read, n: int) -> list[int]:  # n bits
        bits = [byte >> b & 1 for byte in read(ceil_div(n, 8)) for b in range(8)]
        need(bits[n:], "SPA-004", not any(bits[n:]))
        return bits[:n]

    def narrow(self, values: Sequence[float]) -> bytes:  # VAL-001
        if self.dtype == BF16:
            words = (word for (word,) in struct.iter_unpack("<I", struct.pack(f"<{len(values)}f", *values)))
            return struct.pack(f"<{len(values)}H", *(word + 0x7FFF + (word >> 16 & 1) >> 16 for word in words))
        return struct.pack(f"<{len(values)}{ {F16: 'e', F64: 'd', C128: 'd'}.get(self.dtype, 'f') }", *values)

    def position(self, i: int, index: int) -> int:  # where a row (i = 0) or column (1) of the view begins, in elements
        at = 0
        for size, stride in reversed(self.axes[i]):
            at, index = at + index % size * stride, index // size
        return at

    def decode(self, read: Read) -> bytes:  # in the order of 7.3
        if self.is_raw:  # LAY-002: its blocks follow each other in C order
            raw = b"".join(self.raw_block(read, len(r) * len(c)) for r, c in self.blocks())
            pairs = zip_longest(raw[::2], raw[1::2], fillvalue=0)
            return bytes(low | high << 4 for low, high in pairs) if self.bits == 4 else raw
        orders: list[Sequence[int]] = [sorted(range(n), key=read(n).__getitem__) if self.order >> i & 1 else range(n)
                                       for i, n in enumerate(self.view[:2])]  # 7.2; Python's sort is stable
        bound = 0.0
        for _, _, load, _ in self.stages:
            bound = f32(bound + load(read))
        need(bound, "VAL-002", bound < OVERFLOW.get(self.dtype, math.inf))
        data, k = bytearray(), self.k
        for rows, columns in self.blocks():
            t, *others = (block(read, rows, columns) for _, _, _, block in self.stages)
            for other in others:
                t = [f32(a + b) for a, b in zip(t, other, strict=True)]
            data, values = data or bytearray(self.n_bytes), self.narrow(t)  # REA-002: memory only now
            row_at = [self.position(0, orders[0][r]) for r in rows]
            column_at = [self.position(1, orders[1][c]) for c in columns]
            for i, (r, c) in enumerate(product(row_at, column_at)):
                data[(r + c) * k:(r + c + 1) * k] = values[i * k:(i + 1) * k]
        return bytes(data)


class Model:
    """Section 15.1: one pass over a file, for its generator, metadata, layers (by name) and tensors."""
    def __init__(self, stream: BinaryIO, max_tensor_bytes: int, max_total_bytes: int) -> None:
        self.generator, self.metadata = "", dict[str, Any]()
        self.layers, self.tensors = list[str](), dict[str, Tensor]()
        self.stream, self.offset, self.sha256 = stream, 0, hashlib.sha256()
        self.max_tensor_bytes, self.budget = max_tensor_bytes, max_total_bytes
        self.books, self.freqs, self.chunks = list[Book](), list[Freq](), list[tuple[bytes, int]]()  # types, lengths
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

    def chunk(self) -> bytes:  # its type
        start, self.digest, head = self.offset, self.sha256.digest(), self.read(24)
        kind, flags, meta_stored, meta_plain, n_sections, crc = struct.unpack("<4s5I", head)
        known, limit = kind in N_FIELDS, MAX_INDEX_META if kind == b"INDX" else MAX_META
        what = f"{kind!r} at {start}: flags {flags}, meta {meta_stored}, plain {meta_plain}, {n_sections} sections"
        need(what, "CHK-001 checksum", crc == zlib.crc32(head[:20]), "CHK-002", kind.isalpha(),
             "CHK-003 unsupported", known or kind[:1].islower(), "CHK-004 unsupported", flags <= 1,
             "CHK-006 limit", max(meta_stored, meta_plain) <= limit and n_sections <= MAX_SECTIONS,
             "LIM-001 limit", len(self.chunks) < MAX_CHUNKS)
        plain, table = self.read(meta_stored), self.read(8 * n_sections)
        self.n_sections, self.table = n_sections, struct.iter_unpack("<II", table)
        need(what, "CHK-007 checksum", self.read(4) == struct.pack("<I", zlib.crc32(plain + table)),
             "FIL-001", (kind == b"META") == (not self.chunks),
             "CHK-008", n_sections == 0 or kind not in (b"META", b"INDX"))
        if known:
            need(what, "CHK-005", meta_stored < meta_plain if flags else meta_stored == meta_plain)
            self.plain = decompress(plain, meta_plain) if flags else plain
            parser = Meta(self.plain)
            fields = parser.value(1)
            need(what, "MET-005", parser.at == len(self.plain))
            take: dict[bytes, Callable[..., None]] = {
                b"META": self.take_meta, b"BOOK": self.take_book, b"FREQ": self.take_freq, b"LAYR": self.take_layer,
                b"INDX": self.take_index}
            take[kind](*kind_of(fields, list, N_FIELDS[kind]))
        else:
            for _ in range(n_sections):
                self.section(None)
        self.chunks.append((kind, self.offset - start))  # FIL-002
        return bytes(kind)

    def section(self, plain: int | None, more: int = 0) -> bytes:
        """The next one; without a plain size (ancillary) not decompressed. ANS-001: up to ``more`` bytes more."""
        length, crc = next(self.table)
        compressed, n_bytes = length >> 31, length & 0x7FFFFFFF
        what = f"{n_bytes} bytes at {self.offset}, plain {plain}"
        if plain is not None:
            fits = plain <= n_bytes <= plain + more and n_bytes % 2 == 0 and not compressed if more else (
                n_bytes < plain if compressed else n_bytes == plain)
            need(what, "ANS-001" if more else "SEC-004", fits)
        if not compressed and n_bytes >= 4096:  # SEC-002
            need(what, "SEC-003", not any(self.read(-self.offset % 64)))
        stored = self.read(n_bytes)
        need(what, "SEC-001 checksum", zlib.crc32(stored) == crc)
        return decompress(stored, plain) if compressed and plain is not None else stored

    def take_meta(self, generator: Any, metadata: Any) -> None:
        self.generator = kind_of(generator, str)
        self.metadata, self.index_metadata = kind_of(metadata, dict), self.plain if len(self.plain) <= 65536 else b""

    def take_book(self, dim: Any, entries: Any, groups: Any, dtype: Any) -> None:
        for value, limit in ((dim, MAX_DIM), (entries, MAX_ENTRIES), (groups, MAX_GROUPS)):
            integer(value, "BOK-002", 1, limit, "limit")
        size = dim * entries * groups * WORD_NBYTES[integer(dtype, *TABLE_DTYPE)]
        need((size, self.n_sections), "LIM-001 limit", size <= MAX_RESIDENT, "BOK-003", self.n_sections == 1,
             "LIM-002 limit", size <= self.budget)
        self.budget -= size
        self.books.append((dim, entries, groups, floats(self.section(size), dtype, "BOK-002")))

    def take_freq(self, precision: Any, entries: Any, tables: Any) -> None:
        integer(precision, "FRQ-001", 1, 14)
        integer(entries, "FRQ-001", 1, 1 << precision)
        integer(tables, "FRQ-001", 1, MAX_FREQ >> precision, "limit")
        need(self.n_sections, "FRQ-002", self.n_sections == 1, "LIM-002 limit", tables * entries <= self.budget)
        self.budget -= tables * entries
        data = self.section(tables * entries)
        self.freqs.append((precision, entries, [starts_of_codes(data[at:at + entries], precision)
                                                for at in range(0, len(data), entries)]))

    def take_layer(self, name: Any, records: Any) -> None:
        need(name, "LIM-001 limit", len(kind_of(name, str).encode()) <= MAX_NAME)
        need(name, "LYR-001", kind_of(records, list), "LIM-001 limit", len(self.index) + len(records) <= MAX_TENSORS)
        plans = [Plan(record, self.books, self.freqs) for record in records]
        need(self.n_sections, "LYR-002", sum(plan.n_sections for plan in plans) == self.n_sections)
        for plan in plans:  # names and budgets need all records
            need(plan.name, "TEN-002", plan.name not in self.index)
            target = 0
            if plan.target is not None:
                need(plan.target, "ALI-001", plan.target in self.index and self.index[plan.target][3] == 0)
                plan.dtype, plan.shape = self.index[plan.target][:2]
                target = 1 + list(self.index).index(plan.target)
            need(plan.name, "LIM-002 limit", plan.n_bytes <= min(self.max_tensor_bytes, self.budget - plan.n_resident))
            self.budget -= plan.n_bytes
            self.index[plan.name] = plan.dtype, plan.shape, len(self.chunks), target
        for plan in plans:
            data = b"" if plan.target is None else self.tensors[plan.target][2]
            data = plan.decode(self.section) if plan.n_sections else data
            self.tensors[plan.name] = DTYPES[plan.dtype], plan.shape, data, len(self.layers)
        self.layers.append(name)

    def take_index(self, digest: Any, *found: Any) -> None:
        dtypes, shapes, chunks, targets = zip(*self.index.values(), strict=True) if self.index else [()] * 4
        expected = [self.index_metadata, b"".join(kind for kind, _ in self.chunks), column([n for _, n in self.chunks]),
                    b"".join(name.encode() + b"\0" for name in self.index), bytes(dtypes), bytes(map(len, shapes)),
                    column([n for shape in shapes for n in shape]), column(chunks), column(targets) * any(targets)]
        for value, wanted in zip(found, expected, strict=True):  # and so IDX-004
            need(value, "IDX-001", kind_of(value, bytes) == wanted)
        need(self.digest.hex(), "IDX-002 checksum", kind_of(digest, bytes, 32) == self.digest)


def decode(stream: BinaryIO, *, max_tensor_bytes: int = 2**32, max_total_bytes: int = 2**32) -> Model:
    """Decode a vqm file, testing every rule; the stream is read once, without seeking. LIM-002 is the caller's."""
    model = Model(stream, max_tensor_bytes, max_total_bytes)
    header = model.read(16)
    major, _, zero = struct.unpack("<HHI", header[8:])
    need(header.hex(), "HDR-001", header[:8] == MAGIC, "HDR-002 unsupported", major == 1, "HDR-003", zero == 0)
    while model.chunk() != b"INDX":
        pass
    start, footer = model.offset - model.chunks[-1][1], model.read(28)
    index_offset, crc = struct.unpack("<QI", footer[16:])
    need(footer.hex(), "FTR-002 checksum", crc == zlib.crc32(footer[:24]), "FTR-002", footer[:16] == header,
         "FTR-003", index_offset == start, "FTR-001", stream.read(1) == b"")
    return model


def described(model: Model) -> dict[str, Any]:
    """What ``fixtures/manifest.json`` says of a valid file."""
    def tagged(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [tagged(item) for item in value]
        if isinstance(value, dict):
            return {key: tagged(item) for key, item in value.items()}
        if isinstance(value, bytes):
            return {"bin": value.hex()}
        return {"int": str(value)} if type(value) is int and abs(value) > 2**53 else value

    tensors = [{"name": name, "layer": layer, "dtype": dtype, "shape": tagged(shape),
                "sha256": hashlib.sha256(data).hexdigest()}
               for name, (dtype, shape, data, layer) in model.tensors.items()]
    return {"generator": model.generator, "metadata": tagged(model.metadata), "layers": model.layers,
            "tensors": tensors}


if __name__ == "__main__":
    try:
        with sys.stdin.buffer if sys.argv[1] == "-" else open(sys.argv[1], "rb") as file:
            decoded = decode(file)
        result = described(decoded)
    except Refused as error:
        result = {"error": error.error_class, "clause": error.clause, "message": str(error)}
    print(json.dumps(result))
    sys.exit("error" in result)
