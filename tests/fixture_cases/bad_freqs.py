"""Invalid files: FREQ chunks, and stages that use one that is not there (SPEC 6)."""



from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from vqmbuilder import (
    File,
    Section,
    chunk,
    layr,
    meta,
    section,
    zstd_section,
)
from vqmtensors import (
    F32,
    Codebook,
    tensor,
)

from fixture_cases import Case, invalid
from fixture_cases.bad_trellises import coded
from fixture_cases.trellis_bases import MINOR_1, base_tensor, base_trellis, freq, model

FORMAT, CHECKSUM, LIMIT, TRUNCATED = "format", "checksum", "limit", "truncated"
SIBLING = "; sibling: valid/base-trellis.vqm"


def cases() -> list[Case]:
    return [*freqs(), *uses()]


def freqs() -> Iterator[Case]:
    def bad(name: str, error: str, comment: str, clauses: str, record: object, *sections: bytes | Section) -> Case:
        stored = [item if isinstance(item, Section) else section(item) for item in sections]
        return invalid(name, error, comment, clauses, model(chunk(b"FREQ", record, stored)))

    yield bad("frq-001-precision-0", FORMAT, "precision 0", "FRQ-001", [0, 1, 1], b"\1")
    yield bad(
        "frq-001-precision-15",
        FORMAT,
        "precision 15; sibling: valid/freq-precision-14.vqm",
        "FRQ-001",
        [15, 2, 1],
        b"\1\2",
    )
    yield bad("frq-001-precision-hostile", FORMAT, "precision 2^63", "FRQ-001", [2**63, 2, 1], b"\1\2")
    yield bad("frq-001-entries-0", FORMAT, "no entries", "FRQ-001", [3, 0, 1], b"")
    yield bad(
        "frq-001-entries",
        FORMAT,
        "9 entries in 8 slots; sibling: valid/freq-full.vqm",
        "FRQ-001",
        [3, 9, 1],
        bytes(range(1, 10)),
    )
    yield bad("frq-001-entries-hostile", FORMAT, "2^64 - 1 entries", "FRQ-001", [14, 2**64 - 1, 1], b"\1")
    yield bad("frq-001-tables-0", FORMAT, "no tables", "FRQ-001", [3, 2, 0], b"")
    yield bad(
        "frq-001-tables-limit",
        LIMIT,
        "257 tables of precision 14; sibling: valid/freq-limit.vqm",
        "FRQ-001 LIM-001",
        [14, 2, 257],
        zstd_section(b"\5" * 514),
    )
    yield bad(
        "frq-001-tables-hostile",
        LIMIT,
        "tables · 2^precision is 2^64: zero in 64 bits",
        "FRQ-001 LIM-001",
        [14, 1, 2**50],
        b"\1",
    )
    yield bad("frq-002-no-section", FORMAT, "a FREQ without a section", "FRQ-002", [3, 2, 1])
    yield bad("frq-002-two-sections", FORMAT, "a FREQ with two sections", "FRQ-002", [3, 2, 1], b"\1\2", b"")
    yield bad("frq-003-zero", FORMAT, "a table without weights", "FRQ-003", [3, 2, 1], b"\0\0")
    yield bad("frq-003-last", FORMAT, "the last of three tables has no weight", "FRQ-003", [3, 2, 3], b"\1\0\0\1\0\0")
    yield bad("sec-004-freq-long", FORMAT, "a FREQ section of one byte more", "SEC-004", [3, 2, 1], b"\1\2\3")
    yield bad("sec-004-freq-short", FORMAT, "a FREQ section of one table less", "SEC-004", [3, 2, 2], b"\1\2")
    yield bad("sec-001-freq", CHECKSUM, "another CRC of a FREQ section", "SEC-001", [3, 2, 1], section(b"\1\2", crc=0))
    yield bad("met-008-freq-true", FORMAT, "true as number of tables of a FREQ", "MET-008", [3, 2, True], b"\1\2")
    yield bad("met-008-freq-negative", FORMAT, "a negative precision", "MET-008 FRQ-001", [-1, 2, 1], b"\1\2")
    yield bad("met-008-freq-fields", FORMAT, "a FREQ of four fields", "MET-008", [3, 2, 1, 0], b"\1\2")
    yield bad("met-008-freq-map", FORMAT, "a FREQ that is a map", "MET-008", {}, b"\1\2")
    item = freq(1, 1, 2).chunk()
    size = 2**24 + 1
    yield invalid(
        "chk-006-meta-freq",
        LIMIT,
        "meta of FREQ of 16 MiB + 1",
        "CHK-006 LIM-001",
        model(replace(item, meta_stored=size, meta_plain=size)),
    )
    yield invalid("fil-001-freq-first", FORMAT, "FREQ before META", "FIL-001", File((item, meta()), header=MINOR_1))
    data = model(item).build()
    yield invalid(
        "truncated-freq",
        TRUNCATED,
        "cut within the section of FREQ",
        "REA-001",
        data[: model(item).offsets()[-1] - 1],
    )


def uses() -> Iterator[Case]:
    of, item = base_trellis().freq, base_tensor()
    values = np.ones((1, 4, 1), F32)
    book = chunk(b"BOOK", [1, 4, 1, 11], [section(values.tobytes())])

    def bad(name: str, comment: str, clauses: str, made: File) -> Case:
        return invalid(name, FORMAT, comment + SIBLING, clauses, made)

    yield bad("frq-004-missing", "a stage uses FREQ 0, and there is none", "FRQ-004", model(layr("", item)))
    yield bad("frq-004-later", "a stage uses a FREQ that comes later", "FRQ-004", model(layr("", item), of.chunk()))
    yield coded("frq-004-number", FORMAT, "a stage uses FREQ 1 of 1", "FRQ-004", (5,), 1)
    yield coded("frq-004-hostile", FORMAT, "a stage uses FREQ 2^64 - 1", "FRQ-004", (5,), 2**64 - 1)
    yield bad("frq-004-book", "a stage uses FREQ 0, and there is a BOOK only", "FRQ-004", model(book, layr("", item)))
    shared = tensor("b", "f32", [3], Codebook(np.array([[1, 0, 3]]), values, book=0))
    yield bad(
        "bok-001-freq", "a stage uses BOOK 0, and there is a FREQ only", "BOK-001", model(of.chunk(), layr("", shared))
    )
