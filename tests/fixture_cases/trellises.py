"""Valid files: trellis stages (SPEC 12), of minor version 1: states, contexts, values."""

from __future__ import annotations

from typing import Any

import numpy as np
from vqmbuilder import (
    file,
    layr,
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
)

from fixture_cases import Case, valid
from fixture_cases.bases import (
    ROWS,
    codes,
    scales,
    table,
)
from fixture_cases.trellis_bases import base_tensor, base_trellis, books, coded, freq, model


def cases() -> list[Case]:
    return [*trellises(), *contexts(), *values()]


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
