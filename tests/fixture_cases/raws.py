"""Valid files: each dtype raw, byte planes, shapes (SPEC 7.1, 7.2, 8)."""

from __future__ import annotations

import struct
from dataclasses import replace

from vqmbuilder import (
    file,
    layr,
    rle_blocks,
    zstd_section,
)
from vqmtensors import (
    DTYPES,
    Layout,
    edit,
    empty,
    raw,
)

from fixture_cases import Case, valid
from fixture_cases.bases import (
    noise,
    small,
)


def cases() -> list[Case]:
    return [*dtypes(), *raws()]


FLOATS_32 = [
    0x00000000,
    0x80000000,
    0x7F800000,
    0xFF800000,
    0x7FC00000,
    0xFFC00001,
    0x7F800001,
    0xFFBFFFFF,
    1,
    0x807FFFFF,
    0x00800000,
    0x7F7FFFFF,
    0x3F800000,
    0xC0490FDB,
]

FLOATS_64 = [
    0,
    1 << 63,
    0x7FF << 52,
    0xFFF << 52,
    0x7FF8 << 48,
    0x7FF0000000000001,
    0xFFF7FFFFFFFFFFFF,
    1,
    0x000FFFFFFFFFFFFF,
    1 << 52,
    0x7FEFFFFFFFFFFFFF,
    0x3FF << 52,
    0xC00921FB54442D18,
    0x0123456789ABCDEF,
]

FLOATS_16 = [
    0,
    0x8000,
    0x7C00,
    0xFC00,
    0x7E00,
    0xFE01,
    0x7C01,
    0x7F80,
    0xFF80,
    0x7F81,
    0xFFC0,
    1,
    0x83FF,
    0x0400,
    0x7BFF,
    0x3C00,
]


def sample(dtype: str) -> bytes:
    """Decoded bytes of 16 (4 bits), 256 (8 bits) or some elements, specials included."""
    kind = DTYPES[dtype]
    if dtype == "bool":
        return bytes([0, 1, 1, 0, 1, 0, 0, 0])
    if kind.bits == 4:
        return bytes(2 * i | (2 * i + 1) << 4 for i in range(8))
    if kind.bits == 8:
        return bytes(range(256) if dtype == "u8" else [*range(0, 256, 17), 0x7E, 0x7F, 0x80, 0x81, 0xFD, 0xFE])
    if dtype in ("f32", "c64"):
        return b"".join(struct.pack("<I", word) for word in FLOATS_32)
    if dtype in ("f64", "c128"):
        return b"".join(struct.pack("<Q", word) for word in FLOATS_64)
    if dtype in ("f16", "bf16"):
        return b"".join(struct.pack("<H", word) for word in FLOATS_16)
    top = 256**kind.word
    words = [
        0,
        1,
        255,
        256,
        top // 2 - 1,
        top // 2,
        top - 1,
        top - 2,
        0x1234567890ABCDEF % top,
        0xFEDCBA0987654321 % top,
    ]
    return b"".join(word.to_bytes(kind.word, "little") for word in words)


def n_elements(dtype: str, data: bytes) -> int:
    return len(data) * 8 // DTYPES[dtype].bits


