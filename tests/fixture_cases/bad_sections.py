"""Invalid files: sections and zstd frames (SPEC 4)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from vqmbuilder import (
    File,
    Section,
    chunk,
    crc,
    file,
    frame,
    layr,
    libzstd,
    meta,
    raw_block,
    rle_block,
    rle_blocks,
    section,
    u32,
    zstd_section,
)
from vqmtensors import (
    Codebook,
    raw,
    tensor,
    with_section,
)

from fixture_cases import Case, invalid
from fixture_cases.bases import (
    base_raw,
)

FORMAT, CHECKSUM, LIMIT, TRUNCATED, UNSUPPORTED = "format", "checksum", "limit", "truncated", "unsupported"


def cases() -> list[Case]:
    return [*section_cases(), *frames()]


def section_cases() -> Iterator[Case]:
    zeros = bytes(4_096)
    four = base_raw()

    def stored(item: Section) -> File:
        return file(layr("", with_section(four, 0, item)))

    def aligned(data: bytes, **changes: Any) -> File:
        return file(meta(), replace(layr("", raw("a", "u8", [len(data)], data)), **changes))

    yield invalid(
        "sec-001-crc",
        CHECKSUM,
        "another CRC of a plain section; sibling: valid/base-raw.vqm",
        "SEC-001",
        stored(section(b"\1\2\3\4", crc=0)),
    )
    yield invalid(
        "sec-001-crc-zstd",
        CHECKSUM,
        "another CRC of a zstd section",
        "SEC-001",
        file(layr("", raw("a", "u8", [64], bytes(64), seal=lambda data: zstd_section_with(data, crc=0)))),
    )
    yield invalid(
        "sec-001-crc-ancillary",
        CHECKSUM,
        "another CRC of a section of an unknown chunk",
        "SEC-001 CHK-003",
        file(meta(), chunk(b"note", b"", [section(b"a", crc=0)])),
    )
    yield invalid(
        "sec-001-crc-of-plain-bytes",
        CHECKSUM,
        "the CRC is that of the decompressed bytes",
        "SEC-001",
        file(layr("", raw("a", "u8", [64], bytes(64), seal=lambda data: zstd_section_with(data, crc=crc(data))))),
    )
    unpadded = aligned(zeros)
    data = unpadded.build()
    start = unpadded.offsets()[1] + 24 + len(unpadded.chunks[1].meta) + 12
    assert start % 64
    yield invalid(
        "sec-002-no-padding",
        CHECKSUM,
        "a section of 4,096 zero bytes that is not aligned; sibling: valid/section-aligned.vqm",
        "SEC-002 SEC-001",
        data[:start] + data[start + -start % 64 :],
    )
    yield invalid(
        "sec-003-padding",
        FORMAT,
        "padding that is not zero; sibling: valid/section-aligned.vqm",
        "SEC-003",
        aligned(zeros, padding=b"\1"),
    )
    yield invalid("sec-004-short", FORMAT, "a plain section of one byte less", "SEC-004", stored(section(b"\1\2\3")))
    yield invalid("sec-004-long", FORMAT, "a plain section of one byte more", "SEC-004", stored(section(b"\1\2\3\4\0")))
    yield invalid("sec-004-empty", FORMAT, "a plain section of no bytes for 4", "SEC-004", stored(section(b"")))
    yield invalid(
        "sec-004-hostile",
        FORMAT,
        "a plain section of 2 GiB is announced for 4 bytes",
        "SEC-004",
        stored(section(b"\1\2\3\4", length=2**31 - 1)),
    )
    frame_64 = Section(frame(bytes(64)), is_zstd=True)
    tiny = raw("a", "u8", [10], b"\7" * 10)
    yield invalid(
        "sec-004-frame-as-long",
        FORMAT,
        "a frame of 10 bytes for 10 bytes; sibling: valid/zstd-shorter-by-one.vqm",
        "SEC-004",
        file(layr("", with_section(tiny, 0, zstd_section(b"\7" * 10)))),
    )
    yield invalid(
        "sec-004-frame-longer",
        FORMAT,
        "a frame that is longer than its content",
        "SEC-004",
        stored(zstd_section(b"\1\2\3\4")),
    )
    yield invalid(
        "sec-004-frame-hostile",
        FORMAT,
        "a frame of 2 GiB is announced for 64 bytes",
        "SEC-004",
        file(layr("", raw("a", "u8", [64], bytes(64), seal=lambda _: replace(frame_64, length=2**32 - 1)))),
    )
    yield invalid(
        "sec-004-empty-frame",
        FORMAT,
        "a frame for codes of 0 bits",
        "SEC-004",
        file(
            layr(
                "",
                tensor(
                    "a",
                    "f32",
                    [3],
                    Codebook(np.zeros((1, 3), int), np.ones((1, 1, 1), np.float32)),
                    seal=lambda data: section(data) if data else zstd_section(data),
                ),
            )
        ),
    )
    yield invalid(
        "lim-section-not-there",
        TRUNCATED,
        "a plain section of 4,095 bytes is announced, and the file is shorter",
        "REA-001 REA-002",
        file(layr("", raw("a", "u8", [4_095], b"abcd", seal=lambda data: section(data, length=4_095)))),
    )
    yield invalid(
        "lim-frame-not-there",
        TRUNCATED,
        "a frame of 4 MiB - 1 is announced, and the file is shorter",
        "REA-001 REA-002",
        file(layr("", raw("a", "u8", [2**22], b"abcd", seal=lambda _: replace(frame_64, length=2**31 + 2**22 - 1)))),
    )


def zstd_section_with(data: bytes, **changes: Any) -> Section:
    return replace(zstd_section(data), **changes)


def frames() -> Iterator[Case]:
    content = bytes(range(10)) + b"\7" * 54
    start, run = raw_block(content[:10], last=False), rle_block(7, 54)
    good = frame(content, blocks=start + run)
    whole = raw("a", "u8", [64], content)

    def one(name: str, comment: str, clauses: str, stored: bytes, error: str = FORMAT) -> Case:
        assert len(stored) < 64
        return invalid(
            name, error, comment, clauses, file(layr("", with_section(whole, 0, Section(stored, is_zstd=True))))
        )

    skippable = b"\x50\x2a\x4d\x18" + u32(3) + b"abc"
    yield one("sec-005-magic", "another magic", "SEC-005", frame(content, magic=b"\x27\xb5\x2f\xfd"))
    yield one("sec-005-empty", "no bytes at all", "SEC-005", b"")
    yield one("sec-005-no-header", "the magic alone", "SEC-005", good[:4])
    yield one("sec-005-short-header", "a frame header without its content size", "SEC-005", good[:5])
    yield one("sec-005-skippable-frame", "a skippable frame before the frame", "SEC-005", skippable + good)
    yield one(
        "sec-005-two-frames",
        "two frames that together have the plain size",
        "SEC-005 SEC-006",
        frame(content[:2]) + frame(content[2:]),
    )
    yield one("sec-005-empty-frame-after", "a frame without content after the frame", "SEC-005", good + frame(b""))
    yield one("sec-005-trailing-byte", "a byte after the frame", "SEC-005", good + b"\0")
    yield one("sec-006-no-size", "no content size", "SEC-006", frame(content, size_bytes=0, window=0))
    yield one(
        "sec-006-size",
        "a content size above the plain size; the content has the plain size",
        "SEC-006",
        frame(65, blocks=start + run),
    )
    yield one("sec-006-content", "a consistent frame of 65 bytes for 64", "SEC-006", frame(content + b"\7"))
    yield one("sec-006-content-less", "a consistent frame of 63 bytes for 64", "SEC-006", frame(content[:-1]))
    yield one("sec-006-hostile", "a content size of 2^62", "SEC-006", frame(2**62, size_bytes=8, blocks=start + run))
    longest = frame(64 + 2**56, size_bytes=8, blocks=start + run, window=0, dictionary=bytes(4))
    yield one("sec-006-last-byte", "only the highest of eight bytes of content size is wrong", "SEC-006", longest)
    yield one(
        "sec-007-window",
        "a window of 9 MiB; sibling: valid/zstd-window-8-mib.vqm",
        "SEC-007",
        frame(content, window=13 << 3 | 1),
        LIMIT,
    )
    yield one(
        "sec-007-window-hostile",
        "the greatest window that can be written, 3.75 TiB",
        "SEC-007",
        frame(content, window=0xFF),
        LIMIT,
    )
    yield one(
        "sec-008-dictionary",
        "a dictionary is named in one byte; sibling: valid/zstd-dictionary-0.vqm",
        "SEC-008",
        frame(content, dictionary=b"\1"),
    )
    yield one(
        "sec-009-reserved-bit",
        "the reserved bit of the frame header; sibling: valid/zstd-unused-bit.vqm",
        "SEC-009",
        frame(content, bits=8),
    )
    text = b"the quick brown fox jumps over the lazy dog. " * 4
    good_text = libzstd(text, checksum=True)
    item = raw("a", "u8", [len(text)], text)
    yield invalid(
        "sec-009-content-checksum",
        FORMAT,
        "the frame's own checksum does not match",
        "SEC-009 SEC-010",
        file(layr("", with_section(item, 0, Section(good_text[:-1] + bytes([good_text[-1] ^ 1]), is_zstd=True)))),
    )
    yield one("sec-010-no-block", "a frame header and no block", "SEC-010", frame(content, blocks=b""))
    yield one("sec-010-cut-block", "a block that ends before its size", "SEC-010", good[:-1])
    yield one(
        "sec-010-cut-raw-block",
        "a raw block of 54 bytes that ends after 20",
        "SEC-010",
        frame(content, blocks=start + raw_block(content[10:])[:23]),
    )
    yield one(
        "sec-010-no-last-block",
        "no block is marked as the last",
        "SEC-010",
        frame(content, blocks=start + rle_block(7, 54, last=False)),
    )
    yield one(
        "sec-010-reserved-block",
        "a block of the reserved type",
        "SEC-010",
        frame(content, blocks=start + (1 | 3 << 1 | 54 << 3).to_bytes(3, "little") + b"\7"),
    )
    yield one(
        "sec-010-short-content",
        "the blocks hold less than the content size",
        "SEC-010",
        frame(64, blocks=start + rle_block(7, 53)),
    )
    yield one(
        "sec-010-long-content",
        "the blocks hold more than the content size",
        "SEC-010",
        frame(64, blocks=start + rle_block(7, 55)),
    )
    yield one(
        "sec-010-no-checksum",
        "the checksum that the frame header announces is missing",
        "SEC-010 SEC-009",
        frame(content, bits=4),
    )
    yield one(
        "sec-010-compressed-block",
        "a compressed block that is none",
        "SEC-010",
        frame(64, blocks=(1 | 2 << 1 | 4 << 3).to_bytes(3, "little") + b"\xff\xff\xff\xff"),
    )
    bomb = frame(300, blocks=rle_block(0, 131_072, last=False) * 63 + rle_blocks(0, 131_072))
    yield invalid(
        "sec-010-bomb",
        FORMAT,
        "a content size of 300 and blocks of 8 MiB; sibling: valid/block-limit.vqm",
        "SEC-010",
        file(layr("", raw("a", "u8", [300], bytes(300), seal=lambda _: Section(bomb, is_zstd=True)))),
    )
