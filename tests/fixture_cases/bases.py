"""What the cases share: small files and tensors, and numbers for codes and tables."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from vqmbuilder import (
    File,
    chunk,
    file,
    layr,
    meta,
    section,
    zstd_section,
)
from vqmtensors import (
    F32,
    TABLE_DTYPES,
    Codebook,
    Layout,
    LowRank,
    Scale,
    Tensor,
    alias,
    raw,
    table_bytes,
    tensor,
)

from fixture_cases import Case, valid


def noise(seed: int, size: int) -> bytes:
    """Bytes that do not compress; the generator is frozen by numpy."""
    return np.random.RandomState(seed).randint(0, 256, size).astype(np.uint8).tobytes()


def small(name: str = "a", n: int = 4) -> object:
    return raw(name, "u8", [n], bytes(range(1, n + 1)))


def base() -> File:
    """A file with a chunk of each type and sections of each kind: the sibling of many invalid files."""
    table = np.array([0.5, -3], np.float32).reshape(1, 2, 1)
    book = chunk(b"BOOK", [1, 2, 1, 11], [section(table.tobytes())])
    first = raw("a", "u8", [64], bytes(64), seal=zstd_section)
    shared = tensor("b", "f32", [3], Codebook(np.array([[1, 0, 1]]), table, book=0))
    note = chunk(b"note", b"?", [section(b"abc")])
    return file(
        meta({"k": "v"}),
        book,
        layr("l", first, shared),
        note,
        layr("m", alias("c", first), raw("d", "i16", [2], b"\1\2\3\4")),
    )


def base_raw() -> Tensor:
    return raw("a", "u8", [4], bytes([1, 2, 3, 4]))


def codes(seed: int, shape: Sequence[int], entries: int) -> np.ndarray:
    """Codes that include 0 and ``entries`` - 1; the generator is frozen by numpy."""
    out = np.random.RandomState(seed).randint(0, entries, shape)
    out.reshape(-1)[0], out.reshape(-1)[-1] = entries - 1, 0
    return out


def table(seed: int, groups: int, entries: int, dim: int, dtype: object = F32) -> np.ndarray:
    """Values in [-2, 2) with all 24 bits of a significand in use, then rounded to ``dtype``."""
    fractions = np.random.RandomState(seed).randint(-(2**24), 2**24, (groups, entries, dim))
    return (fractions / 2**23).astype(F32).astype(dtype)


def scales(seed: int, n: int, dtype: object = F32) -> np.ndarray:
    return table(seed, 1, n, 1, dtype).reshape(-1)


def book_chunk(values: np.ndarray) -> object:
    groups, entries, dim = values.shape
    return chunk(b"BOOK", [dim, entries, groups, TABLE_DTYPES[values.dtype]], [section(table_bytes(values))])


def column(*values: float, dtype: object = F32) -> np.ndarray:
    """A table of one group and dim 1."""
    return np.array(values, F32).astype(dtype).reshape(1, -1, 1)


ROWS = Layout(n_row_axes=1)


def base_codebook() -> Tensor:
    """3 × 6, subvectors of 2, 3 entries, a scale for each row: the sibling of many invalid files."""
    stage = Codebook(np.array([[0, 1, 2], [2, 1, 0], [1, 1, 2]]), table(1, 1, 3, 2), scale=Scale(scales(2, 3), rows=1))
    return tensor("a", "f32", [3, 6], stage, layout=ROWS)


def base_low_rank() -> Tensor:
    """4 × 5 of rank 3, a scale for each row and one for all columns."""
    stage = LowRank(
        codes(1, (4, 3), 7), codes(2, (3, 5), 3), 7, 3, scales(3, 4), scales(4, 1), size_r=1, planes_v=((3, 5),)
    )
    return tensor("a", "f32", [4, 5], stage, layout=ROWS)


def cases() -> list[Case]:
    return [
        valid(
            "base",
            "a chunk of each type, sections of each kind; invalid files are made from it",
            "FIL-001 FIL-002",
            base(),
        ),
        valid("base-raw", "a small raw tensor; invalid files are made from it", "RAW-002", file(layr("", base_raw()))),
        valid(
            "base-codebook",
            "a small codebook tensor; invalid files are made from it",
            "CBK-001",
            file(layr("", base_codebook())),
        ),
        valid(
            "base-low-rank",
            "a small low-rank tensor; invalid files are made from it",
            "LOW-001",
            file(layr("", base_low_rank())),
        ),
    ]
