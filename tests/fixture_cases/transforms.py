"""Valid files: trellis stages with a transform (SPEC 12.5)."""

from __future__ import annotations

from typing import Any

import numpy as np
from vqmbuilder import layr, zstd_section
from vqmtensors import F32, Codebook, Layout, LowRank, Scale, Tensor, tensor, with_section
from vqmtrellis import Freq, Trellis

from fixture_cases import Case, valid
from fixture_cases.bases import ROWS, codes, scales, table
from fixture_cases.trellis_bases import coded, freq, model


def matrix(seed: int, size: int) -> np.ndarray:
    """Integers of which none is like another one's transpose; the least and the largest are among them."""
    out = np.random.RandomState(seed).randint(-128, 128, (size, size)).astype(np.int8)
    out[0, -1], out[-1, 0] = -128, 127
    return out


def base(**changes: Any) -> Trellis:
    """6 × 5 in two groups of 3 rows, two codebooks of 5 entries."""
    fields: dict[str, Any] = {"freq": freq(1, 2, 5), "tile": (2, 2), "trellis": (11, 4)}
    fields |= {"step": 0.01, "zero": 2, "matrix": matrix(1, 3)}
    return Trellis(codes(1, (6, 5), 5), **{**fields, **changes})


def base_tensor(layout: Layout = ROWS) -> Tensor:
    return tensor("a", "f32", [6, 5], base(), layout=layout)


def nearly_too_large(factor: np.ndarray) -> Tensor:
    """A tensor of f16: 131 is too large a sum of magnitudes in a column, 129 is not."""
    step = 65_536 / (130 * 5)  # points are -4 to 5
    return tensor("a", "f16", [6, 5], base(matrix=factor, step=step), layout=ROWS)


def cases() -> list[Case]:
    whole = Trellis(codes(2, (4, 3), 5), freq(2, 1, 5), (1, 3), step=-0.7, zero=3, matrix=matrix(2, 4))
    fine = Trellis(codes(3, (4, 5), 9), freq(3, 2, 9), (3, 4), step=0.3, zero=-(2**22), matrix=matrix(3, 2),
                   trellis=(37, 8))  # fmt: skip
    odd = np.array([[127, 1], [-3, 126]], np.int8)
    exact = Trellis(np.array([[3], [1]]), Freq(3, (bytes([20] * 4),)), (1, 1), step=1.0, zero=-(2**22), matrix=odd)
    zeros = Trellis(codes(4, (4, 3), 4), freq(4, 1, 4), (2, 1), step=-1.0, zero=1, matrix=np.zeros((2, 2), np.int8))
    nothing = Trellis(np.full((4, 3), 2), freq(4, 1, 4), (2, 1), step=1.0, zero=2, matrix=np.full((2, 2), -1, np.int8))
    limit = Trellis(codes(5, (128, 2), 3), freq(5, 1, 3), (4, 1), step=2.0**-10, zero=1,
                    matrix=np.where(np.eye(128, dtype=bool), 127, np.int8(0)).astype(np.int8))  # fmt: skip
    most = tensor("a", "f32", [128, 2], limit, layout=ROWS)
    scaled = base(scale=Scale(scales(6, 6), rows=1), row_classes=[0, 1, 0, 0, 0, 1], freq=freq(1, 4, 5))
    by_columns = base(column_classes=[1, 0, 0, 1, 0], freq=freq(6, 4, 5), trellis=(333, 242))
    product = LowRank(codes(1, (6, 2), 16), codes(2, (2, 5), 15), 16, 15, np.array([0.1], F32))
    book = Codebook(codes(2, (6, 5), 6), table(3, 1, 6, 1, np.float16))

    def summed(name: str, comment: str, *stages: Any, layout: Layout = ROWS, dtype: str = "f32") -> Case:
        item = tensor("a", dtype, [6, 5], *stages, layout=layout)
        return valid(name, comment, "TRL-006 VAL-001", model(base().freq.chunk(), layr("", item)))

    return [
        coded("transform", "two groups of 3 rows; a sequence has rows of both", "TRL-006", base()),
        coded("transform-of-all", "one group of all rows, without trellis; the step is negative", "TRL-006", whole),
        coded("transform-bands", "a group in each band", "TRL-006", base(), Layout(n_row_axes=1, block_rows=3)),
        coded("transform-beyond-f32", "sums of more than 2^29: each is rounded once, not its terms", "TRL-006", fine),
        coded("transform-once", "a sum that binary32 does not hold, of terms that it does not hold", "TRL-006", exact),
        coded("transform-zeros", "a matrix of zeros: 0 times a negative step is -0", "TRL-006 CNV-006", zeros),
        coded("transform-plus-zero", "products that are all -0 in floating point: their sum is 0, not -0",
              "TRL-006 CNV-006", nothing),
        valid("transform-bound", "f16; sums of columns of the matrix fit, those of rows would not", "VAL-002",
              model(base().freq.chunk(), layr("", nearly_too_large(np.array([[-128, 3], [1, 2]], np.int8))))),
        valid("transform-limit", "groups of 128 rows; the matrix is compressed", "TRL-006 LIM-001",
              model(limit.freq.chunk(), layr("", with_section(most, 0, zstd_section(most.sections[0].stored))))),
        coded("transform-scaled", "scales and classes of rows", "TRL-006 TRL-004", scaled),
        coded("transform-classes", "classes of columns, 256 states", "TRL-006 TRL-004", by_columns),
        coded("transform-f16", "rounded to f16", "TRL-006 VAL-001", base(), dtype="f16"),
        coded("transform-kernel", "a 5×2×3 tensor viewed as 2·3 rows and 5 columns", "TRL-006 LAY-001", base(),
              Layout((1, 2, 0), 2), shape=(5, 2, 3)),
        coded("transform-order", "groups are of stored rows, here ordered by class", "TRL-006 LAY-003", base(),
              Layout(None, 1, 1), row_classes=[1, 0, 1, 0, 0, 1]),
        coded("transform-complex", "c64: groups of real and imaginary parts", "TRL-006", base(),
              Layout((2, 0, 1), 2), "c64", (3, 5)),
        summed("transform-after-product", "a low-rank stage, then a transform", product, base()),
        summed("transform-and-book", "a transform, then a codebook stage, in bands; bf16", base(), book,
               layout=Layout(n_row_axes=1, block_rows=3), dtype="bf16"),
    ]  # fmt: skip
