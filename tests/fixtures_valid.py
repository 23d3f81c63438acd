"""Valid files: container, metadata, sections, raw tensors. Those with arithmetic stages: fixtures_stages.py."""

from __future__ import annotations

import struct
from dataclasses import replace

import numpy as np

import fixtures_stages
from fixturecase import Case, valid
from vqmbuilder import (
    MAGIC, chunk, file, frame, layr, libzstd, libzstd_section, meta, raw_block, rle_block, rle_blocks, section, u16, u32,
    zstd_section, File, Section, pack,
)
from vqmtensors import DTYPES, Codebook, Layout, Tensor, alias, edit, empty, raw, tensor


def noise(seed: int, size: int) -> bytes:
    """Bytes that do not compress; the generator is frozen by numpy."""
    return np.random.RandomState(seed).randint(0, 256, size).astype(np.uint8).tobytes()


def small(name: str = "a", n: int = 4) -> object:
    return raw(name, "u8", [n], bytes(range(1, n + 1)))


def base() -> File:
    """A file with a chunk of each type and sections of each kind: the sibling of many invalid files."""
    table = np.array([0.5, -3], np.float32).reshape(1, 2, 1)
    book = chunk(b"BOOK", [1, 2, 1, 11], [section(table.tobytes())])
    first = raw("a", "u8", [8], bytes(8), seal=lambda data: zstd_section(data, blocks=rle_block(0, 8)))
    shared = tensor("b", "f32", [3], Codebook(np.array([[1, 0, 1]]), table, book=0))
    note = chunk(b"note", b"?", [section(b"abc")])
    return file(meta({"k": "v"}), book, layr("l", first, shared), note, layr("m", alias("c", first), raw("d", "i16", [2], b"\1\2\3\4")))


def base_raw() -> Tensor:
    return raw("a", "u8", [4], bytes([1, 2, 3, 4]))


def cases() -> list[Case]:
    return [*files(), *metadata(), *chunks(), *sections(), *names(), *dtypes(), *raws(), *fixtures_stages.cases()]


def files() -> list[Case]:
    header_7 = MAGIC + u16(1) + u16(7) + u32(0)
    return [
        valid("base", "a chunk of each type, sections of each kind; invalid files are made from it", "FIL-001 FIL-002", base()),
        valid("base-raw", "a small raw tensor; invalid files are made from it", "RAW-002", file(layr("", base_raw()))),
        valid("empty-model", "no tensors, no metadata: the smallest file", "HDR-001 FIL-001 FTR-001", file(meta(generator=""))),
        valid("minor-7", "a later minor version that uses no new id", "HDR-002 EXT-001", file(layr("", small()), header=header_7)),
        valid("one-byte", "one tensor of one byte", "FIL-002 RAW-002", file(layr("", raw("a", "u8", [1], b"\x2a")))),
    ]


