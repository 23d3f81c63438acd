"""Invalid files: one above a limit or a width, one field too many, other kinds of value (SPEC 4, 5, 7, 13, 14)."""



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
    meta,
    raw_block,
    rle_block,
    rle_blocks,
    section,
    u32,
)
from vqmtensors import (
    F32,
    Codebook,
    Layout,
    LowRank,
    Tensor,
    alias,
    edit,
    empty,
    raw,
    tensor,
    with_section,
)

from fixture_cases import Case, invalid
from fixture_cases.bad_metadata import fields_of
from fixture_cases.bad_tensors import one
from fixture_cases.bases import (
    ROWS,
    base_codebook,
    base_low_rank,
    base_raw,
    noise,
)
from fixture_cases.trellis_bases import base_tensor, base_trellis, model

FORMAT, CHECKSUM, LIMIT, TRUNCATED = "format", "checksum", "limit", "truncated"
NOT_THERE = Section(b"", is_zstd=True, length=1 << 31 | 1 << 20)  # 1 MiB is announced, and the file is shorter


def cases() -> list[Case]:
    return [*field_counts(), *index_kinds(), *forms(), *claims(), *columns(), *sections(), *legal()]


def field_counts() -> Iterator[Case]:
    def more(name: str, comment: str, path: Sequence[int], item: Tensor) -> Case:
        value = item.record
        for step in path:
            value = value[step]
        return one(f"met-008-more-{name}", FORMAT, comment, "MET-008", edit(item, path, [*value, 0]))

    a, item = base_raw(), base_codebook()
    progression = tensor("a", "f32", [4], Codebook(np.array([[0, 1, 2, 3]]), steps=np.array([0.5], F32), entries=4))
    digits = Codebook(np.array([[2, 0, 1, 1, 2, 1]]), np.ones((1, 3, 1), F32), planes=((3, 5),))
    planes = tensor("a", "f32", [6], digits)
    yield one("met-008-more-tensor", FORMAT, "a tensor of six fields", "MET-008", replace(a, record=[*a.record, 0]))
    yield one("met-008-more-alias", FORMAT, "an alias of three fields", "MET-008", a,
              replace(alias("b", a), record=["b", "a", 0]))  # fmt: skip
    yield more("layout", "a layout of six fields", (3,), item)
    yield more("raw", "a raw stage of three fields", (4, 0), a)
    yield more("codebook", "a codebook stage of ten fields", (4, 0), item)
    yield more("table", "a table of three fields", (4, 0, 3), item)
    yield more("progression", "a progression of three fields", (4, 0, 3), progression)
    yield more("scale", "a scale of four fields", (4, 0, 7), item)
    yield more("plane", "a plane of three fields", (4, 0, 8, 0), planes)
    low = base_low_rank()
    yield more("low-rank", "a low-rank stage of seven fields", (4, 0), low)
    for position, name in enumerate(["left factor", "right factor", "row scale", "column scale"], 2):
        yield more(f"low-rank-{name.replace(' ', '-')}", f"a {name} of three fields", (4, 0, position), low)
    book = chunk(b"BOOK", [1, 2, 1, 11, 0], [section(struct.pack("<2f", 0.5, -3))])
    yield invalid("met-008-more-book", FORMAT, "a BOOK of five fields", "MET-008", file(book, layr("", a)))
    shared = tensor("a", "f32", [3], Codebook(np.array([[1, 0, 1]]), np.ones((1, 2, 1), F32), book=0))
    book = chunk(b"BOOK", [1, 2, 1, 11], [section(struct.pack("<2f", 1, 1))])
    yield invalid("met-008-more-shared", FORMAT, "a shared source of three fields", "MET-008",
                  file(book, layr("", edit(shared, (4, 0, 3), [2, 0, 0]))))  # fmt: skip
    layer = chunk(b"LAYR", ["", [a.record], 0], a.sections, tensors=(a,))
    yield invalid("met-008-more-layr", FORMAT, "a LAYR of three fields", "MET-008", file(layer))
    coded = base_tensor()
    for name, comment, path, value in [
        ("trellis-progression", "a progression of three fields", (1,), [1, 2, 0]),
        ("trellis-scale", "a scale of a trellis stage of four fields", (3,), [*coded.record[4][0][3], 0]),
        ("trellis-tile", "a tile of three fields", (7,), [2, 2, 0]),
    ]:
        changed = edit(coded, (4, 0, *path), value)
        if name == "trellis-progression":
            changed = with_section(changed, 0, section(struct.pack("<f", 0.5)))
        yield invalid(f"met-008-more-{name}", FORMAT, comment, "MET-008",
                      model(base_trellis().freq.chunk(), layr("", changed)))  # fmt: skip
    matrix = edit(raw("a", "u8", [2, 3], b"abcdef"), (3,), [[1, 0, 2], 1, 0, 0, 0])
    yield one("lay-001-long", FORMAT, "three axes of a matrix, with a raw stage too", "LAY-001 LAY-002", matrix)
    yield one("lay-001-axis-more", FORMAT, "three axes of a matrix; sibling: valid/base-codebook.vqm", "LAY-001",
              edit(item, (3,), [[1, 0, 2], 1, 0, 0, 0]))  # fmt: skip


