"""Valid files: FREQ chunks, trellis stages, floating-point codes (SPEC 6, 9.3 and 12), the ids of minor version 1."""

from __future__ import annotations

from typing import Any

import numpy as np
from vqmbuilder import (
    MAGIC,
    Chunk,
    File,
    file,
    layr,
    u16,
    u32,
    zstd_section,
)
from vqmtensors import (
    BF16,
    F32,
    Codebook,
    Floats,
    Layout,
    LowRank,
    Scale,
    Tensor,
    tensor,
    with_section,
)
from vqmtrellis import (
    Freq,
    Trellis,
    frequencies,
)

from fixture_cases import Case, valid
from fixture_cases.bases import (
    ROWS,
    book_chunk,
    codes,
    scales,
    table,
)

MINOR_1 = MAGIC + u16(1) + u16(1) + u32(0)


def cases() -> list[Case]:
    return [*freqs(), *trellises(), *contexts(), *tiles(), *views(), *values(), *floats()]


def model(*chunks: Chunk) -> File:
    return file(*chunks, header=MINOR_1)


def freq(seed: int, tables: int, entries: int) -> Freq:
    """Tables in which each code has a weight, most a small one: codes that are drawn evenly take many words."""
    weights = np.random.RandomState(seed).randint(1, 230, (tables, entries)).astype(np.uint8)
    return Freq(11 + seed % 3, tuple(row.tobytes() for row in weights))


def books(seed: int, n: int, entries: int, dtype: object = F32) -> np.ndarray:
    """Codebooks as a trellis stage has them."""
    return table(seed, n, entries, 1, dtype)[:, :, 0]


def coded(  # noqa: PLR0917
    name: str,
    comment: str,
    clauses: str,
    stage: Trellis,
    layout: Layout = ROWS,
    dtype: str = "f32",
    shape: tuple[int, ...] | None = None,
    **classes: Any,
) -> Case:
    """A tensor of one trellis stage."""
    item = tensor("a", dtype, stage.codes.shape if shape is None else shape, stage, layout=layout, **classes)
    return valid(name, comment, clauses, model(stage.freq.chunk(), layr("", item)))


def base_trellis() -> Trellis:
    """3 × 5, two codebooks of 4 entries, a scale for each row, row classes: the stage of many invalid files.

    It uses all 4 tables of its FREQ.
    """
    return Trellis(
        codes(1, (3, 5), 4),
        freq(1, 4, 4),
        (2, 2),
        books(2, 2, 4),
        trellis=(11, 4),
        scale=Scale(scales(3, 3), rows=1),
        row_classes=[0, 1, 0],
    )


def base_tensor() -> Tensor:
    return tensor("a", "f32", [3, 5], base_trellis(), layout=ROWS)


def base_floats() -> Tensor:
    """2 × 4, a sign, two bits of exponent, one of fraction."""
    stage = Codebook(codes(1, (2, 4), 16), floats=Floats(1, 2, 1, -1))
    return tensor("a", "f32", [2, 4], stage, layout=ROWS)


