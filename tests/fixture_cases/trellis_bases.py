"""What the cases of FREQ chunks, trellis stages and floating-point codes share."""

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

MINOR_1 = MAGIC + u16(1) + u16(1) + u32(0)


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
