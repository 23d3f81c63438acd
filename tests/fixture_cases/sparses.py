"""Valid files: sparse raw stages (SPEC 8.1), of minor version 2."""

from __future__ import annotations

import struct

from vqmbuilder import MAGIC, Chunk, File, file, layr, u16, u32, zstd_section
from vqmtensors import DTYPES, Layout, Tensor, sparse

from fixture_cases import Case, valid
from fixture_cases.bases import noise
from fixture_cases.raws import n_elements, sample

MINOR_2 = MAGIC + u16(1) + u16(2) + u32(0)
BANDS = Layout(n_row_axes=1, block_rows=2)
RANGES = Layout(n_row_axes=1, block_rows=1, block_columns=2)


def model(*chunks: Chunk) -> File:
    return file(*chunks, header=MINOR_2)


def case(name: str, comment: str, clauses: str, *tensors: Tensor) -> Case:
    return valid(f"sparse-{name}", comment, clauses, model(layr("", *tensors)))


def words(*values: int) -> bytes:
    """Elements of u16 or f16."""
    return b"".join(map(u16, values))


def base_sparse() -> Tensor:
    """5 × 3 of u16 in bands of 2 rows, with 4, 0 and 2 words in the planes: the sibling of invalid files."""
    data = words(1, 0, 0x8000, 0x8001, 0x1234, 0xFFFF, 0, 0, 0, 0x8000, 0, 0, 7, 0x8000, 0x4000)
    return sparse("a", "u16", [5, 3], data, split=1, layout=BANDS)


def text() -> bytes:
    return struct.pack("<5f", 0, 1, -0.0, 0, -1)


def cases() -> list[Case]:
    wide = [dtype for dtype in DTYPES if DTYPES[dtype].bits > 8]
    out = [case("base", "bands of 4, 0 and 2 words that are not bare; invalid files are made from it", "SPA-002",
                base_sparse())]  # fmt: skip
    for split in (1, 2):
        for label, group in [("integers", wide[:6]), ("floats", wide[6:])]:
            items = [sparse(dtype, dtype, [n_elements(dtype, sample(dtype))], sample(dtype), split=split)
                     for dtype in group]  # fmt: skip
            out.append(case(f"split-{split}-{label}", f"split {split}: {label}, NaN and infinities in the planes",
                            "SPA-001 SPA-003", *items))  # fmt: skip
    zeros = struct.pack("<9H", 0, 0x8000, 0, 0, 0x8000, 0, 0, 0, 0x8000)
    return [
        *out,
        case("of-the-text", "the example of section 8.1", "SPA-003", sparse("a", "f32", [5], text())),
        case("ranges", "ranges of 2 of 3 columns: the count of a shorter one", "SPA-002 LAY-004",
             sparse("a", "f32", [2, 3], struct.pack("<6f", 0, 1, 2, 3, 0, 0), layout=RANGES)),
        case("zeros", "nothing but zeros of both signs: planes of no bytes", "SPA-003 SEC-001",
             sparse("a", "f16", [9], zeros)),
        case("no-zeros", "no word is bare: no signs", "SPA-003 SEC-001",
             sparse("a", "bf16", [8], words(*range(0x3F80, 0x3F88)))),
        case("bare-in-planes", "bare words in the planes all the same: +0 and -0", "SPA-004",
             sparse("a", "f16", [4], words(0, 0x8000, 0x3C00, 0), marked=(0, 1))),
        case("complex-half", "one of two parts of a complex element is bare", "SPA-002",
             sparse("a", "c64", [2, 2], struct.pack("<8f", 0, 1, 2, -0.0, 0, 0, 3, 4), layout=Layout(n_row_axes=1,
                                                                                                  block_rows=1))),
        case("scalar", "an element", "SPA-003", sparse("a", "f64", [], struct.pack("<d", -0.0))),
        case("counts-two-bytes", "a count above 255, and one below", "SPA-002 MET-009",
             sparse("a", "u16", [2, 260], noise(7, 516) + bytes(480) + noise(8, 44), split=1,
                    layout=Layout(n_row_axes=1, block_rows=1))),
        case("zstd", "marks, signs and planes as zstd frames", "SPA-003",
             sparse("a", "f32", [256], bytes(512) + 128 * struct.pack("<f", 1), seal=compressed)),
        valid("sparse-minor-0", "a sparse raw stage in a file of minor version 0: a reader goes by the ids", "HDR-002",
              file(layr("", sparse("a", "f32", [5], text())))),
    ]  # fmt: skip


def compressed(data: bytes) -> object:
    return zstd_section(data)
