"""Invalid files: low-rank stages and bounds (SPEC 7.4 and 11)."""

# ruff: noqa: PLR0917 (a call is a row of a table)

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from vqmbuilder import (
    Section,
    file,
    layr,
    section,
    zstd_section,
)
from vqmtensors import (
    F32,
    Codebook,
    Layout,
    LowRank,
    Scale,
    Tensor,
    edit,
    tensor,
    with_section,
)

from fixture_cases import Case, invalid
from fixture_cases.bad_tensors import one
from fixture_cases.bases import (
    ROWS,
    base_low_rank,
    book_chunk,
    column,
)

FORMAT, CHECKSUM, LIMIT, TRUNCATED, UNSUPPORTED = "format", "checksum", "limit", "truncated", "unsupported"
NAN, INF = float("nan"), float("inf")


def cases() -> list[Case]:
    return [*low_rank(), *bounds()]


def low_rank() -> Iterator[Case]:
    """The stage [2, rank, [entries_u, planes_u], [entries_v, planes_v], [dtype_r, size_r], [dtype_c, size_c]]."""
    item = base_low_rank()

    def field(name: str, error: str, comment: str, clauses: str, path: Sequence[int], value: object) -> Case:
        return one(
            name, error, comment + "; sibling: valid/base-low-rank.vqm", clauses, edit(item, (4, 0, *path), value)
        )

    def stored(name: str, comment: str, clauses: str, position: int, data: bytes) -> Case:
        return one(name, FORMAT, comment, clauses, with_section(item, position, section(data)))

    nothing = LowRank(np.zeros((4, 0), int), np.zeros((0, 5), int), 7, 3)
    yield one("low-001-rank-0", FORMAT, "rank 0", "LOW-001", tensor("a", "f32", [4, 5], nothing, layout=ROWS))
    yield field("low-001-rank-limit", LIMIT, "rank 65,537", "LOW-001", (1,), 65_537)
    for name, sizes in [("u-1", (1, 3)), ("u-65536", (65_536, 3)), ("v-1", (7, 1)), ("v-65536", (7, 65_536))]:
        stage = LowRank(np.zeros((4, 3), int), np.zeros((3, 5), int), *sizes)
        comment = f"entries_{name[0]} {max(sizes) if '65536' in name else 1:,}"
        yield one(f"low-001-entries-{name}", FORMAT, comment, "LOW-001",
                  tensor("a", "f32", [4, 5], stage, layout=ROWS))  # fmt: skip
    tall = tensor("a", "f32", [4, 2], LowRank(np.zeros((4, 3), int), np.zeros((3, 2), int), 16, 15), layout=ROWS)
    yield one("low-001-rank-above-columns", FORMAT, "rank 3 of 2 columns", "LOW-001", tall)
    flat = tensor("a", "f32", [4], LowRank(np.zeros((1, 2), int), np.zeros((2, 4), int), 16, 15))
    yield one("low-001-rank-above-rows", FORMAT, "rank 2 of one row", "LOW-001", flat)
    plain = LowRank(np.zeros((4, 3), int), np.zeros((3, 6), int), 16, 15)
    yield one(
        "low-002-block-columns",
        FORMAT,
        "ranges of columns",
        "LOW-002",
        tensor("a", "f32", [4, 6], plain, layout=Layout(n_row_axes=1, block_rows=1, block_columns=2)),
    )
    mixed = tensor(
        "a",
        "f32",
        [4, 6],
        Codebook(np.zeros((4, 6), int), column(1, 2)),
        plain,
        layout=Layout(n_row_axes=1, block_rows=1, block_columns=2),
    )
    yield one("low-002-second-stage", FORMAT, "ranges of columns, the low-rank stage the second one", "LOW-002", mixed)
    yield field("low-003-size-r", FORMAT, "groups of 4 of 4 rows", "LOW-003 CBK-003", (4, 1), 4)
    yield field("low-003-size-c", FORMAT, "groups of 5 of 5 columns", "LOW-003 CBK-003", (5, 1), 5)
    yield field("low-003-dtype-r", UNSUPPORTED, "row scales of f64", "LOW-003 CBK-007", (4, 0), 12)
    yield field("low-003-dtype-c", UNSUPPORTED, "column scales of an unknown dtype", "LOW-003 CBK-007", (5, 0), 77)
    yield stored("low-003-scale-r", "a row scale that is a NaN", "LOW-003 CBK-008", 0, struct.pack("<4f", 1, 1, 1, NAN))
    yield stored("low-003-scale-c", "an infinite column scale", "LOW-003 CBK-008", 1, struct.pack("<f", INF))
    yield stored("low-003-code-u", "code 7 of 7 in the left factor", "LOW-003 COD-001", -1, b"\7\0\0\0\0")
    yield stored(
        "low-003-bits-u", "a bit after the last code of the left factor", "LOW-003 COD-002", -1, b"\0\0\0\0\x80"
    )
    yield stored("low-003-byte-v", "a byte of 243 in the right factor", "LOW-003 COD-005", 2, b"\xf3\0\0")
    yield field(
        "low-003-planes-v",
        FORMAT,
        "four digits of base 7 to a byte in the right factor",
        "LOW-003 COD-003",
        (3, 1),
        [[7, 4]],
    )
    yield field(
        "low-003-planes-u",
        FORMAT,
        "a plane of base 6 for 7 entries in the left factor",
        "LOW-003 COD-004",
        (2, 1),
        [[6, 3]],
    )
    yield field("met-008-factor", FORMAT, "a factor of one field", "MET-008", (2,), [16])
    yield field("met-008-low-rank-scale", FORMAT, "a scale without group size", "MET-008", (4,), [11])
    yield one(
        "met-008-low-rank-fields",
        FORMAT,
        "a low-rank stage of five fields",
        "MET-008",
        edit(item, (4, 0), item.record[4][0][:5]),
    )
    yield one(
        "sec-004-factor", FORMAT, "a right factor of one byte more", "SEC-004", with_section(item, 2, section(bytes(4)))
    )
    yield one(
        "low-001-right-factor", LIMIT, "a right factor of 4,097 × 4,096 elements", "LOW-001 LIM-001", _great_factor()
    )


