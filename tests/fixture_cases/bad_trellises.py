"""Invalid files: records, tiles, resident sections and bounds of trellis stages (SPEC 12)."""

# ruff: noqa: PLR0917 (a call is a row of a table)

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from vqmbuilder import (
    layr,
    section,
    u32,
)
from vqmtensors import (
    F32,
    Codebook,
    Layout,
    Scale,
    Tensor,
    edit,
    raw,
    tensor,
    with_section,
)
from vqmtrellis import (
    Freq,
    Trellis,
)

from fixture_cases import Case, invalid
from fixture_cases.bases import (
    ROWS,
    codes,
    column,
)
from fixture_cases.trellis_bases import base_tensor, base_trellis, books, freq, model

FORMAT, UNSUPPORTED = "format", "unsupported"
NAN, INF = float("nan"), float("inf")
SIBLING = "; sibling: valid/base-trellis.vqm"


def cases() -> list[Case]:
    return [*records(), *kinds(), *tiles(), *resident(), *bounds()]


def one(name: str, error: str, comment: str, clauses: str, of: Freq, *tensors: Tensor) -> Case:
    return invalid(name, error, comment, clauses, model(of.chunk(), layr("", *tensors)))


def coded(name: str, error: str, comment: str, clauses: str, path: Sequence[int], value: object) -> Case:
    """A field changed of valid/base-trellis.vqm: [4, source, trellis, scale, classes, freq, first, tile]."""
    item = edit(base_tensor(), (4, 0, *path), value)
    return one(name, error, comment + SIBLING, clauses, base_trellis().freq, item)


def records() -> Iterator[Case]:
    yield coded("cbk-007-trellis-shared", UNSUPPORTED, "a trellis stage with a BOOK", "CBK-007 TRL-005", (1,), [2, 0])
    yield coded(
        "cbk-007-trellis-floats",
        UNSUPPORTED,
        "a trellis stage with floating-point codes",
        "CBK-007 TRL-005",
        (1,),
        [4, 0, 1, 1, 0],
    )
    yield coded("cbk-007-trellis-source", UNSUPPORTED, "an unknown source", "CBK-007 TRL-005", (1,), [3, 11])
    yield coded("trl-005-table-f64", UNSUPPORTED, "a table of f64", "TRL-005 CBK-007", (1,), [0, 12])
    yield coded("trl-005-scale-i8", UNSUPPORTED, "scales of i8", "TRL-005 CBK-007", (3, 0), 2)
    one_scale = with_section(edit(base_tensor(), (4, 0, 3, 1), 3), 1, section(struct.pack("<f", 1)))
    yield one(
        "trl-005-scale-rows",
        FORMAT,
        "groups of 3 of 3 rows with scales",
        "TRL-005 CBK-003",
        base_trellis().freq,
        one_scale,
    )
    yield coded("trl-005-scale-columns", FORMAT, "groups of 5 of 5 columns", "TRL-005 CBK-003", (3, 2), 5)
    for name, comment, pair in [
        ("feedback", "feedback 512", (512, 4)),
        ("forward", "forward 512", (11, 512)),
        ("hostile", "feedback 2^63", (2**63, 4)),
        ("negative", "forward is negative", (11, -1)),
    ]:
        stage = Trellis(codes(3, (1, 12), 3), freq(9, 2, 3), (1, 12), step=1.5, trellis=pair)
        clauses = "TRL-003 MET-008" if name == "negative" else "TRL-003"
        yield one(f"trl-003-{name}", FORMAT, comment, clauses, stage.freq, tensor("a", "f32", [12], stage))
    yield coded("trl-004-classes-4", UNSUPPORTED, "bit 2 of classes", "TRL-004", (4,), 5)
    yield coded("trl-004-classes-bit-2", UNSUPPORTED, "bit 2 of classes alone", "TRL-004", (4,), 4)
    yield coded("trl-004-classes-large", UNSUPPORTED, "bit 40 of classes", "TRL-004", (4,), 2**40)
    yield coded("trl-004-first-hostile", FORMAT, "first is 2^64 - 1", "TRL-004", (6,), 2**64 - 1)
    yield coded("trl-004-first-class", FORMAT, "the tables of the second context are not there", "TRL-004", (6,), 1)
    of = freq(1, 2, 4)
    stage = Trellis(codes(1, (1, 5), 4), of, (1, 2), step=0.5, zero=2, trellis=(11, 4))
    item = tensor("a", "f32", [5], stage)

    def changed(name: str, comment: str, clauses: str, path: Sequence[int], value: object) -> Case:
        return one(name, FORMAT, comment, clauses, of, edit(item, (4, 0, *path), value))

    yield changed("trl-004-first", "first is the number of tables", "TRL-004", (6,), 2)
    yield changed("trl-004-first-books", "one table for two codebooks", "TRL-004", (6,), 1)
    yield changed("met-008-trellis-zero-true", "true as zero", "MET-008 TRL-005", (1, 1), True)
    limits = "zero is {}; sibling: valid/trellis-zero-limits.vqm"
    yield changed("trl-005-zero", limits.format("2^22 + 1"), "TRL-005", (1, 1), 2**22 + 1)
    yield changed("trl-005-zero-negative", limits.format("-2^22 - 1"), "TRL-005", (1, 1), -(2**22) - 1)
    yield changed("trl-005-zero-2-23", limits.format("2^23, as a codebook stage may have it"), "TRL-005", (1, 1), 2**23)
    yield one("ten-005-trellis", FORMAT, "a trellis stage of i32", "TEN-005", of, edit(item, (1,), 6))
    plain = raw("a", "f32", [5], bytes(20))
    both = edit(item, (4,), [*plain.record[4], *item.record[4]])
    yield one(
        "ten-005-raw-and-trellis",
        FORMAT,
        "a raw stage before a trellis stage",
        "TEN-005",
        of,
        replace(both, sections=(item.sections[0], plain.sections[0], *item.sections[1:])),
    )
    yield one("ten-006-stage-6", UNSUPPORTED, "the stage id after the last", "TEN-006", of, edit(item, (4, 0, 0), 6))
    extra = replace(base_tensor(), sections=(*base_tensor().sections, section(b"")))
    yield one("lyr-002-trellis-extra", FORMAT, "a section after the payload", "LYR-002", base_trellis().freq, extra)
    missing = replace(base_tensor(), sections=(*base_tensor().sections[:2], base_tensor().sections[3]))
    yield one("lyr-002-trellis-classes", FORMAT, "no section of classes", "LYR-002", base_trellis().freq, missing)


