"""Invalid files: header, footer, chunks, truncation, inverted bits (SPEC 2, 3, 15)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from vqmbuilder import (
    MAGIC,
    File,
    chunk,
    file,
    frame,
    layr,
    meta,
    section,
    u16,
    u32,
)
from vqmtensors import (
    raw,
)

from fixture_cases import Case, invalid
from fixture_cases.bases import (
    base,
    base_raw,
    noise,
)

FORMAT, CHECKSUM, LIMIT, TRUNCATED, UNSUPPORTED = "format", "checksum", "limit", "truncated", "unsupported"


def cases() -> list[Case]:
    return [*headers(), *chunks(), *truncations(), *flips()]


def header(magic: bytes = MAGIC, major: int = 1, minor: int = 0, zero: int = 0) -> bytes:
    return magic + u16(major) + u16(minor) + u32(zero)


def changed(item: File, position: int, **changes: Any) -> File:
    """The file with one chunk changed."""
    chunks = list(item.chunks)
    chunks[position] = replace(chunks[position], **changes)
    return replace(item, chunks=tuple(chunks))


def headers() -> Iterator[Case]:
    model, data = base(), base().build()
    end, footer = len(data) - 28, data[-28:]
    layer = layr("", base_raw())
    yield invalid(
        "hdr-001-magic",
        FORMAT,
        "another magic in header and footer",
        "HDR-001",
        model_with(header(b"\x89VQN\r\n\x1a\n")),
    )
    yield invalid(
        "hdr-001-line-ends",
        FORMAT,
        "CR LF became LF, as in a transfer as text",
        "HDR-001",
        data.replace(b"\r\n", b"\n"),
    )
    yield invalid(
        "hdr-001-text", FORMAT, "a text file", "HDR-001", b"This is no model, but it is longer than a header.\n"
    )
    yield invalid("hdr-002-major-2", UNSUPPORTED, "major version 2", "HDR-002", model_with(header(major=2)))
    yield invalid("hdr-002-major-0", UNSUPPORTED, "major version 0", "HDR-002", model_with(header(major=0)))
    yield invalid(
        "hdr-003-zero", FORMAT, "the last field of the header is not 0", "HDR-003", model_with(header(zero=1))
    )
    yield invalid("fil-001-layr-first", FORMAT, "LAYR before META", "FIL-001", File((layer, meta())))
    yield invalid(
        "fil-001-ancillary-first",
        FORMAT,
        "an ancillary chunk before META",
        "FIL-001",
        File((chunk(b"note", b""), meta())),
    )
    yield invalid("fil-001-no-meta", FORMAT, "INDX is the first chunk", "FIL-001", File(()))
    yield invalid("fil-001-two-meta", FORMAT, "META twice", "FIL-001", file(meta(), meta()))
    yield invalid(
        "fil-001-no-index",
        CHECKSUM,
        "no INDX chunk: the footer is read as a chunk header, whose CRC does not match",
        "FIL-001 CHK-001",
        data[: model.offsets()[-1]] + footer,
    )
    yield invalid(
        "fil-001-two-index",
        CHECKSUM,
        "INDX twice: the second is read as footer, whose CRC does not match",
        "FIL-001 FTR-002",
        data[:end] + data[model.offsets()[-1] : end] + footer,
    )
    yield invalid(
        "fil-001-chunk-after-index",
        CHECKSUM,
        "a chunk after INDX is read as footer",
        "FIL-001 FTR-002",
        data[:end] + layer.encode(end) + footer,
    )
    yield invalid(
        "fil-002-gap",
        CHECKSUM,
        "a byte between two chunks: what follows is no chunk header",
        "FIL-002 CHK-001",
        changed(model, 0, gap=b"\0"),
    )
    yield invalid(
        "ftr-001-gap",
        CHECKSUM,
        "a byte between INDX and footer",
        "FTR-001 FTR-002",
        replace(model, index_changes={"gap": b"\0"}),
    )
    yield invalid("ftr-001-trailing-byte", FORMAT, "a byte after the footer", "FTR-001", replace(model, tail=b"\0"))
    yield invalid("ftr-001-two-files", FORMAT, "two files in one", "FTR-001", file().build() * 2)
    yield invalid("ftr-002-crc", CHECKSUM, "another CRC in the footer", "FTR-002", replace(model, footer_crc=0))
    yield invalid(
        "ftr-002-header",
        FORMAT,
        "the footer's minor version is not the header's",
        "FTR-002",
        replace(model, footer_header=header(minor=1)),
    )
    yield invalid(
        "ftr-003-offset",
        FORMAT,
        "index_offset points one byte past INDX",
        "FTR-003",
        replace(model, index_offset=model.offsets()[-1] + 1),
    )
    yield invalid(
        "ftr-003-offset-hostile", FORMAT, "index_offset is 2^64 - 1", "FTR-003", replace(model, index_offset=2**64 - 1)
    )


def model_with(head: bytes) -> File:
    return replace(base(), header=head)


def chunks() -> Iterator[Case]:
    model, layer = base(), layr("", base_raw())
    note = chunk(b"note", b"some text", [section(b"abc")])
    runs = layr("l" * 60, base_raw())

    def with_note(**changes: Any) -> File:
        return file(meta(), replace(note, **changes), layer)

    def with_layer(**changes: Any) -> File:
        return file(meta(), replace(layer, **changes))

    def with_frame(stored: bytes, **changes: Any) -> File:
        return file(meta(), replace(runs, is_compressed=True, meta_frame=stored, **changes))

    plain = runs.meta
    yield invalid(
        "chk-001-header-crc", CHECKSUM, "another CRC in a chunk header", "CHK-001", changed(model, 2, header_crc=0)
    )
    yield invalid("chk-001-header-crc-high", CHECKSUM, "a CRC of a chunk header with all bits set", "CHK-001",
                  file(meta(header_crc=2**32 - 1)))  # fmt: skip
    yield invalid("chk-002-digit", FORMAT, "a digit in a chunk type", "CHK-002", with_note(type=b"not3"))
    yield invalid("chk-002-digit-first", FORMAT, "a digit first in a chunk type", "CHK-002", with_note(type=b"3ote"))
    yield invalid(
        "chk-002-at-sign", FORMAT, "the character before A in a chunk type", "CHK-002", with_note(type=b"n@te")
    )
    yield invalid(
        "chk-002-beyond-ascii", FORMAT, "a byte above 127 in a chunk type", "CHK-002", with_note(type=b"not\xe9")
    )
    yield invalid(
        "chk-003-critical",
        UNSUPPORTED,
        "an unknown critical chunk; valid/ancillary.vqm has the like in lower case",
        "CHK-003",
        with_note(type=b"Note"),
    )
    yield invalid("chk-003-case", UNSUPPORTED, "LAYr is another type than LAYR", "CHK-003", with_layer(type=b"LAYr"))
    yield invalid("chk-004-flag", UNSUPPORTED, "flag bit 1", "CHK-004", with_layer(flags=2))
    yield invalid(
        "chk-004-flag-ancillary",
        UNSUPPORTED,
        "flag bit 31 of an unknown ancillary chunk",
        "CHK-004",
        with_note(flags=1 << 31),
    )
    yield invalid(
        "chk-005-sizes",
        FORMAT,
        "plain meta whose two sizes differ",
        "CHK-005",
        with_layer(meta_plain=len(layer.meta) + 1),
    )
    yield invalid(
        "chk-005-frame-longer",
        FORMAT,
        "compressed meta that is longer than plain",
        "CHK-005",
        file(chunk(b"LAYR", layer.meta, layer.sections, is_compressed=True, tensors=layer.tensors)),
    )
    yield invalid(
        "chk-005-sizes-less", FORMAT, "plain meta of one byte more than meta_plain", "CHK-005",
        with_layer(meta_plain=len(layer.meta) - 1),
    )  # fmt: skip
    same = layr("l" * 16, base_raw(), is_compressed=True)
    assert len(frame(same.meta)) == len(same.meta)
    yield invalid("chk-005-frame-not-shorter", FORMAT, "a frame that is as long as the meta in it", "CHK-005",
                  file(meta(), same))  # fmt: skip
    yield invalid(
        "chk-005-no-frame", FORMAT, "compressed meta that is no zstd frame", "CHK-005 SEC-005", with_frame(plain[:40])
    )
    yield invalid(
        "chk-005-content-size",
        FORMAT,
        "the frame's content size is not meta_plain",
        "CHK-005 SEC-006",
        with_frame(frame(plain), meta_plain=len(plain) - 1),
    )
    yield invalid(
        "chk-005-no-content-size",
        FORMAT,
        "compressed meta without content size",
        "CHK-005 SEC-006",
        with_frame(frame(plain, size_bytes=0, window=0)),
    )
    yield invalid(
        "chk-005-trailing",
        FORMAT,
        "a byte after the frame of meta",
        "CHK-005 SEC-005",
        with_frame(frame(plain) + b"\0"),
    )
    yield invalid(
        "chk-005-window",
        LIMIT,
        "compressed meta with a window of 9 MiB",
        "CHK-005 SEC-007",
        with_frame(frame(plain, window=13 << 3 | 1)),
    )
    for name, item, position in [
        ("layr", file(meta(), layer), 1),
        ("meta", file(meta()), 0),
        ("ancillary", file(meta(), note), 1),
    ]:
        yield invalid(
            f"chk-006-meta-{name}",
            LIMIT,
            "meta of 16 MiB + 1",
            "CHK-006",
            changed(item, position, meta_stored=2**24 + 1, meta_plain=2**24 + 1),
        )
    yield invalid(
        "chk-006-meta-stored",
        LIMIT,
        "meta_stored is 2^32 - 1",
        "CHK-006",
        with_frame(b"", meta_stored=2**32 - 1, meta_plain=2**24),
    )
    yield invalid(
        "chk-006-meta-plain",
        LIMIT,
        "meta_plain is 16 MiB + 1",
        "CHK-006",
        with_frame(frame(plain), meta_plain=2**24 + 1),
    )
    yield invalid(
        "chk-006-index",
        LIMIT,
        "meta of INDX of 256 MiB + 1",
        "CHK-006",
        file(index_changes={"meta_stored": 2**28 + 1, "meta_plain": 2**28 + 1}),
    )
    yield invalid(
        "chk-006-index-legal",
        TRUNCATED,
        "meta of INDX above 16 MiB is legal, but it is not there",
        "CHK-006 REA-001",
        file(index_changes={"meta_stored": 2**28, "meta_plain": 2**28}),
    )
    yield invalid("chk-006-sections", LIMIT, "4,194,305 sections", "CHK-006", with_layer(n_sections=2**22 + 1))
    yield invalid(
        "chk-006-sections-ancillary",
        LIMIT,
        "2^32 - 1 sections of an unknown chunk",
        "CHK-006",
        with_note(n_sections=2**32 - 1),
    )
    yield invalid(
        "chk-007-body-crc", CHECKSUM, "another CRC of meta and table", "CHK-007", changed(model, 2, body_crc=0)
    )
    yield invalid(
        "chk-007-body-crc-ancillary",
        CHECKSUM,
        "another CRC of meta and table of an unknown chunk",
        "CHK-007",
        with_note(body_crc=1),
    )
    yield invalid(
        "chk-008-meta", FORMAT, "a section in META", "CHK-008", file(replace(meta(), sections=(section(b"x"),)))
    )
    yield invalid(
        "chk-008-index", FORMAT, "a section in INDX", "CHK-008", file(index_changes={"sections": (section(b""),)})
    )
    yield invalid(
        "lim-meta-not-there",
        TRUNCATED,
        "meta of 16 MiB is legal, but it is not there",
        "CHK-006 REA-001 REA-002",
        with_layer(meta_stored=2**24, meta_plain=2**24),
    )
    yield invalid(
        "lim-sections-not-there",
        TRUNCATED,
        "4,194,304 sections are legal, but they are not there",
        "CHK-006 REA-001 REA-002",
        with_layer(n_sections=2**22),
    )


def truncations() -> Iterator[Case]:
    model, data = base(), base().build()
    offsets = model.offsets()
    book, layer, indx = offsets[1], offsets[2], offsets[-1]
    meta_size = len(model.chunks[2].meta)
    table = layer + 24 + meta_size
    body_crc = table + 8 * len(model.chunks[2].sections)
    for name, size, comment in [
        ("empty", 0, "an empty file"),
        ("magic", 5, "within the magic"),
        ("header", 12, "within the header"),
        ("after-header", 16, "after the header"),
        ("chunk-header", 16 + 10, "within the first chunk header"),
        ("meta", 16 + 24 + 5, "within the meta of META"),
        ("after-meta-chunk", book, "after META"),
        ("book-section", offsets[2] - 3, "within the section of BOOK"),
        ("layr-meta", layer + 30, "within the meta of LAYR"),
        ("before-sections", body_crc + 4, "before the sections"),
        ("section", body_crc + 4 + 5, "within a section"),
        ("before-index", indx, "before INDX"),
        ("index", indx + 40, "within INDX"),
        ("before-footer", len(data) - 28, "before the footer"),
        ("footer", len(data) - 14, "within the footer"),
        ("last-byte", len(data) - 1, "before the last byte"),
    ]:
        yield invalid(
            f"truncated-{name}",
            TRUNCATED,
            f"cut {comment}; sibling: valid/base.vqm" if size else comment,
            "REA-001",
            data[:size],
        )
    aligned = file(layr("", raw("a", "u8", [4_096], noise(1, 4_096))))
    start = aligned.offsets()[1] + 24 + len(aligned.chunks[1].meta) + 12
    yield invalid("truncated-padding", TRUNCATED, "cut within padding", "REA-001 SEC-002", aligned.build()[: start + 1])
    note = file(meta(), chunk(b"note", b"", [section(noise(1, 100))])).build()
    yield invalid(
        "truncated-ancillary", TRUNCATED, "cut within a section of an unknown chunk", "REA-001 CHK-003", note[:100]
    )


def flips() -> Iterator[Case]:
    """One bit of valid/base.vqm inverted, in each region."""
    model, data = base(), base().build()
    offsets = model.offsets()
    layer, indx = offsets[2], offsets[-1]
    table = layer + 24 + len(model.chunks[2].meta)
    body_crc = table + 8 * len(model.chunks[2].sections)
    for name, offset, error, clauses, comment in [
        ("magic", 1, FORMAT, "HDR-001", "the magic"),
        ("major", 8, UNSUPPORTED, "HDR-002", "major"),
        ("zero", 15, FORMAT, "HDR-003", "the zero of the header"),
        ("type", layer, CHECKSUM, "CHK-001", "a chunk type"),
        ("meta", layer + 30, CHECKSUM, "CHK-007", "the meta of LAYR"),
        ("section-zstd", body_crc + 4, CHECKSUM, "SEC-001", "a zstd section"),
        ("section-plain", layer - 1, CHECKSUM, "SEC-001", "the section of BOOK"),
        ("section-codes", offsets[3] - 1, CHECKSUM, "SEC-001", "codes"),
        ("section-ancillary", offsets[4] - 1, CHECKSUM, "SEC-001", "a section of an unknown chunk"),
        ("index", indx + 40, CHECKSUM, "CHK-007", "the meta of INDX"),
        ("footer-crc", len(data) - 1, CHECKSUM, "FTR-002", "the footer's CRC"),
    ]:
        flipped = data[:offset] + bytes([data[offset] ^ 1]) + data[offset + 1 :]
        yield invalid(
            f"flip-{name}", error, f"one bit inverted in {comment}; sibling: valid/base.vqm", clauses, flipped
        )