def index_kinds() -> Iterator[Case]:
    """Fields of INDX that are no bins, their content the same."""
    made = file(layr("", base_raw(), alias("b", base_raw())))
    fields = fields_of(made.build())
    digest = fields_of(file().build())[0]
    assert isinstance(digest, bytes)
    yield invalid("met-008-index-digest-33", FORMAT, "a digest of 33 bytes, the last one too many", "MET-008 IDX-002",
                  file(index={0: digest + b"\0"}))  # fmt: skip
    for position, name, value in [
        (0, "digest", fields[0].hex()),
        (1, "metadata", ["", {}]),
        (2, "types", "METALAYR"),
        (3, "lengths", list(fields[3])),
        (4, "names", "a\0b\0"),
        (5, "dtypes", [1, 1]),
        (6, "ranks", "\1\1"),
        (7, "dims", "\4\4"),
        (8, "chunks", "\1\1"),
        (9, "targets", "\0\1"),
    ]:
        kind = "an array" if isinstance(value, list) else "a string"
        yield invalid(f"met-008-index-{name}", FORMAT, f"{name} of INDX as {kind}", "MET-008 IDX-001",
                      replace(made, index={position: value}))  # fmt: skip


def forms() -> Iterator[Case]:
    """The greatest numbers and lengths of a form, in the next one."""
    for name, data, comment in [
        ("u32", b"\xce" + struct.pack(">I", 65_535), "65,535 in u32"),
        ("u64", b"\xcf" + struct.pack(">Q", 2**32 - 1), "2^32 - 1 in u64"),
        ("i16", b"\xd1" + struct.pack(">h", -128), "-128 in i16"),
        ("i32", b"\xd2" + struct.pack(">i", -(2**15)), "-2^15 in i32"),
        ("i64-positive", b"\xd3" + struct.pack(">q", 2**62), "2^62 as a signed integer"),
        ("bin16", b"\xc5\0\xff" + b"b" * 255, "a bin of 255 bytes with a u16 length"),
        ("map16-15", b"\xde\0\x0f" + b"".join(b"\xa1" + bytes([97 + i, 0]) for i in range(15)), "a map of 15 in map16"),
    ]:
        yield invalid(f"met-002-{name}", FORMAT, comment, "MET-002", file(chunk(b"META", b"\x92\xa1g\x81\xa1k" + data)))
    for name, first, letter in [("str32-65535", b"\xdb", "s"), ("bin32-65535", b"\xc6", "b")]:
        head = b"\x92\xa1g\x81\xa1k" + first + struct.pack(">I", 65_535)
        blocks = raw_block(head, last=False) + rle_block(ord(letter), 65_535)
        stored = frame(len(head) + 65_535, blocks=blocks)
        item = chunk(b"META", head + letter.encode() * 65_535, is_compressed=True, meta_frame=stored)
        yield invalid(f"met-002-{name}", FORMAT, "65,535 bytes with a u32 length", "MET-002", file(item))


def claims() -> Iterator[Case]:
    deep = b"\x91" * 16 + b"\xc0"  # below the claim of the array around it, this is at depth 17 and deeper
    for name, data, comment in [
        ("array", b"\xdc\0\x40" + deep, "an array of 64 values"),
        ("map", b"\xde\0\x20\xa1a" + deep, "a map of 32 pairs"),
        ("pairs", b"\x8c\xa1a" + deep, "a map of 12 pairs in 19 bytes"),
    ]:
        yield invalid(f"met-005-claim-{name}", FORMAT, f"{comment} is claimed, and the first one is too deep",
                      "MET-005 MET-007", file(chunk(b"META", b"\x92\xa1g\x81\xa1k" + data)))  # fmt: skip
    for name, first in [("array32", b"\xdd"), ("map32", b"\xdf")]:
        head = b"\x92\xa1g\x81\xa1k" + first + struct.pack(">I", 65_536) + b"\xa1a" * (name == "map32") + b"\x91" * 14
        blocks = raw_block(head, last=False) + rle_blocks(0xC0, 131_072)
        item = chunk(b"META", head + b"\xc0" * 131_072, is_compressed=True,
                     meta_frame=frame(len(head) + 131_072, blocks=blocks))  # fmt: skip
        yield invalid(f"met-006-{name}", LIMIT, f"in an {name} of 65,536 the first value is too deep", "MET-006",
                      file(item))  # fmt: skip
    n = 2**20 - 1
    head = b"\xdd" + u32(n)[::-1]
    blocks = raw_block(head, last=False) + rle_blocks(0xC0, n)
    item = chunk(b"META", head + b"\xc0" * n, is_compressed=True, meta_frame=frame(len(head) + n, blocks=blocks))
    yield invalid("met-007-most", FORMAT, "1,048,576 values, the most; but they are no META", "MET-007 MET-008",
                  file(item))  # fmt: skip


