"""Valid files with codebook and low-rank stages (SPEC 7.2, 7.4, 9, 10, 11)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fixturecase import Case, valid
from vqmbuilder import chunk, file, layr, section
from vqmtensors import BF16, F32, TABLE_DTYPES, Codebook, Layout, LowRank, Scale, Tensor, table_bytes, tensor


def codes(seed: int, shape: Sequence[int], entries: int) -> np.ndarray:
    """Codes that include 0 and ``entries`` - 1; the generator is frozen by numpy."""
    out = np.random.RandomState(seed).randint(0, entries, shape)
    out.reshape(-1)[0], out.reshape(-1)[-1] = entries - 1, 0
    return out


def table(seed: int, groups: int, entries: int, dim: int, dtype: object = F32) -> np.ndarray:
    """Values in [-2, 2) with all 24 bits of a significand in use, then rounded to ``dtype``."""
    fractions = np.random.RandomState(seed).randint(-(2**24), 2**24, (groups, entries, dim))
    return (fractions / 2**23).astype(F32).astype(dtype)


def scales(seed: int, n: int, dtype: object = F32) -> np.ndarray:
    return table(seed, 1, n, 1, dtype).reshape(-1)


def book_chunk(values: np.ndarray) -> object:
    groups, entries, dim = values.shape
    return chunk(b"BOOK", [dim, entries, groups, TABLE_DTYPES[values.dtype]], [section(table_bytes(values))])


def column(*values: float, dtype: object = F32) -> np.ndarray:
    """A table of one group and dim 1."""
    return np.array(values, F32).astype(dtype).reshape(1, -1, 1)


ROWS = Layout(n_row_axes=1)


def base_codebook() -> Tensor:
    """3 × 6, subvectors of 2, 3 entries, a scale for each row: the sibling of many invalid files."""
    stage = Codebook(np.array([[0, 1, 2], [2, 1, 0], [1, 1, 2]]), table(1, 1, 3, 2), scale=Scale(scales(2, 3), rows=1))
    return tensor("a", "f32", [3, 6], stage, layout=ROWS)


def base_low_rank() -> Tensor:
    """4 × 5 of rank 3, a scale for each row and one for all columns."""
    stage = LowRank(codes(1, (4, 3), 7), codes(2, (3, 5), 3), 7, 3, scales(3, 4), scales(4, 1), size_r=1, planes_v=((3, 5),))
    return tensor("a", "f32", [4, 5], stage, layout=ROWS)


def cases() -> list[Case]:
    bases = [
        valid("base-codebook", "a small codebook tensor, from which invalid files are made", "CBK-001", file(layr("", base_codebook()))),
        valid("base-low-rank", "a small low-rank tensor, from which invalid files are made", "LOW-001", file(layr("", base_low_rank()))),
    ]
    return [*bases, *packings(), *sources(), *groups(), *views(), *sums(), *low_rank(), *rounding()]


def packings() -> list[Case]:
    out = []
    for width, entries in [(0, 1), (1, 2), (2, 3), (3, 7), (4, 16), (5, 20), (8, 200), (9, 300), (12, 4096), (16, 65536)]:
        steps = np.array([0.0625], F32)
        stage = Codebook(codes(width, (1, 11), entries), steps=steps, zero=entries // 2, entries=entries)
        out.append(valid(f"dense-{width}-bits", f"codes of {width} bits, {entries} entries", "COD-001 COD-002",
                         file(layr("", tensor("a", "f32", [11], stage)))))
    spec = Codebook(np.array([[5, 1, 7, 2]]), column(*range(8)))
    spec_3 = Codebook(np.array([[2, 0, 1, 1, 2, 1]]), column(*range(3)), planes=((3, 5),))
    spec_300 = Codebook(np.array([[299, 7]]), steps=np.ones(1, F32), entries=300, planes=((256, 1), (2, 8)))
    out.append(valid("codes-of-the-text", "the three examples of SPEC 10", "COD-002 COD-005",
                     file(layr("", tensor("dense", "f32", [4], spec), tensor("base 3", "f32", [6], spec_3),
                               tensor("two planes", "f32", [2], spec_300)))))
    for name, entries, planes, comment in [
        ("planes-3x5", 3, ((3, 5),), "five digits of base 3 to a byte"),
        ("planes-16x2", 16, ((16, 2),), "two digits of base 16 to a byte"),
        ("planes-15x2", 15, ((15, 2),), "two digits of base 15 to a byte"),
        ("planes-6x3", 6, ((6, 3),), "three digits of base 6 to a byte: 216 values"),
        ("planes-256-and-2", 512, ((256, 1), (2, 8)), "a plane of whole bytes and a plane of bits"),
        ("planes-256-and-3", 700, ((256, 1), (3, 5)), "two planes, their product above the number of entries"),
        ("planes-three", 60_000, ((256, 1), (16, 2), (15, 2)), "three planes"),
        ("planes-three-bits", 5, ((2, 8), (2, 8), (2, 8)), "three planes of bits for 5 entries"),
        ("planes-one-to-a-byte", 17, ((256, 1),), "one code to a byte, base 256 for 17 entries"),
        ("planes-not-minimal", 3, ((3, 2),), "fewer digits to a byte than would fit"),
        ("planes-full-bytes", 4, ((4, 4),), "filled bytes: no digits to fill up with"),
    ]:
        stage = Codebook(codes(7, (2, 8 if name == "planes-full-bytes" else 9), entries), steps=np.array([0.375], F32), zero=entries // 3,
                         entries=entries, planes=planes)
        shape = list(stage.codes.shape)
        out.append(valid(name, comment, "COD-003 COD-004 COD-005", file(layr("", tensor("a", "f32", shape, stage, layout=ROWS)))))
    return out


def sources() -> list[Case]:
    out = []
    for label, dtype in [("f32", F32), ("f16", np.float16), ("bf16", BF16)]:
        stage = Codebook(codes(1, (3, 4), 6), table(2, 1, 6, 2, dtype), scale=Scale(scales(3, 1, dtype)))
        out.append(valid(f"table-{label}", f"table and scale of {label}", "CBK-007",
                         file(layr("", tensor("a", "f32", [3, 8], stage, layout=ROWS)))))
    progression = Codebook(codes(4, (4, 6), 9), steps=scales(5, 4), zero=4, entries=9, book_rows=3, book_columns=4)
    low = Codebook(codes(6, (1, 5), 5), steps=np.array([0.1], F32), zero=-(2**23), entries=5)
    high = Codebook(codes(6, (1, 5), 5), steps=np.array([-0.1], F32), zero=2**23, entries=5, scale=Scale(np.array([0.7], F32)))
    shared = table(8, 1, 5, 2)
    f16 = table(9, 4, 3, 1, np.float16)
    return [
        *out,
        valid("progression", "steps by groups of rows and columns", "CBK-005", file(layr("", tensor("a", "f32", [4, 6], progression, layout=ROWS)))),
        valid("progression-zero-limits", "zero at -2^23 and at 2^23", "CBK-005",
              file(layr("", tensor("low", "f32", [5], low), tensor("high", "f32", [5], high)))),
        valid("book-shared", "one BOOK for two layers", "BOK-001 CBK-006",
              file(book_chunk(shared), layr("one", tensor("a", "f32", [3, 4], Codebook(codes(1, (3, 2), 5), shared, book=0), layout=ROWS)),
                   layr("two", tensor("b", "f16", [7], Codebook(codes(2, (1, 4), 5), shared, book=0))))),
        valid("books", "BOOKs are numbered in file order; one of f16 with groups, one unused, one between layers", "BOK-001 CBK-006",
              file(book_chunk(f16), layr("one", tensor("a", "f32", [4, 3], Codebook(codes(3, (4, 3), 3), f16, book=0, book_rows=2,
                                                                                   book_columns=2), layout=ROWS)),
                   book_chunk(table(1, 1, 1, 1)), book_chunk(table(10, 1, 2, 3, BF16)),
                   layr("two", tensor("b", "f32", [2, 3], Codebook(codes(4, (2, 1), 2), table(10, 1, 2, 3, BF16), book=2,
                                                                   scale=Scale(scales(1, 2), rows=1)), layout=ROWS)))),
        valid("book-entries-1", "codebooks of one entry take no bits", "COD-001",
              file(layr("", tensor("a", "f32", [2, 3], Codebook(np.zeros((2, 2), int), table(11, 2, 1, 2), book_rows=1,
                                                               scale=Scale(scales(4, 3), columns=1)), layout=ROWS)))),
    ]


def groups() -> list[Case]:
    """Axes of 5 rows and 7 columns; groups of 2 and of 3 leave a short last one."""
    out = []
    for name, rows, columns, n in [("rows", 2, 0, 3), ("columns", 0, 3, 3), ("rows-and-columns", 3, 2, 8), ("each-row", 1, 0, 5)]:
        stage = Codebook(codes(1, (5, 7), 4), table(2, n, 4, 1), book_rows=rows, book_columns=columns)
        out.append(valid(f"book-groups-{name}", f"codebooks by groups of {rows} rows, {columns} columns (0: all)", "CBK-003",
                         file(layr("", tensor("a", "f32", [5, 7], stage, layout=ROWS)))))
    for name, rows, columns, n in [("rows", 2, 0, 3), ("columns", 0, 3, 3), ("blocks", 3, 2, 8), ("each-row", 1, 0, 5),
                                   ("each-column", 0, 1, 7), ("each-element", 1, 1, 35)]:
        stage = Codebook(codes(3, (5, 7), 4), table(4, 1, 4, 1), scale=Scale(scales(5, n), rows, columns))
        out.append(valid(f"scale-groups-{name}", f"scales by groups of {rows} rows, {columns} columns (0: all)", "CBK-003",
                         file(layr("", tensor("a", "f32", [5, 7], stage, layout=ROWS)))))
    both = Codebook(codes(6, (5, 4), 3), table(7, 6, 3, 2, BF16), book_rows=2, book_columns=3,
                    scale=Scale(scales(8, 6, np.float16), rows=4, columns=3), planes=((3, 5),))
    out.append(valid("groups-of-both", "groups of codebooks count subvectors, groups of scales columns", "CBK-003",
                     file(layr("", tensor("a", "f32", [5, 7], both, layout=ROWS)))))
    for dim in (1, 2, 3, 4):
        stage = Codebook(codes(dim, (3, -(-7 // dim)), 5), table(dim, 1, 5, dim))
        out.append(valid(f"dim-{dim}", f"subvectors of {dim} of 7 columns" + (", the last one padded" if dim > 1 else ""), "CBK-001",
                         file(layr("", tensor("a", "f32", [3, 7], stage, layout=ROWS)))))
    wide = Codebook(codes(9, (3, 1), 2), table(9, 1, 2, 9))
    out.append(valid("dim-above-columns", "one subvector of 9 for 2 columns, most of it padding", "CBK-001",
                     file(layr("", tensor("a", "f32", [3, 2], wide, layout=ROWS)))))
    return out


def views() -> list[Case]:
    stage = Codebook(codes(1, (5, 4), 6), table(2, 3, 6, 2), book_rows=2, scale=Scale(scales(3, 9), rows=2, columns=3))
    row_classes, column_classes = [2, 0, 1, 0, 2], [1, 0, 255, 0, 1, 7, 1]
    conv = Codebook(codes(4, (6, 5), 4), table(5, 2, 4, 2), book_rows=3, scale=Scale(scales(6, 6), rows=1))
    complex_stage = Codebook(codes(7, (3, 4), 5), table(8, 1, 5, 1))
    parts = Codebook(codes(9, (4, 3), 5), table(10, 2, 5, 1), book_rows=2)

    def ordered(name: str, comment: str, order: int, **blocks: int) -> Case:
        layout = Layout(n_row_axes=1, order=order, **blocks)
        item = tensor("a", "f32", [5, 7], stage, layout=layout, row_classes=row_classes if order & 1 else (),
                      column_classes=column_classes if order & 2 else ())
        return valid(name, comment, "LAY-003 LAY-004", file(layr("", item)))

    def blocks(name: str, comment: str, layout: Layout, shape: Sequence[int] = (5, 7)) -> Case:
        return valid(name, comment, "LAY-004 CBK-002", file(layr("", tensor("a", "f32", shape, stage, layout=layout))))

    one_row = Codebook(codes(2, (1, 6), 6), table(3, 2, 6, 2), book_columns=4)
    return [
        ordered("order-rows", "rows by class; groups are of stored rows", 1),
        ordered("order-columns", "columns by class; subvectors and groups are of stored columns", 2),
        ordered("order-both", "rows and columns by class", 3),
        ordered("order-both-blocks", "rows and columns by class, in bands of stored rows", 3, block_rows=3),
        ordered("order-both-ranges", "rows and columns by class, in ranges of stored columns", 3, block_rows=1, block_columns=4),
        valid("order-identity", "classes that change nothing", "LAY-003",
              file(layr("", tensor("a", "f32", [5, 7], stage, layout=Layout(n_row_axes=1, order=3), row_classes=[9] * 5,
                                   column_classes=[0, 1, 2, 3, 4, 5, 6])))),
        blocks("blocks-rows", "bands of 2 of 5 rows, the last one shorter", Layout(n_row_axes=1, block_rows=2)),
        blocks("blocks-each-row", "a block for each row", Layout(n_row_axes=1, block_rows=1)),
        blocks("blocks-columns", "ranges of 4 of 7 columns with subvectors of 2", Layout(n_row_axes=1, block_rows=1, block_columns=4)),
        blocks("blocks-columns-one-subvector", "ranges of one subvector", Layout(n_row_axes=1, block_rows=1, block_columns=2)),
        valid("blocks-of-one-row", "a vector: one row, in ranges", "LAY-004",
              file(layr("", tensor("a", "f32", [11], one_row, layout=Layout(block_rows=1, block_columns=4))))),
        valid("axes-conv", "a 2×5×3×2 tensor viewed as 3·2 rows and 5·2 columns", "LAY-001",
              file(layr("", tensor("a", "f32", [2, 5, 3, 2], conv, layout=Layout(axes=(2, 0, 1, 3), n_row_axes=2))))),
        valid("axes-and-order", "axes permuted, rows ordered by class, bands", "LAY-001 LAY-003",
              file(layr("", tensor("a", "bf16", [2, 5, 3, 2], conv, layout=Layout((2, 0, 1, 3), 2, 1, 4), row_classes=[1, 0, 1, 0, 0, 1])))),
        valid("axes-not-self-inverse", "a permutation of three axes that is not its own inverse", "LAY-001",
              file(layr("", tensor("a", "f32", [3, 2, 2], Codebook(codes(8, (2, 6), 12), table(9, 1, 12, 1)),
                                   layout=Layout(axes=(1, 2, 0), n_row_axes=1))))),
        valid("axes-all-rows", "all axes are rows: one column", "LAY-001",
              file(layr("", tensor("a", "f32", [2, 3], Codebook(codes(8, (6, 1), 4), table(9, 1, 4, 1)), layout=Layout((1, 0), 2))))),
        valid("complex-c64", "the axis of real and imaginary part is the last one", "LAY-001 VAL-001",
              file(layr("", tensor("a", "c64", [3, 2], complex_stage, layout=ROWS)))),
        valid("complex-c128-axes", "real parts as rows, imaginary parts as rows; widened to f64", "LAY-001 VAL-001",
              file(layr("", tensor("a", "c128", [2, 3], parts, layout=Layout(axes=(2, 0, 1), n_row_axes=2))))),
        valid("complex-scalar", "a complex scalar is a row of two", "LAY-001",
              file(layr("", tensor("a", "c64", [], Codebook(np.array([[1, 0]]), column(1.25, -3)))))),
        valid("scalar-coded", "a scalar with a codebook stage", "TEN-003", file(layr("", tensor("a", "f32", [], Codebook(np.array([[1]]), column(1, 2)))))),
        valid("layout-nil-coded", "layout nil: a matrix as one row", "LAY-001",
              file(layr("", tensor("a", "f32", [2, 3], Codebook(codes(5, (1, 3), 4), table(6, 1, 4, 2)))))),
    ]


def sums() -> list[Case]:
    stages = [Codebook(codes(i, (4, -(-5 // dim)), 6), table(i + 9, 1, 6, dim) / F32(4**i)) for i, dim in enumerate([2, 1, 3])]
    shallow = [Codebook(codes(i, (1, 3), 2), table(i + 30, 1, 2, 1)) for i in range(16)]
    order = [Codebook(np.array([[0, 1]]), column(*values)) for values in [(1e8, 3e-8), (1.0, -3e-8), (-1e8, 1.0)]]
    # scale · entry = 1 + 2^-11 + 2^-24 rounds to 1 + 2^-11: the sum is 0, a fused multiply-add gives 2^-24
    x = F32(1 + 2**-12)
    fused = [Codebook(np.zeros((1, 2), int), column(-(1 + 2**-11))),
             Codebook(np.array([[0, 1]]), column(x, -x), scale=Scale(np.array([x, -x], F32), columns=1))]
    # step · (i - zero) is rounded before the scale: 3 · 0.1 · 0.7
    steps = Codebook(np.array([[3, 6, 7]]), steps=np.array([0.1], F32), entries=8, scale=Scale(np.array([0.7], F32)))
    zeros = Codebook(np.array([[0, 1, 0, 1]]), column(-0.0, 0.0))
    minus = Codebook(np.array([[0, 0, 1, 1]]), column(-0.0, 0.0))
    return [
        valid("stages-three", "a sum of three codebook stages, each with its own dim", "VAL-001",
              file(layr("", tensor("a", "f32", [4, 5], *stages, layout=ROWS)))),
        valid("stages-three-blocks", "payload comes block by block, and in each stage by stage", "LAY-004",
              file(layr("", tensor("a", "f32", [4, 5], *stages, layout=Layout(n_row_axes=1, block_rows=3))))),
        valid("stages-sixteen", "the greatest number of stages", "TEN-004", file(layr("", tensor("a", "f32", [3], *shallow)))),
        valid("sum-order", "stages are added from the first on: (1e8 + 1) - 1e8 is 0", "VAL-001 CNV-006",
              file(layr("", tensor("a", "f32", [2], *order)))),
        valid("sum-not-fused", "a fused multiply-add would give 2^-24 where 0 is right", "CNV-006",
              file(layr("", tensor("a", "f32", [2], *fused)))),
        valid("progression-rounds-first", "entry · step is rounded before it is scaled", "CNV-006 CBK-005",
              file(layr("", tensor("a", "f32", [3], steps)))),
        valid("sum-of-zeros", "-0 + -0 is -0, -0 + 0 is 0; a single stage keeps -0", "CNV-006",
              file(layr("", tensor("two", "f32", [4], zeros, minus), tensor("one", "f16", [4], zeros), tensor("wide", "f64", [4], zeros),
                        tensor("bf", "bf16", [4], zeros)))),
    ]


def low_rank() -> list[Case]:
    plain = LowRank(codes(1, (4, 3), 16), codes(2, (3, 5), 15), 16, 15, np.array([0.3], F32), np.array([-0.7], F32))
    full = LowRank(codes(3, (5, 2), 3), codes(4, (2, 7), 300), 3, 300, scales(5, 3, np.float16), scales(6, 7, BF16), 2, 1,
                   ((3, 5),), ((256, 1), (2, 8)))
    two = LowRank(codes(7, (5, 1), 2), codes(8, (1, 7), 2), 2, 2, scales(9, 1), scales(1, 3), 0, 3)
    residual = Codebook(codes(2, (5, 4), 6), table(3, 1, 6, 2, np.float16), scale=Scale(scales(4, 5), rows=1))
    # s = 2 · 32767 · (1 - 32767): not a binary32 value; three roundings, one after another
    big = LowRank(np.array([[65534, 65534], [0, 65533], [1, 32768]]), np.array([[65534, 1, 65534], [65533, 0, 32766]]), 65535, 65535,
                  scales(11, 3), scales(12, 3), 1, 1)
    rank_5 = LowRank(codes(13, (1, 5), 4), codes(14, (5, 1), 4), 4, 4)
    return [
        valid("low-rank", "a low-rank stage alone, dense factors", "LOW-001", file(layr("", tensor("a", "f32", [4, 5], plain, layout=ROWS)))),
        valid("low-rank-groups", "factors in planes, scales by groups of rows and columns", "LOW-003 CBK-003",
              file(layr("", tensor("a", "f32", [5, 7], full, layout=ROWS)))),
        valid("low-rank-blocks", "each block has its rows of U", "LOW-003 LAY-004",
              file(layr("", tensor("a", "f32", [5, 7], full, layout=Layout(n_row_axes=1, block_rows=2))))),
        valid("low-rank-and-codebook", "a low-rank stage, then a codebook for what is left; bf16", "VAL-001",
              file(layr("", tensor("a", "bf16", [5, 7], full, residual, layout=ROWS)))),
        valid("low-rank-twice", "codebook and two low-rank stages, rows and columns by class, bands", "VAL-001 LAY-003",
              file(layr("", tensor("a", "f32", [5, 7], residual, full, two, layout=Layout(n_row_axes=1, order=3, block_rows=3),
                                   row_classes=[1, 0, 1, 0, 0], column_classes=[3, 2, 1, 0, 1, 2, 3])))),
        valid("low-rank-large", "a product sum that binary32 does not hold is rounded once, then scaled twice", "LOW-001 CNV-006",
              file(layr("", tensor("a", "f32", [3, 3], big, layout=ROWS)))),
        valid("low-rank-complex", "a low-rank stage of a c64 matrix", "LAY-001",
              file(layr("", tensor("a", "c64", [4, 2], LowRank(codes(1, (4, 3), 16), codes(2, (3, 4), 15), 16, 15), layout=ROWS)))),
        valid("low-rank-above-size", "a rank above the size of the matrix", "LOW-001", file(layr("", tensor("a", "f64", [], rank_5)))),
    ]


def rounding() -> list[Case]:
    def each(name: str, dtype: str, *values: float) -> object:
        return tensor(name, dtype, [len(values)], Codebook(np.arange(len(values)).reshape(1, -1), column(*values)))

    e = 2.0**-11  # half a unit in the last place of 1 in f16
    f16 = [1 + e, 1 + 3 * e, 1 + e + 2**-23, 1 + e - 2**-23, -1 - e, 2048 + 1, 2048 + 3, 65519.99, -65504, 0.1]
    f16_small = [2**-24, 2**-25, 3 * 2**-25, 5 * 2**-25, 2**-25 + 2**-48, -(2**-25), 2**-14, 2**-14 - 2**-26, 2**-14 - 2**-25, 2**-149]
    b = 2.0**-8
    top = float(np.array(0x7F7F7FFF, np.uint32).view(F32))  # the last that rounds down to the greatest bf16
    bf16 = [1 + b, 1 + 3 * b, 1 + b + 2**-23, 1 + b - 2**-23, -1 - b, 256 + 1, 256 + 3, top, -top, 0.1]
    bf16_small = [2**-133, 2**-134, 3 * 2**-134, 5 * 2**-134, 2**-134 + 2**-149, -(2**-134), 2**-126 - 2**-134, 2**-149, 2**-126, 2**-127]
    f32_small = Codebook(np.array([[0, 1, 2, 3]]), column(2**-126, 2**-149, 3 * 2**-149, -(2**-126)), scale=Scale(np.array([0.5], F32)))
    sum_small = [Codebook(np.array([[0, 1]]), column(2**-126, 2**-149)), Codebook(np.array([[0, 1]]), column(-(2**-126) + 2**-149, 2**-149))]
    f16_tables = Codebook(np.array([[0, 1, 2]]), column(2**-24, -3 * 2**-24, 65504, dtype=np.float16))
    limit = float(np.finfo(F32).max)
    overshoot = [Codebook(np.array([[0, 1]]), column(65519.99, 1)), Codebook(np.array([[0, 1]]), column(-0.005, 0.001))]
    return [
        valid("round-f16", "to f16, to nearest, ties to even", "VAL-001 CNV-006", file(layr("", each("normal", "f16", *f16), each("subnormal", "f16", *f16_small)))),
        valid("round-bf16", "to bf16, to nearest, ties to even", "VAL-001 CNV-006", file(layr("", each("normal", "bf16", *bf16), each("subnormal", "bf16", *bf16_small)))),
        valid("widen-f64", "f64 and c128 are widened exactly, subnormals too", "VAL-001",
              file(layr("", each("a", "f64", 0.1, 2**-149, limit, -0.0), each("b", "f64", 1 + 2**-23),
                        tensor("c", "c128", [2], Codebook(np.array([[0, 1, 2, 3]]), column(0.1, 2**-149, -limit, -0.0)))))),
        valid("subnormals", "subnormal tables, products and sums are kept; half a unit rounds to even", "CNV-006",
              file(layr("", tensor("scaled", "f32", [4], f32_small), tensor("added", "f32", [2], *sum_small), tensor("table", "f32", [3], f16_tables)))),
        valid("bound-f32", "a bound that is the greatest binary32", "VAL-002", file(layr("", each("a", "f32", limit, -limit)))),
        valid("bound-f16", "a bound that still rounds to 65,504", "VAL-002", file(layr("", each("a", "f16", 65519.99, 0), tensor("b", "f16", [2], overshoot[0])))),
        valid("bound-unused-scale", "the bound is the greatest scale times the greatest entry, over all groups", "VAL-002",
              file(layr("", tensor("a", "f32", [2, 1], Codebook(np.array([[0], [1]]), column(2.0**100, 2.0), scale=Scale(np.array([2.0**27, 1], F32), rows=1)), layout=ROWS)))),
    ]
