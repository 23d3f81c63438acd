"""Invalid files: tensor records, aliases, layouts (SPEC 7)."""

# ruff: noqa: PLR0917 (a call is a row of a table)

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from vqmbuilder import (
    Section,
    file,
    frame,
    layr,
    rle_blocks,
    section,
    zstd_section,
)
from vqmtensors import (
    F32,
    Codebook,
    Layout,
    Scale,
    Tensor,
    alias,
    edit,
    empty,
    raw,
    tensor,
    with_section,
)

from fixture_cases import Case, invalid
from fixture_cases.bad_tensors import one
from fixture_cases.bases import (
    base_codebook,
    base_low_rank,
    base_raw,
    column,
    table,
)

FORMAT, CHECKSUM, LIMIT, TRUNCATED, UNSUPPORTED = "format", "checksum", "limit", "truncated", "unsupported"
NAN, INF = float("nan"), float("inf")


def cases() -> list[Case]:
    return [*records(), *layouts()]


def records() -> Iterator[Case]:
    a, zero = base_raw(), empty("z", "f32", [0, 5])
    b = raw("b", "u8", [1], b"\5")
    a_again = replace(b, record=["a", *b.record[1:]], entry=replace(b.entry, name=b"a"))
    stage = Codebook(np.array([[1, 0, 1]]), column(1, 2))
    item = tensor("a", "f32", [3], stage)
    item_u8 = raw("a", "u8", [1], b"\5")

    def bad(
        name: str, error: str, comment: str, clauses: str, path: Sequence[int], value: object, of: Tensor = a
    ) -> Case:
        return one(name, error, comment, clauses, edit(of, path, value))

    yield bad("ten-001-empty", FORMAT, "an empty name", "TEN-001", (0,), "")
    yield invalid(
        "ten-001-long",
        LIMIT,
        "a name of 1,024 characters and 1,025 bytes; sibling: valid/name-1024-bytes.vqm",
        "TEN-001",
        file(layr("", edit(a, (0,), "n" * 1023 + "é"), is_compressed=True), index_changes={"is_compressed": True}),
    )
    yield bad("ten-001-nul", FORMAT, "U+0000 in a name", "TEN-001", (0,), "a\0b")
    yield one("ten-002-same-layer", FORMAT, "a name twice in a layer", "TEN-002", a, a_again)
    yield invalid(
        "ten-002-other-layer", FORMAT, "a name in two layers", "TEN-002", file(layr("1", a), layr("2", a_again))
    )
    yield one("ten-002-alias", FORMAT, "an alias with the name of a tensor", "TEN-002", a, b, alias("b", a))
    yield one("ten-002-tensor", FORMAT, "a tensor with the name of an alias", "TEN-002", a, alias("b", a), b)
    yield bad("ten-003-rank", LIMIT, "rank 33; sibling: valid/shapes.vqm", "TEN-003", (2,), [1] * 33, item_u8)
    ranges = edit(a, (3,), [None, 1, 0, 1, 2**22])  # blocks within their limit
    yield bad("ten-003-product", LIMIT, "2^58 elements", "TEN-003", (2,), [2**29, 2**29], ranges)
    yield bad(
        "ten-003-product-of-non-zero",
        LIMIT,
        "sizes whose product without the 0 is 2^58; sibling: valid/empty-tensors.vqm",
        "TEN-003",
        (2,),
        [2**31, 0, 2**27],
        zero,
    )
    yield bad(
        "ten-003-product-overflow",
        LIMIT,
        "sizes whose product is 2^64: zero in 64 bits",
        "TEN-003",
        (2,),
        [2**32, 2**32],
        ranges,
    )
    one_row = edit(a, (3,), [None, 0, 0, 1, 2**22])
    yield bad("ten-003-size", LIMIT, "a size of 2^64 - 1", "TEN-003", (2,), [2**64 - 1], one_row)
    yield bad("ten-003-negative", FORMAT, "a negative size", "TEN-003 MET-008", (2,), [-4])
    yield bad("ten-004-empty-stage", FORMAT, "a stage of a tensor without elements", "TEN-004", (4,), [[0, 0]], zero)
    yield bad(
        "ten-004-empty-layout",
        FORMAT,
        "a layout of a tensor without elements",
        "TEN-004",
        (3,),
        [None, 0, 0, 0, 0],
        zero,
    )
    yield one("ten-004-no-stage", FORMAT, "no stage", "TEN-004", replace(edit(a, (4,), []), sections=()))
    no_stage = edit(raw("a", "f32", [1], bytes(4)), (4,), [])
    yield one("ten-004-no-stage-f32", FORMAT, "no stage of a dtype of arithmetic stages", "TEN-004",
              replace(no_stage, sections=()))  # fmt: skip
    yield one(
        "ten-004-seventeen-stages",
        LIMIT,
        "17 stages; sibling: valid/stages-sixteen.vqm",
        "TEN-004",
        tensor("a", "f32", [3], *[stage] * 17),
    )
    yield bad(
        "ten-005-two-raw",
        FORMAT,
        "two raw stages",
        "TEN-005",
        (4,),
        [[0, 0], [0, 0]],
        replace(a, sections=a.sections * 2),
    )
    f32 = raw("a", "f32", [3], bytes(12))
    yield one(
        "ten-005-raw-first",
        FORMAT,
        "a raw stage before a codebook stage",
        "TEN-005",
        replace(
            edit(f32, (4,), [[0, 0], *item.record[4]]), sections=(item.sections[0], f32.sections[0], item.sections[1])
        ),
    )
    yield one(
        "ten-005-raw-last",
        FORMAT,
        "a raw stage after a codebook stage",
        "TEN-005",
        replace(edit(f32, (4,), [*item.record[4], [0, 0]]), sections=(*item.sections, f32.sections[0])),
    )
    for dtype, number in [("i32", 6), ("f4_e2m1fn", 22)]:
        yield bad(f"ten-005-{dtype}", FORMAT, f"a codebook stage of {dtype}", "TEN-005", (1,), number, item)
    yield one("ten-005-low-rank", FORMAT, "a low-rank stage of i8", "TEN-005", edit(base_low_rank(), (1,), 2))
    yield bad("ten-006-stage", UNSUPPORTED, "an unknown stage", "TEN-006", (4,), [[3, 0]])
    yield bad("ten-006-dtype", UNSUPPORTED, "the first unknown dtype", "TEN-006", (1,), 23)
    gib = Section(frame(2**30, blocks=rle_blocks(0, 131_072)), is_zstd=True)
    wide = tensor("a", "f32", [1], Codebook(np.array([[0]]), np.zeros((1, 65_536, 1), F32)))
    yield one(
        "ten-007-table",
        LIMIT,
        "a table of 1 GiB",
        "TEN-007",
        edit(edit(with_section(wide, 0, gib), (4, 0, 1), 4_096), (2,), [4_096]),
    )
    steps = Codebook(np.zeros((1, 1), int), steps=np.ones(1, F32), entries=1, scale=Scale(np.ones(1, F32), 1, 1))
    many = edit(edit(tensor("a", "f32", [1], steps), (2,), [2**13, 2**13 + 1]), (3,), [None, 1, 0, 511, 0])
    size = 4 * 2**13 * (2**13 + 1)
    above = Section(frame(size, blocks=rle_blocks(0, 131_072)), is_zstd=True)
    yield one(
        "ten-007-scales",
        LIMIT,
        "scales of 256 MiB and 32 KiB",
        "TEN-007",
        replace(many, sections=(many.sections[0], above, *[section(b"")] * 17)),
    )
    yield one(
        "ali-001-missing", FORMAT, "the target does not exist", "ALI-001", a, replace(alias("b", a), record=["b", "c"])
    )
    yield invalid(
        "ali-001-long",
        LIMIT,
        "a target of 1,025 bytes",
        "ALI-001",
        file(layr("", a, replace(alias("b", a), record=["b", "n" * 1025]), is_compressed=True)),
    )
    yield one("ali-001-later", FORMAT, "the target comes later", "ALI-001", alias("0", a), a)
    yield one("ali-001-itself", FORMAT, "an alias of itself", "ALI-001", a, replace(alias("b", a), record=["b", "b"]))
    again = replace(alias("c", a), record=["c", "b"], entry=replace(alias("c", a).entry, target=b"b"))
    yield one("ali-001-alias", FORMAT, "an alias of an alias", "ALI-001", a, alias("b", a), again)
    yield invalid(
        "ali-001-layer",
        FORMAT,
        "the target is the name of a layer",
        "ALI-001",
        file(layr("l", a), layr("m", replace(alias("c", a), record=["c", "l"]))),
    )


