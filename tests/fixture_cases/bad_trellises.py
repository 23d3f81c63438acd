"""Invalid files: FREQ chunks, trellis stages and their payloads, floating-point codes (SPEC 6, 9.3 and 12)."""

# ruff: noqa: PLR0917 (a call is a row of a table)

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from vqmbuilder import (
    File,
    Section,
    chunk,
    layr,
    meta,
    section,
    u16,
    u32,
    zstd_section,
)
from vqmtensors import (
    F32,
    Codebook,
    Floats,
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
    frequencies,
)

from fixture_cases import Case, invalid
from fixture_cases.bases import (
    ROWS,
    base_codebook,
    codes,
    column,
)
from fixture_cases.trellises import (
    MINOR_1,
    base_floats,
    base_tensor,
    base_trellis,
    books,
    freq,
    model,
)

FORMAT, CHECKSUM, LIMIT, TRUNCATED, UNSUPPORTED = "format", "checksum", "limit", "truncated", "unsupported"
NAN, INF = float("nan"), float("inf")
SIBLING = "; sibling: valid/base-trellis.vqm"


def cases() -> list[Case]:
    return [*freqs(), *uses(), *records(), *kinds(), *tiles(), *resident(), *payloads(), *bounds(), *floats()]


def one(name: str, error: str, comment: str, clauses: str, of: Freq, *tensors: Tensor) -> Case:
    return invalid(name, error, comment, clauses, model(of.chunk(), layr("", *tensors)))


def coded(name: str, error: str, comment: str, clauses: str, path: Sequence[int], value: object) -> Case:
    """A field changed of valid/base-trellis.vqm: [4, source, trellis, scale, classes, freq, first, tile]."""
    item = edit(base_tensor(), (4, 0, *path), value)
    return one(name, error, comment + SIBLING, clauses, base_trellis().freq, item)


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
    yield one("ten-006-stage-5", UNSUPPORTED, "the stage id after the last", "TEN-006", of, edit(item, (4, 0, 0), 5))
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