def freqs() -> list[Case]:
    text = Freq(3, (bytes([33, 17, 0, 1]),))
    assert frequencies(3, text.tables[0]) == (5, 2, 0, 1)
    every = Freq(14, (bytes(range(256)),))
    assert max(frequencies(14, every.tables[0])) == frequencies(14, every.tables[0])[255] > 512
    ties = Freq(4, (bytes([9, 40, 40, 1, 40]), bytes([7] * 5)))
    assert frequencies(4, ties.tables[0]) == (1, 6, 4, 1, 4)
    lone = Freq(5, (bytes([0, 0, 1, 0]),))
    full = Freq(3, (bytes([1, 255, 3, 20, 80, 7, 90, 2]),))
    assert frequencies(3, full.tables[0]) == (1,) * 8
    fine = Freq(14, (bytes([1, 1, 113, 240]),))
    assert frequencies(14, fine.tables[0])[:2] == (1, 1)
    many = Freq(14, (b"\1" * 16_384,) * 2)
    limit = Freq(14, (b"\5\5",) * 256)
    shared = freq(4, 5, 3)
    one, two, unused = freq(5, 1, 6), freq(6, 2, 3), Freq(1, (b"\1",))
    book = table(7, 1, 3, 2)

    def alone(
        name: str, comment: str, clauses: str, of: Freq, chosen: object, *, seal: Any = None, **fields: Any
    ) -> Case:
        stage = Trellis(np.array(chosen), of, fields.pop("tile", (1, 2)), **{"step": 0.5, "zero": 2, **fields})
        item = tensor("a", "f32", stage.codes.shape, stage, layout=ROWS)
        return valid(name, comment, clauses, model(of.chunk(seal) if seal else of.chunk(), layr("", item)))

    return [
        alone("freq-of-the-text", "the example of SPEC 6: frequencies 5 2 0 1", "FRQ-001", text, [[3, 0, 1, 0, 0, 1]]),
        alone(
            "freq-all-weights",
            "a code for each byte; weight times spare slots exceeds 32 bits, their sum does not",
            "FRQ-001",
            every,
            [[1, 255, 128, 17, 16, 254, 33, 2, 240]],
        ),
        alone(
            "freq-ties",
            "of several largest weights the first gets what is missing",
            "FRQ-001",
            ties,
            [[0, 1, 2, 3, 4, 1], [4, 3, 2, 1, 0, 0]],
            trellis=(11, 4),
            tile=(2, 3),
        ),
        alone("freq-one-weight", "one code of four has a weight: no words", "FRQ-003 ANS-003", lone, [[2] * 7]),
        alone("freq-one-entry", "a table of one code: no words", "FRQ-001 ANS-003", Freq(7, (b"\xff",)), [[0] * 5]),
        alone(
            "freq-full",
            "2^precision codes: each has frequency 1, whatever its weight",
            "FRQ-001",
            full,
            [[0, 1, 7, 5, 6, 2, 4, 3]],
        ),
        alone("freq-precision-1", "precision 1, two codes", "FRQ-001", Freq(1, (b"\x09\x90",)), [[0, 1, 1, 0, 1]]),
        alone(
            "freq-precision-14",
            "precision 14; codes of frequency 1 take 14 bits each",
            "FRQ-001",
            fine,
            [[0, 1, 2, 3, 3, 1, 0], [3, 3, 3, 2, 0, 0, 1]],
            tile=(1, 3),
        ),
        alone(
            "freq-entries-300",
            "300 codes, without trellis",
            "FRQ-001",
            freq(8, 1, 300),
            [[299, 0, 255, 256, 100, 298, 299]],
            zero=150,
        ),
        alone(
            "freq-entries-16384",
            "the most entries: 16,384, with trellis; two tables compressed with zstd",
            "FRQ-001 TRL-005",
            many,
            [[16_383, 0, 255, 256, 257, 9_999, 16_382, 16_383]],
            seal=zstd_section,
            zero=8_192,
            trellis=(11, 4),
            tile=(1, 3),
        ),
        alone(
            "freq-limit",
            "tables · 2^precision is 4,194,304; the last tables are used",
            "FRQ-001 LIM-001",
            limit,
            [[0, 1, 1, 0]],
            seal=zstd_section,
            first=255,
        ),
        valid(
            "freq-shared",
            "two layers use one FREQ, each from another table on",
            "FRQ-004 TRL-004",
            model(
                shared.chunk(),
                layr(
                    "one",
                    tensor("a", "f32", [7], Trellis(codes(1, (1, 7), 3), shared, (1, 4), books(2, 1, 3))),
                    tensor("b", "f32", [7], Trellis(codes(2, (1, 7), 3), shared, (1, 4), books(3, 1, 3), first=4)),
                ),
                layr(
                    "two",
                    tensor(
                        "c",
                        "f32",
                        [7],
                        Trellis(codes(3, (1, 7), 3), shared, (1, 2), step=0.3, zero=1, trellis=(11, 4), first=2),
                    ),
                ),
            ),
        ),
        valid(
            "freqs",
            "FREQs are numbered in file order, apart from BOOKs; one unused, one between layers",
            "FRQ-004 BOK-001",
            model(
                one.chunk(),
                book_chunk(book),
                layr(
                    "one",
                    tensor("a", "f32", [5], Trellis(codes(1, (1, 5), 6), one, (1, 2), books(2, 1, 6))),
                    tensor("b", "f32", [6], Codebook(codes(2, (1, 3), 3), book, book=0)),
                ),
                unused.chunk(),
                two.chunk(),
                layr(
                    "two",
                    tensor(
                        "c",
                        "f32",
                        [5],
                        Trellis(codes(3, (1, 5), 3), two, (1, 2), books(4, 2, 3), trellis=(11, 4), number=2),
                    ),
                    tensor("d", "f32", [4], Trellis(codes(4, (1, 4), 6), one, (1, 4), step=-0.7)),
                ),
            ),
        ),
    ]