def kinds() -> Iterator[Case]:
    record = base_tensor().record[4][0]

    def bad(name: str, comment: str, path: Sequence[int], value: object, clauses: str = "MET-008") -> Case:
        return coded(f"met-008-trellis-{name}", FORMAT, comment, clauses, path, value)

    yield bad("fields", "a trellis stage of seven fields", (), record[:7])
    yield bad("fields-more", "a trellis stage of nine fields", (), [*record, 0])
    yield bad("source-nil", "a source that is nil", (1,), None)
    yield bad("source-empty", "a source of no fields", (1,), [])
    yield bad("source-fields", "a table of three fields", (1,), [0, 11, 0])
    yield bad("number", "a trellis that is a number", (2,), 11)
    yield bad("one-polynomial", "a trellis of one polynomial", (2,), [11])
    yield bad("three-polynomials", "a trellis of three polynomials", (2,), [11, 4, 2])
    yield bad("feedback-true", "true as feedback", (2, 0), True)
    yield bad("scale", "a scale of two fields", (3,), [11, 1])
    yield bad("classes-nil", "classes that are nil", (4,), None)
    yield bad("classes-negative", "classes that are negative", (4,), -1, "MET-008 TRL-004")
    yield bad("freq-negative", "the number of a FREQ is negative", (5,), -1, "MET-008 FRQ-004")
    yield bad("first-negative", "first is negative", (6,), -1, "MET-008 TRL-004")
    yield bad("tile-nil", "a tile that is nil", (7,), None)
    yield bad("tile-fields", "a tile of one field", (7,), [2])


def tiles() -> Iterator[Case]:
    def bad(
        name: str, comment: str, clauses: str, shape: tuple[int, int], tile: tuple[int, int], layout: Layout = ROWS
    ) -> Case:
        stage = Trellis(np.ones(shape, int), freq(1, 1, 2), tile, books(1, 1, 2))
        return one(name, FORMAT, comment, clauses, stage.freq, tensor("a", "f32", shape, stage, layout=layout))

    yield coded("trl-001-rows-0", FORMAT, "a tile of no rows", "TRL-001", (7, 0), 0)
    yield coded("trl-001-columns-0", FORMAT, "a tile of no columns", "TRL-001", (7, 1), 0)
    yield coded("trl-001-negative", FORMAT, "a tile of -2 columns", "TRL-001 MET-008", (7, 1), -2)
    yield coded("trl-001-hostile", FORMAT, "a tile of 2^63 × 2 elements", "TRL-001", (7, 0), 2**63)
    yield bad("trl-001-rows", "a tile of 4 rows of 3", "TRL-001", (3, 5), (4, 2))
    yield bad("trl-001-columns", "a tile of 6 columns of 5", "TRL-001", (3, 5), (2, 6))
    bands = Layout(n_row_axes=1, block_rows=2)
    yield bad(
        "trl-001-band",
        "a tile of 3 rows in bands of 2 rows; sibling: valid/trellis-bands.vqm",
        "TRL-001",
        (5, 4),
        (3, 2),
        bands,
    )
    ranges = Layout(n_row_axes=1, block_rows=1, block_columns=3)
    range_text = "in ranges of 3 columns; sibling: valid/trellis-ranges.vqm"
    yield bad("trl-001-range-rows", f"a tile of 2 rows {range_text}", "TRL-001", (3, 7), (2, 1), ranges)
    yield bad("trl-001-range-columns", f"a tile of 4 columns {range_text}", "TRL-001", (3, 7), (1, 4), ranges)
    yield bad(
        "trl-002-one", "65 codes in one sequence; sibling: valid/trellis-tile-64.vqm", "TRL-002", (1, 65), (1, 65)
    )
    yield bad(
        "trl-002-two",
        "129 codes in the first of two sequences; sibling: valid/trellis-tile-128.vqm",
        "TRL-002",
        (1, 130),
        (1, 129),
    )
    yield bad(
        "trl-002-bands",
        "72 codes in the one sequence of each of two bands",
        "TRL-002",
        (18, 8),
        (9, 8),
        Layout(n_row_axes=1, block_rows=9),
    )


