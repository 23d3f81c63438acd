"""Valid files: floating-point codes (SPEC 9.3), of minor version 1."""

from __future__ import annotations

from typing import Any

import numpy as np
from vqmbuilder import (
    file,
    layr,
)
from vqmtensors import (
    F32,
    Codebook,
    Floats,
    Layout,
    Scale,
    Tensor,
    tensor,
)

from fixture_cases import Case, valid
from fixture_cases.bases import (
    ROWS,
    codes,
    scales,
)
from fixture_cases.trellis_bases import base_floats, model


def cases() -> list[Case]:
    return [*floats()]


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