def trellises() -> list[Case]:
    out = [
        valid(
            "base-trellis",
            "a small trellis tensor; invalid files are made from it",
            "TRL-001",
            model(base_trellis().freq.chunk(), layr("", base_tensor())),
        ),
        valid(
            "trellis-minor-0",
            "the ids of minor version 1 in a file of minor version 0: a reader goes by the ids",
            "HDR-002 EXT-003",
            file(base_trellis().freq.chunk(), layr("", base_tensor())),
        ),
    ]
    for states, trellis in [(1, None), (8, (11, 4)), (32, (37, 8)), (256, (333, 242))]:
        n, of = 2 if trellis else 1, freq(states, 2, 5)
        name = f"{states}-states" if trellis else "none"
        comment = f"a trellis of {states} states" if trellis else "no trellis"
        for source, fields in [
            ("table", {"table": books(3, n, 5)}),
            ("progression", {"step": 0.1, "zero": 2}),
        ]:
            stage = Trellis(codes(states, (2, 17), 5), of, (1, 17), trellis=trellis, **fields)
            out.append(coded(f"trellis-{name}-{source}", f"{comment}; the source is a {source}", "TRL-003", stage))
    pairs, of = [(0, 0), (1, 1), (511, 511), (0, 511), (511, 0), (2, 3), (256, 257)], freq(9, 2, 3)
    out.append(
        valid(
            "trellis-polynomials",
            "feedback and forward at their limits, even, zero",
            "TRL-003",
            model(
                of.chunk(),
                layr(
                    "",
                    *[
                        tensor(str(i), "f32", [20], Trellis(codes(i, (1, 20), 3), of, (1, 20), step=1.5, trellis=pair))
                        for i, pair in enumerate(pairs)
                    ],
                ),
            ),
        )
    )
    wide = Trellis(codes(3, (1, 9), 129), freq(3, 2, 129), (1, 5), books(4, 2, 129, BF16), trellis=(11, 4))
    out.append(coded("trellis-entries-129", "two codebooks of 129 entries: 258 values", "TRL-005", wide))
    for label, dtype in [("f16", np.float16), ("bf16", BF16)]:
        stage = Trellis(
            codes(5, (3, 5), 4),
            freq(2, 2, 4),
            (1, 3),
            books(6, 2, 4, dtype),
            trellis=(11, 4),
            scale=Scale(scales(7, 3, dtype), columns=2),
        )
        out.append(coded(f"trellis-table-{label}", f"table and scale of {label}", "TRL-005 CBK-007", stage))
    stage = Trellis(np.zeros((25, 1), int), freq(1, 1, 2), (5, 1), books(2, 1, 2), row_classes=[0] * 25)
    packed = with_section(tensor("a", "f32", [25], stage, layout=ROWS), 1, zstd_section(bytes(25)))
    out.append(
        valid(
            "trellis-classes-zstd",
            "classes that are all 0, compressed with zstd: one context",
            "TRL-004",
            model(stage.freq.chunk(), layr("", packed)),
        )
    )
    return out