def payloads() -> Iterator[Case]:
    of = Freq(14, (bytes([1, 1, 113, 240]),))
    stage = Trellis(np.array([[0, 1, 2, 3, 1, 0, 1], [1, 1, 0, 0, 3, 3, 2]]), of, (1, 4), step=0.5)
    item = tensor("a", "f32", [2, 7], stage, layout=ROWS)
    bands = tensor("a", "f32", [2, 7], stage, layout=Layout(n_row_axes=1, block_rows=1))
    good, n = item.sections[1].stored, 4
    first, second = (item.stored for item in bands.sections[1:])
    assert len(good) >= 4 * n + 8 and len(good) + 8 < 4 * n + 2 * 14 and len(first) > 8 and len(first) + 2 < 8 + 2 * 7
    no_words = Trellis(np.zeros((2, 20), int), Freq(5, (b"\1",)), (1, 2), step=0.5)
    lone = tensor("a", "f32", [2, 20], no_words, layout=ROWS)

    def bad(name: str, comment: str, clauses: str, *stored: bytes | Section, **fields: Any) -> Case:
        """Other payloads of ``item``, or of ``bands`` if there are two."""
        made = item if len(stored) == 1 else bands
        sections = [value if isinstance(value, Section) else section(value) for value in stored]
        made = replace(made, sections=(made.sections[0], *sections))
        return one(name, fields.pop("error", FORMAT), comment, clauses, of, made)

    def wordless(name: str, comment: str, clauses: str, stored: bytes | Section) -> Case:
        """Another payload for 20 sequences of a table of one code, 65,536 each and no words."""
        made = with_section(lone, 1, stored if isinstance(stored, Section) else section(stored))
        return one(name, FORMAT, comment, clauses, no_words.freq, made)

    states = lone.sections[1].stored
    assert states == u32(2**16) * 20
    # Eight codes of one slot each: 64 codes 0 leave nothing but words of 0
    zeros = Trellis(np.zeros((2, 64), int), Freq(3, (b"\5" * 8,)), (1, 64), step=0.5)
    line = tensor("a", "f32", [64], replace(zeros, codes=zeros.codes[:1]))
    lines = tensor("a", "f32", [2, 64], zeros, layout=Layout(n_row_axes=1, block_rows=1))
    plain = line.sections[1].stored
    packed = zstd_section(plain)
    assert plain.endswith(bytes(20)) and 4 <= len(packed.stored) < len(plain) and len(packed.stored) % 2 == 0
    yield one(
        "ans-001-zstd",
        FORMAT,
        "a payload stored with zstd, of a size that a plain one could have",
        "ANS-001",
        zeros.freq,
        with_section(line, 1, packed),
    )
    yield bad("ans-001-odd", "a byte after the words", "ANS-001", good + b"\0")
    yield bad("ans-001-odd-short", "half a word is missing", "ANS-001", good[:-1])
    yield wordless("ans-001-short", "a state is missing", "ANS-001", states[4:])
    yield wordless("ans-001-empty", "no bytes at all", "ANS-001", b"")
    yield bad(
        "ans-001-long", "a word more than there are codes", "ANS-001", good + bytes(4 * n + 2 * 14 + 2 - len(good))
    )
    yield bad("ans-001-hostile", "a payload of 2 GiB is announced", "ANS-001", section(good, length=2**31 - 2))
    two = Freq(3, (bytes([1, 113]),))
    assert frequencies(3, two.tables[0]) == (1, 7)
    early = tensor("a", "f32", [1], Trellis(np.array([[1]]), two, (1, 1), step=0.5))
    yield one(
        "ans-001-state",
        FORMAT,
        "a state of 2, from which the code and the last state follow with a word that was put out too early",
        "ANS-001",
        two,
        with_section(early, 1, section(u32(2) + u16(0))),
    )
    last = Freq(14, (bytes([240, 230, 235, 1]),))  # the last code has one slot, the last
    pair = tensor("a", "f32", [2], Trellis(np.array([[3, 2]]), last, (1, 2), step=0.5))
    before = int.from_bytes(pair.sections[1].stored[:4], "little") >> 14  # what the first code was coded into
    yield one(
        "ans-001-state-65535",
        FORMAT,
        "a state of 65,535, from which the codes and the last state follow with a word that was put out too early",
        "ANS-001",
        last,
        with_section(pair, 1, section(u32(2**16 - 1) + u16(before % 2**16) + pair.sections[1].stored[4:])),
    )
    yield wordless("ans-001-state-0", "states of 0", "ANS-001", bytes(80))
    yield bad("ans-002-word", "the last word is missing", "ANS-002", good[:-2])
    yield bad("ans-002-no-words", "there are no words", "ANS-002", good[: 4 * n])
    for name, made in [("zero", line), ("zero-last-block", lines)]:
        yield one(
            f"ans-002-{name}",
            FORMAT,
            "the last word is missing: it is 0, as what stands behind an array may be",
            "ANS-002",
            zeros.freq,
            with_section(made, -1, section(plain[:-2])),
        )
    yield bad(
        "ans-002-next-block",
        "the last word of a block is the first one of the next block",
        "ANS-002",
        first[:-2],
        second[:8] + first[-2:] + second[8:],
    )
    yield bad("ans-003-word", "a word is left", "ANS-003", good + u16(0))
    yield bad(
        "ans-003-word-first-block", "a word is left of the first of two blocks", "ANS-003", first + u16(7), second
    )
    yield bad("ans-003-word-last-block", "a word is left of the last of two blocks", "ANS-003", first, second + u16(7))
    yield wordless("ans-003-word-none", "a word, and the codes need none", "ANS-003", states + u16(0))
    off = replace(stage, ends=2**16 + 1)
    yield one(
        "ans-003-end",
        FORMAT,
        "the sequences end at 65,537",
        "ANS-003",
        of,
        tensor("a", "f32", [2, 7], off, layout=ROWS),
    )
    yield wordless("ans-003-end-last", "the last sequence ends at 2^17", "ANS-003", states[:-4] + u32(2**17))
    yield wordless("ans-003-end-large", "a sequence ends at 2^32 - 1", "ANS-003", u32(2**32 - 1) + states[4:])
    yield bad(
        "sec-001-trellis",
        "another CRC of a payload",
        "SEC-001",
        section(good, crc=0),
        error=CHECKSUM,
    )
    great = edit(edit(edit(item, (2,), [2**20]), (3,), None), (4, 0, 7), [1, 2**13])
    yield one(
        "lim-payload-not-there",
        TRUNCATED,
        "a payload of 4,094 bytes is announced for 2^20 codes, and the file is shorter",
        "REA-001 REA-002",
        of,
        with_section(great, 1, section(good, length=4_094)),
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


def floats() -> Iterator[Case]:
    """[1, dim, entries, source, choice, rows, columns, scale, planes], source [4, 1, 2, 1, -1]."""

    def field(
        name: str, error: str, comment: str, clauses: str, path: Sequence[int], value: object, *sections: bytes
    ) -> Case:
        item = edit(base_floats(), (4, 0, *path), value)
        if sections:
            item = replace(item, sections=tuple(map(section, sections)))
        return invalid(name, error, comment + "; sibling: valid/base-floats.vqm", clauses, model(layr("", item)))

    def bad(name: str, comment: str, path: Sequence[int], value: object, *sections: bytes) -> Case:
        return field(f"cbk-009-{name}", FORMAT, comment, "CBK-009", path, value, *sections)

    for name, comment, source in [
        ("signed", "signed is 2", (2, 1, 1, 0)),
        ("exponent-bits", "6 bits of exponent", (0, 6, 0, 0)),
        ("fraction-bits", "11 bits of fraction", (1, 0, 11, -11)),
        ("exponent-low", "exponent -121; sibling: valid/floats-limits.vqm", (1, 2, 1, -121)),
        ("exponent-high", "exponent 61; sibling: valid/floats-limits.vqm", (1, 2, 1, 61)),
    ]:
        item = tensor("a", "f32", [3], Codebook(np.array([[0, 3, 1]]), floats=Floats(*source)))
        yield invalid(f"cbk-009-{name}", FORMAT, comment, "CBK-009", model(layr("", item)))
    yield bad("signed-negative", "signed is -1", (3, 1), -1)
    yield bad("exponent-bits-negative", "-1 bits of exponent", (3, 2), -1)
    yield bad("exponent-bits-hostile", "2^40 bits of exponent", (3, 2), 2**40)
    yield bad("fraction-bits-negative", "-1 bits of fraction", (3, 3), -1)
    yield bad("exponent-hostile", "exponent 2^63", (3, 4), 2**63)
    yield bad("dim", "dim 2", (1,), 2, bytes(2))
    yield bad("entries-less", "15 entries for 4 bits", (2,), 15)
    yield bad("entries-more", "17 entries for 4 bits", (2,), 17, bytes(5))
    yield bad("book-rows", "a codebook for each row", (5,), 1)
    yield bad("book-columns", "codebooks by groups of two columns", (6,), 2)
    yield field("met-008-floats-fields", FORMAT, "four fields of five", "MET-008", (3,), [4, 1, 2, 1])
    yield field("met-008-floats-fields-more", FORMAT, "six fields, not five", "MET-008", (3,), [4, 1, 2, 1, -1, 0])
    yield field("met-008-floats-true", FORMAT, "true as signed", "MET-008", (3, 1), True)
    yield field("lyr-002-floats", FORMAT, "a section of steps", "LYR-002", (), base_floats().record[4][0],
                struct.pack("<f", 1), base_floats().sections[0].stored)  # fmt: skip
    source = edit(base_codebook(), (4, 0, 3), [3, 1, 2, 1, -1])
    yield invalid(
        "cbk-007-source-fields",
        UNSUPPORTED,
        "an unknown source of five fields; sibling: valid/base-codebook.vqm",
        "CBK-007",
        model(layr("", source)),
    )
    great = Codebook(np.array([[0, 1, 2]]), floats=Floats(0, 5, 10, -24))
    yield invalid(
        "val-002-floats-f16",
        FORMAT,
        "the largest code stands for 131,008, though it does not occur; sibling: valid/floats-bound-f16.vqm",
        "VAL-002",
        model(layr("", tensor("a", "f16", [3], great))),
    )
    scaled = Codebook(np.array([[0, 1, 2]]), floats=Floats(1, 5, 10, 60), scale=Scale(np.array([2.0**28], F32)))
    yield invalid(
        "val-002-floats-scale",
        FORMAT,
        "the largest code times the scale overflows; sibling: valid/floats-bound-f32.vqm",
        "VAL-002",
        model(layr("", tensor("a", "f32", [3], scaled))),
    )
    one_code = Codebook(np.array([[0, 1, 2]]), floats=Floats(0, 1, 1, 0))
    yield invalid(
        "cod-002-floats",
        FORMAT,
        "a bit after the last floating-point code",
        "COD-002 CBK-009",
        model(layr("", with_section(tensor("a", "f32", [3], one_code), 0, section(b"\x64")))),
    )
