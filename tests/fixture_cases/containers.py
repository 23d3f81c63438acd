"""Valid files: header, metadata, chunks, sections, names (SPEC 2 to 7, 13)."""

from __future__ import annotations

import struct
from dataclasses import replace

import numpy as np
from vqmbuilder import (
    MAGIC,
    Section,
    chunk,
    file,
    frame,
    layr,
    libzstd,
    libzstd_section,
    meta,
    pack,
    raw_block,
    rle_block,
    section,
    u16,
    u32,
    zstd_section,
)
from vqmtensors import (
    Codebook,
    alias,
    empty,
    raw,
    tensor,
)

from fixture_cases import Case, valid
from fixture_cases.bases import (
    noise,
    small,
)


def cases() -> list[Case]:
    return [*files(), *metadata(), *chunks(), *sections(), *names()]


def files() -> list[Case]:
    header_7 = MAGIC + u16(1) + u16(7) + u32(0)
    return [
        valid("empty-model", "no tensors, no metadata: the smallest file", "HDR-001 FIL-001 FTR-001", file()),
        valid(
            "minor-7",
            "a later minor version that uses no new id",
            "HDR-002 EXT-001",
            file(layr("", small()), header=header_7),
        ),
        valid("one-byte", "one tensor of one byte", "FIL-002 RAW-002", file(layr("", raw("a", "u8", [1], b"\x2a")))),
    ]


def metadata() -> list[Case]:
    kinds = {
        "nil": None,
        "false": False,
        "true": True,
        "int": 5,
        "text": "grüße, 世界 🦉",
        "empty text": "",
        "nul": "a\0b",
        "bin": b"\0\xff\x80",
        "empty bin": b"",
        "array": [1, "two", [3, None]],
        "empty array": [],
        "empty map": {},
        "map": {"inner": {"deep": [True, False]}},
        "vqm.source": {"format": "pytorch", "nesting": ["model", "state"]},
    }
    positive = [0, 127, 128, 255, 256, 65535, 65536, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1]
    negative = [-1, -32, -33, -128, -129, -(2**15), -(2**15) - 1, -(2**31), -(2**31) - 1, -(2**63)]
    lengths = {
        "str": ["s" * n for n in (0, 1, 31, 32, 255, 256)],
        "bin": [b"\7" * n for n in (0, 1, 255, 256)],
        "array": [[0] * n for n in (15, 16, 40)],
        "map": [{f"{i:02}": i for i in range(n)} for n in (1, 15, 16)],
    }
    order = {
        key: i for i, key in enumerate(["", "a", "a ", "aa", "b", "Z", "é", "\uffff", "\U00010000", "\ud7ff", "z"])
    }
    deep = {"depth 3": [[[[[[[[[[[[["depth 16"]]]]]]]]]]]]]}
    out = [
        valid("metadata-kinds", "a metadata value of each kind", "MET-001 MET-003", file(meta(kinds))),
        valid(
            "metadata-integers",
            "integers at the ends of each size",
            "MET-002",
            file(meta({"+": positive, "-": negative})),
        ),
        valid(
            "metadata-lengths",
            "strings, bins, arrays, maps at the ends of each size",
            "MET-002",
            file(meta(lengths, is_compressed=True), index_changes={"is_compressed": True}),
        ),
        valid(
            "metadata-key-order",
            "keys ascend by UTF-8 bytes: U+FFFF before U+10000, unlike UTF-16",
            "MET-004",
            file(meta(order)),
        ),
        valid("metadata-depth-16", "metadata of the greatest depth", "MET-006", file(meta(deep))),
        *sources(),
    ]
    for size, comment in [
        (65_536, "INDX has a copy"),
        (65_537, "the copy in INDX is empty"),
        (65_543, "a string of 65,536 bytes"),
    ]:
        item = meta(generator="g" * (size - len(pack(["", {}])) - (2 if size < 65_543 else 4)))
        assert len(item.meta) == size
        model = file(
            replace(item, is_compressed=True),
            layr("", small()),
            index_changes={"is_compressed": True} if size == 65_536 else {},
        )
        out.append(
            valid(f"metadata-{size}-bytes", f"meta of {size:,} bytes: {comment}", "IDX-001 CHK-005 MET-002", model)
        )
    return out