def contexts() -> list[Case]:
    """5 × 7, rows of classes 0 to 2, columns of classes 0 to 3, with gaps."""
    rows, columns = [2, 0, 1, 0, 2], [0, 3, 0, 1, 1, 3, 0]

    def of(name: str, comment: str, tables: int, *, layout: Layout = ROWS, **fields: Any) -> Case:
        n = 2 if "trellis" in fields else 1
        stage = Trellis(codes(tables, (5, 7), 4), freq(tables, tables, 4), (2, 3), books(3, n, 4), **fields)
        view_classes = {}
        if layout.order:
            view_classes = {"row_classes": [1, 0, 1, 0, 0], "column_classes": [3, 2, 1, 0, 1, 2, 3]}
        return coded(f"trellis-{name}", comment, "TRL-004", stage, layout, **view_classes)

    great = Trellis(
        np.zeros((2, 2), int),
        Freq(1, (b"\1",) * 1_022),
        (1, 1),
        step=1,
        trellis=(11, 4),
        row_classes=[255, 0],
        column_classes=[0, 255],
    )
    return [
        of("classes-rows", "a context for each class of rows", 3, row_classes=rows),
        of("classes-columns", "a context for each class of columns, one unused", 4, column_classes=columns),
        of("classes-both", "contexts are sums of classes", 6, row_classes=rows, column_classes=columns),
        of(
            "classes-both-8-states",
            "two tables for each context; those before the first are not used",
            15,
            row_classes=rows,
            column_classes=columns,
            trellis=(11, 4),
            first=3,
        ),
        of(
            "classes-and-order",
            "rows and columns stored by the classes of the order; those of the stage are of stored rows and columns",
            6,
            row_classes=rows,
            column_classes=columns,
            layout=Layout(n_row_axes=1, order=3),
        ),
        of(
            "classes-bands",
            "contexts in bands of rows",
            6,
            row_classes=rows,
            column_classes=columns,
            layout=Layout(n_row_axes=1, block_rows=2),
        ),
        valid(
            "trellis-classes-255",
            "row class 255 and column class 255: 511 contexts of two tables",
            "TRL-004",
            model(great.freq.chunk(zstd_section), layr("", tensor("a", "f32", [2, 2], great, layout=ROWS))),
        ),
    ]


def tiles() -> list[Case]:
    """Codes of 32 entries, so that each sequence needs words."""

    def of(name: str, comment: str, shape: tuple[int, int], tile: tuple[int, int], layout: Layout = ROWS) -> Case:
        stage = Trellis(codes(sum(tile), shape, 32), freq(5, 2, 32), tile, step=0.1, zero=16, trellis=(11, 4))
        return coded(f"trellis-{name}", comment, "TRL-001 TRL-002 LAY-004", stage, layout)

    large = Trellis(np.array([[0, 2, 0, 1]]), Freq(14, (bytes([1, 241, 241]),)), (1, 2), books(8, 1, 3))
    states = large.payload(range(1), range(4))[0][:8]
    assert all(int.from_bytes(states[i : i + 4], "little") >= 2**31 for i in (0, 4))
    bands = Layout(n_row_axes=1, block_rows=3)
    return [
        of("tile-1", "a sequence for each element", (2, 3), (1, 1)),
        of("tile-block", "one sequence for the block", (4, 5), (4, 5)),
        of("tile-64", "64 codes in one sequence, the most", (8, 8), (8, 8)),
        of("tile-128", "128 codes and 1 code in two sequences, the most", (1, 129), (1, 128)),
        of("tiles", "tiles that are smaller at the right and at the bottom", (5, 7), (2, 3)),
        of("tiles-rows", "tiles of whole rows", (5, 3), (2, 3)),
        of("tiles-columns", "tiles of whole columns", (3, 7), (3, 2)),
        of("bands", "bands of 3 of 8 rows, the last one shorter than a tile is high", (8, 5), (3, 2), bands),
        of("bands-tiles", "bands of 3 of 7 rows, tiles of 2; the last band has one row", (7, 5), (2, 2), bands),
        of(
            "ranges",
            "ranges of 5 of 11 columns of each row, the last one narrower than a tile",
            (2, 11),
            (1, 3),
            Layout(n_row_axes=1, block_rows=1, block_columns=5),
        ),
        of("ranges-of-one-row", "one row in ranges", (1, 17), (1, 4), Layout(block_rows=1, block_columns=7)),
        coded("trellis-large-states", "states of 2^31 and more", "ANS-001", large),
    ]


