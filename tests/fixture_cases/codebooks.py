"""Valid files: codes, sources, groups (SPEC 9 and 10)."""

from __future__ import annotations

import numpy as np
from vqmbuilder import (
    file,
    layr,
    libzstd_section,
)
from vqmtensors import (
    BF16,
    F32,
    Codebook,
    Scale,
    tensor,
)

from fixture_cases import Case, valid
from fixture_cases.bases import (
    ROWS,
    book_chunk,
    codes,
    column,
    scales,
    table,
)


def cases() -> list[Case]:
    return [*packings(), *sources(), *groups()]


def packings() -> list[Case]:
    out = []
    for width, entries in [
        (0, 1),
        (1, 2),
        (2, 3),
        (3, 7),
        (4, 16),
        (5, 20),
        (8, 200),
        (9, 300),
        (12, 4096),
        (16, 65536),
    ]:
        steps = np.array([0.0625], F32)
        stage = Codebook(codes(width, (1, 11), entries), steps=steps, zero=entries // 2, entries=entries)
        out.append(
            valid(
                f"dense-{width}-bits",
                f"codes of {width} bits, {entries} entries",
                "COD-001 COD-002",
                file(layr("", tensor("a", "f32", [11], stage))),
            )
        )
    spec = Codebook(np.array([[5, 1, 7, 2]]), column(*range(8)))
    spec_3 = Codebook(np.array([[2, 0, 1, 1, 2, 1]]), column(*range(3)), planes=((3, 5),))
    spec_300 = Codebook(np.array([[299, 7]]), steps=np.ones(1, F32), entries=300, planes=((256, 1), (2, 8)))
    out.append(
        valid(
            "codes-of-the-text",
            "the three examples of SPEC 10",
            "COD-002 COD-005",
            file(
                layr(
                    "",
                    tensor("dense", "f32", [4], spec),
                    tensor("base 3", "f32", [6], spec_3),
                    tensor("two planes", "f32", [2], spec_300),
                )
            ),
        )
    )
    for name, entries, planes, comment in [
        ("planes-3x5", 3, ((3, 5),), "five digits of base 3 to a byte"),
        ("planes-16x2", 16, ((16, 2),), "two digits of base 16 to a byte"),
        ("planes-15x2", 15, ((15, 2),), "two digits of base 15 to a byte"),
        ("planes-6x3", 6, ((6, 3),), "three digits of base 6 to a byte: 216 values"),
        ("planes-256-and-2", 512, ((256, 1), (2, 8)), "a plane of whole bytes and a plane of bits"),
        ("planes-256-and-3", 700, ((256, 1), (3, 5)), "two planes, their product above the number of entries"),
        ("planes-three", 60_000, ((256, 1), (16, 2), (15, 2)), "three planes"),
        ("planes-three-bits", 5, ((2, 8), (2, 8), (2, 8)), "three planes of bits for 5 entries"),
        ("planes-one-to-a-byte", 17, ((256, 1),), "one code to a byte, base 256 for 17 entries"),
        ("planes-not-minimal", 3, ((3, 2),), "fewer digits to a byte than would fit"),
        ("planes-full-bytes", 4, ((4, 4),), "filled bytes: no digits to fill up with"),
    ]:
        stage = Codebook(
            codes(7, (2, 8 if name == "planes-full-bytes" else 9), entries),
            steps=np.array([0.375], F32),
            zero=entries // 3,
            entries=entries,
            planes=planes,
        )
        shape = list(stage.codes.shape)
        out.append(
            valid(
                name, comment, "COD-003 COD-004 COD-005", file(layr("", tensor("a", "f32", shape, stage, layout=ROWS)))
            )
        )
    return out


def sources() -> list[Case]:
    out = []
    for label, dtype in [("f32", F32), ("f16", np.float16), ("bf16", BF16)]:
        stage = Codebook(codes(1, (3, 4), 6), table(2, 1, 6, 2, dtype), scale=Scale(scales(3, 1, dtype)))
        out.append(
            valid(
                f"table-{label}",
                f"table and scale of {label}",
                "CBK-007",
                file(layr("", tensor("a", "f32", [3, 8], stage, layout=ROWS))),
            )
        )
    progression = Codebook(codes(4, (4, 6), 9), steps=scales(5, 4), zero=4, entries=9, book_rows=3, book_columns=4)
    turns = [np.add.outer(n * np.arange(64), np.arange(64)) % 64 for n in (2, 3)]  # each row is the one above, moved
    elements = Codebook(
        65_535 - turns[0] * 1_040,
        steps=scales(13, 64)[turns[1].reshape(-1)],
        zero=32_768,
        entries=65_536,
        book_rows=1,
        book_columns=1,
    )
    low = Codebook(codes(6, (1, 5), 5), steps=np.array([0.1], F32), zero=-(2**23), entries=5)
    high = Codebook(
        codes(6, (1, 5), 5), steps=np.array([-0.1], F32), zero=2**23, entries=5, scale=Scale(np.array([0.7], F32))
    )
    shared = table(8, 1, 5, 2)
    f16 = table(9, 4, 3, 1, np.float16)
    return [
        *out,
        valid(
            "progression",
            "steps by groups of rows and columns",
            "CBK-005",
            file(layr("", tensor("a", "f32", [4, 6], progression, layout=ROWS))),
        ),
        valid(
            "progression-each-element",
            "a step for each element of 65,536 entries: 16 KiB of steps, and 1 GiB if all entries were computed",
            "CBK-003 CBK-005",
            file(layr("", tensor("a", "f32", [64, 64], elements, layout=ROWS, seal=libzstd_section))),
        ),
        valid(
            "progression-zero-limits",
            "zero at -2^23 and at 2^23",
            "CBK-005",
            file(layr("", tensor("low", "f32", [5], low), tensor("high", "f32", [5], high))),
        ),
        valid(
            "book-shared",
            "one BOOK for two layers",
            "BOK-001 CBK-006",
            file(
                book_chunk(shared),
                layr("one", tensor("a", "f32", [3, 4], Codebook(codes(1, (3, 2), 5), shared, book=0), layout=ROWS)),
                layr("two", tensor("b", "f16", [7], Codebook(codes(2, (1, 4), 5), shared, book=0))),
            ),
        ),
        valid(
            "books",
            "BOOKs are numbered in file order; one of f16 with groups, one unused, one between layers",
            "BOK-001 CBK-006",
            file(
                book_chunk(f16),
                layr(
                    "one",
                    tensor(
                        "a",
                        "f32",
                        [4, 3],
                        Codebook(codes(3, (4, 3), 3), f16, book=0, book_rows=2, book_columns=2),
                        layout=ROWS,
                    ),
                ),
                book_chunk(table(1, 1, 1, 1)),
                book_chunk(table(10, 1, 2, 3, BF16)),
                layr(
                    "two",
                    tensor(
                        "b",
                        "f32",
                        [2, 3],
                        Codebook(
                            codes(4, (2, 1), 2), table(10, 1, 2, 3, BF16), book=2, scale=Scale(scales(1, 2), rows=1)
                        ),
                        layout=ROWS,
                    ),
                ),
            ),
        ),
        valid(
            "book-entries-1",
            "codebooks of one entry take no bits",
            "COD-001",
            file(
                layr(
                    "",
                    tensor(
                        "a",
                        "f32",
                        [2, 3],
                        Codebook(
                            np.zeros((2, 2), int), table(11, 2, 1, 2), book_rows=1, scale=Scale(scales(4, 3), columns=1)
                        ),
                        layout=ROWS,
                    ),
                )
            ),
        ),
    ]


def groups() -> list[Case]:
    """Axes of 5 rows and 7 columns; groups of 2 and of 3 leave a short last one."""
    out = []
    for name, rows, columns, n in [
        ("rows", 2, 0, 3),
        ("columns", 0, 3, 3),
        ("rows-and-columns", 3, 2, 8),
        ("each-row", 1, 0, 5),
    ]:
        stage = Codebook(codes(1, (5, 7), 4), table(2, n, 4, 1), book_rows=rows, book_columns=columns)
        out.append(
            valid(
                f"book-groups-{name}",
                f"codebooks by groups of {rows} rows, {columns} columns (0: all)",
                "CBK-003",
                file(layr("", tensor("a", "f32", [5, 7], stage, layout=ROWS))),
            )
        )
    for name, rows, columns, n in [
        ("rows", 2, 0, 3),
        ("columns", 0, 3, 3),
        ("blocks", 3, 2, 8),
        ("each-row", 1, 0, 5),
        ("each-column", 0, 1, 7),
        ("each-element", 1, 1, 35),
    ]:
        stage = Codebook(codes(3, (5, 7), 4), table(4, 1, 4, 1), scale=Scale(scales(5, n), rows, columns))
        out.append(
            valid(
                f"scale-groups-{name}",
                f"scales by groups of {rows} rows, {columns} columns (0: all)",
                "CBK-003",
                file(layr("", tensor("a", "f32", [5, 7], stage, layout=ROWS))),
            )
        )
    both = Codebook(
        codes(6, (5, 4), 3),
        table(7, 6, 3, 2, BF16),
        book_rows=2,
        book_columns=3,
        scale=Scale(scales(8, 6, np.float16), rows=4, columns=3),
        planes=((3, 5),),
    )
    out.append(
        valid(
            "groups-of-both",
            "groups of codebooks count subvectors, groups of scales columns",
            "CBK-003",
            file(layr("", tensor("a", "f32", [5, 7], both, layout=ROWS))),
        )
    )
    for dim in (1, 2, 3, 4):
        stage = Codebook(codes(dim, (3, -(-7 // dim)), 5), table(dim, 1, 5, dim))
        out.append(
            valid(
                f"dim-{dim}",
                f"subvectors of {dim} of 7 columns" + (", the last one padded" if dim > 1 else ""),
                "CBK-001",
                file(layr("", tensor("a", "f32", [3, 7], stage, layout=ROWS))),
            )
        )
    wide = Codebook(codes(9, (3, 1), 2), table(9, 1, 2, 7))
    out.append(
        valid(
            "dim-all-columns",
            "subvectors of 7 of 7 columns, the greatest dim",
            "CBK-001",
            file(layr("", tensor("a", "f32", [3, 7], wide, layout=ROWS))),
        )
    )
    return out
