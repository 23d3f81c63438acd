"""Invalid files: raw and codebook stages, codes (SPEC 8 to 10)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from vqmbuilder import (
    file,
    layr,
    section,
    zstd_section,
)
from vqmtensors import (
    F32,
    Codebook,
    Layout,
    Tensor,
    edit,
    raw,
    tensor,
    with_section,
)

from fixture_cases import Case, invalid
from fixture_cases.bad_tensors import coded, one
from fixture_cases.bases import (
    ROWS,
    base_codebook,
    base_raw,
    book_chunk,
    column,
    table,
)

FORMAT, CHECKSUM, LIMIT, TRUNCATED, UNSUPPORTED = "format", "checksum", "limit", "truncated", "unsupported"
NAN, INF = float("nan"), float("inf")


def cases() -> list[Case]:
    return [*raws(), *codebooks(), *packings()]


def raws() -> Iterator[Case]:
    a, words = base_raw(), raw("a", "u16", [3], b"abcdef", split=1)
    yield one(
        "dty-001-bool",
        FORMAT,
        "a bool of 2",
        "DTY-001",
        with_section(raw("a", "bool", [3], b"\0\1\0"), 0, section(b"\0\1\2")),
    )
    yield one(
        "dty-001-bool-255",
        FORMAT,
        "a bool of 255, compressed",
        "DTY-001",
        with_section(raw("a", "bool", [64], bytes(64)), 0, zstd_section(b"\xff" + bytes(63))),
    )
    yield one("raw-001-split", UNSUPPORTED, "split 3", "RAW-001", edit(words, (4, 0, 1), 3))
    yield one("raw-001-split-u8", FORMAT, "split 1 of a dtype of 8 bits", "RAW-001", edit(a, (4, 0, 1), 1))
    yield one(
        "raw-001-split-f8",
        FORMAT,
        "split 2 of a dtype of 8 bits",
        "RAW-001",
        edit(raw("a", "f8_e5m2", [2], b"ab"), (4, 0, 1), 2),
    )
    yield one(
        "raw-001-split-u4",
        FORMAT,
        "split 1 of a dtype of 4 bits",
        "RAW-001",
        edit(raw("a", "u4", [2], b"a"), (4, 0, 1), 1),
    )
    yield one(
        "raw-002-unused-bits",
        FORMAT,
        "unused bits that are not zero; sibling: valid/raw-4-bit-odd.vqm",
        "RAW-002",
        raw_nibbles(b"\x21\x13"),
    )
    rows = raw("a", "u4", [2, 3], b"\x21\x43\x65", layout=Layout(n_row_axes=1, block_rows=1))
    yield one(
        "raw-002-unused-bits-block",
        FORMAT,
        "unused bits of a block that are the next block's first element",
        "RAW-002",
        with_section(rows, 0, section(b"\x21\x43")),
    )
    yield one(
        "raw-003-no-planes",
        FORMAT,
        "split 1 with the bytes in one section",
        "RAW-003 LYR-002",
        replace(words, sections=(section(b"abcdef"),)),
    )
    yield one(
        "raw-003-complex-planes",
        FORMAT,
        "split 1 of c64 in eight planes, not four",
        "RAW-003 LYR-002",
        replace(raw("a", "c64", [2], bytes(16), split=1), sections=(section(bytes(2)),) * 8),
    )
    yield one(
        "raw-003-plane-size",
        FORMAT,
        "planes of two and of four bytes for three words",
        "RAW-003 SEC-004",
        replace(words, sections=(section(b"ab"), section(b"cdef"))),
    )


def raw_nibbles(data: bytes) -> Tensor:
    """Three elements of u4 in these bytes."""
    return with_section(raw("a", "u4", [3], data[:1] + bytes([data[1] & 15])), 0, section(data))


def codebooks() -> Iterator[Case]:
    item = base_codebook()
    progression = tensor("a", "f32", [4], Codebook(np.array([[0, 1, 2, 3]]), steps=np.array([0.5], F32), entries=4))

    def values(name: str, comment: str, position: int, data: bytes, of: Tensor = item) -> Case:
        return one(name, FORMAT, comment, "CBK-008", with_section(of, position, section(data)))

    yield coded("cbk-001-dim-0", FORMAT, "dim 0", "CBK-001", (1,), 0)
    yield coded("cbk-001-entries-0", FORMAT, "no entries", "CBK-001", (2,), 0)
    yield coded("cbk-001-dim-limit", LIMIT, "dim 4,097", "CBK-001", (1,), 4_097)
    yield coded("cbk-001-entries-limit", LIMIT, "65,537 entries", "CBK-001", (2,), 65_537)
    above = tensor("a", "f32", [3, 6], Codebook(np.array([[0], [2], [1]]), table(1, 1, 3, 7)), layout=ROWS)
    yield one("cbk-001-dim-above-columns", FORMAT, "dim 7 of 6 columns", "CBK-001", above)
    yield coded("cbk-001-entries-hostile", LIMIT, "2^63 entries", "CBK-001", (2,), 2**63)
    wide = Codebook(np.array([[0, 1, 2], [2, 1, 0]]), table(1, 1, 3, 2))
    ranges = tensor("a", "f32", [2, 6], wide, layout=Layout(n_row_axes=1, block_rows=1, block_columns=2))
    yield one(
        "cbk-002-block-columns",
        FORMAT,
        "ranges of 3 columns, subvectors of 2",
        "CBK-002",
        replace(edit(ranges, (3, 4), 3), sections=(ranges.sections[0], *[section(b"\4")] * 4)),
    )
    yield coded("cbk-003-book-rows", FORMAT, "book_rows is the number of rows", "CBK-003", (5,), 3)
    yield coded("cbk-003-book-rows-negative", FORMAT, "book_rows is negative", "CBK-003 MET-008", (5,), -1)
    yield coded("cbk-003-book-columns", FORMAT, "book_columns is the number of subvectors", "CBK-003", (6,), 3)
    yield coded(
        "cbk-003-book-columns-are-subvectors",
        FORMAT,
        "book_columns below the columns, above the subvectors",
        "CBK-003",
        (6,),
        4,
    )
    yield one(
        "cbk-003-scale-rows",
        FORMAT,
        "groups of 3 of 3 rows with scales",
        "CBK-003",
        with_section(edit(item, (4, 0, 7, 1), 3), 1, section(struct.pack("<f", 1))),
    )
    yield one(
        "cbk-003-scale-columns", FORMAT, "groups of 6 of 6 columns with scales", "CBK-003", edit(item, (4, 0, 7, 2), 6)
    )
    yield one("cbk-003-one-row", FORMAT, "groups of 1 of 1 row", "CBK-003", edit(progression, (4, 0, 5), 1))
    yield coded("cbk-004-choice", UNSUPPORTED, "choice 1", "CBK-004", (4,), 1)
    yield one(
        "cbk-005-dim",
        FORMAT,
        "a progression with dim 2",
        "CBK-005",
        edit(with_section(progression, 1, section(b"\x04")), (4, 0, 1), 2),
    )
    yield one("met-008-zero-true", FORMAT, "true as zero of a progression", "MET-008",
              edit(progression, (4, 0, 3, 1), True))  # fmt: skip
    yield one("met-008-zero-nil", FORMAT, "a zero that is nil", "MET-008", edit(progression, (4, 0, 3, 1), None))
    yield one(
        "cbk-005-zero",
        FORMAT,
        "zero is 2^23 + 1; sibling: valid/progression-zero-limits.vqm",
        "CBK-005",
        edit(progression, (4, 0, 3, 1), 2**23 + 1),
    )
    yield one(
        "cbk-005-zero-negative", FORMAT, "zero is -2^23 - 1", "CBK-005", edit(progression, (4, 0, 3, 1), -(2**23) - 1)
    )
    shared = table(1, 2, 3, 2)
    user = Codebook(np.array([[0, 1, 2], [2, 1, 0]]), shared, book=0, book_rows=1)
    for name, changes, comment in [
        ("entries", {"table": table(1, 2, 4, 2)}, "4 entries of a BOOK of 3"),
        ("dim", {"table": table(1, 2, 3, 3)}, "dim 3 of a BOOK of dim 2"),
        ("groups", {"book_rows": 0}, "one group of a BOOK of 2"),
        ("groups-more", {"book_columns": 2}, "four groups of a BOOK of 2"),
    ]:
        stage = replace(user, **changes)
        if name == "groups-more":
            stage = replace(stage, table=table(1, 4, 3, 2))
        yield invalid(
            f"cbk-006-{name}",
            FORMAT,
            comment,
            "CBK-006",
            file(book_chunk(shared), layr("", tensor("a", "f32", [2, 6], stage, layout=ROWS))),
        )
    yield coded("cbk-007-source", UNSUPPORTED, "an unknown source", "CBK-007", (3,), [3, 0])
    yield coded("cbk-007-table-f64", UNSUPPORTED, "a table of f64", "CBK-007", (3,), [0, 12])
    yield coded("cbk-007-table-i64", UNSUPPORTED, "a table of i64, the dtype before f16", "CBK-007", (3,), [0, 8])
    yield coded("cbk-007-table-unknown", UNSUPPORTED, "a table of an unknown dtype", "CBK-007", (3,), [0, 40])
    yield coded("cbk-007-scale-i8", UNSUPPORTED, "scales of i8", "CBK-007", (7, 0), 2)
    yield values(
        "cbk-008-table-nan",
        "a NaN in a table; no code selects it",
        0,
        struct.pack("<4f", 1, 1, NAN, 0),
        tensor("a", "f32", [3], Codebook(np.array([[0, 1, 1]]), column(1, 2, 3, 4))),
    )
    yield values("cbk-008-table-infinity", "an infinity in a table", 0, struct.pack("<6f", 1, 2, 3, 4, 5, -INF))
    yield values("cbk-008-scale", "an infinite scale", 1, struct.pack("<3f", 1, INF, 1))
    yield values("cbk-008-scale-nan", "a scale that is a NaN", 1, struct.pack("<3f", NAN, 1, 1))
    yield values("cbk-008-step", "a step that is a NaN", 0, struct.pack("<f", NAN), progression)
    f16 = tensor("a", "f32", [3], Codebook(np.array([[0, 1, 1]]), column(1, 2, dtype=np.float16)))
    yield values("cbk-008-table-f16", "an infinity in a table of f16", 0, b"\0\x3c\0\xfc", f16)
    yield one(
        "sec-004-table", FORMAT, "a table of one value less", "SEC-004", with_section(item, 0, section(bytes(20)))
    )
    yield one("sec-004-codes", FORMAT, "codes of one byte more", "SEC-004", with_section(item, -1, section(bytes(4))))
    yield one(
        "lyr-002-scales",
        FORMAT,
        "no section of scales",
        "LYR-002",
        replace(item, sections=(item.sections[0], item.sections[2])),
    )


def packings() -> Iterator[Case]:
    """Codes 2 0 1 1 2 1 of 3 entries, dense in 12 bits or as a plane of base 3."""
    codes = np.array([[2, 0, 1, 1, 2, 1]])

    def stored(
        name: str, comment: str, clauses: str, planes: tuple[tuple[int, int], ...], *sections: bytes, entries: int = 3
    ) -> Case:
        stage = Codebook(np.minimum(codes, entries - 1), column(*range(entries)))
        item = edit(tensor("a", "f32", [6], stage), (4, 0, 8), [list(plane) for plane in planes])
        return one(name, FORMAT, comment, clauses, replace(item, sections=(item.sections[0], *map(section, sections))))

    good = b"\xc8\x01"
    yield stored("cod-001-dense", "code 3 of 3 entries, dense", "COD-001", (), b"\x52\x07")
    yield stored("cod-001-whole-byte", "code 3 of 3 entries, dense, in a full byte", "COD-001", (), b"\x07\0")
    yield stored("cod-001-dense-3-bits", "code 5 of 5 entries, dense", "COD-001", (), b"\x05\0\0", entries=5)
    yield stored("cod-001-planes", "code 3 of 3 entries in a plane of base 4", "COD-001", ((4, 4),), b"\x52\x07")
    yield stored("cod-001-whole-plane-byte", "code 3 of 3 entries in a plane of base 4, in a full byte",
                 "COD-001", ((4, 4),), b"\x07\0")  # fmt: skip
    yield stored(
        "cod-001-two-planes", "code 3 of 3 entries in two planes of bits", "COD-001", ((2, 8), (2, 8)), b"\x01", b"\x01"
    )
    yield stored("cod-002-bits", "a bit after the last code", "COD-002", (), b"\x52\x16")
    yield stored("cod-002-last-bit", "the highest bit after the last code", "COD-002", (), b"\x52\x86")
    yield stored("cod-003-base-0", "base 0", "COD-003", ((0, 1),), bytes(6))
    yield stored(
        "cod-003-base-1", "a plane of base 1 after a plane of base 3", "COD-003", ((3, 5), (1, 1)), good, bytes(6)
    )
    yield stored("cod-003-base-1-first", "a plane of base 1 before a plane of base 3", "COD-003", ((1, 1), (3, 5)),
                 bytes(6), good)  # fmt: skip
    yield stored("cod-003-base-257", "base 257", "COD-003", ((257, 1),), bytes(6))
    yield stored("cod-003-n-0", "no digits to a byte", "COD-003", ((3, 0),), good)
    yield stored("cod-003-n-6", "six digits of base 3 to a byte", "COD-003", ((3, 6),), b"\xc8")
    yield stored("cod-003-n-hostile", "2^62 digits to a byte", "COD-003", ((3, 2**62),), b"\xc8")
    yield stored("cod-003-256-2", "two digits of base 256 to a byte", "COD-003", ((256, 2),), bytes(3))
    yield stored("cod-004-product", "base 2 for 3 entries", "COD-004", ((2, 8),), b"\x01")
    yield stored(
        "cod-004-superfluous", "a second plane, though the first is enough", "COD-004", ((3, 5), (2, 8)), good, b"\0"
    )
    yield stored("cod-004-one-entry", "a plane for one entry, which needs none", "COD-004", ((2, 8),), b"\0", entries=1)
    yield stored(
        "cod-004-four-planes",
        "four planes",
        "COD-004",
        ((2, 8), (2, 8), (2, 8), (2, 8)),
        b"\0",
        b"\0",
        b"\0",
        b"\0",
        entries=9,
    )
    yield stored("cod-005-byte", "a byte of 243 in a plane of five digits of base 3", "COD-005", ((3, 5),), b"\xf3\x01")
    yield stored("cod-005-filled-up", "a filled-up digit that is not 0", "COD-005", ((3, 5),), b"\xc8\x04")
    yield stored("sec-004-plane", "a plane of a byte too much", "SEC-004", ((3, 5),), good + b"\0")
    few = tensor("a", "f32", [3], Codebook(np.array([[0, 0, 0]]), column(7)))
    yield one("sec-004-no-bits", FORMAT, "a byte for codes of 0 bits", "SEC-004", with_section(few, 1, section(b"\0")))
    rows = tensor(
        "a",
        "f32",
        [2, 3],
        Codebook(np.array([[1, 0, 1], [1, 1, 1]]), column(1, 2)),
        layout=Layout(n_row_axes=1, block_rows=1),
    )
    yield one(
        "cod-002-first-block",
        FORMAT,
        "a bit after the last code of the first of two blocks",
        "COD-002",
        with_section(rows, 1, section(b"\x0d")),
    )
