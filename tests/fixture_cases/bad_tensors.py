"""Invalid files: BOOK and LAYR, kinds of values in a record (SPEC 5 to 7)."""

# ruff: noqa: PLR0917 (a call is a row of a table)

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from vqmbuilder import (
    Section,
    chunk,
    file,
    frame,
    layr,
    rle_blocks,
    section,
)
from vqmtensors import (
    Codebook,
    Tensor,
    alias,
    edit,
    empty,
    raw,
    tensor,
)

from fixture_cases import Case, invalid
from fixture_cases.bases import (
    base_codebook,
    base_raw,
    book_chunk,
    table,
)

FORMAT, CHECKSUM, LIMIT, TRUNCATED, UNSUPPORTED = "format", "checksum", "limit", "truncated", "unsupported"
NAN, INF = float("nan"), float("inf")


def cases() -> list[Case]:
    return [*books(), *layers(), *kinds()]


def one(name: str, error: str, comment: str, clauses: str, *tensors: Tensor) -> Case:
    return invalid(name, error, comment, clauses, file(layr("", *tensors)))


def coded(name: str, error: str, comment: str, clauses: str, path: Sequence[int], value: object) -> Case:
    """A field changed of valid/base-codebook.vqm: [1, dim, entries, source, choice, rows, columns, scale, planes]."""
    return one(
        name,
        error,
        comment + "; sibling: valid/base-codebook.vqm",
        clauses,
        edit(base_codebook(), (4, 0, *path), value),
    )


def books() -> Iterator[Case]:
    values = table(1, 1, 2, 1)
    user = tensor("a", "f32", [3], Codebook(np.array([[1, 0, 1]]), values, book=0))

    def book(name: str, error: str, comment: str, clauses: str, record: object, *sections: bytes | Section) -> Case:
        stored = [item if isinstance(item, Section) else section(item) for item in sections]
        return invalid(name, error, comment, clauses, file(chunk(b"BOOK", record, stored)))

    yield invalid("bok-001-missing", FORMAT, "a stage uses BOOK 0, and there is none", "BOK-001", file(layr("", user)))
    yield invalid(
        "bok-001-later",
        FORMAT,
        "a stage uses a BOOK that comes later",
        "BOK-001",
        file(layr("", user), book_chunk(values)),
    )
    yield invalid(
        "bok-001-number",
        FORMAT,
        "a stage uses BOOK 1 of 1",
        "BOK-001",
        file(book_chunk(values), layr("", edit(user, (4, 0, 3, 1), 1))),
    )
    for position, field in enumerate(["dim", "entries", "groups"]):
        record = [1, 1, 1, 11]
        record[position] = 0
        yield book(f"bok-002-{field}-0", FORMAT, f"a BOOK with {field} 0", "BOK-002", record, b"")
        record[position] = [4_097, 65_537, 1_048_577][position]
        plain = bytes(4 * record[position])
        stored = Section(frame(plain, blocks=rle_blocks(0, len(plain))), is_zstd=True)
        yield book(f"bok-002-{field}-limit", LIMIT, f"a BOOK with {field} above its limit", "BOK-002", record, stored)
    yield book("bok-002-nan", FORMAT, "a NaN in a BOOK", "BOK-002", [1, 2, 1, 11], struct.pack("<2f", 1, NAN))
    yield book(
        "bok-002-infinity", FORMAT, "an infinity in a BOOK of bf16", "BOK-002", [1, 2, 1, 10], b"\x80\x3f\x80\xff"
    )
    yield book(
        "bok-002-infinity-f16", FORMAT, "an infinity in a BOOK of f16", "BOK-002", [2, 1, 1, 9], b"\x00\x3c\x00\x7c"
    )
    yield book("cbk-007-book-f64", UNSUPPORTED, "a BOOK of f64", "CBK-007", [1, 2, 1, 12], bytes(16))
    yield book("cbk-007-book-unknown", UNSUPPORTED, "a BOOK of an unknown dtype", "CBK-007", [1, 2, 1, 99], bytes(8))
    yield book("met-008-book-true", FORMAT, "true as dim of a BOOK", "MET-008", [True, 2, 1, 11], bytes(8))
    yield book("sec-004-book", FORMAT, "a BOOK section of a value too much", "SEC-004", [1, 2, 1, 11], bytes(12))
    yield book("bok-003-no-section", FORMAT, "a BOOK without a section", "BOK-003", [1, 2, 1, 11])
    yield book("bok-003-two-sections", FORMAT, "a BOOK with two sections", "BOK-003", [1, 2, 1, 11], bytes(8), b"")
    yield book(
        "lim-book-section",
        LIMIT,
        "a BOOK section of 1 GiB",
        "LIM-001",
        [4_096, 65_536, 1, 11],
        Section(frame(2**30, blocks=rle_blocks(0, 131_072)), is_zstd=True),
    )