def sources() -> list[Case]:
    """``vqm.source`` of SPEC 18, from which a file of the source's format can be written."""
    keras = {
        "format": "keras-weights",
        "datasets": [["layers/dense/vars/0", "hid/kernel"], ["layers/dense/vars/1", "hid/bias"]],
        "groups": ["layers/flatten/vars"],
        "attributes": [["layers/dense/vars", "name", "utf-8", [], ["hid"]]],
    }
    checkpoint = (
        '{"dict":[["epoch",3],["loss",{"float":"inf"}],["model",{"dict":[["w",{"tensor":"w"}]]}],'
        '["optimizer",{"dict":[["state",{"dict":[[0,{"dict":[["step",{"tensor":"optimizer.state.0.step"}]]}]]}],'
        '["betas",{"tuple":[0.9,0.999]}]]}]]}'
    )
    pytorch = {"format": "pytorch", "nesting": ["model"], "checkpoint": checkpoint, "exact": ["optimizer.state.0.step"]}
    kernel = raw("hid/kernel", "f32", [3, 2], struct.pack("<6f", *range(6)))
    layer = layr("hid", kernel, raw("hid/bias", "f32", [2], struct.pack("<2f", 0.5, -2)))
    step = layr("optimizer.state.0", raw("optimizer.state.0.step", "f32", [], struct.pack("<f", 7)))
    return [
        valid("source-keras", "vqm.source of Keras weights", "MET-001", file(meta({"vqm.source": keras}), layer)),
        valid("source-pytorch", "vqm.source of a PyTorch checkpoint with its optimizer", "MET-001",
              file(meta({"vqm.source": pytorch}), layr("", raw("w", "f32", [1], struct.pack("<f", 1))), step)),
    ]  # fmt: skip


def chunks() -> list[Case]:
    book = chunk(b"BOOK", [1, 2, 1, 11], [section(struct.pack("<2f", 0.5, -3))])
    table = np.array([0.5, -3], np.float32).reshape(1, 2, 1)
    shared = tensor("a", "f32", [3], Codebook(np.array([[1, 0, 1]]), table, book=0))
    long = "l" * 60
    everything = file(
        meta({"k": long}, is_compressed=True),
        book,
        layr(long, shared, is_compressed=True),
        index_changes={"is_compressed": True},
    )
    m = meta({"text": "y" * 1300})
    blocks = (
        raw_block(m.meta[:20], last=False)
        + rle_block(ord("y"), 1004, last=False)
        + rle_block(ord("y"), len(m.meta) - 1024)
    )
    checked = meta({"text": "the quick brown fox " * 5})
    garbage = Section(b"\xff" * 5, is_zstd=True)
    private = chunk(b"note", b"\xc1 no MessagePack", [section(b"abc"), section(b""), garbage])
    unread = [
        chunk(b"xYzW", b"\xc1\xc1", is_compressed=True, meta_frame=b"no frame"),
        chunk(b"sizE", b"abc", meta_plain=2),
    ]
    return [
        valid("meta-compressed", "the meta of META, LAYR and INDX as zstd frames", "CHK-005", everything),
        valid(
            "meta-zstd-window",
            "meta in a frame with a window descriptor and blocks within it",
            "CHK-005 SEC-006 SEC-007",
            file(
                replace(m, is_compressed=True, meta_frame=frame(m.meta, blocks=blocks, window=0)),
                index_changes={"is_compressed": True},
            ),
        ),
        valid(
            "meta-zstd-checksum",
            "meta in a frame with a content checksum",
            "CHK-005 SEC-009",
            file(replace(checked, is_compressed=True, meta_frame=libzstd(checked.meta, checksum=True))),
        ),
        valid(
            "ancillary",
            "unknown ancillary chunks with sections (one no frame) and a meta that is no MessagePack",
            "CHK-003 EXT-004 IDX-001",
            file(meta(), private, layr("", small()), private),
        ),
        valid(
            "ancillary-meta-unread",
            "the meta of unknown ancillary chunks is not decompressed, nor are its two sizes compared",
            "CHK-003 CHK-005",
            file(meta(), *unread, layr("", small())),
        ),
        valid(
            "ancillary-names",
            "ancillary types that resemble critical ones",
            "CHK-002 CHK-003",
            file(meta(), chunk(b"mETA", b""), chunk(b"iNDX", b""), chunk(b"lAYR", b"\x90"), chunk(b"zzzz", b"")),
        ),
    ]