def metadata() -> list[Case]:
    kinds = {
        "nil": None, "false": False, "true": True, "int": 5, "text": "grüße, 世界 🦉", "empty text": "", "nul": "a\0b",
        "bin": b"\0\xff\x80", "empty bin": b"", "array": [1, "two", [3, None]], "empty array": [], "empty map": {},
        "map": {"inner": {"deep": [True, False]}}, "vqm.source": {"format": "pytorch", "nesting": ["model", "state"]},
    }
    positive = [0, 127, 128, 255, 256, 65535, 65536, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1]
    negative = [-1, -32, -33, -128, -129, -(2**15), -(2**15) - 1, -(2**31), -(2**31) - 1, -(2**63)]
    lengths = {
        "str": ["s" * n for n in (0, 1, 31, 32, 255, 256)],
        "bin": [b"\7" * n for n in (0, 1, 255, 256)],
        "array": [[0] * n for n in (15, 16, 40)],
        "map": [{f"{i:02}": i for i in range(n)} for n in (1, 15, 16)],
    }
    order = {key: i for i, key in enumerate(["", "a", "a ", "aa", "b", "Z", "é", "\uffff", "\U00010000", "\ud7ff", "z"])}
    deep = {"depth 3": [[[[["depth 8"]]]]]}
    out = [
        valid("metadata-kinds", "a metadata value of each kind", "MET-001 MET-003", file(meta(kinds))),
        valid("metadata-integers", "integers at the ends of each size", "MET-002", file(meta({"+": positive, "-": negative}))),
        valid("metadata-lengths", "strings, bins, arrays, maps at the ends of each size", "MET-002",
              _with_compressed_index(file(replace(meta(lengths), is_compressed=True, meta_frame=libzstd(meta(lengths).meta))))),
        valid("metadata-key-order", "keys ascend by UTF-8 bytes: U+FFFF before U+10000, unlike UTF-16", "MET-004", file(meta(order))),
        valid("metadata-depth-8", "metadata of the greatest depth", "MET-006", file(meta(deep))),
    ]
    for size, comment in [(65_536, "INDX has a copy"), (65_537, "the copy in INDX is empty"), (65_543, "a string of 65,536 bytes")]:
        item = meta(generator="g" * (size - len(pack(["", {}])) - (2 if size < 65_543 else 4)))
        assert len(item.meta) == size
        item = replace(item, is_compressed=True, meta_frame=libzstd(item.meta))
        out.append(valid(f"metadata-{size}-bytes", f"meta of {size:,} bytes: {comment}", "IDX-001 CHK-005 MET-002",
                         _with_compressed_index(file(item, layr("", small())))))
    return out


def _with_compressed_index(item: object) -> object:
    """The file with its INDX compressed; the index does not depend on how it is stored."""
    data = item.build()
    start = item.offsets()[-1]
    size = int.from_bytes(data[start + 12 : start + 16], "little")
    plain = data[start + 24 : start + 24 + size]
    return replace(item, index_changes={"is_compressed": True, "meta_frame": libzstd(plain)})


def chunks() -> list[Case]:
    book = chunk(b"BOOK", [1, 2, 1, 11], [section(struct.pack("<2f", 0.5, -3))], is_compressed=True)
    table = np.array([0.5, -3], np.float32).reshape(1, 2, 1)
    shared = tensor("a", "f32", [3], Codebook(np.array([[1, 0, 1]]), table, book=0))
    everything = _with_compressed_index(file(meta({"k": "v"}, is_compressed=True), book, layr("l", shared, is_compressed=True)))
    m = meta({"text": "y" * 1300})
    window = frame(m.meta, blocks=raw_block(m.meta[:1024], last=False) + raw_block(m.meta[1024:]), window=0)
    garbage = Section(b"\xff" * 5, is_zstd=True)
    private = chunk(b"note", b"\xc1 no MessagePack", [section(b"abc"), section(b""), garbage])
    compressed = chunk(b"xYzW", b"\xc1\xc1", is_compressed=True)
    return [
        valid("meta-compressed", "the meta of META, BOOK, LAYR and INDX as zstd frames", "CHK-005", everything),
        valid("meta-zstd-window", "meta in a frame with a window descriptor and two blocks", "CHK-005 SEC-006 SEC-007",
              file(replace(m, is_compressed=True, meta_frame=window))),
        valid("meta-zstd-checksum", "meta in a frame with a content checksum", "CHK-005 SEC-009",
              file(replace(m, is_compressed=True, meta_frame=libzstd(m.meta, checksum=True)))),
        valid("ancillary", "unknown ancillary chunks with sections (one no frame) and a meta that is no MessagePack",
              "CHK-003 EXT-004 IDX-001", file(meta(), private, layr("", small()), private, compressed)),
        valid("ancillary-names", "ancillary types that resemble critical ones", "CHK-002 CHK-003",
              file(meta(), chunk(b"mETA", b""), chunk(b"iNDX", b""), chunk(b"lAYR", b"\x90"), chunk(b"zzzz", b""))),
    ]