def views() -> list[Case]:
    def of(seed: int, rows: int, columns: int, tile: tuple[int, int], **fields: Any) -> Trellis:
        return Trellis(codes(seed, (rows, columns), 5), freq(seed, 2, 5), tile, trellis=(11, 4), **fields)

    conv = of(1, 6, 10, (2, 4), table=books(2, 2, 5), scale=Scale(scales(3, 6), rows=1))
    parts = of(4, 3, 4, (1, 2), step=0.7, zero=2)
    wide = of(5, 4, 3, (2, 2), step=0.1, zero=2, scale=Scale(scales(6, 2), rows=2))
    column = of(7, 6, 1, (3, 1), step=-0.3, zero=3)
    return [
        coded(
            "trellis-axes",
            "a 2×5×3×2 tensor viewed as 3·2 rows and 5·2 columns, in bands",
            "LAY-001",
            conv,
            Layout(axes=(2, 0, 1, 3), n_row_axes=2, block_rows=4),
            shape=(2, 5, 3, 2),
        ),
        coded(
            "trellis-axes-and-order",
            "axes permuted, rows ordered by class; bf16",
            "LAY-001 LAY-003",
            conv,
            Layout((2, 0, 1, 3), 2, 1),
            "bf16",
            (2, 5, 3, 2),
            row_classes=[1, 0, 1, 0, 0, 1],
        ),
        coded("trellis-one-column", "all axes are rows: tiles of one column", "LAY-001", column,
              Layout((1, 0), 2), shape=(2, 3)),
        coded("trellis-scalar", "a scalar: one sequence of one code", "TEN-003", of(8, 1, 1, (1, 1), step=3.25, zero=9),
              shape=(), layout=Layout()),
        coded("trellis-complex", "c64: real and imaginary parts are columns", "VAL-001", parts, dtype="c64",
              shape=(3, 2)),
        coded("trellis-complex-axes", "c128: real and imaginary parts are rows", "VAL-001 LAY-001", wide,
              Layout(axes=(2, 0, 1), n_row_axes=2), "c128", (2, 3)),
        coded("trellis-f16", "rounded to f16", "VAL-001", wide, dtype="f16"),
        coded("trellis-f64", "widened to f64", "VAL-001", wide, dtype="f64"),
    ]  # fmt: skip