def resident() -> Iterator[Case]:
    item, of = base_tensor(), base_trellis().freq

    def bad(name: str, comment: str, clauses: str, position: int, data: bytes) -> Case:
        return one(name, FORMAT, comment + SIBLING, clauses, of, with_section(item, position, section(data)))

    values = item.sections[0].stored
    yield bad("trl-005-table-nan", "a NaN in the second codebook", "TRL-005 CBK-008", 0, values[:28] + u32(0x7FC00000))
    yield bad("trl-005-table-infinity", "an infinity in a table", "TRL-005 CBK-008", 0, u32(0x7F800000) + values[4:])
    yield bad("trl-005-scale-nan", "a scale that is a NaN", "TRL-005 CBK-008", 1, struct.pack("<3f", 1, NAN, 1))
    yield bad("sec-004-trellis-table", "a table of one codebook for a trellis", "SEC-004", 0, values[:16])
    yield bad("sec-004-trellis-classes", "a class too many", "SEC-004", 2, b"\0\1\0\0")
    yield bad("trl-004-class", "class 2 with tables for classes 0 and 1", "TRL-004", 2, b"\0\2\0")
    yield bad("trl-004-class-255", "class 255 with tables for classes 0 and 1", "TRL-004", 2, b"\xff\0\0")
    stage = Trellis(codes(1, (1, 3), 4), freq(1, 1, 4), (1, 2), step=0.5)
    step = tensor("a", "f32", [3], stage)
    for name, value in [("nan", NAN), ("infinity", -INF)]:
        yield one(
            f"trl-005-step-{name}",
            FORMAT,
            f"a step that is {value}",
            "TRL-005 CBK-008",
            stage.freq,
            with_section(step, 0, section(struct.pack("<f", value))),
        )
    two_steps = with_section(step, 0, section(struct.pack("<2f", 0.5, 0.5)))
    yield one("sec-004-trellis-steps", FORMAT, "two steps", "SEC-004", stage.freq, two_steps)
    whole = freq(2, 3, 4)
    both = Trellis(codes(2, (2, 3), 4), whole, (1, 2), step=0.5, row_classes=[1, 0], column_classes=[0, 1, 0])
    yield one(
        "trl-004-sum",
        FORMAT,
        "row class 1 and column class 1 with tables for contexts 0 and 1",
        "TRL-004",
        replace(whole, tables=whole.tables[:2]),
        tensor("a", "f32", [2, 3], both, layout=ROWS),
    )


def bounds() -> Iterator[Case]:
    of = freq(3, 2, 9)
    some = np.array([[4, 3, 4, 5]])

    def bad(name: str, comment: str, dtype: str, *stages: Any) -> Case:
        with np.errstate(all="ignore"):
            item = tensor("a", dtype, [4], *stages)
        return one(f"val-002-trellis-{name}", FORMAT, comment, "VAL-002", of, item)

    def stage(**fields: Any) -> Trellis:
        return Trellis(some, of, (1, 4), **fields)

    yield bad(
        "f16",
        "(2 · 4 + 1) · step rounds to infinity in f16, though no code gets there; sibling: valid/trellis-bound-f16.vqm",
        "f16",
        stage(step=7_280, zero=4, trellis=(11, 4)),
    )
    yield bad("f16-none", "without trellis 8 · step rounds to infinity in f16", "f16", stage(step=-8_190))
    great = np.ones((2, 9), F32)
    great[1, 8] = 65_520
    yield bad(
        "table",
        "an entry of the second codebook that no code selects overflows in f16",
        "f16",
        stage(table=great, trellis=(0, 0)),
    )
    yield bad("progression", "17 · step overflows", "f32", stage(step=2.0**124, trellis=(11, 4)))
    yield bad(
        "scale",
        "the greatest entry times the greatest scale overflows",
        "f32",
        stage(table=great, scale=Scale(np.array([1, 2.0**120], F32), columns=2), trellis=(11, 4)),
    )
    limit = float(np.finfo(F32).max)
    yield bad(
        "sum",
        "the bounds of a trellis stage and of a codebook stage overflow together",
        "f32",
        stage(step=2.0**124),
        Codebook(np.array([[1, 1, 1, 1]]), column(limit, 0)),
    )