def sections() -> list[Case]:
    text = b"the quick brown fox jumps over the lazy dog. " * 46  # 2,070 bytes
    ramp = bytes(range(200))
    big = noise(1, 4096)

    def one(name: str, comment: str, clauses: str, data: bytes, item: Section) -> Case:
        return valid(name, comment, clauses, file(layr("", raw("a", "u8", [len(data)], data, seal=lambda _: item))))

    chunked = raw_block(ramp[:100], last=False) + rle_block(7, 50, last=False) + raw_block(b"", last=False) + raw_block(ramp[:9])
    chunked_data = ramp[:100] + b"\7" * 50 + ramp[:9]
    aligned = layr("", raw("a", "u8", [3], b"abc"), raw("b", "u8", [4096], big), raw("c", "u8", [2], b"de"))
    # 176 bytes stand before the section, or a label's worth more: find the label that needs no padding
    unpadded = next(
        item for n in range(64) if _section_start(item := file(layr("l" * n, raw("a", "u8", [4096], big)))) % 64 == 0
    )
    late = chunk(b"note", b"x", [section(b"abc"), section(big), section(b"d")])
    out = [
        one("zstd-compressed", "a section compressed by libzstd", "SEC-005 SEC-006", text, libzstd_section(text)),
        one("zstd-checksum", "a frame with a content checksum", "SEC-009", text, libzstd_section(text, checksum=True)),
        one("zstd-window", "a frame with a window of 1 KiB, smaller than its content", "SEC-006 SEC-007", text,
            libzstd_section(text, window_log=10)),
        one("zstd-window-8-mib", "a frame with the greatest window", "SEC-007", ramp, zstd_section(ramp, window=13 << 3)),
        one("zstd-dictionary-0", "a frame with a Dictionary_ID field that is zero", "SEC-008", ramp,
            zstd_section(ramp, dictionary=b"\0\0")),
        one("zstd-unused-bit", "a frame with the unused bit of its descriptor set", "SEC-009", ramp, zstd_section(ramp, bits=16)),
        one("zstd-size-8-bytes", "a frame with a content size field of 8 bytes", "SEC-006", ramp, zstd_section(ramp, size_bytes=8)),
        one("zstd-size-2-bytes", "a frame with a content size field of 2 bytes", "SEC-006", text[:400], zstd_section(text[:400])),
        one("zstd-blocks", "a frame with raw, RLE and empty blocks", "SEC-010", chunked_data,
            zstd_section(chunked_data, blocks=chunked)),
        one("zstd-4096-not-aligned", "a stored frame of more than 4,096 bytes is not aligned", "SEC-002", big, zstd_section(big)),
        valid("zstd-empty", "a frame without content: the codes of a codebook of one entry", "SEC-010 COD-001",
              file(layr("", tensor("a", "f32", [3], Codebook(np.zeros((1, 3), int), np.full((1, 1, 1), 2.5, np.float32)),
                                   seal=zstd_section)))),
        one("section-4095", "a plain section of 4,095 bytes is not aligned", "SEC-002", big[:-1], section(big[:-1])),
        valid("section-aligned", "a plain section of 4,096 bytes starts at a multiple of 64, those beside it do not",
              "SEC-002 SEC-003", file(aligned)),
        valid("section-aligned-by-chance", "a plain section of 4,096 bytes that needs no padding", "SEC-002", unpadded),
        valid("section-aligned-ancillary", "sections of unknown chunks are aligned as all others", "SEC-002 CHK-003",
              file(late, layr("", small()))),
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
    unicode = ["composed é", "decomposed e\u0301", "日本語", "🦉", "\u202eabc", "tab\tline\n", " ", "\x7f", "\U0010ffff"]
    book = np.array([[[1.5], [-2.5]]], np.float32)
    coded = tensor("coded", "f16", [2, 2], Codebook(np.array([[0, 1, 1, 0]]), book))
    return [
        valid("aliases", "aliases beside their targets and in a later layer; INDX lists them", "ALI-001 IDX-001",
              file(layr("one", first, alias("again", first), zero, alias("none too", zero)),
                   layr("two", scalar, alias("third name", first), alias("s", scalar), coded, alias("0", coded)))),
        valid("alias-layer", "a layer of aliases alone", "ALI-001 LYR-001", file(layr("", first), layr("", alias("b", first)))),
        valid("same-layer-names", "two layers of the same name", "LYR-001", file(layr("block", small("a")), layr("block", small("b")))),
        valid("many-layers", "layers with names that are empty, long, or hold U+0000", "LYR-001",
              file(layr("", small("a")), layr("n" * 1024, small("b")), layr("x\0y", small("c")))),
        valid("unicode-names", "names are compared as bytes: no normalisation, no trimming", "TEN-001 TEN-002 MET-003",
              file(layr("κρυφό", *[raw(name, "u8", [1], bytes([i])) for i, name in enumerate(unicode)]))),
        valid("name-1024-bytes", "a tensor name of the greatest length", "TEN-001", file(layr("", small("é" * 512)))),
        valid("order-of-tensors", "tensors stay in the order of the encoder, not sorted", "IDX-001",
              file(layr("", small("z"), small("a", 2), small("m", 3)), layr("", small("b", 1)))),
    ]


FLOATS_32 = [0x00000000, 0x80000000, 0x7F800000, 0xFF800000, 0x7FC00000, 0xFFC00001, 0x7F800001, 0xFFBFFFFF, 1, 0x807FFFFF,
             0x00800000, 0x7F7FFFFF, 0x3F800000, 0xC0490FDB]
FLOATS_64 = [0, 1 << 63, 0x7FF << 52, 0xFFF << 52, 0x7FF8 << 48, 0x7FF0000000000001, 0xFFF7FFFFFFFFFFFF, 1, 0x000FFFFFFFFFFFFF,
             1 << 52, 0x7FEFFFFFFFFFFFFF, 0x3FF << 52, 0xC00921FB54442D18, 0x0123456789ABCDEF]
FLOATS_16 = [0, 0x8000, 0x7C00, 0xFC00, 0x7E00, 0xFE01, 0x7C01, 0x7F80, 0xFF80, 0x7F81, 0xFFC0, 1, 0x83FF, 0x0400, 0x7BFF, 0x3C00]


def sample(dtype: str) -> bytes:
    """Decoded bytes of 16 (4 bits), 256 (8 bits) or some elements, specials included."""
    kind = DTYPES[dtype]
    if dtype == "bool":
        return bytes([0, 1, 1, 0, 1, 0, 0, 0])
    if kind.bits == 4:
        return bytes(2 * i | (2 * i + 1) << 4 for i in range(8))
    if kind.bits == 8:
        return bytes(range(256))
    if dtype in ("f32", "c64"):
        return b"".join(struct.pack("<I", word) for word in FLOATS_32)
    if dtype in ("f64", "c128"):
        return b"".join(struct.pack("<Q", word) for word in FLOATS_64)
    if dtype in ("f16", "bf16"):
        return b"".join(struct.pack("<H", word) for word in FLOATS_16)
    top = 256**kind.word
    words = [0, 1, 255, 256, top // 2 - 1, top // 2, top - 1, top - 2, 0x1234567890ABCDEF % top, 0xFEDCBA0987654321 % top]
    return b"".join(word.to_bytes(kind.word, "little") for word in words)


def n_elements(dtype: str, data: bytes) -> int:
    return len(data) * 8 // DTYPES[dtype].bits


def dtypes() -> list[Case]:
    out = []
    for dtype in DTYPES:
        data = sample(dtype)
        shape = [2, n_elements(dtype, data) // 2] if n_elements(dtype, data) % 2 == 0 else [n_elements(dtype, data)]
        comment = f"{dtype}, raw: " + ("NaN payloads, -0, infinities, subnormals" if DTYPES[dtype].real else "extremes")
        out.append(valid(f"raw-{dtype}", comment, "RAW-002 DTY-001" if dtype == "bool" else "RAW-002",
                         file(layr("", raw("a", dtype, shape, data)))))
    return out


def raws() -> list[Case]:
    wide = [dtype for dtype in DTYPES if DTYPES[dtype].bits > 8]
    out = []
    for split in (1, 2):
        for label, group in [("integers", wide[:6]), ("floats", wide[6:])]:
            items = [raw(dtype, dtype, [n_elements(dtype, sample(dtype))], sample(dtype), split=split) for dtype in group]
            text = "byte planes" if split == 1 else "byte planes of words rotated left by one bit"
            out.append(valid(f"split-{split}-{label}", f"{text}: {label}", f"RAW-001 RAW-00{split + 2}", file(layr("", *items))))
    matrix = noise(2, 5 * 3 * 2)
    nibbles = bytes([0x21, 0x43, 0x65, 0x87, 0xA9, 0xCB, 0xED, 0x0F])  # 15 elements: 1 .. 15
    million = bytes(4_194_304)
    explicit = edit(small(), (3,), Layout().record())
    column = Layout(n_row_axes=1, block_rows=1, block_columns=2)
    out += [
        valid("raw-row-blocks", "bands of 2 of 5 rows, the last one shorter, as byte planes", "LAY-004 RAW-003",
              file(layr("", raw("a", "u16", [5, 3], matrix, split=1, layout=Layout(n_row_axes=1, block_rows=2))))),
        valid("raw-column-blocks", "ranges of 2 of 3 columns, the last one shorter", "LAY-004 RAW-004",
              file(layr("", raw("a", "bf16", [5, 3], matrix, split=2, layout=column)))),
        valid("raw-one-row-blocks", "no row axes: one row, cut into ranges across the last axis", "LAY-004",
              file(layr("", raw("a", "u16", [5, 3], matrix, layout=Layout(block_rows=1, block_columns=4))))),
        valid("raw-all-row-axes", "all axes are rows: one column", "LAY-001 LAY-004",
              file(layr("", raw("a", "u16", [5, 3], matrix, layout=Layout(n_row_axes=2, block_rows=7))))),
        valid("raw-view-one-block", "a view of rows and columns in one block", "LAY-001",
              file(layr("", raw("a", "u16", [5, 3], matrix, layout=Layout(n_row_axes=1))))),
        valid("raw-complex-blocks", "the axis of 2 is not appended for a raw stage; split planes of a block of c64",
              "LAY-001 RAW-003", file(layr("", raw("a", "c64", [2, 3], noise(3, 48), split=1,
                                                   layout=Layout(n_row_axes=1, block_rows=1, block_columns=2))))),
        valid("raw-4-bit-odd", "an odd number of 4-bit elements", "RAW-002",
              file(layr("", raw("u", "u4", [3, 5], nibbles), raw("i", "i4", [1], b"\x08"), raw("f", "f4_e2m1fn", [7], b"\x10\x32\x54\x06")))),
        valid("raw-4-bit-blocks", "each block of 4-bit elements starts a new byte; the decoded bytes do not", "RAW-002",
              file(layr("", raw("rows", "u4", [3, 5], nibbles, layout=Layout(n_row_axes=1, block_rows=1)),
                        raw("columns", "i4", [3, 5], nibbles, layout=replace(column, block_columns=3))))),
        valid("layout-explicit", "layout [nil, 0, 0, 0, 0] written out is the same as nil", "LAY-001", file(layr("", explicit))),
        valid("shapes", "a scalar, sizes of 1, rank 32, and a matrix of more axes than two", "TEN-003",
              file(layr("", raw("scalar", "f32", [], b"\0\0\x80\x3f"), raw("ones", "u8", [1, 1, 1], b"\x05"),
                        raw("rank 32", "u8", [1] * 15 + [2] + [1] * 15 + [2], b"abcd"), raw("cube", "i8", [2, 1, 3], b"uvwxyz"),
                        raw("4-bit scalar", "u4", [], b"\x0b"), raw("complex scalar", "c128", [], noise(4, 16), split=1)))),
        valid("empty-tensors", "tensors without elements", "TEN-003 TEN-004",
              file(layr("", empty("a", "f32", [0, 5]), empty("b", "u4", [0]), empty("c", "c64", [3, 0, 2]),
                        empty("d", "bool", [2**59, 0]), empty("e", "bf16", [0] * 32)))),
        valid("block-limit", "a block of 4,194,304 elements, all zero", "LAY-005",
              file(layr("", raw("a", "u8", [4_194_304], million, seal=lambda data: zstd_section(data, blocks=rle_blocks(0, len(data))))))),
    ]
    return out