def layouts() -> Iterator[Case]:
    item, a = base_codebook(), base_raw()
    stage = Codebook(np.array([[0, 1, 2], [2, 1, 0], [1, 1, 2]]), table(1, 1, 3, 2))
    matrix = raw("a", "u8", [2, 3], b"abcdef")

    def layout(name: str, error: str, comment: str, clauses: str, value: list[object], of: Tensor = item) -> Case:
        return one(name, error, comment, clauses, edit(of, (3,), value))

    def grid(name: str, error: str, comment: str, clauses: str, **fields: Any) -> Case:
        return one(
            name, error, comment, clauses, tensor("a", "f32", [3, 6], stage, layout=Layout(n_row_axes=1, **fields))
        )

    scalar = tensor("a", "f32", [], Codebook(np.array([[1]]), column(1, 2)))
    parts = tensor("a", "c64", [2, 2], Codebook(np.zeros((1, 8), int), column(1, 2)))
    yield layout("lay-001-identity", FORMAT, "axes that change nothing", "LAY-001", [[0, 1], 1, 0, 0, 0])
    yield layout("lay-001-identity-scalar", FORMAT, "axes of a scalar", "LAY-001", [[], 0, 0, 0, 0], scalar)
    yield layout("lay-001-twice", FORMAT, "an axis twice", "LAY-001", [[1, 1], 1, 0, 0, 0])
    yield layout("lay-001-range", FORMAT, "an axis that the shape does not have", "LAY-001", [[1, 2], 1, 0, 0, 0])
    yield layout("lay-001-short", FORMAT, "an axis is missing", "LAY-001", [[0], 1, 0, 0, 0])
    yield layout(
        "lay-001-complex",
        FORMAT,
        "axes without the appended axis of a complex tensor",
        "LAY-001",
        [[1, 0], 0, 0, 0, 0],
        parts,
    )
    yield layout("lay-001-n-row-axes", FORMAT, "three row axes of two", "LAY-001", [None, 3, 0, 0, 0])
    yield layout("lay-001-n-row-axes-negative", FORMAT, "minus one row axis", "LAY-001 MET-008", [None, -1, 0, 0, 0])
    yield layout(
        "lay-001-n-row-axes-raw-complex",
        FORMAT,
        "a raw complex vector has one axis",
        "LAY-001",
        [None, 2, 0, 0, 0],
        raw("a", "c64", [1], bytes(8)),
    )
    yield layout("lay-002-axes", FORMAT, "axes with a raw stage", "LAY-002", [[1, 0], 1, 0, 0, 0], matrix)
    ordered = edit(matrix, (3,), [None, 1, 1, 0, 0])
    yield one(
        "lay-002-order",
        FORMAT,
        "an order with a raw stage",
        "LAY-002",
        replace(ordered, sections=(section(b"\1\0"), *ordered.sections)),
    )
    one_column = raw("a", "u8", [2, 1], b"\1\0")
    yield one("lay-002-order-column", FORMAT, "an order of a raw column; classes and data are alike", "LAY-002",
              replace(edit(one_column, (3,), [None, 1, 1, 0, 0]), sections=one_column.sections * 2))  # fmt: skip
    yield layout("lay-003-bit-2", UNSUPPORTED, "bit 2 of order", "LAY-003", [None, 1, 4, 0, 0])
    yield layout("lay-003-large", UNSUPPORTED, "bit 40 of order", "LAY-003", [None, 1, 2**40, 0, 0])
    yield grid("lay-004-all-rows", FORMAT, "block_rows is the number of rows", "LAY-004", block_rows=3)
    yield grid("lay-004-more-rows", FORMAT, "block_rows above the number of rows", "LAY-004", block_rows=4)
    yield grid(
        "lay-004-all-columns",
        FORMAT,
        "block_columns is the number of columns",
        "LAY-004",
        block_rows=1,
        block_columns=6,
    )
    yield grid(
        "lay-004-rows-and-columns",
        FORMAT,
        "blocks of two rows and two columns",
        "LAY-004",
        block_rows=2,
        block_columns=2,
    )
    yield grid("lay-004-columns-only", FORMAT, "block_columns without block_rows", "LAY-004", block_columns=2)
    yield layout("lay-004-one-row", FORMAT, "bands of one row of one", "LAY-004", [None, 0, 0, 1, 0], a)
    yield layout("lay-004-hostile", FORMAT, "block_rows of 2^64 - 1", "LAY-004", [None, 1, 0, 2**64 - 1, 0])
    n = 4_194_305
    big = raw("a", "u8", [n], bytes(n), seal=lambda data: zstd_section(data, blocks=rle_blocks(0, n)))
    yield one("lay-005-block", LIMIT, "a block of 4,194,305 elements; sibling: valid/block-limit.vqm", "LAY-005", big)
    yield layout(
        "lay-005-band",
        LIMIT,
        "a band of 2 rows of 2^22 elements",
        "LAY-005",
        [None, 1, 0, 2, 0],
        edit(a, (2,), [3, 2**22]),
    )
    yield layout(
        "lay-005-range", LIMIT, "a range of 4,194,305 columns", "LAY-005", [None, 0, 0, 1, n], edit(a, (2,), [2**30])
    )
    yield layout("lay-005-shape-hostile", LIMIT, "2^57 elements in one block", "LAY-005", None, edit(a, (2,), [2**57]))
    row_classes = tensor("a", "f32", [3, 6], stage, layout=Layout(n_row_axes=1, order=1), row_classes=[1, 0, 1])
    yield one(
        "sec-004-classes", FORMAT, "a class too many", "SEC-004", with_section(row_classes, 0, section(b"\1\0\1\0"))
    )
    yield one(
        "lyr-002-classes",
        FORMAT,
        "no section of classes, though the rows are ordered",
        "LYR-002",
        replace(row_classes, sections=row_classes.sections[1:]),
    )