def values() -> list[Case]:
    of = freq(3, 2, 9)

    def vector(name: str, dtype: str, chosen: list[int], **fields: Any) -> Tensor:
        return tensor(name, dtype, [len(chosen)], Trellis(np.array([chosen]), of, (1, len(chosen)), **fields))

    def one(name: str, comment: str, clauses: str, *items: Tensor) -> Case:
        return valid(f"trellis-{name}", comment, clauses, model(of.chunk(), layr("", *items)))

    def summed(name: str, comment: str, *stages: Any, layout: Layout = ROWS, dtype: str = "f32") -> Case:
        return one(name, comment, "VAL-001", tensor("a", dtype, [4, 5], *stages, layout=layout))

    table_16 = Codebook(codes(2, (4, 3), 6), table(3, 1, 6, 2, np.float16), scale=Scale(scales(4, 4), rows=1))
    fine = Trellis(codes(6, (4, 5), 9), of, (2, 2), step=0.01, zero=4, trellis=(37, 8))
    scale = Scale(scales(6, 5), columns=1)
    coarse = Trellis(codes(4, (4, 5), 9), of, (3, 2), books(5, 2, 9), trellis=(11, 4), scale=scale)
    plain = Trellis(codes(7, (4, 5), 9), of, (1, 5), books(7, 1, 9, BF16), first=1)
    product = LowRank(codes(1, (4, 2), 16), codes(2, (2, 5), 15), 16, 15, np.array([0.1], F32))
    small = Codebook(codes(8, (4, 5), 16), floats=Floats(1, 2, 1, -6))
    bands = Layout(n_row_axes=1, block_rows=3)
    some, of_two, signs = [0, 8, 4, 3, 5, 1, 7], {"trellis": (11, 4)}, np.array([[0.0, -0.0, 1.0] * 3], F32)
    tiny = {"scale": Scale(np.array([0.5], F32)), "step": 2.0**-149, "zero": 4, **of_two}
    return [
        summed("and-codebook", "a sum of a trellis stage and a codebook stage", coarse, table_16),
        summed("after-codebook", "a codebook stage, then a trellis stage, in bands", table_16, fine, layout=bands),
        summed("twice", "two trellis stages with tiles of their own", coarse, fine),
        summed("four-stages", "stages of each kind, in bands; f16", product, plain, small, fine, layout=bands,
               dtype="f16"),
        one(
            "zero-limits",
            "zero at -2^22 and at 2^22",
            "TRL-005",
            vector("low", "f32", some, step=0.1, zero=-(2**22), **of_two),
            vector("high", "f32", some, step=-0.1, zero=2**22, **of_two),
        ),
        one(
            "rounds-first",
            "entry · step is rounded before it is scaled",
            "CNV-006 TRL-005",
            vector("a", "f32", some, step=0.1, zero=4, scale=Scale(np.array([0.7], F32)), **of_two),
        ),
        one(
            "zeros",
            "0 times a negative step is -0, as is a negative number times a step of 0; a table keeps -0",
            "CNV-006",
            vector("negative", "f32", some, step=-1, zero=4, **of_two),
            vector("zero", "f16", some, step=0, zero=4),
            vector("table", "f32", some, table=signs),
        ),
        one(
            "subnormals",
            "subnormal steps and products are kept; half a unit rounds to even",
            "CNV-006",
            vector("a", "f32", some, **tiny),
        ),
        one(
            "bound-f16",
            "bounds that still round to 65,504",
            "VAL-002",
            vector("progression", "f16", some, step=7279.99, zero=4, **of_two),
            vector("table", "f16", some, table=np.array([[1, 2, 65519.99] * 3], F32)),
        ),
    ]  # fmt: skip


