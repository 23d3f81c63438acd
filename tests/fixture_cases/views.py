"""Valid files: axes, order, blocks (SPEC 7.2)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from vqmbuilder import (
    file,
    layr,
)
from vqmtensors import (
    Codebook,
    Layout,
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
    return [*views()]


def views() -> list[Case]:
    stage = Codebook(codes(1, (5, 4), 6), table(2, 3, 6, 2), book_rows=2, scale=Scale(scales(3, 9), rows=2, columns=3))
    row_classes, column_classes = [2, 0, 1, 0, 2], [1, 0, 255, 0, 1, 7, 1]
    conv = Codebook(codes(4, (6, 5), 4), table(5, 2, 4, 2), book_rows=3, scale=Scale(scales(6, 6), rows=1))
    complex_stage = Codebook(codes(7, (3, 4), 5), table(8, 1, 5, 1))
    parts = Codebook(codes(9, (4, 3), 5), table(10, 2, 5, 1), book_rows=2)

    def ordered(name: str, comment: str, order: int, **blocks: int) -> Case:
        layout = Layout(n_row_axes=1, order=order, **blocks)
        item = tensor(
            "a",
            "f32",
            [5, 7],
            stage,
            layout=layout,
            row_classes=row_classes if order & 1 else (),
            column_classes=column_classes if order & 2 else (),
        )
        return valid(name, comment, "LAY-003 LAY-004", file(layr("", item)))

    def blocks(name: str, comment: str, layout: Layout, shape: Sequence[int] = (5, 7)) -> Case:
        return valid(name, comment, "LAY-004 CBK-002", file(layr("", tensor("a", "f32", shape, stage, layout=layout))))

    one_row = Codebook(codes(2, (1, 6), 6), table(3, 2, 6, 2), book_columns=4)
    return [
        ordered("order-rows", "rows by class; groups are of stored rows", 1),
        ordered("order-columns", "columns by class; subvectors and groups are of stored columns", 2),
        ordered("order-both", "rows and columns by class", 3),
        ordered("order-both-blocks", "rows and columns by class, in bands of stored rows", 3, block_rows=3),
        ordered(
            "order-both-ranges",
            "rows and columns by class, in ranges of stored columns",
            3,
            block_rows=1,
            block_columns=4,
        ),
        valid(
            "order-identity",
            "classes that change nothing",
            "LAY-003",
            file(
                layr(
                    "",
                    tensor(
                        "a",
                        "f32",
                        [5, 7],
                        stage,
                        layout=Layout(n_row_axes=1, order=3),
                        row_classes=[9] * 5,
                        column_classes=[0, 1, 2, 3, 4, 5, 6],
                    ),
                )
            ),
        ),
        blocks("blocks-rows", "bands of 2 of 5 rows, the last one shorter", Layout(n_row_axes=1, block_rows=2)),
        blocks("blocks-each-row", "a block for each row", Layout(n_row_axes=1, block_rows=1)),
        blocks(
            "blocks-columns",
            "ranges of 4 of 7 columns with subvectors of 2",
            Layout(n_row_axes=1, block_rows=1, block_columns=4),
        ),
        blocks(
            "blocks-columns-one-subvector",
            "ranges of one subvector",
            Layout(n_row_axes=1, block_rows=1, block_columns=2),
        ),
        valid(
            "blocks-of-one-row",
            "a vector: one row, in ranges",
            "LAY-004",
            file(layr("", tensor("a", "f32", [11], one_row, layout=Layout(block_rows=1, block_columns=4)))),
        ),
        valid(
            "axes-conv",
            "a 2×5×3×2 tensor viewed as 3·2 rows and 5·2 columns",
            "LAY-001",
            file(layr("", tensor("a", "f32", [2, 5, 3, 2], conv, layout=Layout(axes=(2, 0, 1, 3), n_row_axes=2)))),
        ),
        valid(
            "axes-and-order",
            "axes permuted, rows ordered by class, bands",
            "LAY-001 LAY-003",
            file(
                layr(
                    "",
                    tensor(
                        "a",
                        "bf16",
                        [2, 5, 3, 2],
                        conv,
                        layout=Layout((2, 0, 1, 3), 2, 1, 4),
                        row_classes=[1, 0, 1, 0, 0, 1],
                    ),
                )
            ),
        ),
        valid(
            "axes-not-self-inverse",
            "a permutation of three axes that is not its own inverse",
            "LAY-001",
            file(
                layr(
                    "",
                    tensor(
                        "a",
                        "f32",
                        [3, 2, 2],
                        Codebook(codes(8, (2, 6), 12), table(9, 1, 12, 1)),
                        layout=Layout(axes=(1, 2, 0), n_row_axes=1),
                    ),
                )
            ),
        ),
        valid(
            "axes-all-rows",
            "all axes are rows: one column",
            "LAY-001",
            file(
                layr(
                    "",
                    tensor(
                        "a", "f32", [2, 3], Codebook(codes(8, (6, 1), 4), table(9, 1, 4, 1)), layout=Layout((1, 0), 2)
                    ),
                )
            ),
        ),
        valid(
            "complex-c64",
            "the axis of real and imaginary part is the last one",
            "LAY-001 VAL-001",
            file(layr("", tensor("a", "c64", [3, 2], complex_stage, layout=ROWS))),
        ),
        valid(
            "complex-c128-axes",
            "real parts as rows, imaginary parts as rows; widened to f64",
            "LAY-001 VAL-001",
            file(layr("", tensor("a", "c128", [2, 3], parts, layout=Layout(axes=(2, 0, 1), n_row_axes=2)))),
        ),
        valid(
            "complex-scalar",
            "a complex scalar is a row of two",
            "LAY-001",
            file(layr("", tensor("a", "c64", [], Codebook(np.array([[1, 0]]), column(1.25, -3))))),
        ),
        valid(
            "scalar-coded",
            "a scalar with a codebook stage",
            "TEN-003",
            file(layr("", tensor("a", "f32", [], Codebook(np.array([[1]]), column(1, 2))))),
        ),
        valid(
            "layout-nil-coded",
            "layout nil: a matrix as one row",
            "LAY-001",
            file(layr("", tensor("a", "f32", [2, 3], Codebook(codes(5, (1, 3), 4), table(6, 1, 4, 2))))),
        ),
    ]
