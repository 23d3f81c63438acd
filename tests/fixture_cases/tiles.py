"""Valid files: tiles, views and blocks of trellis stages (SPEC 12.1)."""

from __future__ import annotations

from typing import Any

import numpy as np
from vqmtensors import (
    Layout,
    Scale,
)
from vqmtrellis import (
    Freq,
    Trellis,
)

from fixture_cases import Case
from fixture_cases.bases import (
    ROWS,
    codes,
    scales,
)
from fixture_cases.trellis_bases import books, coded, freq


def cases() -> list[Case]:
    return [*tiles(), *views()]


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
        of("tile-128-rows", "128 codes and 1 code in two sequences below each other", (129, 1), (128, 1)),
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
