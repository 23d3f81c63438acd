"""Invalid files: one fault each in the container, metadata, sections or index. Tensors: fixtures_invalid_tensors.py."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import fixtures_invalid_tensors
from fixturecase import Case, invalid
from fixtures_valid import base, base_raw, noise
from vqmbuilder import (
    MAGIC, Chunk, File, Section, chunk, file, frame, layr, libzstd, meta, pack, raw_block, rle_block, rle_blocks, section,
    u16, u32, u64, zstd_section,
)
from vqmtensors import alias, empty, raw, with_section

FORMAT, CHECKSUM, LIMIT, TRUNCATED, UNSUPPORTED = "format", "checksum", "limit", "truncated", "unsupported"


def cases() -> list[Case]:
    return [*headers(), *chunks(), *section_cases(), *frames(), *metadata(), *index(), *truncations(), *flips(),
            *fixtures_invalid_tensors.cases()]


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
    yield invalid("hdr-001-magic", FORMAT, "another magic in header and footer", "HDR-001", model_with(header(b"\x89VQN\r\n\x1a\n")))
    yield invalid("hdr-001-line-ends", FORMAT, "CR LF became LF, as in a transfer as text", "HDR-001", data.replace(b"\r\n", b"\n"))
    yield invalid("hdr-001-text", FORMAT, "a text file", "HDR-001", b"This is no model, but it is longer than a header.\n")
    yield invalid("hdr-002-major-2", UNSUPPORTED, "major version 2", "HDR-002", model_with(header(major=2)))
    yield invalid("hdr-002-major-0", UNSUPPORTED, "major version 0", "HDR-002", model_with(header(major=0)))
    yield invalid("hdr-003-zero", FORMAT, "the last field of the header is not 0", "HDR-003", model_with(header(zero=1)))
    yield invalid("fil-001-layr-first", FORMAT, "LAYR before META", "FIL-001", File((layer, meta())))
    yield invalid("fil-001-ancillary-first", FORMAT, "an ancillary chunk before META", "FIL-001", File((chunk(b"note", b""), meta())))
    yield invalid("fil-001-no-meta", FORMAT, "INDX is the first chunk", "FIL-001", File(()))
    yield invalid("fil-001-two-meta", FORMAT, "META twice", "FIL-001", file(meta(), meta()))
    yield invalid("fil-001-no-index", CHECKSUM, "no INDX chunk: the footer is read as a chunk header, whose CRC does not match",
                  "FIL-001 CHK-001", data[: model.offsets()[-1]] + footer)
    yield invalid("fil-001-two-index", CHECKSUM, "INDX twice: the second is read as footer, whose CRC does not match", "FIL-001 FTR-002",
                  data[:end] + data[model.offsets()[-1] : end] + footer)
    yield invalid("fil-001-chunk-after-index", CHECKSUM, "a chunk after INDX is read as footer", "FIL-001 FTR-002",
                  data[:end] + layer.encode(end) + footer)
    yield invalid("fil-002-gap", CHECKSUM, "a byte between two chunks: what follows is no chunk header", "FIL-002 CHK-001",
                  changed(model, 0, gap=b"\0"))
    yield invalid("ftr-001-gap", CHECKSUM, "a byte between INDX and footer", "FTR-001 FTR-002", replace(model, index_changes={"gap": b"\0"}))
    yield invalid("ftr-001-trailing-byte", FORMAT, "a byte after the footer", "FTR-001", replace(model, tail=b"\0"))
    yield invalid("ftr-001-two-files", FORMAT, "two files in one", "FTR-001", data + data)
    yield invalid("ftr-002-crc", CHECKSUM, "another CRC in the footer", "FTR-002", replace(model, footer_crc=0))
    yield invalid("ftr-002-header", FORMAT, "the footer's minor version is not the header's", "FTR-002",
                  replace(model, footer_header=header(minor=1)))
    yield invalid("ftr-003-offset", FORMAT, "index_offset points one byte past INDX", "FTR-003",
                  replace(model, index_offset=model.offsets()[-1] + 1))
    yield invalid("ftr-003-offset-other-chunk", FORMAT, "index_offset points to META", "FTR-003", replace(model, index_offset=16))
    yield invalid("ftr-003-offset-hostile", FORMAT, "index_offset is 2^64 - 1", "FTR-003", replace(model, index_offset=2**64 - 1))


def model_with(head: bytes) -> File:
    return replace(base(), header=head)


def chunks() -> Iterator[Case]:
    model, layer = base(), layr("", base_raw())
    note = chunk(b"note", b"some text", [section(b"abc")])

    def with_note(**changes: Any) -> File:
        return file(meta(), replace(note, **changes), layer)

    def with_layer(**changes: Any) -> File:
        return file(meta(), replace(layer, **changes))

    plain = layer.meta
    yield invalid("chk-001-header-crc", CHECKSUM, "another CRC in a chunk header", "CHK-001", changed(model, 2, header_crc=0))
    yield invalid("chk-002-digit", FORMAT, "a digit in a chunk type", "CHK-002", with_note(type=b"not3"))
    yield invalid("chk-002-digit-first", FORMAT, "a digit first in a chunk type", "CHK-002", with_note(type=b"3ote"))
    yield invalid("chk-002-at-sign", FORMAT, "the character before A in a chunk type", "CHK-002", with_note(type=b"n@te"))
    yield invalid("chk-002-beyond-ascii", FORMAT, "a byte above 127 in a chunk type", "CHK-002", with_note(type=b"not\xe9"))
    yield invalid("chk-003-critical", UNSUPPORTED, "an unknown critical chunk; valid/ancillary.vqm has the like in lower case", "CHK-003",
                  with_note(type=b"Note"))
    yield invalid("chk-003-case", UNSUPPORTED, "LAYr is another type than LAYR", "CHK-003", with_layer(type=b"LAYr"))
    yield invalid("chk-004-flag", UNSUPPORTED, "flag bit 1", "CHK-004", with_layer(flags=2))
    yield invalid("chk-004-flag-ancillary", UNSUPPORTED, "flag bit 31 of an unknown ancillary chunk", "CHK-004", with_note(flags=1 << 31))
    yield invalid("chk-005-sizes", FORMAT, "plain meta whose two sizes differ", "CHK-005", with_layer(meta_plain=len(plain) + 1))
    yield invalid("chk-005-sizes-ancillary", FORMAT, "plain meta of an ancillary chunk whose two sizes differ", "CHK-005 CHK-003",
                  with_note(meta_plain=0))
    yield invalid("chk-005-no-frame", FORMAT, "compressed meta that is no zstd frame", "CHK-005 SEC-005",
                  with_layer(is_compressed=True, meta_frame=plain))
    yield invalid("chk-005-content-size", FORMAT, "the frame's content size is not meta_plain", "CHK-005 SEC-006",
                  with_layer(is_compressed=True, meta_plain=len(plain) - 1))
    yield invalid("chk-005-no-content-size", FORMAT, "compressed meta without content size", "CHK-005 SEC-006",
                  with_layer(is_compressed=True, meta_frame=frame(plain, size_bytes=0, window=0)))
    yield invalid("chk-005-trailing", FORMAT, "a byte after the frame of meta", "CHK-005 SEC-005",
                  with_layer(is_compressed=True, meta_frame=frame(plain) + b"\0"))
    yield invalid("chk-005-window", LIMIT, "compressed meta with a window of 9 MiB", "CHK-005 SEC-007",
                  with_layer(is_compressed=True, meta_frame=frame(plain, window=13 << 3 | 1)))
    for name, item, position in [("layr", file(meta(), layer), 1), ("meta", file(meta()), 0), ("ancillary", file(meta(), note), 1)]:
        yield invalid(f"chk-006-meta-{name}", LIMIT, "meta of 16 MiB + 1", "CHK-006",
                      changed(item, position, meta_stored=2**24 + 1, meta_plain=2**24 + 1))
    yield invalid("chk-006-meta-stored", LIMIT, "meta_stored is 2^32 - 1", "CHK-006", with_layer(meta_stored=2**32 - 1, is_compressed=True))
    yield invalid("chk-006-meta-plain", LIMIT, "meta_plain is 16 MiB + 1", "CHK-006", with_layer(meta_plain=2**24 + 1, is_compressed=True))
    yield invalid("chk-006-index", LIMIT, "meta of INDX of 256 MiB + 1", "CHK-006",
                  file(index_changes={"meta_stored": 2**28 + 1, "meta_plain": 2**28 + 1}))
    yield invalid("chk-006-index-legal", TRUNCATED, "meta of INDX above 16 MiB is legal, but it is not there", "CHK-006 REA-001",
                  file(index_changes={"meta_stored": 2**28, "meta_plain": 2**28}))
    yield invalid("chk-006-sections", LIMIT, "4,194,305 sections", "CHK-006", with_layer(n_sections=2**22 + 1))
    yield invalid("chk-006-sections-ancillary", LIMIT, "2^32 - 1 sections of an unknown chunk", "CHK-006", with_note(n_sections=2**32 - 1))
    yield invalid("chk-007-body-crc", CHECKSUM, "another CRC of meta and table", "CHK-007", changed(model, 2, body_crc=0))
    yield invalid("chk-007-body-crc-ancillary", CHECKSUM, "another CRC of meta and table of an unknown chunk", "CHK-007", with_note(body_crc=1))
    yield invalid("chk-008-meta", FORMAT, "a section in META", "CHK-008", file(replace(meta(), sections=(section(b"x"),))))
    yield invalid("chk-008-index", FORMAT, "a section in INDX", "CHK-008", file(index_changes={"sections": (section(b""),)}))
    yield invalid("lim-meta-not-there", TRUNCATED, "meta of 16 MiB is legal, but it is not there", "CHK-006 REA-001 REA-002",
                  with_layer(meta_stored=2**24, meta_plain=2**24))
    yield invalid("lim-sections-not-there", TRUNCATED, "4,194,304 sections are legal, but they are not there", "CHK-006 REA-001 REA-002",
                  with_layer(n_sections=2**22))


def section_cases() -> Iterator[Case]:
    zeros, big = bytes(4_096), noise(1, 4_096)
    four = base_raw()

    def stored(item: Section) -> File:
        return file(layr("", with_section(four, 0, item)))

    def aligned(data: bytes, **changes: Any) -> File:
        return file(meta(), replace(layr("", raw("a", "u8", [len(data)], data)), **changes))

    yield invalid("sec-001-crc", CHECKSUM, "another CRC of a plain section; sibling: valid/base-raw.vqm", "SEC-001", stored(section(b"\1\2\3\4", crc=0)))
    yield invalid("sec-001-crc-zstd", CHECKSUM, "another CRC of a zstd section", "SEC-001", stored(Section(frame(b"\1\2\3\4"), True, crc=0)))
    yield invalid("sec-001-crc-ancillary", CHECKSUM, "another CRC of a section of an unknown chunk", "SEC-001 CHK-003",
                  file(meta(), chunk(b"note", b"", [section(b"a", crc=0)])))
    yield invalid("sec-001-crc-of-plain-bytes", CHECKSUM, "the CRC is that of the decompressed bytes", "SEC-001",
                  stored(Section(frame(b"\1\2\3\4"), True, crc=0xB63CFBCD)))
    unpadded = aligned(zeros)
    data = unpadded.build()
    start = unpadded.offsets()[1] + 24 + len(unpadded.chunks[1].meta) + 12
    assert start % 64
    yield invalid("sec-002-no-padding", CHECKSUM, "a section of 4,096 zero bytes that is not aligned; sibling: valid/section-aligned.vqm",
                  "SEC-002 SEC-001", data[:start] + data[start + -start % 64 :])
    almost = aligned(big[:-1])
    data = almost.build()
    yield invalid("sec-002-needless-padding", CHECKSUM, "a section of 4,095 bytes that is aligned; sibling: valid/section-4095.vqm",
                  "SEC-002 SEC-001", data[:start] + bytes(-start % 64) + data[start:])
    yield invalid("sec-003-padding", FORMAT, "padding that is not zero; sibling: valid/section-aligned.vqm", "SEC-003", aligned(zeros, padding=b"\1"))
    note = replace(chunk(b"note", b"", [section(zeros)]), padding=b"\x80")
    yield invalid("sec-003-padding-ancillary", FORMAT, "padding of an unknown chunk that is not zero", "SEC-003 CHK-003", file(meta(), note))
    yield invalid("sec-004-short", FORMAT, "a plain section of one byte less", "SEC-004", stored(section(b"\1\2\3")))
    yield invalid("sec-004-long", FORMAT, "a plain section of one byte more", "SEC-004", stored(section(b"\1\2\3\4\0")))
    yield invalid("sec-004-empty", FORMAT, "a plain section of no bytes for 4", "SEC-004", stored(section(b"")))
    yield invalid("lim-section-not-there", TRUNCATED, "a plain section of 4,095 bytes is announced for 4, and the file is shorter: SEC-001 comes before SEC-004",
                  "SEC-001 REA-001", stored(section(b"\1\2\3\4", length=4_095)))
    yield invalid("lim-frame-not-there", TRUNCATED, "a frame of 2 GiB is announced, and the file is shorter", "SEC-001 REA-001 REA-002",
                  stored(section(frame(b"\1\2\3\4"), length=2**32 - 1)))


def frames() -> Iterator[Case]:
    content = b"\1\2\3\4"
    good = frame(content)

    def one(name: str, comment: str, clauses: str, stored: bytes, error: str = FORMAT) -> Case:
        return invalid(name, error, comment, clauses, file(layr("", with_section(base_raw(), 0, Section(stored, is_zstd=True)))))

    def zeros(name: str, comment: str, clauses: str, n: int, stored: bytes) -> Case:
        item = raw("a", "u8", [n], bytes(n))
        return invalid(name, FORMAT, comment, clauses, file(layr("", with_section(item, 0, Section(stored, is_zstd=True)))))

    skippable = b"\x50\x2a\x4d\x18" + u32(3) + b"abc"
    yield one("sec-005-magic", "another magic", "SEC-005", frame(content, magic=b"\x27\xb5\x2f\xfd"))
    yield one("sec-005-empty", "no bytes at all", "SEC-005", b"")
    yield one("sec-005-short-magic", "three bytes", "SEC-005", good[:3])
    yield one("sec-005-no-header", "the magic alone", "SEC-005", good[:4])
    yield one("sec-005-short-header", "a frame header without its content size", "SEC-005", good[:5])
    yield one("sec-005-skippable-frame", "a skippable frame before the frame", "SEC-005", skippable + good)
    yield one("sec-005-skippable-frame-after", "a skippable frame after the frame", "SEC-005", good + skippable)
    yield one("sec-005-two-frames", "two frames that together have the plain size", "SEC-005 SEC-006", frame(content[:2]) + frame(content[2:]))
    yield one("sec-005-empty-frame-after", "a frame without content after the frame", "SEC-005", good + frame(b""))
    yield one("sec-005-trailing-byte", "a byte after the frame", "SEC-005", good + b"\0")
    yield one("sec-006-no-size", "no content size", "SEC-006", frame(content, size_bytes=0, window=0))
    yield one("sec-006-size", "a content size above the plain size; the content has the plain size", "SEC-006", frame(5, blocks=raw_block(content)))
    yield one("sec-006-content", "a consistent frame of 5 bytes for 4", "SEC-006", frame(content + b"\5"))
    yield one("sec-006-hostile", "a content size of 2^62", "SEC-006", frame(2**62, size_bytes=8, blocks=raw_block(content)))
    yield one("sec-007-window", "a window of 9 MiB; sibling: valid/zstd-window-8-mib.vqm", "SEC-007", frame(content, window=13 << 3 | 1), LIMIT)
    yield one("sec-007-window-hostile", "the greatest window that can be written, 3.75 TiB", "SEC-007", frame(content, window=0xFF), LIMIT)
    yield one("sec-008-dictionary", "a dictionary is named in one byte; sibling: valid/zstd-dictionary-0.vqm", "SEC-008", frame(content, dictionary=b"\1"))
    yield one("sec-008-dictionary-4-bytes", "a dictionary is named in four bytes", "SEC-008", frame(content, dictionary=b"\0\0\0\1"))
    yield one("sec-009-reserved-bit", "the reserved bit of the frame header; sibling: valid/zstd-unused-bit.vqm", "SEC-009", frame(content, bits=8))
    text = b"the quick brown fox jumps over the lazy dog. " * 4
    good_text = libzstd(text, checksum=True)
    item = raw("a", "u8", [len(text)], text)
    yield invalid("sec-009-content-checksum", FORMAT, "the frame's own checksum does not match", "SEC-009",
                  file(layr("", with_section(item, 0, Section(good_text[:-1] + bytes([good_text[-1] ^ 1]), is_zstd=True)))))
    yield one("sec-010-no-block", "a frame header and no block", "SEC-010", frame(content, blocks=b""))
    yield one("sec-010-cut-block", "a block that ends before its size", "SEC-010", good[:-1])
    yield one("sec-010-no-last-block", "no block is marked as the last", "SEC-010", frame(content, blocks=raw_block(content, last=False)))
    yield one("sec-010-reserved-block", "a block of the reserved type", "SEC-010", frame(content, blocks=(1 | 3 << 1 | 4 << 3).to_bytes(3, "little") + content))
    yield one("sec-010-short-content", "the blocks hold less than the content size", "SEC-010", frame(4, blocks=raw_block(content[:3])))
    yield one("sec-010-long-content", "the blocks hold more than the content size", "SEC-010", frame(4, blocks=raw_block(content + b"\5")))
    yield one("sec-010-no-checksum", "the checksum that the frame header announces is missing", "SEC-010 SEC-009", frame(content, bits=4))
    yield one("sec-010-compressed-block", "a compressed block that is none", "SEC-010",
              frame(4, blocks=(1 | 2 << 1 | 4 << 3).to_bytes(3, "little") + b"\xff\xff\xff\xff"))
    yield zeros("sec-010-bomb", "a content size of 1,000 and blocks of 128 MiB; sibling: valid/block-limit.vqm", "SEC-010", 1_000,
                frame(1_000, blocks=rle_block(0, 131_072, last=False) * 255 + rle_blocks(0, 131_072)))


def metadata() -> Iterator[Case]:
    def value(name: str, comment: str, clauses: str, data: bytes, error: str = FORMAT) -> Case:
        """``data`` in place of the value v of metadata {"k": v}."""
        return invalid(name, error, comment, clauses, file(chunk(b"META", b"\x92\xa1g\x81\xa1k" + data)))

    def pairs(name: str, comment: str, data: bytes) -> Case:
        return invalid(name, FORMAT, comment, "MET-004", file(chunk(b"META", b"\x92\xa1g" + data)))

    def whole(name: str, comment: str, clauses: str, data: bytes, error: str = FORMAT) -> Case:
        return invalid(name, error, comment, clauses, file(chunk(b"META", data)))

    for name, data, comment in [
        ("float32", b"\xca" + struct.pack(">f", 1), "a binary32 float"), ("float64", b"\xcb" + struct.pack(">d", 1), "a binary64 float"),
        ("fixext", b"\xd4\x01\x00", "an extension type"), ("ext8", b"\xc7\x01\x05\x00", "an extension type with a length"),
        ("timestamp", b"\xd6\xff\x00\x00\x00\x00", "a timestamp"), ("c1", b"\xc1", "the byte C1"),
    ]:
        yield value(f"met-001-{name}", comment, "MET-001", data)
    for name, data, comment in [
        ("u8", b"\xcc\x7f", "127 in u8"), ("u16", b"\xcd\x00\xff", "255 in u16"), ("u32", b"\xce\x00\x00\xff\xff", "65,535 in u32"),
        ("u64", b"\xcf\x00\x00\x00\x00\xff\xff\xff\xff", "2^32 - 1 in u64"), ("i8", b"\xd0\xe0", "-32 in i8"), ("i16", b"\xd1\xff\x80", "-128 in i16"),
        ("i32", b"\xd2\xff\xff\x80\x00", "-32,768 in i32"), ("i64", b"\xd3\xff\xff\xff\xff\x80\x00\x00\x00", "-2^31 in i64"),
        ("i16-positive", b"\xd1\x7f\xff", "32,767 as a signed integer"), ("i64-positive", b"\xd3" + b"\x7f" * 8, "a great integer as a signed one"),
        ("str8", b"\xd9\x1f" + b"s" * 31, "a string of 31 bytes with a u8 length"), ("str16", b"\xda\x00\xff" + b"s" * 255, "a string of 255 bytes with a u16 length"),
        ("str32", b"\xdb\x00\x00\x00\x01s", "a string of 1 byte with a u32 length"), ("bin16", b"\xc5\x00\xff" + b"b" * 255, "a bin of 255 bytes with a u16 length"),
        ("bin32", b"\xc6\x00\x00\x00\x01b", "a bin of 1 byte with a u32 length"), ("array16", b"\xdc\x00\x0f" + bytes(15), "an array of 15 with a u16 length"),
        ("array32", b"\xdd\x00\x00\x00\x01\x00", "an array of 1 with a u32 length"), ("map16", b"\xde\x00\x01\xa1a\x00", "a map of 1 with a u16 length"),
        ("map32", b"\xdf\x00\x00\x00\x00", "an empty map with a u32 length"),
    ]:
        yield value(f"met-002-{name}", comment, "MET-002", data)
    for name, data, comment in [
        ("surrogate", b"\xed\xa0\x80", "a surrogate"), ("surrogate-pair", b"\xed\xa0\xbd\xed\xb8\x80", "a pair of surrogates (CESU-8)"),
        ("overlong", b"\xc0\xaf", "an overlong form of two bytes"), ("overlong-nul", b"\xc0\x80", "U+0000 as C0 80"),
        ("overlong-3", b"\xe0\x9f\xbf", "an overlong form of three bytes"), ("overlong-4", b"\xf0\x8f\xbf\xbf", "an overlong form of four bytes"),
        ("above-10ffff", b"\xf4\x90\x80\x80", "U+110000"), ("continuation", b"a\x80", "a lone continuation byte"), ("cut", b"\xe6\x97", "a character cut short"),
        ("ff", b"\xff", "the byte FF"),
    ]:
        yield value(f"met-003-{name}", f"a string with {comment}", "MET-003", bytes([0xA0 + len(data)]) + data)
    yield pairs("met-003-key", "a key that is no UTF-8", b"\x81\xa1\xff\x00")
    yield pairs("met-004-integer-key", "an integer as key", b"\x81\x01\x00")
    yield pairs("met-004-nil-key", "nil as key", b"\x81\xc0\x00")
    yield pairs("met-004-bin-key", "a bin as key", b"\x81\xc4\x01a\x00")
    yield pairs("met-004-order", "keys that descend", b"\x82\xa1b\x00\xa1a\x00")
    yield pairs("met-004-order-length", "shorter keys first, as in canonical CBOR; bytes decide", b"\x82\xa1b\x00\xa2aa\x00")
    yield pairs("met-004-order-utf-16", "keys in the order of UTF-16; sibling: valid/metadata-key-order.vqm",
                b"\x82" + pack("\U00010000") + b"\0" + pack("\uffff") + b"\0")
    yield pairs("met-004-twice", "a key twice", b"\x82\xa1a\x00\xa1a\x00")
    yield value("met-004-nested", "keys that descend in an inner map", "MET-004", b"\x82\xa1b\x00\xa1a\x00")
    yield whole("met-005-trailing", "a byte after the value", "MET-005", pack(["g", {}]) + b"\xc0")
    yield whole("met-005-none", "no value", "MET-005", b"")
    for name, data, comment in [
        ("string", b"\xa5abc", "a string"), ("bin", b"\xc4\xff\x00", "a bin"), ("integer", b"\xce\x00\x01", "an integer"), ("array", b"\x93\x00", "an array"),
        ("map", b"\x82\xa1a\x00", "a map"), ("length", b"\xda\x01", "the length of a string"), ("array-hostile", b"\xdd\xff\xff\xff\xff", "an array of 2^32 - 1 values"),
        ("map-hostile", b"\xdf\xff\xff\xff\xff", "a map of 2^32 - 1 pairs"), ("string-hostile", b"\xdb\xff\xff\xff\xffs", "a string of 4 GiB"),
    ]:
        yield value(f"met-005-end-{name}", f"{comment} that runs past the end of meta", "MET-005", data)
    yield value("met-006-depth", "arrays nested far beyond the limit; sibling: valid/metadata-depth-8.vqm", "MET-006", b"\x91" * 40 + b"\xc0", LIMIT)
    deep = b"\x92\xa1g\x81\xa1k" + b"\x91" * 100_000 + b"\x90"
    blocks = raw_block(deep[:6], last=False) + rle_block(0x91, 100_000, last=False) + raw_block(b"\x90")
    yield invalid("met-006-depth-hostile", LIMIT, "arrays nested 100,000 deep, compressed", "MET-006",
                  file(chunk(b"META", deep, is_compressed=True, meta_frame=frame(len(deep), blocks=blocks))))
    n = 2**20 - 4  # one more than fit beside the top array, generator, map, key and this array
    head = b"\x92\xa1g\x81\xa1k\xdd" + struct.pack(">I", n)
    blocks = raw_block(head, last=False) + rle_blocks(0xC0, n)
    yield invalid("met-007-values", LIMIT, "1,048,577 values, compressed", "MET-007",
                  file(chunk(b"META", head + b"\xc0" * n, is_compressed=True, meta_frame=frame(len(head) + n, blocks=blocks))))
    for name, data, comment in [
        ("map", {"generator": "g"}, "META is a map"), ("short", ["g"], "META without metadata"), ("long", ["g", {}, None], "META of three fields"),
        ("generator", [1, {}], "generator is an integer"), ("generator-bin", [b"g", {}], "generator is a bin"), ("metadata", ["g", []], "metadata is an array"),
        ("metadata-nil", ["g", None], "metadata is nil"),
    ]:
        yield whole(f"met-008-meta-{name}", comment, "MET-008", pack(data))


def index() -> Iterator[Case]:
    """Fields of INDX that are not what the chunks say. The base has 5 chunks and the tensors a, b, c (alias of a), d."""
    model, data = base(), base().build()
    lengths = [b - a for a, b in zip(model.offsets(), model.offsets()[1:])]

    def fields(name: str, comment: str, position: int, value: object, clauses: str = "IDX-001", error: str = FORMAT, item: File = model) -> Case:
        return invalid(f"idx-{name}", error, comment, clauses, replace(item, index={position: value}))

    def whole(name: str, comment: str, clauses: str, value: object) -> Case:
        return invalid(f"idx-{name}", FORMAT, comment, clauses, replace(model, index_changes={"meta": pack(value)}))

    no_alias = file(layr("", base_raw()))
    yield fields("002-digest", "another digest (found when the digest is tested)", 0, bytes(32), "IDX-002", CHECKSUM)
    yield fields("001-digest-size", "a digest of 31 bytes", 0, bytes(31), "IDX-001 MET-008")
    yield fields("001-digest-text", "a digest as a string", 0, "0" * 32, "IDX-001 MET-008")
    yield fields("001-metadata", "the copy of META differs", 1, pack(["vqm fixtures", {"k": "w"}]))
    yield fields("001-metadata-missing", "no copy of a META below 65,536 bytes", 1, b"")
    yield fields("001-types", "another chunk type", 2, b"METABOOKLAYRnotcLAYR")
    yield fields("001-types-short", "the ancillary chunk is not listed among the types", 2, b"METABOOKLAYRLAYR")
    yield fields("001-types-size", "types of no multiple of 4 bytes", 2, b"METABOOKLAYRnoteLAY")
    yield fields("001-lengths", "lengths of two chunks exchanged", 3, bytes([lengths[1], lengths[0], *lengths[2:]]))
    yield fields("001-lengths-sum", "a length one too great", 3, bytes([*lengths[:-1], lengths[-1] + 1]))
    yield fields("001-lengths-index", "the length of INDX is listed, too", 3, bytes([*lengths, 200]))
    yield fields("001-names", "another name", 4, b"a\0b\0x\0d\0")
    yield fields("001-names-order", "names exchanged", 4, b"b\0a\0c\0d\0")
    yield fields("001-names-end", "the last name without its byte 0", 4, b"a\0b\0c\0d")
    yield fields("001-names-missing", "the last name is missing", 4, b"a\0b\0c\0")
    yield fields("001-names-more", "a tensor that no chunk has", 4, b"a\0b\0c\0d\0e\0")
    yield fields("001-dtypes", "another dtype", 5, bytes([1, 10, 1, 4]))
    yield fields("001-dtypes-alias", "an alias with another dtype than its target", 5, bytes([1, 11, 2, 4]))
    yield fields("001-dtypes-size", "a dtype too many", 5, bytes([1, 11, 1, 4, 4]))
    yield fields("001-ranks", "another rank, and dims the same in all", 6, bytes([1, 1, 0, 2]))
    yield fields("001-ranks-size", "a rank too few", 6, bytes([1, 1, 1]))
    yield fields("001-dims", "another size", 7, bytes([8, 3, 8, 3]))
    yield fields("001-dims-alias", "an alias without dims", 7, bytes([8, 3, 2]))
    yield fields("001-chunks", "another LAYR chunk", 8, bytes([2, 2, 2, 4]), "IDX-001")
    yield fields("004-chunks-descend", "chunks that decrease", 8, bytes([4, 2, 2, 4]), "IDX-001 IDX-004")
    yield fields("004-chunks-book", "a tensor in a BOOK chunk", 8, bytes([1, 2, 4, 4]), "IDX-001 IDX-004")
    yield fields("001-chunks-range", "a chunk that does not exist", 8, bytes([2, 2, 4, 5]))
    yield fields("001-targets", "another target", 9, bytes([0, 0, 2, 0]))
    yield fields("001-targets-range", "a target that does not exist", 9, bytes([0, 0, 9, 0]))
    yield fields("001-targets-itself", "an alias as its own target", 9, bytes([0, 0, 3, 0]))
    yield fields("001-targets-missing", "no targets, though there is an alias", 9, b"")
    yield fields("001-targets-zeros", "targets, though there is no alias", 9, b"\0", item=no_alias)
    yield fields("met-009-width-2", "sizes in two bytes where one is enough", 7, struct.pack("<4H", 8, 3, 8, 2), "MET-009")
    yield fields("met-009-width-3", "sizes in three bytes", 7, b"\x08\0\0\x03\0\0\x08\0\0\x02\0\0", "MET-009")
    yield fields("met-009-no-integers", "a byte for no sizes", 7, b"\0", "MET-009 IDX-001", item=file())
    big = file(meta(generator="g" * 65_526), layr("", base_raw()))
    big = changed(big, 0, is_compressed=True, meta_frame=libzstd(big.chunks[0].meta))
    good = [*_fields(data)]
    assert len(big.chunks[0].meta) > 65_536
    plain = pack([*_fields(big.build())[:1], big.chunks[0].meta, *_fields(big.build())[2:]])
    yield invalid("idx-001-metadata-large", FORMAT, "a copy of a META above 65,536 bytes; sibling: valid/metadata-65537-bytes.vqm", "IDX-001",
                  replace(big, index_changes={"meta": plain, "is_compressed": True, "meta_frame": libzstd(plain)}))
    yield whole("001-nine-fields", "nine fields", "MET-008", good[:9])
    yield whole("001-eleven-fields", "eleven fields", "MET-008", [*good, b""])
    yield whole("001-map", "INDX is a map", "MET-008", {"digest": good[0]})
    yield whole("001-nil-targets", "targets are nil, not empty", "MET-008", [*good[:9], None])
    yield whole("001-array-dims", "dims are an array, not a bin", "MET-008", [*good[:7], [8, 3, 8, 2], *good[8:]])
    item = empty("e", "f32", [0, 5])
    yield invalid("idx-001-dims-empty", FORMAT, "another shape of a tensor without elements", "IDX-001",
                  replace(file(layr("", item, alias("f", item))), index={7: bytes([0, 4, 0, 4])}))


def _fields(data: bytes) -> list[object]:
    """The fields of INDX of a file whose INDX is plain."""
    import msgpack

    offset = int.from_bytes(data[-12:-4], "little")
    size = int.from_bytes(data[offset + 8 : offset + 12], "little")
    return msgpack.unpackb(data[offset + 24 : offset + 24 + size], raw=False)


def truncations() -> Iterator[Case]:
    model, data = base(), base().build()
    offsets = model.offsets()
    book, layer, indx = offsets[1], offsets[2], offsets[-1]
    meta_size = len(model.chunks[2].meta)
    table = layer + 24 + meta_size
    body_crc = table + 8 * len(model.chunks[2].sections)
    for name, size, comment in [
        ("empty", 0, "an empty file"), ("magic", 5, "within the magic"), ("header", 12, "within the header"), ("after-header", 16, "after the header"),
        ("chunk-header", 16 + 10, "within the first chunk header"), ("meta", 16 + 24 + 5, "within the meta of META"),
        ("after-meta-chunk", book, "after META"), ("book-section", offsets[2] - 3, "within the section of BOOK"), ("layr-meta", layer + 30, "within the meta of LAYR"),
        ("table", table + 12, "within a section table"), ("body-crc", body_crc + 2, "within a body_crc"), ("before-sections", body_crc + 4, "before the sections"),
        ("section", body_crc + 4 + 5, "within a section"), ("before-index", indx, "before INDX"), ("index-header", indx + 20, "within the header of INDX"),
        ("index", indx + 40, "within INDX"), ("before-footer", len(data) - 28, "before the footer"), ("footer", len(data) - 14, "within the footer"),
        ("last-byte", len(data) - 1, "before the last byte"),
    ]:
        yield invalid(f"truncated-{name}", TRUNCATED, f"cut {comment}; sibling: valid/base.vqm" if size else comment, "REA-001", data[:size])
    aligned = file(layr("", raw("a", "u8", [4_096], noise(1, 4_096))))
    start = aligned.offsets()[1] + 24 + len(aligned.chunks[1].meta) + 12
    yield invalid("truncated-padding", TRUNCATED, "cut within padding", "REA-001 SEC-002", aligned.build()[: start + 1])
    note = file(meta(), chunk(b"note", b"", [section(noise(1, 100))])).build()
    yield invalid("truncated-ancillary", TRUNCATED, "cut within a section of an unknown chunk", "REA-001 CHK-003", note[:100])


def flips() -> Iterator[Case]:
    """One bit of valid/base.vqm inverted, in each region."""
    model, data = base(), base().build()
    offsets = model.offsets()
    layer, indx, end = offsets[2], offsets[-1], len(data) - 28
    table = layer + 24 + len(model.chunks[2].meta)
    body_crc = table + 8 * len(model.chunks[2].sections)
    for name, offset, error, clauses, comment in [
        ("magic", 1, FORMAT, "HDR-001", "the magic"), ("major", 8, UNSUPPORTED, "HDR-002", "major"), ("minor", 10, FORMAT, "FTR-002", "minor; the footer still has 0"),
        ("zero", 15, FORMAT, "HDR-003", "the zero of the header"), ("type", layer, CHECKSUM, "CHK-001", "a chunk type"), ("flags", layer + 4, CHECKSUM, "CHK-001", "flags"),
        ("meta-stored", layer + 11, CHECKSUM, "CHK-001", "meta_stored, which becomes huge"), ("n-sections", layer + 19, CHECKSUM, "CHK-001", "n_sections, which becomes huge"),
        ("header-crc", layer + 20, CHECKSUM, "CHK-001", "header_crc"), ("meta", layer + 30, CHECKSUM, "CHK-007", "the meta of LAYR"),
        ("metadata", 16 + 24 + 3, CHECKSUM, "CHK-007", "the meta of META"), ("table", table + 3, CHECKSUM, "CHK-007", "a section length"),
        ("table-crc", table + 4, CHECKSUM, "CHK-007", "a section's CRC"), ("body-crc", body_crc, CHECKSUM, "CHK-007", "body_crc"),
        ("section-zstd", body_crc + 4, CHECKSUM, "SEC-001", "a zstd section"), ("section-plain", layer - 1, CHECKSUM, "SEC-001", "the section of BOOK"),
        ("section-codes", offsets[3] - 1, CHECKSUM, "SEC-001", "codes"), ("section-ancillary", offsets[4] - 1, CHECKSUM, "SEC-001", "a section of an unknown chunk"),
        ("index-header", indx + 8, CHECKSUM, "CHK-001", "the header of INDX"), ("index", indx + 40, CHECKSUM, "CHK-007", "the meta of INDX"),
        ("footer-magic", end, CHECKSUM, "FTR-002", "the magic of the footer"), ("footer-offset", end + 16, CHECKSUM, "FTR-002", "index_offset"),
        ("footer-crc", len(data) - 1, CHECKSUM, "FTR-002", "the footer's CRC"),
    ]:
        flipped = data[:offset] + bytes([data[offset] ^ 1]) + data[offset + 1 :]
        yield invalid(f"flip-{name}", error, f"one bit inverted in {comment}; sibling: valid/base.vqm", clauses, flipped)
