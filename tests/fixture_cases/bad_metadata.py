"""Invalid files: metadata and index (SPEC 5 and 12)."""

# ruff: noqa: PLR0917 (a call is a row of a table)

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import msgpack
from vqmbuilder import (
    File,
    chunk,
    file,
    frame,
    layr,
    meta,
    pack,
    raw_block,
    rle_block,
    rle_blocks,
)

from fixture_cases import Case, invalid
from fixture_cases.bases import (
    base,
    base_raw,
)

FORMAT, CHECKSUM, LIMIT, TRUNCATED, UNSUPPORTED = "format", "checksum", "limit", "truncated", "unsupported"


def cases() -> list[Case]:
    return [*metadata(), *index()]


def metadata() -> Iterator[Case]:
    def value(name: str, comment: str, clauses: str, data: bytes, error: str = FORMAT) -> Case:
        """``data`` in place of the value v of metadata {"k": v}."""
        return invalid(name, error, comment, clauses, file(chunk(b"META", b"\x92\xa1g\x81\xa1k" + data)))

    def pairs(name: str, comment: str, data: bytes) -> Case:
        return invalid(name, FORMAT, comment, name[:7].upper(), file(chunk(b"META", b"\x92\xa1g" + data)))

    def whole(name: str, comment: str, clauses: str, data: bytes, error: str = FORMAT) -> Case:
        return invalid(name, error, comment, clauses, file(chunk(b"META", data)))

    for name, data, comment in [
        ("float32", b"\xca" + struct.pack(">f", 1), "a binary32 float"),
        ("float64", b"\xcb" + struct.pack(">d", 1), "a binary64 float"),
        ("ext8", b"\xc7\x01\x05\x00", "an extension type with a length"),
        ("c1", b"\xc1", "the byte C1"),
    ]:
        yield value(f"met-001-{name}", comment, "MET-001", data)
    for name, data, comment in [
        ("u8", b"\xcc\x7f", "127 in u8"),
        ("u16", b"\xcd\x00\xff", "255 in u16"),
        ("i8", b"\xd0\xe0", "-32 in i8"),
        ("i64", b"\xd3\xff\xff\xff\xff\x80\x00\x00\x00", "-2^31 in i64"),
        ("i16-positive", b"\xd1\x7f\xff", "32,767 as a signed integer"),
        ("str8", b"\xd9\x1f" + b"s" * 31, "a string of 31 bytes with a u8 length"),
        ("str16", b"\xda\x00\xff" + b"s" * 255, "a string of 255 bytes with a u16 length"),
        ("str32", b"\xdb\x00\x00\x00\x01s", "a string of 1 byte with a u32 length"),
        ("bin32", b"\xc6\x00\x00\x00\x01b", "a bin of 1 byte with a u32 length"),
        ("array16", b"\xdc\x00\x0f" + bytes(15), "an array of 15 with a u16 length"),
        ("array32", b"\xdd\x00\x00\x00\x01\x00", "an array of 1 with a u32 length"),
        ("map16", b"\xde\x00\x01\xa1a\x00", "a map of 1 with a u16 length"),
        ("map32", b"\xdf\x00\x00\x00\x00", "an empty map with a u32 length"),
    ]:
        yield value(f"met-002-{name}", comment, "MET-002", data)
    for name, data, comment in [
        ("surrogate", b"\xed\xa0\x80", "a surrogate"),
        ("overlong", b"\xc0\xaf", "an overlong form of two bytes"),
        ("overlong-3", b"\xe0\x9f\xbf", "an overlong form of three bytes"),
        ("overlong-4", b"\xf0\x8f\xbf\xbf", "an overlong form of four bytes"),
        ("above-10ffff", b"\xf4\x90\x80\x80", "U+110000"),
        ("continuation", b"a\x80", "a lone continuation byte"),
        ("cut", b"\xe6\x97", "a character cut short"),
    ]:
        yield value(f"met-003-{name}", f"a string with {comment}", "MET-003", bytes([0xA0 + len(data)]) + data)
    yield pairs("met-003-key", "a key that is no UTF-8", b"\x81\xa1\xff\x00")
    yield pairs("met-004-integer-key", "an integer as key", b"\x81\x01\x00")
    yield pairs("met-004-bin-key", "a bin as key", b"\x81\xc4\x01a\x00")
    yield pairs("met-004-order", "keys that descend", b"\x82\xa1b\x00\xa1a\x00")
    yield pairs(
        "met-004-order-utf-16",
        "keys in the order of UTF-16; sibling: valid/metadata-key-order.vqm",
        b"\x82" + pack("\U00010000") + b"\0" + pack("\uffff") + b"\0",
    )
    yield pairs("met-004-twice", "a key twice", b"\x82\xa1a\x00\xa1a\x00")
    yield value("met-004-nested", "keys that descend in an inner map", "MET-004", b"\x82\xa1b\x00\xa1a\x00")
    yield whole("met-005-trailing", "a byte after the value", "MET-005", pack(["g", {}]) + b"\xc0")
    yield whole("met-005-none", "no value", "MET-005", b"")
    for name, data, comment in [
        ("string", b"\xa5abc", "a string"),
        ("integer", b"\xce\x00\x01", "an integer"),
        ("array", b"\x93\x00", "an array"),
        ("map", b"\x82\xa1a\x00", "a map"),
        ("array-hostile", b"\xdd\xff\xff\xff\xff", "an array of 2^32 - 1 values"),
        ("string-hostile", b"\xdb\xff\xff\xff\xffs", "a string of 4 GiB"),
    ]:
        yield value(f"met-005-end-{name}", f"{comment} that runs past the end of meta", "MET-005", data)
    yield value(
        "met-006-depth",
        "a value at depth 17; sibling: valid/metadata-depth-16.vqm",
        "MET-006",
        b"\x91" * 14 + b"\xc0",
        LIMIT,
    )
    yield value("met-006-depth-empty", "an empty map at depth 17", "MET-006", b"\x91" * 14 + b"\x80", LIMIT)
    deep = b"\x92\xa1g\x81\xa1k" + b"\x91" * 100_000 + b"\x90"
    blocks = raw_block(deep[:6], last=False) + rle_block(0x91, 100_000, last=False) + raw_block(b"\x90")
    yield invalid(
        "met-006-depth-hostile",
        LIMIT,
        "arrays nested 100,000 deep, compressed",
        "MET-006",
        file(chunk(b"META", deep, is_compressed=True, meta_frame=frame(len(deep), blocks=blocks))),
    )
    n = 2**20 - 4  # one more than fit beside the top array, generator, map, key and this array
    head = b"\x92\xa1g\x81\xa1k\xdd" + struct.pack(">I", n)
    blocks = raw_block(head, last=False) + rle_blocks(0xC0, n)
    yield invalid(
        "met-007-values",
        LIMIT,
        "1,048,577 values, compressed",
        "MET-007",
        file(chunk(b"META", head + b"\xc0" * n, is_compressed=True, meta_frame=frame(len(head) + n, blocks=blocks))),
    )
    for name, data, comment in [
        ("map", {"generator": "g"}, "META is a map"),
        ("short", ["g"], "META without metadata"),
        ("long", ["g", {}, None], "META of three fields"),
        ("generator", [1, {}], "generator is an integer"),
        ("metadata", ["g", []], "metadata is an array"),
    ]:
        yield whole(f"met-008-meta-{name}", comment, "MET-008", pack(data))