def columns() -> Iterator[Case]:
    for size, width in [(255, 2), (65_535, 4), (2**32 - 1, 8)]:
        wide = b"".join(value.to_bytes(width, "little") for value in (0, size))
        yield invalid(f"met-009-{size}", FORMAT, f"{size:,} in {width} bytes; sibling: valid/index-column-{size}.vqm",
                      "MET-009", file(layr("", empty("a", "u8", [0, size])), index={7: wide}))  # fmt: skip


def sections() -> Iterator[Case]:
    ramp = bytes(range(100)) + b"\7" * 100
    item = raw("a", "u8", [len(ramp)], ramp)

    def stored(name: str, error: str, comment: str, clauses: str, data: bytes) -> Case:
        return one(name, error, comment, clauses, with_section(item, 0, Section(data, is_zstd=True)))

    for size in (1, 2, 4):
        yield stored(f"sec-008-dictionary-{size}", FORMAT, f"the last byte of a Dictionary_ID of {size} bytes is not 0",
                     "SEC-008", frame(ramp, dictionary=bytes(size - 1) + b"\1"))  # fmt: skip
    yield stored("sec-008-dictionary-window", FORMAT, "a dictionary is named in four bytes, after a window", "SEC-008",
                 frame(ramp, dictionary=b"\0\0\1\0", window=0))  # fmt: skip
    yield stored("sec-007-mantissa", LIMIT, "a window of 8 MiB and seven eighths more", "SEC-007",
                 frame(ramp, window=13 << 3 | 7))  # fmt: skip
    few = tensor("a", "f32", [3], Codebook(np.array([[0, 0, 0]]), np.ones((1, 1, 1), F32)))
    yield one("sec-001-crc-empty", CHECKSUM, "another CRC of a section without bytes", "SEC-001",
              with_section(few, 1, section(b"", crc=1)))  # fmt: skip
    note = chunk(b"note", b"", [section(b"abc"), section(noise(1, 4_096))], padding=b"\1")
    yield invalid("sec-003-padding-ancillary", FORMAT, "padding of an unknown chunk that is not zero",
                  "SEC-003 CHK-003", file(meta(), note))  # fmt: skip
    bools = raw("a", "bool", [2, 2], b"\0\1\1\0", layout=Layout(n_row_axes=1, block_rows=1))
    yield one("dty-001-second-block", FORMAT, "a bool of 2 in the second of two blocks", "DTY-001",
              with_section(bools, 1, section(b"\2\0")))  # fmt: skip


def legal() -> Iterator[Case]:
    """Sizes that are the greatest, of sections that are not there: the suite has no such large files."""
    stage = tensor("a", "f32", [1], Codebook(np.array([[0]]), np.zeros((1, 16_384, 1), F32)))
    table = edit(edit(with_section(stage, 0, NOT_THERE), (4, 0, 1), 4_096), (2,), [4_096])
    yield one("lim-table-not-there", TRUNCATED, "a table of 256 MiB, the most, that is not there", "TEN-007 LIM-001",
              table)  # fmt: skip
    book = chunk(b"BOOK", [4_096, 16_384, 1, 11], [NOT_THERE])
    yield invalid("lim-book-not-there", TRUNCATED, "a BOOK of 256 MiB, the most, that is not there", "LIM-001",
                  file(book, layr("", base_raw())))  # fmt: skip
    factor = tensor("a", "f32", [4, 1], LowRank(np.zeros((4, 1), int), np.zeros((1, 1), int), 2, 2), layout=ROWS)
    factor = edit(edit(edit(factor, (2,), [4, 2**22]), (3,), [None, 1, 0, 1, 0]), (4, 0, 1), 4)
    factor = replace(factor, sections=(*factor.sections[:2], *[NOT_THERE] * 5))
    yield one("lim-factor-not-there", TRUNCATED, "a right factor of 2^24 elements, the most, that is not there",
              "LOW-001 LIM-001", factor)  # fmt: skip
    above = edit(edit(edit(factor, (2,), [97, 172_961]), (3,), [None, 1, 0, 24, 0]), (4, 0, 1), 97)
    above = replace(above, sections=(*factor.sections[:2], *[NOT_THERE] * 6))
    yield one("low-001-right-factor-more", LIMIT, "a right factor of 2^24 + 1 elements", "LOW-001 LIM-001", above)
    rows = tensor("a", "f16", [1], Codebook(np.array([[0]]), np.zeros((1, 1, 1), F32)))
    rows = edit(edit(rows, (2,), [2**28 + 1]), (3,), [None, 1, 1, 2**22, 0])
    yield one("ten-007-classes", LIMIT, "classes of 268,435,457 rows", "TEN-007 LIM-001",
              replace(rows, sections=(NOT_THERE,) * 67))  # fmt: skip
    yield one("low-001-rank-most", FORMAT, "rank 65,536, the most, of a matrix of 4 × 5", "LOW-001 LIM-001",
              edit(base_low_rank(), (4, 0, 1), 65_536))  # fmt: skip