def dtypes() -> list[Case]:
    out = []
    for dtype in DTYPES:
        data = sample(dtype)
        shape = [2, n_elements(dtype, data) // 2] if n_elements(dtype, data) % 2 == 0 else [n_elements(dtype, data)]
        comment = f"{dtype}, raw: " + ("NaN payloads, -0, infinities, subnormals" if DTYPES[dtype].real else "extremes")
        out.append(
            valid(
                f"raw-{dtype}",
                comment,
                "RAW-002 DTY-001" if dtype == "bool" else "RAW-002",
                file(layr("", raw("a", dtype, shape, data))),
            )
        )
    return out


def raws() -> list[Case]:
    wide = [dtype for dtype in DTYPES if DTYPES[dtype].bits > 8]
    out = []
    for split in (1, 2):
        for label, group in [("integers", wide[:6]), ("floats", wide[6:])]:
            items = [
                raw(dtype, dtype, [n_elements(dtype, sample(dtype))], sample(dtype), split=split) for dtype in group
            ]
            text = "byte planes" if split == 1 else "byte planes of words rotated left by one bit"
            out.append(
                valid(
                    f"split-{split}-{label}", f"{text}: {label}", f"RAW-001 RAW-00{split + 2}", file(layr("", *items))
                )
            )
    matrix = noise(2, 5 * 3 * 2)
    nibbles = bytes([0x21, 0x43, 0x65, 0x87, 0xA9, 0xCB, 0xED, 0x0F])  # 15 elements: 1 .. 15
    million = bytes(4_194_304)
    explicit = edit(small(), (3,), Layout().record())
    column = Layout(n_row_axes=1, block_rows=1, block_columns=2)
    out += [
        valid(
            "raw-row-blocks",
            "bands of 2 of 5 rows, the last one shorter, as byte planes",
            "LAY-004 RAW-003",
            file(layr("", raw("a", "u16", [5, 3], matrix, split=1, layout=Layout(n_row_axes=1, block_rows=2)))),
        ),
        valid(
            "raw-column-blocks",
            "ranges of 2 of 3 columns, the last one shorter",
            "LAY-004 RAW-004",
            file(layr("", raw("a", "bf16", [5, 3], matrix, split=2, layout=column))),
        ),
        valid("raw-blocks-of-one-column", "ranges of one column: a block for each element", "LAY-004",
              file(layr("", raw("a", "u16", [5, 3], matrix, layout=replace(column, block_columns=1))))),
        valid(
            "raw-one-row-blocks",
            "no row axes: one row, cut into ranges across the last axis",
            "LAY-004",
            file(layr("", raw("a", "u16", [5, 3], matrix, layout=Layout(block_rows=1, block_columns=4)))),
        ),
        valid(
            "raw-all-row-axes",
            "all axes are rows: one column",
            "LAY-001 LAY-004",
            file(layr("", raw("a", "u16", [5, 3], matrix, layout=Layout(n_row_axes=2, block_rows=7)))),
        ),
        valid(
            "raw-view-one-block",
            "a view of rows and columns in one block",
            "LAY-001",
            file(layr("", raw("a", "u16", [5, 3], matrix, layout=Layout(n_row_axes=1)))),
        ),
        valid(
            "raw-complex-blocks",
            "the axis of 2 is not appended for a raw stage; split planes of a block of c64",
            "LAY-001 RAW-003",
            file(
                layr(
                    "",
                    raw(
                        "a",
                        "c64",
                        [2, 3],
                        noise(3, 48),
                        split=1,
                        layout=Layout(n_row_axes=1, block_rows=1, block_columns=2),
                    ),
                )
            ),
        ),
        valid(
            "raw-4-bit-odd",
            "an odd number of 4-bit elements",
            "RAW-002",
            file(
                layr(
                    "",
                    raw("u", "u4", [3, 5], nibbles),
                    raw("i", "i4", [1], b"\x08"),
                    raw("f", "f4_e2m1fn", [7], b"\x10\x32\x54\x06"),
                )
            ),
        ),
        valid(
            "raw-4-bit-blocks",
            "each block of 4-bit elements starts a new byte; the decoded bytes do not",
            "RAW-002",
            file(
                layr(
                    "",
                    raw("rows", "u4", [3, 5], nibbles, layout=Layout(n_row_axes=1, block_rows=1)),
                    raw("columns", "i4", [3, 5], nibbles, layout=replace(column, block_columns=3)),
                )
            ),
        ),
        valid(
            "layout-explicit",
            "layout [nil, 0, 0, 0, 0] written out is the same as nil",
            "LAY-001",
            file(layr("", explicit)),
        ),
        valid(
            "shapes",
            "a scalar, sizes of 1, rank 32, and a matrix of more axes than two",
            "TEN-003",
            file(
                layr(
                    "",
                    raw("scalar", "f32", [], b"\0\0\x80\x3f"),
                    raw("ones", "u8", [1, 1, 1], b"\x05"),
                    raw("rank 32", "u8", [1] * 15 + [2] + [1] * 15 + [2], b"abcd"),
                    raw("cube", "i8", [2, 1, 3], b"uvwxyz"),
                    raw("4-bit scalar", "u4", [], b"\x0b"),
                    raw("complex scalar", "c128", [], noise(4, 16), split=1),
                )
            ),
        ),
        valid(
            "empty-tensors",
            "tensors without elements, one with the greatest product of the other sizes",
            "TEN-003 TEN-004",
            file(
                layr(
                    "",
                    empty("a", "f32", [0, 5]),
                    empty("b", "u4", [0]),
                    empty("c", "c64", [3, 0, 2]),
                    empty("d", "bool", [2**58 - 1, 0]),
                    empty("e", "bf16", [0] * 32),
                )
            ),
        ),
        valid(
            "block-limit",
            "a block of 4,194,304 elements, all zero",
            "LAY-005",
            file(
                layr(
                    "",
                    raw(
                        "a",
                        "u8",
                        [4_194_304],
                        million,
                        seal=lambda data: zstd_section(data, blocks=rle_blocks(0, len(data))),
                    ),
                )
            ),
        ),
    ]
    return out