def floats() -> list[Case]:
    """Source 4: sign, bits of exponent, bits of fraction, exponent."""

    def every(name: str, *source: int, dtype: str = "f32", **fields: Any) -> Tensor:
        """A tensor of all codes."""
        n = 2 ** sum(source[:3])
        return tensor(name, dtype, [n], Codebook(np.arange(n).reshape(1, -1), floats=Floats(*source), **fields))

    def some(name: str, chosen: list[int], *source: int, dtype: str = "f32") -> Tensor:
        return tensor(name, dtype, [len(chosen)], Codebook(np.array([chosen]), floats=Floats(*source)))

    def one(name: str, comment: str, *items: Tensor, clauses: str = "CBK-009") -> Case:
        return valid(f"floats-{name}", comment, clauses, model(layr("", *items)))

    scaled = Codebook(codes(3, (5, 7), 32), floats=Floats(1, 2, 2, -3), scale=Scale(scales(4, 15), rows=1, columns=3))
    packed = Codebook(codes(5, (2, 9), 8), floats=Floats(0, 2, 1, -2), planes=((8, 2),))
    split = Codebook(codes(6, (2, 9), 512), floats=Floats(1, 4, 4, -7), planes=((256, 1), (2, 8)))
    large = Codebook(np.array([[0, 1, 65_535]]), floats=Floats(1, 5, 10, 60), scale=Scale(np.array([2.0**27], F32)))
    bands = Layout(n_row_axes=1, block_rows=2)
    ranges = Layout(n_row_axes=1, block_rows=1, block_columns=4)
    ends = [0, 1, 1023, 1024, 2047, 2048, 32_767, 32_768, 32_769, 65_535]
    return [
        valid(
            "base-floats",
            "a small tensor of floating-point codes; invalid files are made from it",
            "CBK-009",
            model(layr("", base_floats())),
        ),
        one("signed", "all codes with sign, exponent and fraction; code 16 is -0", every("a", 1, 2, 2, -1)),
        one("unsigned", "all codes without a sign", every("a", 0, 3, 1, -2)),
        one(
            "fixed-point",
            "no bits of exponent: a grid, with and without sign",
            every("signed", 1, 0, 3, -2),
            every("unsigned", 0, 0, 4, 3),
        ),
        one(
            "no-fraction",
            "no bits of fraction: zeros and powers of two",
            every("signed", 1, 2, 0, 0),
            every("unsigned", 0, 3, 0, -4),
        ),
        one(
            "few-bits",
            "a sign alone: 0 and -0; no bits at all: codes of 0 bits",
            every("sign", 1, 0, 0, 5),
            some("none", [0, 0, 0], 0, 0, 0, -3),
            every("exponent", 0, 1, 0, 7),
            every("fraction", 0, 0, 1, 7),
        ),
        one(
            "limits",
            "the most bits, the largest and the smallest exponent",
            some("large", ends, 1, 5, 10, 60),
            some("small", ends, 1, 5, 10, -120),
        ),
        one("scale", "times scales by groups of rows and columns", tensor("a", "f32", [5, 7], scaled, layout=ROWS)),
        one(
            "bound-f32",
            "the largest code times the scale is 2,047 · 2^117",
            tensor("a", "f32", [3], large),
            clauses="CBK-009 VAL-002",
        ),
        one("bands", "bands of rows", tensor("a", "f32", [5, 7], scaled, layout=bands)),
        one("ranges", "ranges of columns", tensor("a", "f32", [5, 7], scaled, layout=ranges)),
        one(
            "planes",
            "codes in planes",
            tensor("one", "f32", [2, 9], packed, layout=ROWS),
            tensor("two", "f32", [2, 9], split, layout=ROWS),
            clauses="CBK-009 COD-004",
        ),
        one(
            "rounded",
            "rounded to bf16 and f16, subnormals too; widened to f64",
            some("bf16", [0, 511, 513, 1023, 2047, 1024], 1, 1, 9, -3, dtype="bf16"),
            some("f16", [1, 3, 5, 7, 33, 63], 0, 2, 4, -26, dtype="f16"),
            some("f64", [1, 63, 64, 127], 1, 2, 4, -120, dtype="f64"),
            clauses="CBK-009 VAL-001",
        ),
        one(
            "bound-f16",
            "the largest code stands for 65,504, no matter whether it occurs",
            some("a", [0, 1, 32_767], 0, 5, 10, -25, dtype="f16"),
            some("b", [0, 1], 0, 5, 10, -25, dtype="f16"),
            clauses="CBK-009 VAL-002",
        ),
        valid(
            "floats-minor-0",
            "floating-point codes in a file of minor version 0: a reader goes by the ids",
            "HDR-002 CBK-009",
            file(layr("", base_floats())),
        ),
    ]
