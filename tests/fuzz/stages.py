"""Arithmetic stages at random, in all forms that SPEC 9 to 12 allow for a view, its blocks, and shared tables."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from vqmbuilder import Chunk, chunk
from vqmtensors import BF16, F32, TABLE_DTYPES, Codebook, Floats, LowRank, Scale, Stage, table_bytes
from vqmtrellis import Freq, Trellis

from fuzz.frames import Unsealed, odd_section

LARGEST = 2.0**100  # of all bounds of a tensor: sums of products stay finite in f32 and bf16
MOST_VALUES, MOST_OF_FEW = 3000, 70_000  # of a table: what the loops of vqmtensors and minidecoder take is kept small
ENTRIES = (1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 27, 64, 100, 255, 256, 257, 300, 1000)
DTYPES = (F32, np.float16, BF16)


@dataclass(frozen=True)
class View:
    """Rows and columns of a view, and those of its blocks, 0 as in the file."""

    rows: int
    columns: int
    block_rows: int = 0
    block_columns: int = 0

    @property
    def first_block(self) -> tuple[int, int]:
        return self.block_rows or self.rows, self.block_columns or self.columns


@dataclass
class Shared:
    """The BOOK and FREQ chunks of a file so far. ``chunks`` are those that have not been put into it."""

    books: list[np.ndarray] = field(default_factory=list)
    freqs: list[Freq] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)

    def add_book(self, values: np.ndarray, rng: np.random.Generator) -> int:
        groups, entries, dim = values.shape
        record = [dim, entries, groups, TABLE_DTYPES[values.dtype]]
        self.chunks.append(chunk(b"BOOK", record, [odd_section(table_bytes(values), rng)]))
        self.books.append(values)
        return len(self.books) - 1

    def add_freq(self, freq: Freq, rng: np.random.Generator) -> int:
        self.chunks.append(freq.chunk(lambda data: odd_section(data, rng)))
        self.freqs.append(freq)
        return len(self.freqs) - 1


class PlainTrellis(Trellis):
    """A trellis stage whose payload is not compressed (ANS-001)."""

    def payload(self, rows: range, columns: range) -> list[bytes]:
        return [Unsealed(data) for data in super().payload(rows, columns)]


def random_stage(view: View, shared: Shared, rng: np.random.Generator) -> tuple[Stage, float]:
    """A stage, and a number that its values and its bound do not exceed."""
    kinds = [_codebook, _codebook, _trellis]
    if not view.block_columns:
        kinds += [_low_rank, _trellis]
    return kinds[int(rng.integers(len(kinds)))](view, shared, rng)


def numbers(rng: np.random.Generator, shape: tuple[int, ...], dtype: object = None) -> np.ndarray:
    """Finite values of a table, steps or scales: usual ones, all alike, tiny ones, zeros of both signs."""
    dtype = DTYPES[int(rng.integers(3))] if dtype is None else dtype
    values = rng.standard_normal(shape) * 2.0 ** int(rng.integers(-12, 6))
    match int(rng.integers(6)):
        case 0:
            values = np.full(shape, values.flat[0])
        case 1:
            values *= 2.0**-100
        case 2:
            values = np.where(rng.integers(0, 3, shape) > 0, values, -0.0)
        case 3:
            values = np.where(rng.integers(0, 3, shape) > 0, values, 1e-41)  # subnormal
    return values.clip(-1000, 1000).astype(F32).astype(dtype)  # type: ignore[arg-type]


def group_size(rng: np.random.Generator, n: int) -> int:
    """0, or from 1 to n - 1 (CBK-003)."""
    return int(rng.integers(n)) if rng.integers(2) else 0


def n_groups(size: int, n: int) -> int:
    return -(-n // size) if size else 1


def random_scale(view: View, rng: np.random.Generator) -> Scale | None:
    if rng.integers(2):
        return None
    rows, columns = group_size(rng, view.rows), group_size(rng, view.columns)
    return Scale(numbers(rng, (n_groups(rows, view.rows) * n_groups(columns, view.columns),)), rows, columns)


def largest(values: np.ndarray | None) -> float:
    return 1.0 if values is None else float(np.abs(values.astype(np.float64)).max())


def random_planes(entries: int, rng: np.random.Generator) -> tuple[tuple[int, int], ...]:
    """Planes of codes that obey COD-003 and COD-004; none for dense codes."""
    if entries == 1 or rng.integers(2):
        return ()
    bases: list[int] = []
    while math.prod(bases) < entries:
        left = -(-entries // math.prod(bases))
        least = max(2, -(-left // 256 ** (2 - len(bases))))  # what is left fits into the further planes
        base = int(rng.integers(least, 257)) if rng.integers(2) else min(256, max(least, math.isqrt(left) + 1))
        bases.append(base)
    return tuple((base, int(rng.integers(1, int(math.log(256.5, base)) + 1))) for base in bases)


def random_codes(rng: np.random.Generator, shape: tuple[int, ...], entries: int) -> np.ndarray:
    """Codes below ``entries``: any, all alike, or mostly small, which compress."""
    match int(rng.integers(3)):
        case 0:
            return np.full(shape, int(rng.integers(entries)))
        case 1:
            return np.minimum(rng.geometric(0.5, shape) - 1, entries - 1)
        case _:
            return rng.integers(0, entries, shape)


def _codebook(view: View, shared: Shared, rng: np.random.Generator) -> tuple[Stage, float]:
    width = view.block_columns
    dims = [d for d in (*range(1, 9), view.columns) if d <= view.columns and (not width or width % d == 0)]  # CBK-002
    dim, entries, scale = int(rng.choice(dims)), int(rng.choice(ENTRIES)), random_scale(view, rng)
    source = ["table", "steps", "floats", "book"][int(rng.integers(4))]
    book = _fitting_book(view, dims, shared, rng) if source == "book" and rng.integers(3) else None
    if book is not None:
        number, rows, columns = book
        table = shared.books[number]
        _, entries, dim = table.shape
        fields = {"table": table, "book": number, "book_rows": rows, "book_columns": columns}
        most = largest(table)
    elif source == "floats":
        floats = Floats(int(rng.integers(2)), int(rng.integers(6)), int(rng.integers(5)), int(rng.integers(-120, 20)))
        dim, entries = 1, 2 ** sum(floats[:3])
        fields = {"floats": floats}
        most = max(abs(float(floats.value(code))) for code in (entries - 1, entries // 2 - floats.signed, 0))
    else:
        if source == "steps":
            dim = 1
        rows, columns = group_size(rng, view.rows), group_size(rng, -(-view.columns // dim))
        groups = n_groups(rows, view.rows) * n_groups(columns, -(-view.columns // dim))
        if source == "steps":
            entries = int(rng.choice([*ENTRIES, 65_536]))
            zero = int(rng.choice([0, entries // 2, entries, -1, -(2**23), 2**23]))
            steps = numbers(rng, (groups,), F32)
            fields = {"steps": steps, "zero": zero, "entries": entries, "book_rows": rows, "book_columns": columns}
            most = largest(steps) * max(abs(zero), abs(entries - 1 - zero))
        else:
            is_large = rng.integers(60) == 0
            entries = 65_536 if is_large else entries
            while groups * entries * dim > (MOST_OF_FEW if is_large else MOST_VALUES) and entries > 1:
                entries //= 2
            table = numbers(rng, (groups, entries, dim))
            fields = {"table": table, "book_rows": rows, "book_columns": columns}
            if source == "book":
                fields["book"] = shared.add_book(table, rng)
            most = largest(table)
    codes = random_codes(rng, (view.rows, -(-view.columns // dim)), entries)
    stage = Codebook(codes, **fields, scale=scale, planes=random_planes(entries, rng))  # type: ignore[arg-type]
    return stage, most * largest(scale and scale.values)


def _fitting_book(
    view: View, dims: list[int], shared: Shared, rng: np.random.Generator
) -> tuple[int, int, int] | None:
    """A BOOK that is there already, and group sizes that give its number of groups (CBK-006)."""
    for number in rng.permutation(len(shared.books)).tolist():
        groups, _, dim = shared.books[number].shape
        n_subvectors = -(-view.columns // dim)
        sizes = [
            (rows, columns) for rows in range(min(view.rows, 12)) for columns in range(min(n_subvectors, 12))
            if n_groups(rows, view.rows) * n_groups(columns, n_subvectors) == groups
        ]  # fmt: skip
        if dim in dims and sizes:
            return number, *sizes[int(rng.integers(len(sizes)))]
    return None


def _low_rank(view: View, shared: Shared, rng: np.random.Generator) -> tuple[Stage, float]:
    rank = int(rng.integers(1, min(view.rows, view.columns, 7) + 1))
    entries = [int(rng.choice([2, 3, 5, 16, 17, 255, 256, 257, 4096, 65_535])) for _ in range(2)]
    sizes = group_size(rng, view.rows), group_size(rng, view.columns)
    a, b = (numbers(rng, (n_groups(size, n),)) for size, n in zip(sizes, (view.rows, view.columns), strict=True))
    u = random_codes(rng, (view.rows, rank), entries[0])
    v = random_codes(rng, (rank, view.columns), entries[1])
    planes = [random_planes(n, rng) for n in entries]
    most = rank * (entries[0] // 2) * (entries[1] // 2) * max(1.0, largest(a)) * largest(b)
    return LowRank(u, v, *entries, a, b, *sizes, *planes), most


def _trellis(view: View, shared: Shared, rng: np.random.Generator) -> tuple[Stage, float]:
    trellis = (int(rng.integers(512)), int(rng.integers(512))) if rng.integers(3) else None
    n_books = 2 if trellis else 1
    most_class = int(rng.choice([0, 1, 1, 2, 5]))
    classes = {}
    for name, n in (("row_classes", view.rows), ("column_classes", view.columns)):
        if rng.integers(2):
            classes[name] = rng.integers(0, most_class + 1, n).tolist()
    n_tables = (1 + sum(max(found) for found in classes.values())) * n_books
    number, first = _freq(n_tables, shared, rng)
    freq = shared.freqs[number]
    used = np.array([list(table) for table in freq.tables[first : first + n_tables]])
    possible = np.flatnonzero(used.all(axis=0))  # codes that no table excludes
    codes = possible[random_codes(rng, (view.rows, view.columns), len(possible))]
    scale, entries = random_scale(view, rng), freq.entries
    zero = int(rng.choice([0, entries // 2, entries, -3, -(2**22), 2**22]))
    step = numbers(rng, (1,), F32)
    reach = max(abs(n_books * zero), abs(n_books * (entries - 1 - zero) + n_books - 1))
    sizes = [] if view.block_columns else [
        size for size in range(2, min(view.rows, 128) + 1) if view.rows % size == view.block_rows % size == 0
    ]  # fmt: skip
    if sizes and rng.integers(2):
        size = int(rng.choice(sizes))
        matrix = rng.integers(-128, 128, (size, size)).astype(np.int8)
        source = {"step": float(step[0]), "zero": zero, "matrix": matrix}
        most = float(np.abs(matrix.astype(int)).sum(axis=0).max()) * reach * largest(step)
    elif rng.integers(2):
        source = {"step": float(step[0]), "zero": zero}
        most = reach * largest(step)
    else:
        table = numbers(rng, (n_books, entries))
        source = {"table": table}
        most = largest(table)
    stage = PlainTrellis(codes, freq, _tile(view, rng), trellis=trellis, scale=scale, number=number, first=first,
                         **source, **classes)  # type: ignore[arg-type]  # fmt: skip
    return stage, most * largest(scale and scale.values)


def _freq(n_tables: int, shared: Shared, rng: np.random.Generator) -> tuple[int, int]:
    """A FREQ chunk, and the first of its tables: a new one, or tables that other stages use too, in part."""
    if rng.integers(3):
        for number in rng.permutation(len(shared.freqs)).tolist():
            tables = shared.freqs[number].tables
            firsts = [
                i for i in range(len(tables) - n_tables + 1)
                if any(all(column) for column in zip(*tables[i : i + n_tables], strict=True))
            ]  # fmt: skip
            if firsts:
                return number, int(rng.choice(firsts))
    precision = int(rng.integers(1, 15))
    entries = int(rng.integers(1, min(2**precision, int(rng.choice([4, 20, 300, 2000]))) + 1))
    n_all = n_tables + int(rng.integers(3))
    weights = rng.integers(1, int(rng.choice([2, 30, 256])), (n_all, entries)).astype(np.uint8)
    if rng.integers(2):  # codes that do not occur, in some tables or in all
        keep = int(rng.integers(entries))
        zeros = rng.integers(0, 2, (n_all, entries)) * rng.integers(0, 2, entries)
        zeros[:, keep] = 0
        weights = np.where(zeros, 0, weights).astype(np.uint8)
    number = shared.add_freq(Freq(precision, tuple(row.tobytes() for row in weights)), rng)
    return number, int(rng.integers(n_all - n_tables + 1))


def _tile(view: View, rng: np.random.Generator) -> tuple[int, int]:
    """Rows and columns (TRL-001), no more codes in a sequence than TRL-002 allows."""
    rows, columns = view.first_block
    while True:
        tile = int(rng.integers(1, rows + 1)), int(rng.integers(1, columns + 1))
        if math.prod(tile) <= 64 * -(-rows // tile[0]) * -(-columns // tile[1]):
            return tile