def sections() -> list[Case]:
    text = b"the quick brown fox jumps over the lazy dog. " * 46  # 2,070 bytes
    ramp = bytes(range(100)) + b"\7" * 100
    big = noise(1, 4096)
    above = big + bytes(100)

    def one(name: str, comment: str, clauses: str, data: bytes, item: Section) -> Case:
        return valid(name, comment, clauses, file(layr("", raw("a", "u8", [len(data)], data, seal=lambda _: item))))

    chunked = (
        raw_block(ramp[:100], last=False)
        + rle_block(7, 50, last=False)
        + raw_block(b"", last=False)
        + raw_block(ramp[:9])
    )
    chunked_data = ramp[:100] + b"\7" * 50 + ramp[:9]
    aligned = layr("", raw("a", "u8", [3], b"abc"), raw("b", "u8", [4096], big), raw("c", "u8", [2], b"de"))
    # 176 bytes stand before the section, or a label's worth more: find the label that needs no padding
    unpadded = next(
        item for n in range(64) if _section_start(item := file(layr("l" * n, raw("a", "u8", [4096], big)))) % 64 == 0
    )
    out = [
        one("zstd-compressed", "a section compressed by libzstd", "SEC-005 SEC-006", text, libzstd_section(text)),
        one("zstd-checksum", "a frame with a content checksum", "SEC-009", text, libzstd_section(text, checksum=True)),
        one(
            "zstd-window",
            "a frame with a window of 1 KiB, smaller than its content",
            "SEC-006 SEC-007",
            text,
            libzstd_section(text, window_log=10),
        ),
        one(
            "zstd-window-8-mib", "a frame with the greatest window", "SEC-007", ramp, zstd_section(ramp, window=13 << 3)
        ),
        one(
            "zstd-dictionary-0",
            "a frame with a Dictionary_ID field that is zero",
            "SEC-008",
            ramp,
            zstd_section(ramp, dictionary=b"\0\0"),
        ),
        one(
            "zstd-unused-bit",
            "a frame with the unused bit of its descriptor set",
            "SEC-009",
            ramp,
            zstd_section(ramp, bits=16),
        ),
        one(
            "zstd-size-8-bytes",
            "a frame with a content size field of 8 bytes",
            "SEC-006",
            ramp,
            zstd_section(ramp, size_bytes=8),
        ),
        one(
            "zstd-size-2-bytes",
            "a frame with a content size field of 2 bytes",
            "SEC-006",
            ramp * 2,
            zstd_section(ramp * 2),
        ),
        one(
            "zstd-blocks",
            "a frame with raw, RLE and empty blocks",
            "SEC-010",
            chunked_data,
            zstd_section(chunked_data, blocks=chunked),
        ),
        one(
            "zstd-4096-not-aligned",
            "a stored frame of more than 4,096 bytes is not aligned",
            "SEC-002",
            above,
            zstd_section(above),
        ),
        one(
            "zstd-shorter-by-one",
            "a frame of one byte less than its content, the least that is allowed",
            "SEC-004",
            b"\7" * 11,
            zstd_section(b"\7" * 11),
        ),
        valid(
            "section-aligned",
            "a plain section of 4,096 bytes starts at a multiple of 64, those beside it do not",
            "SEC-002 SEC-003",
            file(aligned),
        ),
        valid("section-aligned-by-chance", "a plain section of 4,096 bytes that needs no padding", "SEC-002", unpadded),
    ]
    return out