def index() -> Iterator[Case]:
    """Fields of INDX that are not what the chunks say. The base has 5 chunks, and tensors a, b, c (alias of a), d."""
    model, data = base(), base().build()
    lengths = [b - a for a, b in pairwise(model.offsets())]

    def fields(
        name: str,
        comment: str,
        position: int,
        value: object,
        clauses: str = "IDX-001",
        error: str = FORMAT,
        item: File = model,
    ) -> Case:
        return invalid(f"idx-{name}", error, comment, clauses, replace(item, index={position: value}))

    def whole(name: str, comment: str, clauses: str, value: object) -> Case:
        return invalid(f"idx-{name}", FORMAT, comment, clauses, replace(model, index_changes={"meta": pack(value)}))

    no_alias = file(layr("", base_raw()))
    yield fields("002-digest", "another digest (found when the digest is tested)", 0, bytes(32), "IDX-002", CHECKSUM)
    yield fields("001-digest-size", "a digest of 31 bytes", 0, bytes(31), "IDX-001 MET-008")
    yield fields("001-metadata", "the copy of META differs", 1, pack(["", {"k": "w"}]))
    yield fields("001-metadata-missing", "no copy of a META below 65,536 bytes", 1, b"")
    yield fields("001-types", "another chunk type", 2, b"METABOOKLAYRnotcLAYR")
    yield fields("001-types-short", "the ancillary chunk is not listed among the types", 2, b"METABOOKLAYRLAYR")
    yield fields("001-lengths", "lengths of two chunks exchanged", 3, bytes([lengths[1], lengths[0], *lengths[2:]]))
    yield fields("001-lengths-sum", "a length one too great", 3, bytes([*lengths[:-1], lengths[-1] + 1]))
    yield fields("001-lengths-index", "the length of INDX is listed, too", 3, bytes([*lengths, 200]), "IDX-001 MET-009")
    yield fields("001-names", "another name", 4, b"a\0b\0x\0d\0")
    yield fields("001-names-end", "the last name without its byte 0", 4, b"a\0b\0c\0d")
    yield fields("001-names-missing", "the last name is missing", 4, b"a\0b\0c\0")
    yield fields("001-dtypes", "another dtype", 5, bytes([1, 10, 1, 4]))
    yield fields("001-dtypes-alias", "an alias with another dtype than its target", 5, bytes([1, 11, 2, 4]))
    yield fields("001-dtypes-unknown", "a dtype that does not exist, in the index alone", 5, b"\xc8", item=no_alias)
    yield fields("001-types-critical", "an unknown critical type, in the index alone", 2, b"METALAYS", item=no_alias)
    yield fields("001-ranks", "another rank, and dims the same in all", 6, bytes([1, 1, 0, 2]))
    yield fields("001-dims", "another size", 7, bytes([64, 3, 64, 3]))
    yield fields("001-dims-alias", "an alias without dims", 7, bytes([64, 3, 2]), "IDX-001 MET-009")
    yield fields("001-chunks", "another LAYR chunk", 8, bytes([2, 2, 2, 4]), "IDX-001")
    yield fields("004-chunks-descend", "chunks that decrease", 8, bytes([4, 2, 2, 4]), "IDX-001 IDX-004")
    yield fields("004-chunks-book", "a tensor in a BOOK chunk", 8, bytes([1, 2, 4, 4]), "IDX-001 IDX-004")
    yield fields("001-targets", "another target", 9, bytes([0, 0, 2, 0]))
    yield fields("001-targets-range", "a target that does not exist", 9, bytes([0, 0, 9, 0]))
    yield fields("001-targets-missing", "no targets, though there is an alias", 9, b"", "IDX-001 MET-009")
    yield fields("001-targets-zeros", "targets, though there is no alias", 9, b"\0", item=no_alias)
    yield fields(
        "met-009-width-2", "sizes in two bytes where one is enough", 7, struct.pack("<4H", 64, 3, 64, 2), "MET-009"
    )
    yield fields("met-009-width-3", "sizes in three bytes", 7, b"\x40\0\0\x03\0\0\x40\0\0\x02\0\0", "MET-009")
    yield fields("met-009-no-integers", "a byte for no sizes", 7, b"\0", "MET-009 IDX-001", item=file())
    big = file(meta(generator="g" * 65_532, is_compressed=True), layr("", base_raw()))
    good = [*fields_of(data)]
    assert len(big.chunks[0].meta) > 65_536
    plain = pack([*fields_of(big.build())[:1], big.chunks[0].meta, *fields_of(big.build())[2:]])
    yield invalid(
        "idx-001-metadata-large",
        FORMAT,
        "a copy of a META above 65,536 bytes; sibling: valid/metadata-65537-bytes.vqm",
        "IDX-001",
        replace(big, index_changes={"meta": plain, "is_compressed": True}),
    )
    yield whole("001-nine-fields", "nine fields", "MET-008", good[:9])
    yield whole("001-eleven-fields", "eleven fields", "MET-008", [*good, b""])


def fields_of(data: bytes) -> list[object]:
    """The fields of INDX of a file whose INDX is plain."""
    offset = int.from_bytes(data[-12:-4], "little")
    size = int.from_bytes(data[offset + 8 : offset + 12], "little")
    return msgpack.unpackb(data[offset + 24 : offset + 24 + size], raw=False)