def layers() -> Iterator[Case]:
    a, b = base_raw(), raw("b", "u8", [2], b"xy")
    yield invalid("lyr-001-no-tensor", FORMAT, "a layer without tensors", "LYR-001", file(layr("l")))
    yield invalid(
        "lim-layer-name",
        LIMIT,
        "a layer name of 1,025 bytes; sibling: valid/many-layers.vqm",
        "LIM-001",
        file(layr("n" * 1025, a, is_compressed=True)),
    )
    yield invalid(
        "met-008-layer-name",
        FORMAT,
        "a layer name that is nil",
        "MET-008",
        file(chunk(b"LAYR", [None, [a.record]], a.sections, tensors=(a,))),
    )
    yield invalid(
        "met-008-layer-map",
        FORMAT,
        "tensors as a map",
        "MET-008",
        file(chunk(b"LAYR", ["", {"a": a.record}], a.sections, tensors=(a,))),
    )
    yield one(
        "lyr-002-section-more",
        FORMAT,
        "a section that no tensor needs",
        "LYR-002",
        a,
        replace(b, sections=(*b.sections, section(b""))),
    )
    yield one(
        "lyr-002-section-less", FORMAT, "the second tensor's section is missing", "LYR-002", a, replace(b, sections=())
    )
    yield one(
        "lyr-002-alias-section",
        FORMAT,
        "a section for an alias",
        "LYR-002",
        a,
        replace(alias("b", a), sections=a.sections),
    )
    yield one(
        "lyr-002-empty-section",
        FORMAT,
        "a section of 0 bytes for a tensor without elements",
        "LYR-002",
        replace(empty("a", "f32", [0]), sections=(section(b""),)),
    )
    yield one(
        "lyr-002-order",
        FORMAT,
        "the sections of two tensors exchanged",
        "LYR-002 SEC-004",
        replace(a, sections=b.sections),
        replace(b, sections=a.sections),
    )
    yield one(
        "lyr-002-hostile-blocks",
        FORMAT,
        "2^24 blocks of one byte are announced, and one section is there",
        "LYR-002",
        edit(edit(a, (2,), [2**24]), (3,), [None, 0, 0, 1, 1]),
    )


def kinds() -> Iterator[Case]:
    """MET-008: a value of another kind, or an array of another length, in a record."""
    a, stage = base_raw(), base_codebook()
    for name, path, value, comment in [
        ("name-bin", (0,), b"a", "a tensor name that is a bin"),
        ("dtype-text", (1,), "u8", "a dtype that is a string"),
        ("dtype-true", (1,), True, "a dtype that is true"),
        ("shape-nil", (2,), None, "a shape that is nil"),
        ("shape-integer", (2,), 4, "a shape that is an integer"),
        ("shape-true", (2,), [4, True], "a size that is true"),
        ("layout-integer", (3,), 0, "a layout that is 0"),
        ("layout-short", (3,), [None, 0, 0, 0], "a layout of four fields"),
        ("axes-integer", (3,), [0, 0, 0, 0, 0], "axes that are 0"),
        ("n-row-axes-nil", (3,), [None, None, 0, 0, 0], "n_row_axes that is nil"),
        ("block-columns-negative", (3,), [None, 0, 0, 1, -2], "block_columns that is negative"),
        ("block-columns-text", (3,), [None, 1, 0, 4, "a"], "block_columns that is a string; block_rows is all rows"),
        ("stages-nil", (4,), None, "stages that are nil"),
        ("stage-integer", (4,), [0], "a stage that is an integer"),
        ("stage-one", (4,), [1], "a stage that is 1"),
        ("stage-empty", (4,), [[]], "a stage without fields"),
        ("stage-id-nil", (4,), [[None, 0]], "a stage id that is nil"),
        ("stage-id-negative", (4,), [[-1, 0]], "a stage id that is negative"),
        ("raw-short", (4,), [[0]], "a raw stage of one field"),
        ("split-nil", (4,), [[0, None]], "a split that is nil"),
    ]:
        yield one(
            f"met-008-{name}",
            FORMAT,
            comment + "; sibling: valid/base-raw.vqm",
            "MET-008 LAY-004" if name == "block-columns-negative" else "MET-008",
            edit(a, path, value),
        )
    for name, record in [
        ("record-1", ["a"]),
        ("record-3", a.record[:3]),
    ]:
        yield one(
            f"met-008-{name}", FORMAT, f"a tensor record of {len(record)} fields", "MET-008", replace(a, record=record)
        )
    yield one(
        "met-008-record-map", FORMAT, "a tensor record that is a map", "MET-008", replace(a, record={"name": "a"})
    )
    yield one("met-008-record-text", FORMAT, "a tensor record that is a string of two characters", "MET-008",
              a, replace(alias("b", a), record="ba"))  # fmt: skip
    yield one(
        "met-008-target",
        FORMAT,
        "an alias whose target is a position",
        "MET-008",
        a,
        replace(alias("b", a), record=["b", 0]),
    )
    for name, path, value, comment in [
        ("codebook-short", (), stage.record[4][0][:8], "a codebook stage of eight fields"),
        ("entries-true", (2,), True, "entries that are true"),
        ("source-nil", (3,), None, "a source that is nil"),
        ("source-short", (3,), [0], "a source of one field"),
        ("source-id-nil", (3,), [None, 11], "a source id that is nil"),
        ("table-dtype-text", (3,), [0, "f32"], "a table dtype that is a string"),
        ("scale-integer", (7,), 0, "a scale that is 0"),
        ("scale-short", (7,), [11, 1], "a scale of two fields"),
        ("planes-nil", (8,), None, "planes that are nil"),
        ("plane-short", (8,), [[3]], "a plane of one field"),
    ]:
        yield (
            coded(f"met-008-{name}", FORMAT, comment, "MET-008", path, value)
            if path
            else one(f"met-008-{name}", FORMAT, comment, "MET-008", edit(stage, (4, 0), value))
        )