def _section_start(item: object) -> int:
    """Where the first section of the second chunk would start without padding."""
    layer = item.chunks[1]
    return item.offsets()[1] + 24 + len(layer.meta) + 8 * len(layer.sections) + 4


def names() -> list[Case]:
    first = small("first")
    zero = empty("none", "f32", [0, 5])
    scalar = raw("scalar", "i16", [], b"\x39\x30")
    unicode = [
        "composed é",
        "decomposed e\u0301",
        "日本語",
        "🦉",
        "\u202eabc",
        "tab\tline\n",
        " ",
        "\x7f",
        "\U0010ffff",
    ]
    book = np.array([[[1.5], [-2.5]]], np.float32)
    coded = tensor("coded", "f16", [2, 2], Codebook(np.array([[0, 1, 1, 0]]), book))
    return [
        valid(
            "aliases",
            "aliases beside their targets and in a later layer; INDX lists them",
            "ALI-001 IDX-001",
            file(
                layr("one", first, alias("again", first), zero, alias("none too", zero)),
                layr("two", scalar, alias("third name", first), alias("s", scalar), coded, alias("0", coded)),
            ),
        ),
        valid(
            "alias-layer",
            "a layer of aliases alone",
            "ALI-001 LYR-001",
            file(layr("", first), layr("", alias("b", first))),
        ),
        valid(
            "copies",
            "aliases that are copies, one with a tied name in a later layer, and an alias that is none",
            "CPY-001 CPY-002 EXT-005 WRI-002",
            file(
                chunk(b"copy", {"b": None, "d": None}),
                layr("one", first, alias("b", first), alias("c", first), scalar, alias("d", scalar)),
                chunk(b"copy", {"e": "b", "f" * 80: None}, is_compressed=True),
                layr("two", alias("e", first), alias("f" * 80, first)),
            ),
        ),
        valid(
            "copies-ignored",
            "contents of copy chunks that say nothing, and values that count as nil",
            "CPY-001 CHK-003",
            file(
                chunk(b"copy", {"b": None}),
                chunk(b"note", b""),
                layr("", first, alias("b", first), scalar, alias("s", scalar)),
                chunk(b"copy", b"\xc1 no MessagePack"),
                layr("", alias("c", first)),
                chunk(b"copy", {"d": 1}),
                layr("", alias("d", first)),
                chunk(b"copy", {"e": None}, is_compressed=True, meta_frame=b"none"),
                layr("", alias("e", first)),
                chunk(b"copy", {"b": None, "first": None, "none": None, "f": "s", "g": "first", "h": "none", "i": "i"},
                      [section(b"abc")]),
                layr("", *(alias(name, first) for name in "fghi")),
                chunk(b"copy", {"z": None}),
            ),
        ),
        valid(
            "same-layer-names",
            "two layers of the same name",
            "LYR-001",
            file(layr("block", small("a")), layr("block", small("b"))),
        ),
        valid(
            "many-layers",
            "layers with names that are empty, long, or hold U+0000",
            "LYR-001",
            file(layr("", small("a")), layr("n" * 1024, small("b"), is_compressed=True), layr("x\0y", small("c"))),
        ),
        valid(
            "unicode-names",
            "names are compared as bytes: no normalisation, no trimming",
            "TEN-001 TEN-002 MET-003",
            file(layr("κρυφό", *[raw(name, "u8", [1], bytes([i])) for i, name in enumerate(unicode)])),
        ),
        valid(
            "name-1024-bytes",
            "a tensor name of the greatest length",
            "TEN-001",
            file(layr("", small("n" * 1022 + "é"), is_compressed=True), index_changes={"is_compressed": True}),
        ),
        valid(
            "order-of-tensors",
            "tensors stay in the order of the encoder, not sorted",
            "IDX-001",
            file(layr("", small("z"), small("a", 2), small("m", 3)), layr("", small("b", 1))),
        ),
    ]