def _great_factor() -> Tensor:
    """4,097 × 4,096 elements: not of rank 4,096, but the sections are those that this rank would need."""
    rank, size = 4_096, 4_097
    item = tensor("a", "f32", [2], LowRank(np.zeros((1, 1), int), np.zeros((1, 2), int), 2, 2))

    def zeros(n_bits: int) -> Section:
        return zstd_section(bytes(-(-n_bits // 8)))

    bands = [zeros(512 * rank)] * 8 + [zeros(rank)]
    item = edit(edit(edit(item, (2,), [size, size]), (3,), [None, 1, 0, 512, 0]), (4, 0, 1), rank)
    return replace(item, sections=(*item.sections[:2], zeros(rank * size), *bands))


def bounds() -> Iterator[Case]:
    limit = float(np.finfo(F32).max)
    codes = np.array([[0, 1, 0]])

    def refused(name: str, comment: str, dtype: str, *stages: Codebook | LowRank, layout: Layout | None = None) -> Case:
        shape = [3, 3] if layout else [] if dtype == "c64" else [3]
        with np.errstate(all="ignore"):
            return one(f"val-002-{name}", FORMAT, comment, "VAL-002", tensor("a", dtype, shape, *stages, layout=layout))

    yield refused(
        "scale",
        "the greatest entry times the scale overflows",
        "f32",
        Codebook(codes, column(1, limit), scale=Scale(np.array([2], F32))),
    )
    yield refused(
        "scale-of-another-group",
        "the greatest entry times the greatest scale overflows, though no code meets it; "
        "sibling: valid/bound-unused-scale.vqm",
        "f32",
        Codebook(codes, column(2.0**100, 2.0, 3), scale=Scale(np.array([1, 1, 2.0**28], F32), columns=1)),
    )
    yield refused(
        "unused-entry",
        "an entry that no code selects overflows in f16; sibling: valid/bound-f16.vqm",
        "f16",
        Codebook(codes, column(1, 2, 65_520)),
    )
    yield refused("f16", "65,520 rounds to infinity in f16", "f16", Codebook(codes, column(1, -65_520)))
    yield refused("bf16", "an f32 that rounds to infinity in bf16", "bf16", Codebook(codes, column(1, limit)))
    yield refused(
        "sum",
        "the bounds of two stages overflow, the values do not",
        "f32",
        Codebook(codes, column(limit, 1)),
        Codebook(codes, column(-limit, 1)),
    )
    yield refused(
        "sum-f16",
        "the bounds of two stages overflow in f16, the values do not",
        "f16",
        Codebook(codes, column(65_000, 1)),
        Codebook(codes, column(-1_000, 1)),
    )
    yield refused(
        "complex",
        "c64 has the bound of f32",
        "c64",
        Codebook(np.array([[0, 1]]), column(1, limit), scale=Scale(np.array([-1.5], F32))),
    )
    yield refused(
        "f64",
        "f64 has the bound of f32: arithmetic is in binary32",
        "f64",
        Codebook(codes, column(1, limit)),
        Codebook(codes, column(1, limit)),
    )
    yield refused(
        "progression",
        "(entries - 1 - zero) · step overflows, though no code gets there",
        "f32",
        Codebook(codes, steps=np.array([2.0**125], F32), entries=9),
    )
    yield refused(
        "low-rank",
        "rank · 8 · 7 · scales overflows",
        "f32",
        LowRank(np.full((3, 3), 8), np.full((3, 3), 7), 16, 15, np.array([2.0**124], F32)),
        layout=ROWS,
    )
    shared = column(1, limit)
    stage = Codebook(codes, shared, book=0, scale=Scale(np.array([2], F32)))
    with np.errstate(all="ignore"):
        item = tensor("a", "f32", [3], stage)
    yield invalid(
        "val-002-book",
        FORMAT,
        "the greatest entry of a BOOK times the scale overflows",
        "VAL-002",
        file(book_chunk(shared), layr("", item)),
    )
