"""Valid files: sums of stages, low-rank stages, rounding (SPEC 7.4 and 11)."""

from __future__ import annotations

import numpy as np
from vqmbuilder import (
    file,
    layr,
)
from vqmtensors import (
    BF16,
    F32,
    Codebook,
    Layout,
    LowRank,
    Scale,
    tensor,
)

from fixture_cases import Case, valid
from fixture_cases.bases import (
    ROWS,
    codes,
    column,
    scales,
    table,
)


def cases() -> list[Case]:
    return [*sums(), *low_rank(), *rounding()]


def sums() -> list[Case]:
    stages = [
        Codebook(codes(i, (4, -(-5 // dim)), 6), table(i + 9, 1, 6, dim) / F32(4**i)) for i, dim in enumerate([2, 1, 3])
    ]
    shallow = [Codebook(codes(i, (1, 3), 2), table(i + 30, 1, 2, 1)) for i in range(16)]
    order = [Codebook(np.array([[0, 1]]), column(*values)) for values in [(1e8, 3e-8), (1.0, -3e-8), (-1e8, 1.0)]]
    # scale · entry = 1 + 2^-11 + 2^-24 rounds to 1 + 2^-11: the sum is 0, a fused multiply-add gives 2^-24
    x = F32(1 + 2**-12)
    fused = [
        Codebook(np.zeros((1, 2), int), column(-(1 + 2**-11))),
        Codebook(np.array([[0, 1]]), column(x, -x), scale=Scale(np.array([x, -x], F32), columns=1)),
    ]
    # step · (i - zero) is rounded before the scale: 3 · 0.1 · 0.7
    steps = Codebook(np.array([[3, 6, 7]]), steps=np.array([0.1], F32), entries=8, scale=Scale(np.array([0.7], F32)))
    zeros = Codebook(np.array([[0, 1, 0, 1]]), column(-0.0, 0.0))
    minus = Codebook(np.array([[0, 0, 1, 1]]), column(-0.0, 0.0))
    return [
        valid(
            "stages-three",
            "a sum of three codebook stages, each with its own dim",
            "VAL-001",
            file(layr("", tensor("a", "f32", [4, 5], *stages, layout=ROWS))),
        ),
        valid(
            "stages-three-blocks",
            "payload comes block by block, and in each stage by stage",
            "LAY-004",
            file(layr("", tensor("a", "f32", [4, 5], *stages, layout=Layout(n_row_axes=1, block_rows=3)))),
        ),
        valid(
            "stages-sixteen",
            "the greatest number of stages",
            "TEN-004",
            file(layr("", tensor("a", "f32", [3], *shallow))),
        ),
        valid(
            "sum-order",
            "stages are added from the first on: (1e8 + 1) - 1e8 is 0",
            "VAL-001 CNV-006",
            file(layr("", tensor("a", "f32", [2], *order))),
        ),
        valid(
            "sum-not-fused",
            "a fused multiply-add would give 2^-24 where 0 is right",
            "CNV-006",
            file(layr("", tensor("a", "f32", [2], *fused))),
        ),
        valid(
            "progression-rounds-first",
            "entry · step is rounded before it is scaled",
            "CNV-006 CBK-005",
            file(layr("", tensor("a", "f32", [3], steps))),
        ),
        valid(
            "sum-of-zeros",
            "-0 + -0 is -0, -0 + 0 is 0; a single stage keeps -0",
            "CNV-006",
            file(
                layr(
                    "",
                    tensor("two", "f32", [4], zeros, minus),
                    tensor("one", "f16", [4], zeros),
                    tensor("wide", "f64", [4], zeros),
                    tensor("bf", "bf16", [4], zeros),
                )
            ),
        ),
    ]


def low_rank() -> list[Case]:
    plain = LowRank(codes(1, (4, 3), 16), codes(2, (3, 5), 15), 16, 15, np.array([0.3], F32), np.array([-0.7], F32))
    full = LowRank(
        codes(3, (5, 2), 3),
        codes(4, (2, 7), 300),
        3,
        300,
        scales(5, 3, np.float16),
        scales(6, 7, BF16),
        2,
        1,
        ((3, 5),),
        ((256, 1), (2, 8)),
    )
    two = LowRank(codes(7, (5, 1), 2), codes(8, (1, 7), 2), 2, 2, scales(9, 1), scales(1, 3), 0, 3)
    residual = Codebook(codes(2, (5, 4), 6), table(3, 1, 6, 2, np.float16), scale=Scale(scales(4, 5), rows=1))
    # s = 2 · 32767 · (1 - 32767): not a binary32 value; three roundings, one after another
    big = LowRank(
        np.array([[65534, 65534], [0, 65533], [1, 32768]]),
        np.array([[65534, 1, 65534], [65533, 0, 32766]]),
        65535,
        65535,
        scales(11, 3),
        scales(12, 3),
        1,
        1,
    )
    full_rank = LowRank(codes(13, (3, 3), 4), codes(14, (3, 3), 4), 4, 4)
    return [
        valid(
            "low-rank",
            "a low-rank stage alone, dense factors",
            "LOW-001",
            file(layr("", tensor("a", "f32", [4, 5], plain, layout=ROWS))),
        ),
        valid(
            "low-rank-groups",
            "factors in planes, scales by groups of rows and columns",
            "LOW-003 CBK-003",
            file(layr("", tensor("a", "f32", [5, 7], full, layout=ROWS))),
        ),
        valid(
            "low-rank-blocks",
            "each block has its rows of U",
            "LOW-003 LAY-004",
            file(layr("", tensor("a", "f32", [5, 7], full, layout=Layout(n_row_axes=1, block_rows=2)))),
        ),
        valid(
            "low-rank-and-codebook",
            "a low-rank stage, then a codebook for what is left; bf16",
            "VAL-001",
            file(layr("", tensor("a", "bf16", [5, 7], full, residual, layout=ROWS))),
        ),
        valid(
            "low-rank-twice",
            "codebook and two low-rank stages, rows and columns by class, bands",
            "VAL-001 LAY-003",
            file(
                layr(
                    "",
                    tensor(
                        "a",
                        "f32",
                        [5, 7],
                        residual,
                        full,
                        two,
                        layout=Layout(n_row_axes=1, order=3, block_rows=3),
                        row_classes=[1, 0, 1, 0, 0],
                        column_classes=[3, 2, 1, 0, 1, 2, 3],
                    ),
                )
            ),
        ),
        valid(
            "low-rank-large",
            "a product sum that binary32 does not hold is rounded once, then scaled twice",
            "LOW-001 CNV-006",
            file(layr("", tensor("a", "f32", [3, 3], big, layout=ROWS))),
        ),
        valid(
            "low-rank-complex",
            "a low-rank stage of a c64 matrix",
            "LAY-001",
            file(
                layr(
                    "",
                    tensor(
                        "a", "c64", [4, 2], LowRank(codes(1, (4, 3), 16), codes(2, (3, 4), 15), 16, 15), layout=ROWS
                    ),
                )
            ),
        ),
        valid(
            "low-rank-full",
            "the greatest rank of a 3 × 3 matrix",
            "LOW-001",
            file(layr("", tensor("a", "f64", [3, 3], full_rank, layout=ROWS))),
        ),
    ]


def rounding() -> list[Case]:
    def each(name: str, dtype: str, *values: float) -> object:
        return tensor(name, dtype, [len(values)], Codebook(np.arange(len(values)).reshape(1, -1), column(*values)))

    e = 2.0**-11  # half a unit in the last place of 1 in f16
    f16 = [1 + e, 1 + 3 * e, 1 + e + 2**-23, 1 + e - 2**-23, -1 - e, 2048 + 1, 2048 + 3, 65519.99, -65504, 0.1]
    f16_small = [
        2**-24,
        2**-25,
        3 * 2**-25,
        5 * 2**-25,
        2**-25 + 2**-48,
        -(2**-25),
        2**-14,
        2**-14 - 2**-26,
        2**-14 - 2**-25,
        2**-149,
    ]
    b = 2.0**-8
    top = float(np.array(0x7F7F7FFF, np.uint32).view(F32))  # the last that rounds down to the greatest bf16
    bf16 = [1 + b, 1 + 3 * b, 1 + b + 2**-23, 1 + b - 2**-23, -1 - b, 256 + 1, 256 + 3, top, -top, 0.1]
    bf16_small = [
        2**-133,
        2**-134,
        3 * 2**-134,
        5 * 2**-134,
        2**-134 + 2**-149,
        -(2**-134),
        2**-126 - 2**-134,
        2**-149,
        2**-126,
        2**-127,
    ]
    f32_small = Codebook(
        np.array([[0, 1, 2, 3]]), column(2**-126, 2**-149, 3 * 2**-149, -(2**-126)), scale=Scale(np.array([0.5], F32))
    )
    sum_small = [
        Codebook(np.array([[0, 1]]), column(2**-126, 2**-149)),
        Codebook(np.array([[0, 1]]), column(-(2**-126) + 2**-149, 2**-149)),
    ]
    f16_tables = Codebook(np.array([[0, 1, 2]]), column(2**-24, -3 * 2**-24, 65504, dtype=np.float16))
    limit = float(np.finfo(F32).max)
    overshoot = [Codebook(np.array([[0, 1]]), column(65519.99, 1)), Codebook(np.array([[0, 1]]), column(-0.005, 0.001))]
    return [
        valid(
            "round-f16",
            "to f16, to nearest, ties to even",
            "VAL-001 CNV-006",
            file(layr("", each("normal", "f16", *f16), each("subnormal", "f16", *f16_small))),
        ),
        valid(
            "round-bf16",
            "to bf16, to nearest, ties to even",
            "VAL-001 CNV-006",
            file(layr("", each("normal", "bf16", *bf16), each("subnormal", "bf16", *bf16_small))),
        ),
        valid(
            "widen-f64",
            "f64 and c128 are widened exactly, subnormals too",
            "VAL-001",
            file(
                layr(
                    "",
                    each("a", "f64", 0.1, 2**-149, limit, -0.0),
                    each("b", "f64", 1 + 2**-23),
                    tensor("c", "c128", [2], Codebook(np.array([[0, 1, 2, 3]]), column(0.1, 2**-149, -limit, -0.0))),
                )
            ),
        ),
        valid(
            "subnormals",
            "subnormal tables, products and sums are kept; half a unit rounds to even",
            "CNV-006",
            file(
                layr(
                    "",
                    tensor("scaled", "f32", [4], f32_small),
                    tensor("added", "f32", [2], *sum_small),
                    tensor("table", "f32", [3], f16_tables),
                )
            ),
        ),
        valid(
            "bound-f32",
            "a bound that is the greatest binary32",
            "VAL-002",
            file(layr("", each("a", "f32", limit, -limit))),
        ),
        valid(
            "bound-f16",
            "a bound that still rounds to 65,504",
            "VAL-002",
            file(layr("", each("a", "f16", 65519.99, 0), tensor("b", "f16", [2], overshoot[0]))),
        ),
        valid(
            "bound-unused-scale",
            "the bound is the greatest scale times the greatest entry, over all groups",
            "VAL-002",
            file(
                layr(
                    "",
                    tensor(
                        "a",
                        "f32",
                        [2, 1],
                        Codebook(
                            np.array([[0], [1]]),
                            column(2.0**100, 2.0),
                            scale=Scale(np.array([2.0**27, 1], F32), rows=1),
                        ),
                        layout=ROWS,
                    ),
                )
            ),
        ),
    ]
